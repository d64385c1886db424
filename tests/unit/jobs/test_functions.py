from __future__ import annotations

import pytest

from pexecd.jobs.functions import function_problem


@pytest.mark.parametrize(
    "source",
    [
        "def validate(parameters, result):\n    return True\n",
        "if True:\n    def validate(p, r): ...\n",
        "try:\n    import x\nexcept ImportError:\n    def validate(p, r): ...\n",
        "with x:\n    validate = 1\n",
        "validate = lambda p, r: True\n",
        "validate: object = len\n",
        "from checks import validate\n",
        "from checks import other as validate\n",
        "from checks import *\n",
        "class validate: ...\n",
        "x = '\\d'\ndef validate(p, r): ...\n",
        "# -*- coding: latin-1 -*-\nx = '\xe4'\ndef validate(p, r): ...\n",
    ],
)
def test_a_function_is_found_without_running_the_file(source: str) -> None:
    assert function_problem(source.encode("latin-1"), "validate") is None


@pytest.mark.parametrize(
    ("source", "line", "problem"),
    [
        ("", 0, "has no function 'validate'"),
        ("def valdate(p, r): ...", 0, "has no function 'validate' (did you mean 'valdate'?)"),
        ("def f():\n    def validate(): ...", 0, "has no function 'validate'"),
        ("validate: int", 0, "has no function 'validate'"),
        ("async def validate(p, r): ...", 0, "has no function 'validate'"),
        ("\ndef validate(:\n", 2, "is not valid Python: invalid syntax"),
        ("\0", 0, "is not valid Python: source code string cannot contain null bytes"),
    ],
)
def test_a_function_that_is_not_there_is_a_mistake(source: str, line: int, problem: str) -> None:
    assert function_problem(source.encode(), "validate") == (line, problem)


def test_a_name_must_be_one() -> None:
    assert function_problem(b"", "a b") == (0, "'a b' is no name of a function")

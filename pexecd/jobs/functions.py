"""Is there such a function in that file? Found out without running the user's code."""

# Tests: tests/unit/jobs/test_functions.py

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator

from pexecd.jobs.mistakes import did_you_mean


def function_problem(source: bytes, name: str) -> tuple[int, str] | None:
    """What keeps a file from giving the function ``name``.

    Returns:
        The line in the file (0: none in particular) and what is wrong there, or None.
    """
    if not name.isidentifier():
        return 0, f"'{name}' is no name of a function"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are said when the function runs
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:  # the latter for NUL bytes, before 3.11.4
        return getattr(error, "lineno", 0) or 0, f"is not valid Python: {error.args[0]}"
    names = set(_names(tree.body))
    if name in names or "*" in names:
        return None
    return 0, f"has no function '{name}'{did_you_mean(name, names)}"


def _names(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a module's statements bind, also within ``if``, ``try`` and ``with``."""
    for statement in body:
        match statement:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.Assign(targets=targets):
                yield from (one.id for one in targets if isinstance(one, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value:
                yield name
            case ast.If(body=inner, orelse=other):
                yield from _names(inner + other)
            case ast.With(body=inner):
                yield from _names(inner)
            case ast.Try(body=inner, handlers=handlers, orelse=other, finalbody=last):
                yield from _names(inner + other + last)
                for handler in handlers:
                    yield from _names(handler.body)
            case _:
                pass

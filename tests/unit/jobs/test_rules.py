from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pexecd.jobs.values import CollectKind, CollectRule, FunctionRef, InputKind, ResultRule
from tests.unit.jobs.conftest import LEAST, Folder


def test_inputs_of_every_kind(folder: Folder) -> None:
    folder.write("model.in", "L = $L\n")
    folder.write("fields/16.dat", "")
    folder.write("fields/32.dat", "")

    job = folder.job(
        LEAST + "[input]\nstdin = seed\n./stdin = T\nsub/model.cfg = @ model.in\nf = <fields/$L.dat"
    )

    assert [(rule.file, rule.kind) for rule in job.inputs] == [
        ("stdin", InputKind.PARAMETER),
        ("./stdin", InputKind.PARAMETER),
        ("sub/model.cfg", InputKind.TEMPLATE),
        ("f", InputKind.FILE),
    ]
    assert job.inputs[0].source == "seed"


def test_every_wrong_input_is_named(folder: Folder) -> None:
    folder.write("model.in", "$L\n$nope $\n")

    assert folder.mistakes(
        LEAST
        + "[input]\n"
        + "/etc/x = seed\n"
        + "../x = seed\n"
        + "x/ = seed\n"
        + "a = sead\n"
        + "b = $seed\n"
        + "c = @none.in\n"
        + "d = @model.in\n"
        + "e = <$K.dat\n"
        + "f =\n"
        + "g = seed\n"
        + "./g = seed\n"
        + "g/h = seed\n"
        + "i = <fields/$L\n"
        + "j = <\n"
    ) == [
        "job.ini:6: /etc/x: is absolute, a path in the task's own folder expected",
        "job.ini:7: ../x: leads out of the task's own folder, a path without '..' expected",
        "job.ini:8: x/: names a folder, a file was expected",
        (
            "job.ini:9: a: 'sead' is no column of the parameter table (did you mean 'seed'?): "
            "a column, @TEMPLATE or <FILE expected"
        ),
        (
            "job.ini:10: b: '$seed' is no column of the parameter table (did you mean 'seed'?): "
            "a column, @TEMPLATE or <FILE expected"
        ),
        "job.ini:11: c: none.in does not exist",
        "job.ini:13: e: unknown variable '$K', a column of the parameter table expected",
        "job.ini:14: f: is empty, a value was expected (or leave the line out)",
        "job.ini:16: ./g: is in the way of 'g' in line 15",
        "job.ini:17: g/h: is in the way of 'g' in line 15",
        "job.ini:17: g/h: is in the way of './g' in line 16",
        "job.ini:19: j: '<': a file expected after it",
        "model.in:2: unknown variable '$nope', a column of the parameter table expected",
        "model.in:2: '$' begins no variable: $name or ${name} expected, or \\$ for a dollar sign",
        "sweep.txt:2: fields/16, for the input i, does not exist",
        "sweep.txt:3: fields/32, for the input i, does not exist",
    ]


def test_results_are_stdout_unless_they_are_named(folder: Folder) -> None:
    assert folder.job().results == (ResultRule("output", "stdout"),)
    job = folder.job(LEAST + "[result]\nlog = stderr\nspectrum = out/s.dat\nodd = ./stdout\n")
    assert job.results == (
        ResultRule("log", "stderr"),
        ResultRule("spectrum", "out/s.dat"),
        ResultRule("odd", "./stdout"),
    )


def test_every_wrong_result_is_named(folder: Folder) -> None:
    said = folder.mistakes(
        LEAST
        + "[result]\n"
        + "a b = stdout\n"
        + "failed = stdout\n"
        + "Ticket = stdout\n"
        + "a = /tmp/x\n"
        + "b = x/../y\n"
        + "c = out/$L.dat\n"
        + "d = .\n"
        + "e =\n"
        + "f = $Lx\n"
    )

    assert said == [
        "job.ini:6: a b: is no name for a result, letters, digits, '_-.' expected",
        "job.ini:7: failed: cannot be the name of a result: [collect] uses that word",
        "job.ini:8: Ticket: cannot be the name of a result: uploads use that word",
        "job.ini:9: a: '/tmp/x' is absolute, a path in the task's own folder expected",
        "job.ini:10: b: 'x/../y' leads out of the task's own folder, a path without '..' expected",
        (
            "job.ini:11: c: 'out/$L.dat' has $L in it, but nothing is filled in there: "
            "every task has a folder of its own, so give it a fixed name"
        ),
        "job.ini:12: d: '.' names a folder, a file was expected",
        "job.ini:13: e: is empty, a value was expected (or leave the line out)",
    ]
    assert folder.mistakes(
        LEAST + "[result]\na =\nfailed = x\n[validate]\na = number\n[collect]\nfailed = f.txt\n"
    ) == [
        "job.ini:6: a: is empty, a value was expected (or leave the line out)",
        "job.ini:7: failed: cannot be the name of a result: [collect] uses that word",
    ]
    assert folder.mistakes(LEAST + "[result]\n") == [
        "job.ini:5: [result] names no result, one like output = stdout expected"
    ]


@pytest.mark.parametrize(
    ("value", "tests"),
    [
        ("non_empty  one_line", [("non_empty", ""), ("one_line", "")]),
        ("number", [("number", "")]),
        ("match /^a b$/", [("match", "^a b$")]),
        ("match /a/b/", [("match", "a/b")]),
        (r"match /a\/ b\\/ number", [("match", r"a\/ b\\"), ("number", "")]),
        ("match /a/ match /non_empty b/", [("match", "a"), ("match", "non_empty b")]),
        ("match //", [("match", "")]),
    ],
)
def test_ready_made_tests(folder: Folder, value: str, tests: list[tuple[str, str]]) -> None:
    job = folder.job(f"{LEAST}[validate]\noutput = {value}\n")

    assert [(one.result, one.kind.value, one.regex) for one in job.tests] == [
        ("output", kind, regex) for kind, regex in tests
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("outptu = number", "[validate] has no key 'outptu' (did you mean 'output'?)"),
        (
            "stdout = number",
            (
                "[validate] has no key 'stdout', the name of a result (output; see [result]) or "
                "function expected"
            ),
        ),
        ("output = nonempty", "output: unknown test 'nonempty' (did you mean 'non_empty'?)"),
        ("output = match a", "output: match /REGEX/ expected"),
        ("output = match /a", "output: match /REGEX/ expected"),
        ("output = match /(/", "output: /(/ is no regular expression: missing )"),
        ("output = match /a/ b/", "output: unknown test 'b/'"),
        ("output =", "output: is empty"),
        ("function = validate", "function: 'validate': FILE:NAME expected"),
        ("function = :validate", "function: ':validate': FILE:NAME expected"),
        ("function = none.py:validate", "function: none.py does not exist"),
        ("function = checks.py:valid", "function: checks.py has no function 'valid'"),
    ],
)
def test_wrong_validation_is_named(folder: Folder, line: str, said: str) -> None:
    folder.write("checks.py", "def validate(parameters, result): return True\n")

    found = folder.mistakes(f"{LEAST}[validate]\n{line}\n")

    assert len(found) == 1
    assert found[0].startswith(f"job.ini:6: {said}")


def test_functions_are_found_without_running_them(folder: Folder) -> None:
    path = folder.write("my:checks.py", "1 / 0\ndef validate(parameters, result): ...\n")

    job = folder.job(LEAST + "[validate]\nfunction = my:checks.py:validate\n")

    assert job.validate == FunctionRef(path, "validate")


def test_a_function_s_file_that_is_no_python_is_named_with_its_line(folder: Folder) -> None:
    folder.write("checks.py", "\n\ndef validate(:\n")

    assert folder.mistakes(LEAST + "[validate]\nfunction = checks.py:validate\n") == [
        "checks.py:3: is not valid Python: invalid syntax"
    ]


def test_collecting_rules(folder: Folder) -> None:
    path = folder.write("collect.py", "def collect(parameters, result): ...\n")
    text = (
        LEAST
        + "[result]\na = stdout\nb = stderr\nc = c.dat\n"
        + "[collect]\na = table  my results.txt\nb = concat ../b.txt\nc = block /tmp/c.txt\n"
        + "failed = failed.txt\nfunction = collect.py:collect\norder = completion\n"
    )

    job = folder.job(text)

    assert [(rule.result, rule.kind) for rule in job.collect] == [
        ("a", CollectKind.TABLE),
        ("b", CollectKind.CONCAT),
        ("c", CollectKind.BLOCK),
    ]
    assert job.collect[0] == CollectRule("a", CollectKind.TABLE, folder.path / "my results.txt")
    assert job.collect[1].path == folder.path.parent / "b.txt"
    assert job.failed == folder.path / "failed.txt"
    assert job.collect_function == FunctionRef(path, "collect")
    assert job.by_completion


def test_every_wrong_collecting_rule_is_named(folder: Folder) -> None:
    folder.write("sub/x", "")
    said = folder.mistakes(
        LEAST
        + "[result]\na = stdout\nb = stderr\nc = c\nd = d\ne = e\nf = f\ng = g\nh = h\n"
        + "[collect]\n"
        + "a = tabel a.txt\n"
        + "b = table\n"
        + "c = concat c.txt\n"
        + "d = concat ./sub/../c.txt\n"
        + "e = concat sweep.txt\n"
        + "f = concat sub\n"
        + "g = concat none/g.txt\n"
        + "h = concat job.ini\n"
        + "nope = concat x.txt\n"
        + "failed = c.txt\n"
        + "order = size\n"
    )

    assert said == [
        (
            "job.ini:15: a: 'tabel a.txt' (did you mean 'table'?): concat, table, block and a file "
            "expected"
        ),
        "job.ini:16: b: 'table': concat, table, block and a file expected",
        "job.ini:18: d: ./sub/../c.txt is written by 'c' in line 17 already",
        "job.ini:19: e: sweep.txt would be written over: [job] parameters reads it",
        "job.ini:20: f: sub is a folder, a file was expected",
        "job.ini:21: g: none/g.txt cannot be written: there is no folder none",
        "job.ini:22: h: job.ini would be written over: the job file itself reads it",
        (
            "job.ini:23: [collect] has no key 'nope', the name of a result (a, b, c, d, e, f, g, "
            "h; see [result]), failed, function or order expected"
        ),
        "job.ini:24: failed: c.txt is written by 'c' in line 17 already",
        "job.ini:25: order: 'size': parameters or completion expected",
    ]


def test_the_failed_sets_need_no_rule(folder: Folder) -> None:
    said = folder.mistakes(LEAST + "[collect]\nfailed = table failed.txt\n")

    assert said == [
        "job.ini:6: failed: 'table failed.txt': a file alone expected, it is always a table"
    ]


def test_what_may_not_be_written_is_known_before_anything_starts() -> None:
    with TemporaryDirectory() as name:  # not tmp_path: only its owner gets through to it
        folder = Folder(Path(name))
        folder.write("open/old.txt", "")
        folder.write("closed/x", "")
        text = LEAST + "[collect]\noutput = concat open/old.txt\nfailed = closed/failed.txt\n"
        text = text.replace("[worker]", "state = closed/new/state\n[worker]")
        folder.write("job.ini", text)
        for path, mode in (
            ("", 0o777),
            ("open", 0o777),
            ("open/old.txt", 0o444),
            ("closed", 0o555),
        ):
            (folder.path / path).chmod(mode)
        (folder.path / "job.ini").chmod(0o666)
        with as_somebody():
            said = folder.mistakes(text)

    assert said == [
        (
            "job.ini:3: state: closed/new/state cannot be written: no permission for closed, or it "
            "is read-only; name another place with state = in [job]"
        ),
        "job.ini:7: output: open/old.txt cannot be written: no permission for open/old.txt",
        "job.ini:8: failed: closed/failed.txt cannot be written: no permission for closed",
    ]


@contextmanager
def as_somebody() -> Iterator[None]:
    """Without the rights of root, who may write anywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)

from __future__ import annotations

import pytest

from pexecd.jobs.doubts import doubts
from tests.unit.jobs.conftest import LEAST, Folder


def doubts_of(folder: Folder, worker: str, rest: str = "") -> list[str]:
    folder.write("w.py", "#!/usr/bin/env python3\n")
    text = f"[job]\nparameters = sweep.txt\n[worker]\n{worker}\n{rest}"
    return list(doubts(folder.job(text)))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("a $L | b", ["|"]),
        ("a $L > out.txt 2>&1", [">", "2>&1"]),
        ("a <in 2>err >>x$L", ["<in", "2>err", ">>x$L"]),
        ("cd x; a && b", ["x;", "&&"]),
        ("a `date`", ["`date`"]),
        ("~/bin/a $L", ["~/bin/a"]),
    ],
)
def test_what_only_a_shell_knows(folder: Folder, command: str, words: list[str]) -> None:
    said = doubts_of(folder, f"command = {command}")

    assert [one.split()[1] for one in said] == words
    assert all("shell = yes" in one for one in said)
    assert doubts_of(folder, f"command = {command}\nshell = yes") == []


@pytest.mark.parametrize("word", ["{}", "{1}", "{.}", "x{#}.dat", "{2/}"])
def test_what_only_gnu_parallel_knows(folder: Folder, word: str) -> None:
    [said] = doubts_of(folder, f"command = a {word}")

    assert "parameters are written $L, $T, $seed" in said


@pytest.mark.parametrize(
    "command",
    [
        r"""a '|' '>' ">" \; '{}' \> '`'""",
        "a ${L} $T{ --x=a;b {x} a|b -c a&b x->y http://a/?b&c=~/d",
        "awk '{ print > \"x\" } ; {}' $L",
        'a "$L; $T" "<$L>"',
    ],
)
def test_what_may_well_be_meant(folder: Folder, command: str) -> None:
    assert doubts_of(folder, f"command = {command}") == []


WORKER = "name = w.py\nexecutable = w.py\n"


@pytest.mark.parametrize(
    "command", ["./w.py $L", "python3 w.py $L", "/usr/bin/python3.11 w.py", "ls"]
)
def test_an_executable_that_is_not_run(folder: Folder, command: str) -> None:
    [said] = doubts_of(folder, f"{WORKER}command = {command}")

    assert "begin the command with w.py" in said


@pytest.mark.parametrize(
    "command",
    ["w.py $L", "timeout 5 w.py $L", "w.py | sort\nshell = yes", "sh -c 'w.py 1; w.py 2'"],
)
def test_an_executable_that_is_run(folder: Folder, command: str) -> None:
    assert doubts_of(folder, f"{WORKER}command = {command}") == []


def test_a_script_among_the_inputs_may_run_it(folder: Folder) -> None:
    folder.write("run.in", "w.py $L\n")

    assert doubts_of(folder, f"{WORKER}command = sh run.sh", "[input]\nrun.sh = @run.in\n") == []


def test_variables_in_env(folder: Folder) -> None:
    said = list(
        doubts(
            folder.job(
                LEAST
                + "[env]\nPATH = $PATH:/opt/bin\nSIZE = x${L}\nRATE = 100% $x $\nDIR = $HOME/d\n"
            )
        )
    )

    assert [one.split(",")[0] for one in said] == [
        "[env] PATH: $PATH is not filled in",
        "[env] SIZE: ${L} is not filled in",
        "[env] DIR: $HOME is not filled in",
    ]

"""A whole job whose state folder fills up: it pauses, room is made, it finishes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.running import JobFolder, interrupt
from tests.waiting import LONG, wait_until

TASKS = 40
#: Bytes of each result: kept in the spool.
SIZE = 200_000

JOB = """\
[job]
parameters = table.txt
state = small/job.pexecd
[worker]
name = big
command = big $n
executable = big.sh
[collect]
output = concat results.txt
[client]
ping = 1
"""

WORKER = f"""\
#!/bin/sh
printf "%{SIZE - 1}d\\n" "$1"
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB, half of what the results need."""
    folder = tmp_path / "job" / "small"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def until_it_pauses(process: subprocess.Popen[str]) -> None:
    printed: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line)
        if "work pauses" in line:
            return
    raise AssertionError(f"it never paused:\n{''.join(printed)}")


@pytest.mark.parametrize("killed", [False, True])
def test_it_pauses_and_goes_on_when_there_is_room(
    tmp_path: Path, small: Path, killed: bool
) -> None:
    job = JobFolder(
        tmp_path / "job", JOB, ["n", *map(str, range(1, TASKS + 1))], {"big.sh": WORKER}
    )
    process = job.start()
    until_it_pauses(process)
    if killed:  # a full disk is a pause for a master that starts, too
        process.kill()
        process.communicate()
        process = job.start()
        until_it_pauses(process)
    subprocess.run(["mount", "-o", "remount,size=64M", small], check=True)
    rest, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, rest
    assert "there is room again" in rest
    results = (tmp_path / "job" / "results.txt").read_bytes()
    assert results == b"".join(b"%*d\n" % (SIZE - 1, n) for n in range(1, TASKS + 1))
    state = small / "job.pexecd"
    assert not list(state.rglob("*.part"))
    assert len(list((state / "spool").iterdir())) == TASKS
    wait_until(lambda: not job.processes(), lambda: f"still there: {job.processes()}")
    assert '"outcome": "succeeded"' in (state / "statistics.json").read_text()


ECHO = """\
[job]
parameters = table.txt
state = small/job.pexecd
[worker]
command = echo $n
[collect]
output = table results.txt
"""


def stored(state: Path) -> list[str]:
    """The lines of the table that are in the database."""
    with closing(sqlite3.connect(state / "session.db")) as connection:
        found = connection.execute("SELECT cells FROM tasks WHERE number > 0 ORDER BY number")
        return [cells for (cells,) in found]


def tickets_of(state: Path, task: int) -> list[tuple[int]]:
    with closing(sqlite3.connect(state / "session.db")) as connection:
        return connection.execute("SELECT ticket FROM tickets WHERE task = ?", (task,)).fetchall()


def test_a_master_killed_while_the_table_is_stored_goes_on_with_it(
    tmp_path: Path, small: Path
) -> None:
    lines = [f"{n}|{'x' * 200}" for n in range(40_000)]  # two disks full
    job = JobFolder(tmp_path / "job", ECHO, ["n|more", *lines])
    state = small / "job.pexecd"
    process = job.start()
    until_it_pauses(process)
    process.kill()
    process.communicate()
    subprocess.run(["mount", "-o", "remount,size=64M", small], check=True)
    begun = stored(state)
    assert 0 < len(begun) < len(lines)
    assert begun == lines[: len(begun)]

    process = job.start()
    wait_until(lambda: "the whole table is stored" in (state / "log" / "master.log").read_text())
    wait_until(lambda: json.loads((state / "statistics.json").read_text())["done"] > 0)
    interrupt(process)
    job.finish(process, expect=130)
    assert stored(state) == lines
    with closing(sqlite3.connect(state / "session.db")) as connection:
        (done,) = connection.execute("SELECT min(task) FROM settled").fetchone()
    before = tickets_of(state, done)

    (job.path / "table.txt").write_text(f"n|more\nnew|1\n{lines[done - 1]}\n")
    assert "1 tasks keep what they have, 1 are new, 39999 are in the" in job.run()
    assert job.lines("results.txt")[1:] == ["new|1|new", f"{lines[done - 1]}|{done - 1}"]
    assert tickets_of(state, 2) == before
    wait_until(lambda: not job.processes(), lambda: f"still there: {job.processes()}")

"""A whole job whose state folder fills up: it pauses, room is made, it finishes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import LONG, JobFolder, wait_until

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

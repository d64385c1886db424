"""A state folder that was damaged between two runs: what can go on does, the rest says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.running import JobFolder

JOB = """\
[job]
parameters = table.txt
[worker]
command = big.sh $n
name = big.sh
executable = big.sh
[collect]
output = concat out.txt
"""

#: Its results are too large for the database.
WORKER = """\
#!/bin/sh
head -c 50000 /dev/zero | tr '\\0' "$1"
"""


@pytest.fixture
def done(tmp_path: Path) -> JobFolder:
    job = JobFolder(tmp_path / "job", JOB, ["n", "1", "2", "3"], {"big.sh": WORKER})
    job.run()
    return job


def test_results_whose_files_are_gone_are_made_again(done: JobFolder) -> None:
    whole = (done.path / "out.txt").read_bytes()
    assert len(whole) == 150_000
    gone, cut, _ = sorted((done.state / "spool").iterdir())
    gone.unlink()
    gone.symlink_to("nowhere")
    cut.write_bytes(cut.read_bytes()[:100])
    output = done.run()
    for name in (gone.name, cut.name):
        assert f"result is gone: spool/{name}" in output
    assert done.statistics()["tickets"] == 5
    assert (done.path / "out.txt").read_bytes() == whole
    assert len(list((done.state / "spool").iterdir())) == 3
    assert "gone" not in done.run()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: (state / "session.db").write_bytes(b"x" * 9000), "not a database of pexecd"),
        (lambda state: (state / "session.db-wal").write_bytes(b"x" * 9000), "-wal: is damaged"),
        (lambda state: cut_in_half(state / "session.db"), "session.db: "),
        (lambda state: (state / "session.db").unlink(), "session.db: is gone"),
        (lambda state: (state / "session.db").write_bytes(b""), "session.db: is empty"),
        (lambda state: file_for_folder(state / "spool"), "spool: cannot be read: "),
        (lambda state: file_for_folder(state / "log"), "log: File exists; start again when"),
        (lambda state: file_for_folder(state / "worker"), "worker: File exists; start again when"),
    ],
)
def test_what_cannot_go_on_says_why_in_a_line(done: JobFolder, damage: object, said: str) -> None:
    assert callable(damage)
    damage(done.state)
    output = done.run(expect=2)
    assert said in output
    assert "Traceback" not in output
    assert len(output.splitlines()) == 1
    done.run("--fresh")


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def file_for_folder(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.touch()

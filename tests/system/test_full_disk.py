"""A disk that is really full: the store waits, loses nothing, and goes on when there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from pexecd.core.effects import TaskDone, TicketGiven
from pexecd.core.values import End
from pexecd.errors import JournalError, StateError
from pexecd.ports import JoblogRow, ResultKept, StoredResult
from pexecd.store import Joblog, Journal, Spool, StateFolder, StatisticsFile, write_json
from pexecd.store.batches import RETRIED
from pexecd.store.problems import RESERVE, try_disk
from tests.pump import Pump

FULL = "No space left on device"

Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, with 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", path], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"mounting is not allowed here: {made.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def remount(disk: Path) -> Mount:
    """Mounts the disk with other options."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)

    return mount


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    yield pump
    pump.stop()


def fill(disk: Path, free: int = 0) -> Path:
    """Leave no more than so many bytes free."""
    ballast = disk / "session.db-ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - free))
    return ballast


def append(journal: Journal, number: int, data: bytes) -> Deferred[None]:
    ticket = 9999 + number
    return journal.append(
        [
            TicketGiven(ticket, number, "c", "h", managed=True, speaks=True),
            ResultKept(ticket, number, (StoredResult("output", len(data), data, None),)),
            TaskDone(number, ticket),
        ]
    )


def test_the_journal_fills_the_disk_stalls_and_goes_on(
    disk: Path, remount: Mount, pump: Pump
) -> None:
    folder = StateFolder.claim(disk)
    journal = Journal.open(folder.database, pump)
    told: list[str] = []
    journal.watch(told.append)
    confirmed: list[int] = []
    waiting: list[Deferred[None]] = []

    def confirm(_: None, number: int) -> None:
        confirmed.append(number)

    number = 0
    while not journal.stalled:
        number += 1
        assert number < 2000
        waiting.append(append(journal, number, os.urandom(10_000)).addCallback(confirm, number))
        if number % 5 == 0:
            pump.step()
    for _ in range(10):
        pump.advance(1)
        pump.step()
    assert told == [f"{folder.database}: {FULL}"]
    assert 100 < len(confirmed) < number
    # Whoever looks now finds what was confirmed, and no more is needed.
    assert set(dict(journal.recovery().settled())) >= set(confirmed)
    assert len(pump.wait(journal.results([9999 + confirmed[-1]]))) == 1

    remount("size=40m")
    pump.advance(1)
    for done in waiting:
        pump.wait(done)
    assert told[1:] == [""]
    assert confirmed == list(range(1, number + 1))
    assert list(dict(journal.recovery().settled())) == confirmed
    pump.wait(journal.close())
    folder.release()


def test_a_journal_that_is_closed_on_a_full_disk_keeps_what_was_confirmed(
    disk: Path, pump: Pump
) -> None:
    folder = StateFolder.claim(disk)
    journal = Journal.open(folder.database, pump)
    pump.wait(append(journal, 1, b"x" * 10_000))
    fill(disk)
    waiting = append(journal, 2, b"x" * 200_000)
    failed: list[object] = []
    waiting.addErrback(failed.append)
    pump.wait(journal.close())
    assert len(failed) == 1
    folder.release()

    folder = StateFolder.claim(disk)  # the full disk is no hindrance
    (disk / "session.db-ballast").unlink()
    journal = Journal.open(folder.database, pump)
    assert dict(journal.recovery().settled()) == {1: 10000}
    pump.wait(journal.close())
    folder.release()


def test_the_spool_gives_back_its_room_and_knows_when_there_is_some(
    disk: Path, remount: Mount, pump: Pump
) -> None:
    spool = Spool(disk / "spool", pump)

    def store(ticket: int) -> None:
        upload = spool.upload(ticket)
        upload.begin("output", None)
        upload.write(os.urandom(700_000))
        pump.wait(upload.finish())

    for ticket in range(10000, 10005):
        store(ticket)
    with pytest.raises(JournalError, match=f"spool: {FULL}"):
        store(10005)
    assert len(os.listdir(disk / "spool")) == 5, "nothing half-written stays"
    assert pump.wait(spool.probe()) == f"{disk}/spool: {FULL}"
    assert len(os.listdir(disk / "spool")) == 5

    remount("size=8m")
    assert pump.wait(spool.probe()) == ""
    store(10005)
    pump.wait(spool.close())


def test_a_little_room_is_no_room(disk: Path) -> None:
    fill(disk, free=RESERVE // 2)
    problem = try_disk(disk)
    assert problem is not None
    assert problem.strerror == FULL
    (disk / "session.db-ballast").unlink()
    assert try_disk(disk) is None
    assert os.listdir(disk) == []


def test_reports_are_whole_or_not_there_and_made_up_for(disk: Path, pump: Pump) -> None:
    joblog, statistics = Joblog(disk / "joblog.tsv", pump), StatisticsFile(disk / "s.json", pump)
    joblog.rewrite([])
    head = (disk / "joblog.tsv").read_text()
    ballast = fill(disk)
    room = os.statvfs(disk).f_bavail
    for number in range(100):
        joblog.add([(row(number, "x" * 500), "work")])
        numbers = {"done": number, "text": "x" * 10_000}
        statistics.write(partial(lambda numbers, _: numbers, numbers))
    for _ in range(6):
        while len(pump.getDelayedCalls()) < 2:  # until both have been refused again
            pump.step()
        pump.advance(RETRIED)
    while len(pump.getDelayedCalls()) < 2:
        pump.step()
    written = (disk / "joblog.tsv").read_text()
    assert written.endswith("\n")
    assert written.startswith(head)
    assert sorted(os.listdir(disk)) == ["joblog.tsv", ballast.name]
    with pytest.raises(StateError, match=rf"session\.json: cannot be written: {FULL}"):
        write_json(disk / "session.json", {"text": "x" * 10_000})
    assert room <= os.statvfs(disk).f_bavail
    ballast.unlink()
    pump.wait(joblog.close())
    pump.wait(statistics.close())
    lines = (disk / "joblog.tsv").read_text().splitlines()
    assert [int(line.split("\t")[0]) for line in lines[1:]] == list(range(100))
    assert '"done": 99' in (disk / "s.json").read_text()


def row(task: int, reason: str) -> JoblogRow:
    return JoblogRow(10000 + task, task, "h", 0.0, 1.0, End.FAILED.value, 1, 0, 0, 0, reason)


def test_a_disk_that_is_full_from_the_start_is_named(disk: Path, pump: Pump) -> None:
    folder = StateFolder.claim(disk)
    fill(disk)
    with pytest.raises(StateError, match=f"session.db: {FULL}; start again when that is over"):
        Journal.open(folder.database, pump)
    folder.release()


def test_a_read_only_disk_is_named(disk: Path, remount: Mount) -> None:
    remount("ro")
    words = "cannot be used as state folder: Read-only file system; name another place"
    for path in (disk, disk / "state"):
        with pytest.raises(StateError, match=words):
            StateFolder.claim(path)

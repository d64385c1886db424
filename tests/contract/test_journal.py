"""One suite for every ``IJournal``: SQLite's, and the one in memory that other tests use."""

from __future__ import annotations

import resource
import shutil
import tempfile
from pathlib import Path
from typing import TypeVar, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from pexecd.core.effects import (
    TaskDone,
    TaskFailed,
    TaskReopened,
    TicketEnded,
    TicketGiven,
)
from pexecd.core.values import End
from pexecd.errors import JournalError
from pexecd.ports import (
    Collected,
    IJournal,
    JoblogRow,
    JournalRecord,
    NotCollected,
    ResultDropped,
    ResultKept,
    StoredResult,
    TaskRow,
)
from pexecd.store.batches import IReactor
from pexecd.store.journal import Journal
from pexecd.store.mounts import TRUNCATE, WAL
from tests.contract.memory import MemoryJournal
from tests.pump import Pump

T = TypeVar("T")

TABLE = [("32", "2.269"), ("64", "a value"), ("", "ü")]


def kept(ticket: int, data: bytes = b"0.6\n") -> ResultKept:
    return ResultKept(
        ticket,
        1,
        (
            StoredResult("output", len(data), data, None),
            StoredResult("field", 10**9, None, f"spool/{ticket}-field"),
        ),
    )


class JournalContract:
    """What every journal does; ``self.journal`` holds ``TABLE``."""

    journal: IJournal

    def test_it_provides_the_port(self) -> None:
        verifyObject(IJournal, self.journal)

    async def test_the_table_is_read_in_pieces(self) -> None:
        assert await self.journal.rows(1, 2) == [TaskRow(1, TABLE[0]), TaskRow(2, TABLE[1])]
        assert await self.journal.rows(3, 100) == [TaskRow(3, TABLE[2])]
        assert await self.journal.rows(4, 100) == []

    async def test_a_query_sees_what_was_appended_before_it(self) -> None:
        appended = self.journal.append([kept(10000)])
        found = await self.journal.results([10000, 10001])
        assert found == {10000: kept(10000).results}
        await appended

    async def test_results_of_many_tickets_at_once(self) -> None:
        tickets = range(10000, 11300)
        await self.journal.append([kept(ticket, b"%d" % ticket) for ticket in tickets])
        found = await self.journal.results(tickets)
        assert [found[ticket][0].data for ticket in tickets] == [b"%d" % t for t in tickets]

    async def test_a_dropped_result_is_gone(self) -> None:
        await self.journal.append([kept(10000), kept(10001), ResultDropped(10000)])
        assert await self.journal.results([10000, 10001]) == {10001: kept(10001).results}
        await self.journal.append([ResultDropped(10001)])
        await self.journal.append([ResultDropped(10001)])
        assert await self.journal.results([10000, 10001]) == {}

    async def test_a_result_dropped_and_kept_again_is_there(self) -> None:
        await self.journal.append([kept(10000), ResultDropped(10000), kept(10000, b"new")])
        assert await self.journal.results([10000]) == {10000: kept(10000, b"new").results}

    async def test_failures_come_by_number_and_in_pieces(self) -> None:
        await self.journal.append(
            [TaskFailed(3, "late"), TaskDone(2, 10001), TaskFailed(1, "a\nb")]
        )
        assert await self.journal.failures(0, 10) == [(1, "a\nb"), (3, "late")]
        assert await self.journal.failures(0, 1) == [(1, "a\nb")]
        assert await self.journal.failures(1, 10) == [(3, "late")]

    async def test_a_task_that_is_done_after_all_is_no_failure(self) -> None:
        await self.journal.append([TaskFailed(1, "lost")])
        await self.journal.append([TaskDone(1, 10004)])
        assert await self.journal.failures(0, 10) == []

    async def test_a_task_that_was_reopened_is_no_failure_until_it_fails_again(self) -> None:
        await self.journal.append([TaskFailed(1, "lost"), TaskFailed(2, "no")])
        await self.journal.append([TaskReopened(1, 10004), TaskReopened(2, 10004)])
        assert await self.journal.failures(0, 10) == []
        await self.journal.append([TaskFailed(2, "again"), TaskReopened(1, 10005)])
        assert await self.journal.failures(0, 10) == [(2, "again")]

    async def test_what_is_to_be_told_of_tickets_that_ended(self) -> None:
        await self.journal.append(
            [
                TicketGiven(10000, 2, "c", "lab1", True, True),
                TicketGiven(10001, 1, "c", "lab2", True, True),
                kept(10000),
                TicketEnded(10000, 2, End.FAILED, "exit status 3", 3, 0, 0.5, b"tail"),
            ]
        )
        ((row, task),) = await self.journal.ended([10000, 10001, 10002])
        received = sum(result.size for result in kept(10000).results)
        assert row._replace(given=0.0) == JoblogRow(
            10000, 2, "lab1", 0.0, 0.5, "failed", 3, 0, 0, received, "exit status 3", b"tail"
        )
        assert task == TaskRow(2, TABLE[1])

    async def test_every_record_may_come_twice(self) -> None:
        records: list[JournalRecord] = [
            TicketGiven(10000, 1, "c", "h", True, True),
            kept(10000),
            TicketEnded(10000, 1, End.DONE, "", 0, 0, 0.5, b""),
            TaskDone(1, 10000),
            Collected("/out", 10, 1, (3,)),
            NotCollected(1, "ValueError"),
        ]
        await self.journal.append(records)
        await self.journal.append(records)
        await self.journal.append(records[:1])
        assert await self.journal.results([10000]) == {10000: kept(10000).results}
        assert len(await self.journal.ended([10000])) == 1

    async def test_appends_fire_in_their_order(self) -> None:
        fired: list[int] = []

        def note(_: None, number: int) -> None:
            fired.append(number)

        waiting = [
            self.journal.append([TaskDone(number, 10000 + number)]).addCallback(note, number)
            for number in range(50)
        ]
        waiting.append(self.journal.append([]).addCallback(note, 50))
        await gatherResults(waiting)
        assert fired == list(range(51))

    async def test_close_writes_what_waits_and_then_refuses(self) -> None:
        written = self.journal.append([kept(10000)])
        await self.journal.close()
        assert written.called
        await written
        for refused in (
            self.journal.append([]),
            self.journal.results([1]),
            self.journal.rows(1, 1),
        ):
            with self.assertRaises(JournalError):  # type: ignore[attr-defined]
                await refused
        await self.journal.close()


class SQLiteJournalTests(JournalContract, TestCase):
    mode = WAL

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        journal = Journal.open(folder / "session.db", cast("IReactor", reactor), mode=self.mode)
        self.addCleanup(journal.close)
        journal.load((("|".join(cells), None) for cells in TABLE), {})
        self.journal = journal


class RollbackJournalTests(SQLiteJournalTests):
    """As on a network file system."""

    mode = TRUNCATE


class MemoryJournalTests(JournalContract, TestCase):
    def setUp(self) -> None:
        self.journal = MemoryJournal(TABLE)


class StallContract:
    """What every journal does on a disk that refuses for a reason that can pass."""

    journal: IJournal

    def done(self, waiting: Deferred[T]) -> T:
        """What this fires with; go on until it does."""
        raise NotImplementedError

    def fill(self) -> None:
        """No write works any more."""
        raise NotImplementedError

    def make_room(self) -> None:
        """Writes work again."""
        raise NotImplementedError

    def pass_time(self, seconds: int) -> None:
        """Let time pass, and all tries of that time."""
        raise NotImplementedError

    def test_a_full_disk_stalls_and_nothing_is_lost_or_turned_round(self) -> None:
        told: list[str] = []
        self.journal.watch(told.append)
        self.done(self.journal.append([kept(10000)]))
        self.fill()
        first, second = self.journal.append([kept(10001)]), self.journal.append([])
        self.pass_time(3)
        assert self.journal.stalled
        assert "\n" not in self.journal.stalled
        assert told == [self.journal.stalled]
        assert self.done(self.journal.results([10000, 10001])) == {10000: kept(10000).results}
        assert [row.number for row in self.done(self.journal.rows(2, 5))] == [2, 3]
        third = self.journal.append([ResultDropped(10000)])
        self.pass_time(3)
        assert not any(waiting.called for waiting in (first, second, third))
        fired: list[int] = []

        def note(_: None, number: int) -> None:
            fired.append(number)

        for number, waiting in enumerate((first, second, third)):
            waiting.addCallback(note, number)
        self.make_room()
        self.done(third)
        assert fired == [0, 1, 2]
        assert (self.journal.stalled, told[1:]) == ("", [""])
        found = self.done(self.journal.results([10000, 10001]))
        assert found == {10001: kept(10001).results}

    def test_a_stalled_journal_that_is_closed_fails_those_who_wait(self) -> None:
        self.fill()
        waiting = self.journal.append([kept(10000)])
        self.pass_time(2)
        failed: list[Failure] = []
        waiting.addErrback(failed.append)
        self.done(self.journal.close())
        assert failed[0].check(JournalError)

    def test_closing_tries_once_more(self) -> None:
        self.fill()
        waiting = self.journal.append([kept(10000)])
        self.pass_time(2)
        self.make_room()
        closed = self.journal.close()
        self.done(waiting)
        self.done(closed)


class SQLiteStallTests(StallContract, TestCase):
    mode = WAL

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.pump = Pump()
        self.addCleanup(self.pump.stop)
        self.path = folder / "session.db"
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(self.make_room)
        journal = Journal.open(self.path, self.pump, mode=self.mode)
        self.addCleanup(lambda: self.pump.wait(journal.close()))
        journal.load((("|".join(cells), None) for cells in TABLE), {})
        self.journal = journal

    def done(self, waiting: Deferred[T]) -> T:
        while not waiting.called:
            if not self.pump.getDelayedCalls():
                return self.pump.wait(waiting)
            self.pass_time(1)
        return self.pump.wait(waiting)

    def fill(self) -> None:
        # No file can be written beyond its beginning: a disk that is full, for everybody.
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, self.limits[1]))

    def make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.pump.advance(1)
            self.pump.wait(self.journal.rows(1, 1))  # the writer has done what it was given


class RollbackStallTests(SQLiteStallTests):
    mode = TRUNCATE


class MemoryStallTests(StallContract, TestCase):
    def setUp(self) -> None:
        self.journal: MemoryJournal = MemoryJournal(TABLE)

    def done(self, waiting: Deferred[T]) -> T:
        return self.successResultOf(waiting)

    def fill(self) -> None:
        self.journal.full = True

    def make_room(self) -> None:
        self.journal.full = False

    def pass_time(self, seconds: int) -> None:
        pass


class HeldMemoryJournalTests(TestCase):
    """What the fake can do besides: play a slow or broken disk."""

    def test_what_is_held_waits_in_order(self) -> None:
        journal = MemoryJournal(TABLE)
        journal.hold()
        first: Deferred[None] = journal.append([kept(10000)])
        asked = journal.results([10000])
        self.assertNoResult(first)
        self.assertNoResult(asked)
        assert journal.records == []
        journal.release()
        self.successResultOf(first)
        assert self.successResultOf(asked) == {10000: kept(10000).results}

    def test_a_broken_disk_fails_the_append_and_nothing_is_kept(self) -> None:
        journal = MemoryJournal(TABLE)
        journal.broken = True
        self.failureResultOf(journal.append([kept(10000)]), JournalError)
        assert self.successResultOf(journal.results([10000])) == {}

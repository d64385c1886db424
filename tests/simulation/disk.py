"""The journal: what a disk holds, and the writer that brings records there, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pexecd.core.effects import (
    Replayed,
    TaskDone,
    TaskFailed,
    TasksSettled,
    TicketEnded,
    TicketGiven,
    TicketsPast,
)
from pexecd.core.values import End
from pexecd.ports import JournalRecord, ResultDropped, ResultKept
from tests.simulation.audit import Audit
from tests.simulation.world import World

_JUDGED = {End.DONE, End.INVALID}

#: Called when the records are on disk.
Committed = Callable[[], None]


class Disk:
    """What is left after a crash, in the tables of ``pexecd/store/schema.py``."""

    def __init__(self) -> None:
        self.given: dict[int, TicketGiven] = {}
        self.ended: dict[int, TicketEnded] = {}
        self.settled: dict[int, TaskDone | TaskFailed] = {}
        #: The kept results, by ticket: whether they are what the validator wants.
        self.results: dict[int, bool] = {}
        self.full = False
        #: There may be clients who were not told that all is over.
        self.clients = False

    def write(self, records: Sequence[JournalRecord]) -> None:
        """One transaction."""
        for record in records:
            match record:
                case TicketGiven():
                    self.given[record.ticket] = record
                case TicketEnded():
                    self.ended[record.ticket] = record
                case TaskDone() | TaskFailed():
                    self.settled[record.task] = record
                case ResultKept():
                    self.results[record.ticket] = record.results[0].data == GOOD
                case ResultDropped():
                    self.results.pop(record.ticket, None)
                case _:
                    raise AssertionError(record)

    def replay(self) -> Iterator[Replayed]:
        """As ``Recovery.replay`` does."""
        ends = bytearray(max(self.settled, default=0) + 1)
        for task, settled in self.settled.items():
            ends[task] = 1 if isinstance(settled, TaskDone) else 2
        yield TasksSettled(bytes(ends))
        for ticket, given in sorted(self.given.items()):
            ended = self.ended.get(ticket)
            if ended is not None and given.task in self.settled:
                yield TicketsPast(ticket, [given.task], [given.host], [ended.end], [ended.seconds])
                continue
            yield given
            if ended is not None:
                yield ended

    def kept(self) -> list[int]:
        """As ``Recovery.kept`` does."""
        return [
            ticket
            for ticket in sorted(self.results)
            if (ticket not in self.ended or self.ended[ticket].end not in _JUDGED)
            and not isinstance(self.settled.get(self.given[ticket].task), TaskDone)
        ]

    def is_done(self, task: int) -> bool:
        """Whether the task has its result."""
        return isinstance(self.settled.get(task), TaskDone)


#: What a result that is valid holds, and one that is not.
GOOD, BAD = b"good", b"bad"


class Writer:
    """Commits whatever waits, in one transaction, while the master goes on deciding.

    As ``pexecd.store.Journal``: while the disk is full it is stalled; it tries again every
    second, and all wait.

    Args:
        world: its time; a crash between the steps loses what is not committed.
        disk: where it goes.
        audit: sees every commit.
        on_stall: called when the disk refuses.
    """

    def __init__(
        self, world: World, disk: Disk, audit: Audit, on_stall: Callable[[], None]
    ) -> None:
        self._world = world
        self._disk = disk
        self._audit = audit
        self._queue: list[tuple[Sequence[JournalRecord], Committed]] = []
        self._working = False
        self._on_stall = on_stall
        self.stalled = False
        self.closed = False

    def append(self, records: Sequence[JournalRecord], committed: Committed) -> None:
        """See ``IJournal.append``."""
        self._queue.append((records, committed))
        if not self._working:
            self._work()

    def _work(self) -> None:
        batch, self._queue = self._queue, []
        self._working = True
        self._world.later(self._world.dice.choice((0.001, 0.01, 0.3)), self._commit, batch)

    def _commit(self, batch: list[tuple[Sequence[JournalRecord], Committed]]) -> None:
        if self.closed:
            return
        if self._disk.full:
            self._world.later(1.0, self._commit, batch)
            if not self.stalled:
                self.stalled = True
                self._on_stall()
            return
        self.stalled = False
        records = [record for some, _ in batch for record in some]
        self._audit.commits(records)
        self._disk.write(records)
        self._world.step()
        self._world.later(self._world.dice.choice((0.0, 0.001, 0.1)), self._tell, batch)

    def _tell(self, batch: list[tuple[Sequence[JournalRecord], Committed]]) -> None:
        if self.closed:
            return
        for _, committed in batch:
            committed()
        self._working = False
        if self._queue and not self.closed:
            self._work()

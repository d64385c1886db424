"""Journal and spool in memory: what tests of other parts stand on.

They pass the same suites as the real ones (``test_journal.py``, ``test_spool.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from pexecd.core.effects import TaskDone, TaskFailed, TaskReopened, TicketEnded, TicketGiven
from pexecd.errors import JournalError
from pexecd.ports import (
    IJournal,
    ISpool,
    IUpload,
    JoblogRow,
    JournalRecord,
    ResultDropped,
    ResultKept,
    StoredResult,
    TaskRow,
)

T = TypeVar("T")


@implementer(IJournal)
class MemoryJournal:
    """A journal whose disk a test can slow down (``hold``), fill (``full``) and break.

    Attributes:
        records: what is on the disk.
        broken: while True, every write fails for good.
    """

    def __init__(self, table: Iterable[Sequence[str]] = ()) -> None:
        self.records: list[JournalRecord] = []
        self.broken = False
        self.stalled = ""
        self._table = [TaskRow(number, tuple(cells)) for number, cells in enumerate(table, 1)]
        self._waiting: list[tuple[Sequence[JournalRecord], Deferred[None]]] = []
        self._full = False
        self._held = False
        self._closed = False
        self._watchers: list[Callable[[str], None]] = []

    def hold(self) -> None:
        """Let everybody wait from now on."""
        self._held = True

    def release(self) -> None:
        """Write what waits, and whatever comes."""
        self._held = False
        self._write()

    @property
    def full(self) -> bool:
        """While True, the first write stalls the journal; then False lets it go on."""
        return self._full

    @full.setter
    def full(self, full: bool) -> None:
        self._full = full
        self._write()

    def watch(self, changed: Callable[[str], None]) -> None:
        self._watchers.append(changed)

    def append(self, records: Sequence[JournalRecord]) -> Deferred[None]:
        if self._closed:
            return fail(JournalError("closed"))
        done: Deferred[None] = Deferred()
        self._waiting.append((records, done))
        self._write()
        return done

    def _write(self) -> None:
        if self._held:
            return
        refused = self._full and any(records for records, _ in self._waiting)
        if refused != bool(self.stalled):
            self.stalled = "disk full" if refused else ""
            for changed in self._watchers:
                changed(self.stalled)
        if refused:
            return
        waiting, self._waiting = self._waiting, []
        if not self.broken:
            for records, _ in waiting:
                self.records += records
        for records, done in waiting:
            if self.broken and records:
                done.errback(JournalError("disk broken"))
            else:
                done.callback(None)

    def rows(self, first: int, count: int) -> Deferred[list[TaskRow]]:
        return self._after_all(self._table[first - 1 : first - 1 + count])

    def results(self, tickets: Sequence[int]) -> Deferred[dict[int, tuple[StoredResult, ...]]]:
        kept: dict[int, tuple[StoredResult, ...]] = {}
        for record in self._all():
            if isinstance(record, ResultKept):
                kept[record.ticket] = record.results
            elif isinstance(record, ResultDropped):
                kept.pop(record.ticket, None)
        return self._after_all({ticket: kept[ticket] for ticket in tickets if ticket in kept})

    def failures(self, after: int, count: int) -> Deferred[list[tuple[int, str]]]:
        failed: dict[int, str] = {}
        for record in self._all():
            if isinstance(record, TaskFailed):
                failed[record.task] = record.reason
            elif isinstance(record, TaskDone | TaskReopened):
                failed.pop(record.task, None)
        later = sorted(entry for entry in failed.items() if entry[0] > after)
        return self._after_all(later[:count])

    def ended(self, tickets: Sequence[int]) -> Deferred[list[tuple[JoblogRow, TaskRow]]]:
        given: dict[int, TicketGiven] = {}
        ended: dict[int, TicketEnded] = {}
        received: dict[int, int] = {}
        for record in self._all():
            if isinstance(record, TicketGiven):
                given[record.ticket] = record
            elif isinstance(record, TicketEnded):
                ended[record.ticket] = record
            elif isinstance(record, ResultKept):
                received[record.ticket] = sum(result.size for result in record.results)
        rows = []
        for ticket in tickets:
            end = ended.get(ticket)
            if end is not None:
                row = JoblogRow(
                    ticket, end.task, given[ticket].host, 0.0, end.seconds, end.end.value,
                    end.exit_status, end.signal, 0, received.get(ticket, 0), end.reason, end.stderr,
                )  # fmt: skip
                rows.append((row, self._table[end.task - 1]))
        return self._after_all(rows)

    def close(self) -> Deferred[None]:
        self.release()
        self._closed = True
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done.errback(JournalError(self.stalled))
        return succeed(None)

    def _all(self) -> list[JournalRecord]:
        if not self._held:
            return self.records
        return self.records + [record for records, _ in self._waiting for record in records]

    def _after_all(self, answer: T) -> Deferred[T]:
        if self._closed:
            return fail(JournalError("closed"))
        if not self._held:
            return succeed(answer)
        return self.append(()).addCallback(lambda _: answer)


@implementer(ISpool)
class MemorySpool:
    """A spool that keeps results of any size in memory.

    Attributes:
        kept: the results of every upload that was finished and not aborted, by ticket, and those
            that were stored.
        discarded: what was to be deleted.
        full: while True, nothing can be stored.
        inline: larger results than this are taken as uploads.
        gate: what the end of every upload waits for, and ``store``.
    """

    def __init__(self) -> None:
        self.kept: dict[int, list[tuple[StoredResult, ...]]] = {}
        self.discarded: list[StoredResult] = []
        self.full = False
        self.inline = 16 * 1024
        self.gate: Deferred[None] | None = None

    def upload(self, ticket: int) -> MemoryUpload:
        return MemoryUpload(self, ticket)

    def store(
        self, results: Mapping[int, Mapping[str, bytes]]
    ) -> Deferred[dict[int, tuple[StoredResult, ...]]]:
        later: Deferred[None] = Deferred()
        if self.gate is None:
            later.callback(None)
        else:
            self.gate.chainDeferred(later)

        def store(_: None) -> dict[int, tuple[StoredResult, ...]]:
            if self.full:
                raise JournalError("disk full")
            stored = {
                ticket: tuple(
                    StoredResult(name, len(data), data, None) for name, data in all_.items()
                )
                for ticket, all_ in results.items()
            }
            for ticket, kept in stored.items():
                self.kept.setdefault(ticket, []).append(kept)
            return stored

        return later.addCallback(store)

    def fits(self, contents: Mapping[str, bytes]) -> bool:
        return max(map(len, contents.values()), default=0) <= self.inline

    def path(self, result: StoredResult) -> Path | None:
        return None

    def discard(self, results: Sequence[StoredResult]) -> None:
        self.discarded += results

    def probe(self) -> Deferred[str]:
        return succeed("disk full" if self.full else "")


@implementer(IUpload)
class MemoryUpload:
    """See ``MemorySpool``."""

    def __init__(self, spool: MemorySpool, ticket: int) -> None:
        self._spool = spool
        self._ticket = ticket
        self._parts: list[tuple[str, bytearray]] = []
        self._results: tuple[StoredResult, ...] | None = None
        self._aborted = False

    def begin(self, name: str, length: int | None) -> None:
        self._parts.append((name, bytearray()))

    def write(self, data: bytes) -> Deferred[None] | None:
        if not self._aborted:
            self._parts[-1][1].extend(data)
        return None

    def finish(self) -> Deferred[tuple[StoredResult, ...]]:
        if self._spool.gate is not None:
            later: Deferred[None] = Deferred()
            self._spool.gate.chainDeferred(later)
            return later.addCallback(lambda _: self._finish())
        return self._finish()

    def _finish(self) -> Deferred[tuple[StoredResult, ...]]:
        if self._aborted:
            return fail(JournalError("given up"))
        if self._spool.full:
            return fail(JournalError("disk full"))
        self._results = tuple(
            StoredResult(name, len(data), bytes(data), None) for name, data in self._parts
        )
        self._spool.kept.setdefault(self._ticket, []).append(self._results)
        return succeed(self._results)

    def abort(self) -> None:
        self._aborted = True
        if self._results is not None:
            self._spool.kept[self._ticket].remove(self._results)
            self._results = None

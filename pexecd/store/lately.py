"""What the journal wrote and read lately, in memory: it is asked for again soon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred

from pexecd.core.effects import TicketEnded, TicketGiven
from pexecd.ports import JoblogRow, ResultDropped, ResultKept, StoredResult, TaskRow
from pexecd.store.writing import ENDS, Written, text_of
from pexecd.tuples import by_place
from pexecd.units import Stamp

V = TypeVar("V")
_joblog_row = by_place(JoblogRow)

#: So many bytes of what came last are kept at least, of tickets and of lines; twice that at most.
MOST = 2 << 20
#: What a ticket or a line takes beside its texts and results, about.
_EACH = 512


@dataclass(slots=True)
class Append:
    """Records on their way to disk, of which nothing is held when they are there."""

    records: Sequence[Written]
    done: Deferred[None] = field(default_factory=Deferred)
    #: The wall clock of its commit, and whether it is on disk.
    now: Stamp = 0.0
    committed: bool = False


class _Ticket:
    """All that was written of a ticket since it was given."""

    __slots__ = ("begun", "ended", "host", "last", "results")

    def __init__(self, host: str, append: Append) -> None:
        self.host = host
        self.begun = self.last = append
        self.ended: TicketEnded | None = None
        self.results: tuple[StoredResult, ...] = ()


class Lately:
    """Tickets that were given lately, and lines that were read lately.

    It tells either all that was asked for, or nothing.
    """

    def __init__(self, most: int = MOST) -> None:
        self._tickets = _Recent[_Ticket](most)
        self._lines = _Recent[TaskRow](most)

    def written(self, append: Append) -> None:
        """These records follow all earlier ones, or will when they are on disk."""
        new, old, size = self._tickets.new, self._tickets.old, 0
        # This is done for every record: by type, not isinstance, and without a call.
        for record in append.records:
            if type(record) is TicketGiven:
                number = record.ticket
                if number not in new and number not in old:
                    new[number] = _Ticket(record.host, append)
                    size += _EACH
            elif type(record) is TicketEnded:
                if ticket := new.get(record.ticket) or old.get(record.ticket):
                    ticket.ended, ticket.last = record, append
                    size += len(record.stderr) + len(record.reason)
            elif type(record) is ResultKept:
                if ticket := new.get(record.ticket) or old.get(record.ticket):
                    ticket.results, ticket.last = record.results, append
                    for result in record.results:
                        size += len(result.data or b"")
            elif type(record) is ResultDropped and (
                ticket := new.get(record.ticket) or old.get(record.ticket)
            ):
                ticket.results, ticket.last = (), append
        self._tickets.grow(size)

    def read(self, rows: list[TaskRow]) -> list[TaskRow]:
        """These lines are in the table; the same."""
        self._lines.new.update({row.number: row for row in rows})
        self._lines.grow(sum([_EACH + sum(map(len, row.cells)) for row in rows]))
        return rows

    def rows(self, first: int, last: int) -> list[TaskRow] | None:
        """See ``IJournal.rows``."""
        found = [self._lines.get(number) for number in range(first, last + 1)]
        return None if None in found else found  # type: ignore[return-value]

    def results(self, tickets: Sequence[int]) -> dict[int, tuple[StoredResult, ...]] | None:
        """See ``IJournal.results``."""
        found = {}
        for number in tickets:
            ticket = self._tickets.get(number)
            if ticket is None or not ticket.last.committed:
                return None
            if ticket.results:
                found[number] = ticket.results
        return found

    def ended(self, tickets: Sequence[int]) -> list[tuple[JoblogRow, TaskRow]] | None:
        """See ``IJournal.ended``."""
        found = []
        for number in dict.fromkeys(tickets):
            ticket = self._tickets.get(number)
            if ticket is None or not ticket.last.committed:
                return None
            ended = ticket.ended
            if ended is None:
                continue
            line = self._lines.get(ended.task)
            if line is None:
                return None
            received = 0
            for result in ticket.results:
                received += result.size
            _, task, end, reason, exit_status, signal, seconds, stderr = ended
            row = _joblog_row(
                (
                    number,
                    task,
                    text_of(ticket.host),
                    ticket.begun.now,
                    seconds,
                    ENDS[end],
                    exit_status,
                    signal,
                    0,
                    received,
                    text_of(reason) if reason else "",
                    stderr,
                )
            )
            found.append((row, line))
        return found


class _Recent(Generic[V]):
    """By number, what was put in last: in two halves, of which the older one is dropped whole."""

    def __init__(self, most: int) -> None:
        #: Put in there, and say by how much it has grown.
        self.new: dict[int, V] = {}
        self.old: dict[int, V] = {}
        self._most = most
        self._size = 0

    def grow(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            self.old, self.new = self.new, {}
            self._size = 0

    def get(self, number: int) -> V | None:
        value = self.new.get(number)
        return self.old.get(number) if value is None else value

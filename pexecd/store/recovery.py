"""What a database tells a master that starts: replay, and what was left half done."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pexecd.core.effects import (
    Replayed,
    TaskReopened,
    TasksSettled,
    TicketEnded,
    TicketGiven,
    TicketsPast,
    TicketsUsed,
)
from pexecd.core.values import FIRST_TICKET, End
from pexecd.errors import StateError
from pexecd.ports import Collected, JoblogRow, TaskRow
from pexecd.store.folder import SPOOL
from pexecd.store.problems import damaged
from pexecd.store.reading import read_all_ended, read_failures
from pexecd.store.schema import open_reader
from pexecd.units import Seconds

_ENDS = {end.value: end for end in End}
#: Tickets read together: so few that they stay in the processor's cache.
_TOGETHER = 256
#: Tasks that are looked at together.
_PIECE = 4096


class Counts(NamedTuple):
    """How much has happened in a session."""

    done: int
    failed: int
    #: Tickets without an end.
    living: int


class LostResult(NamedTuple):
    """A result that is in the books, but whose file is gone or was cut."""

    ticket: int
    task: int
    #: The file, relative to the state folder.
    spool: str
    #: It was the task's result; else it waited for its verdict.
    done: bool


class Recovery:
    """Reads a session's database beside its writer.

    Every method opens a connection of its own, sees one moment, and blocks: call them
    before the reactor runs or in a thread. All raise ``StateError`` when the database is
    damaged. Tasks that are no longer in the table are left out, with their tickets.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def replay(self) -> Iterator[Replayed]:
        """Everything the core must know.

        What became of tasks, then tickets by number (past ones in one record, others given, then
        ended), each reopened task that is not settled again before the first ticket that counts,
        then the highest number used.
        """
        with self._reading() as connection:
            settled = _settled(connection)
            if len(settled) > 1:
                yield TasksSettled(bytes(settled))
            reopened = connection.execute(
                "SELECT ticket, task FROM reopened WHERE task > 0"
                " AND task NOT IN (SELECT task FROM settled) ORDER BY ticket DESC, task DESC"
            ).fetchall()
            for past in _past_or_not(connection, settled):
                if isinstance(past, TicketsPast):
                    yield past
                    continue
                while reopened and reopened[-1][0] <= past:
                    first, again = reopened.pop()
                    yield TaskReopened(again, first)
                yield from _ticket(connection, past)
            while reopened:
                first, again = reopened.pop()
                yield TaskReopened(again, first)
            yield TicketsUsed(_next_ticket(connection) - 1)

    def kept(self) -> list[int]:
        """Tickets, by number, whose results are stored and still wait for their verdict.

        These live, or ended without a verdict (lost, timed out, failed, cancelled when a run
        was interrupted) before a late result came, and their task is not done.
        """
        with self._reading() as connection:
            found = connection.execute(
                "SELECT ticket FROM tickets"
                ' WHERE task > 0 AND ("end" IS NULL OR "end" NOT IN (?, ?)) AND EXISTS'
                " (SELECT 1 FROM results WHERE results.ticket = tickets.ticket) AND NOT EXISTS"
                " (SELECT 1 FROM settled"
                " WHERE settled.task = tickets.task AND settled.ticket IS NOT NULL)"
                " ORDER BY ticket",
                (End.DONE.value, End.INVALID.value),
            )
            return [ticket for (ticket,) in found]

    def lost(self) -> list[LostResult]:
        """Results that are needed, and whose files are not there, or not whole. Once a ticket."""
        waiting = set(self.kept())
        lost: dict[int, LostResult] = {}
        with self._reading() as connection:
            sizes = self._spool_sizes()
            for ticket, task, spool, size, done in connection.execute(
                "SELECT results.ticket, tickets.task, spool, size, settled.ticket IS NOT NULL"
                " FROM results JOIN tickets USING (ticket) LEFT JOIN settled"
                " ON settled.ticket = results.ticket AND settled.task = tickets.task"
                " WHERE spool IS NOT NULL AND tickets.task > 0 ORDER BY results.ticket"
            ):
                if sizes.get(spool) != size and (done or ticket in waiting):
                    lost.setdefault(ticket, LostResult(ticket, task, spool, done == 1))
        return list(lost.values())

    def _spool_sizes(self) -> dict[str, int]:
        sizes = {}
        try:
            with os.scandir(self._path.parent / SPOOL) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
                        sizes[f"{SPOOL}/{entry.name}"] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StateError(
                f"{error.filename}: cannot be read: {error.strerror}; repair it, or start anew "
                "with --fresh"
            ) from None
        return sizes

    def next_ticket(self) -> int:
        """The number of the next ticket: above all that were ever given out."""
        with self._reading() as connection:
            return _next_ticket(connection)

    def counts(self) -> Counts:
        """How much has happened."""
        with self._reading() as connection:
            (found,) = connection.execute(
                "SELECT (SELECT count(ticket) FROM settled WHERE task > 0),"
                " (SELECT count(*) FROM settled WHERE task > 0 AND ticket IS NULL),"
                ' (SELECT count(*) FROM tickets WHERE task > 0 AND "end" IS NULL)'
            )
        return Counts(*found)

    def failures(self, count: int) -> dict[int, str]:
        """The first ``count`` tasks that have failed, by number, with their reasons."""
        with self._reading() as connection:
            return dict(read_failures(connection, 0, count))

    def settled(self) -> Iterator[tuple[int, int | None]]:
        """Tasks, by number, with the ticket whose result is theirs; None: it has failed."""
        with self._reading() as connection:
            yield from connection.execute(
                "SELECT task, ticket FROM settled WHERE task > 0 ORDER BY task"
            )

    def samples(self, tasks: Iterable[int]) -> list[tuple[Seconds, int]]:
        """How long the tickets of these tasks ran, and the bytes of their results.

        Only of those that are done.
        """
        query = (
            "SELECT tickets.seconds,"
            " (SELECT coalesce(sum(size), 0) FROM results WHERE ticket = settled.ticket)"
            " FROM settled JOIN tickets USING (ticket) WHERE settled.task = ?"
        )
        with self._reading() as connection:
            found = [connection.execute(query, (task,)).fetchone() for task in tasks]
        return [row for row in found if row is not None]

    def collected(self) -> dict[str, Collected]:
        """How far each output was written, by its file; all tasks of it in one record."""
        with self._reading() as connection:
            return {
                file: Collected(
                    file,
                    length,
                    upto,
                    tuple(
                        task
                        for (task,) in connection.execute(
                            "SELECT task FROM collected_tasks WHERE id = ? ORDER BY task", (number,)
                        )
                    ),
                    rule=rule,
                    crc=crc,
                )
                for number, file, rule, length, upto, crc in connection.execute(
                    "SELECT id, file, rule, length, upto, crc FROM collected"
                ).fetchall()
            }

    def not_collected(self) -> dict[int, str]:
        """Tasks for which the user's collect function raised, and why."""
        with self._reading() as connection:
            return dict(
                connection.execute(
                    "SELECT task, reason FROM not_collected WHERE task > 0 ORDER BY task"
                ).fetchall()
            )

    def spooled(self) -> set[str]:
        """The files of all larger results, relative to the state folder; of all tasks ever."""
        with self._reading() as connection:
            return {
                spool
                for (spool,) in connection.execute(
                    "SELECT spool FROM results WHERE spool IS NOT NULL"
                )
            }

    def ended(self, *, failures: bool = False) -> Iterator[tuple[JoblogRow, TaskRow]]:
        """All tickets that have ended, by number, for joblog.tsv.

        With ``failures`` those that are neither done nor cancelled, for failures.log.
        Their ``sent_bytes`` is 0; ``received_bytes`` is the size of the results still kept.
        """
        with self._reading() as connection:
            yield from read_all_ended(connection, failures=failures)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = open_reader(self._path)
        except sqlite3.Error as error:
            raise damaged(self._path, error) from None
        try:
            yield connection
        except sqlite3.Error as error:
            raise damaged(self._path, error) from None
        finally:
            connection.close()


def _settled(connection: sqlite3.Connection) -> bytearray:
    """What became of each task, by its number: 0 it is not settled, 1 done, 2 failed."""
    (last,) = connection.execute("SELECT ifnull(max(task), 0) FROM settled").fetchone()
    settled = bytearray(max(last, 0) + 1)
    for first in range(1, last + 1, _PIECE):
        end = min(first + _PIECE, last + 1)
        within = "FROM settled WHERE task >= ? AND task < ?"
        (count,) = connection.execute(f"SELECT count(*) {within}", (first, end)).fetchone()
        if count == end - first:  # as most are, for the table is worked on in its order
            settled[first:end] = b"\1" * count
            continue
        for (task,) in connection.execute(f"SELECT task {within}", (first, end)):
            settled[task] = 1
    for (task,) in connection.execute("SELECT task FROM settled WHERE task > 0 AND ticket IS NULL"):
        settled[task] = 2
    return settled


def _past_or_not(connection: sqlite3.Connection, settled: bytearray) -> Iterator[TicketsPast | int]:
    """All tickets by number: past ones together, others each with its number alone.

    Args:
        connection: to the database.
        settled: for each task, by its number, whether it is; is made longer where it ends.
    """
    cursor = connection.execute(
        'SELECT ticket, task, host, "end", seconds FROM tickets WHERE task > 0 ORDER BY ticket'
    )
    # Column by column: a million rows one by one would take seconds.
    while rows := cursor.fetchmany(_TOGETHER):
        numbers, tasks, hosts, ends, seconds = zip(*rows, strict=True)
        settled.extend(bytes(max(0, max(tasks) + 1 - len(settled))))
        others = set()
        if None in ends or not all(map(settled.__getitem__, tasks)):
            others = {
                place
                for place, (task, end) in enumerate(zip(tasks, ends, strict=True))
                if end is None or not settled[task]
            }
        bounds = {0, len(rows), *others, *(place + 1 for place in others)}
        if numbers[-1] - numbers[0] >= len(rows):  # numbers are missing
            bounds |= {
                place
                for place, (before, number) in enumerate(pairwise(numbers), 1)
                if number != before + 1
            }
        for start, stop in pairwise(sorted(bounds)):
            if start in others:
                yield numbers[start]
                continue
            yield TicketsPast(
                numbers[start],
                tasks[start:stop],
                hosts[start:stop],
                tuple(map(_ENDS.__getitem__, ends[start:stop])),
                seconds[start:stop],
            )


def _ticket(connection: sqlite3.Connection, ticket: int) -> Iterator[TicketGiven | TicketEnded]:
    """The records of a ticket that still matters."""
    task, client, host, managed, speaks, end, reason, status, signal, seconds, stderr = (
        connection.execute(
            'SELECT task, client, host, managed, speaks, "end", reason, exit_status, signal,'
            " seconds, stderr FROM tickets WHERE ticket = ?",
            (ticket,),
        ).fetchone()
    )
    yield TicketGiven(ticket, task, client, host, managed == 1, speaks == 1)
    if end is not None:
        yield TicketEnded(ticket, task, _ENDS[end], reason, status, signal, seconds, stderr)


def _next_ticket(connection: sqlite3.Connection) -> int:
    (highest,) = connection.execute(
        "SELECT max(ifnull((SELECT max(ticket) FROM tickets), 0),"
        " ifnull((SELECT max(ticket) - 1 FROM reopened), 0))"
    ).fetchone()
    return max(FIRST_TICKET, int(highest) + 1)

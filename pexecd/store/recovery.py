"""What a database tells a master that starts: replay, and what was left half done."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pexecd.core.effects import (
    Replayed,
    TaskReopened,
    TasksSettled,
    TicketEnded,
    TicketGiven,
    TicketPast,
    TicketsUsed,
)
from pexecd.core.values import FIRST_TICKET, End
from pexecd.errors import StateError
from pexecd.ports import Collected, JoblogRow, TaskRow
from pexecd.store.folder import SPOOL
from pexecd.store.problems import damaged
from pexecd.store.reading import read_all_ended, read_failures
from pexecd.store.schema import open_reader

_ENDS = {end.value: end for end in End}


@dataclass(frozen=True, slots=True)
class Counts:
    """How much has happened in a session."""

    done: int
    failed: int
    #: Tickets without an end.
    living: int


@dataclass(frozen=True, slots=True)
class LostResult:
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
            (last,) = connection.execute("SELECT ifnull(max(task), 0) FROM settled").fetchone()
            settled = bytearray(max(last, 0) + 1)
            for task, failed in connection.execute(
                "SELECT task, ticket IS NULL FROM settled WHERE task > 0"
            ):
                settled[task] = 1 + failed
            if last > 0:
                yield TasksSettled(bytes(settled))
            reopened = connection.execute(
                "SELECT ticket, task FROM reopened WHERE task > 0"
                " AND task NOT IN (SELECT task FROM settled) ORDER BY ticket DESC, task DESC"
            ).fetchall()
            for ticket, task, host, end, seconds in connection.execute(
                'SELECT ticket, task, host, "end", seconds FROM tickets WHERE task > 0'
                " ORDER BY ticket"
            ):
                if end is not None and task <= last and settled[task]:
                    yield TicketPast(ticket, task, host, _ENDS[end], seconds)
                    continue
                while reopened and reopened[-1][0] <= ticket:
                    first, again = reopened.pop()
                    yield TaskReopened(again, first)
                yield from _ticket(connection, ticket)
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
                "SELECT DISTINCT ticket FROM results JOIN tickets USING (ticket)"
                ' WHERE task > 0 AND ("end" IS NULL OR "end" NOT IN (?, ?)) AND NOT EXISTS'
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

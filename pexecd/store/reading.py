"""Rows to values: the queries of the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

from pexecd.ports import JoblogRow, StoredResult, TaskRow
from pexecd.store.schema import SEPARATOR
from pexecd.tuples import by_place

_task_row = by_place(TaskRow)

#: Tickets asked for in one query; SQLite's limit of variables is above it everywhere.
_ASKED_AT_ONCE = 500

#: What joblog.tsv says of an ended ticket: the columns of ``TaskRow``, then of ``JoblogRow``.
_JOBLOG = (
    'SELECT number, cells, ticket, task, host, given, seconds, "end", exit_status, signal, 0,'
    " (SELECT ifnull(sum(size), 0) FROM results WHERE results.ticket = tickets.ticket),"
    " tickets.reason, tickets.stderr FROM tickets JOIN tasks ON number = task"
    ' WHERE "end" IS NOT NULL AND task > 0'
)


def read_rows(connection: sqlite3.Connection, first: int, count: int) -> list[TaskRow]:
    """See ``IJournal.rows``."""
    found = connection.execute(
        "SELECT number, cells FROM tasks WHERE number >= ? ORDER BY number LIMIT ?", (first, count)
    )
    return [_row(number, cells) for number, cells in found]


def read_results(
    connection: sqlite3.Connection, tickets: Sequence[int]
) -> dict[int, tuple[StoredResult, ...]]:
    """See ``IJournal.results``."""
    found: dict[int, tuple[StoredResult, ...]] = {}
    for some, marks in _pieces(tickets):
        query = (
            "SELECT ticket, name, size, data, spool FROM results"  # noqa: S608 - marks only
            f" WHERE ticket IN ({marks}) ORDER BY ticket, place"
        )
        for ticket, *result in connection.execute(query, some):
            found[ticket] = (*found.get(ticket, ()), StoredResult(*result))
    return found


def read_failures(connection: sqlite3.Connection, after: int, count: int) -> list[tuple[int, str]]:
    """See ``IJournal.failures``."""
    return connection.execute(
        "SELECT task, reason FROM settled WHERE ticket IS NULL AND task > ? ORDER BY task LIMIT ?",
        (after, count),
    ).fetchall()


def read_ended(
    connection: sqlite3.Connection, tickets: Sequence[int]
) -> list[tuple[JoblogRow, TaskRow]]:
    """See ``IJournal.ended``."""
    return [
        _joblog(found)
        for some, marks in _pieces(tickets)
        for found in connection.execute(f"{_JOBLOG} AND ticket IN ({marks})", some)
    ]


def read_all_ended(
    connection: sqlite3.Connection, *, failures: bool
) -> Iterator[tuple[JoblogRow, TaskRow]]:
    """All tickets that have ended (neither done nor cancelled, with ``failures``), by number."""
    which = """ AND "end" NOT IN ('done', 'cancelled')""" if failures else ""
    return map(_joblog, connection.execute(f"{_JOBLOG}{which} ORDER BY ticket"))


def _joblog(found: Sequence[object]) -> tuple[JoblogRow, TaskRow]:
    number, cells, *columns = found
    return JoblogRow(*columns), _row(number, cells)  # type: ignore[arg-type]


def _row(number: int, cells: str) -> TaskRow:
    return _task_row((number, tuple(cells.split(SEPARATOR))))


def _pieces(tickets: Sequence[int]) -> Iterator[tuple[Sequence[int], str]]:
    """Tickets in pieces, and the question marks for each."""
    for start in range(0, len(tickets), _ASKED_AT_ONCE):
        some = tickets[start : start + _ASKED_AT_ONCE]
        yield some, ",".join("?" * len(some))

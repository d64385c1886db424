"""Records to rows: what one transaction of the journal writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, TypeAlias, assert_never

from pexecd.core.effects import TaskDone, TaskFailed, TaskReopened, TicketEnded, TicketGiven
from pexecd.core.values import End
from pexecd.ports import (
    Collected,
    JournalRecord,
    NotCollected,
    ResultDropped,
    ResultKept,
    StoredResult,
)
from pexecd.store.table import Line, store_lines
from pexecd.units import Stamp


class Noted(NamedTuple):
    """A word about the session, for ``meta``."""

    key: str
    value: str


class Lines(NamedTuple):
    """Lines of the table, the first of which has this number."""

    first: int
    lines: Sequence[Line]


#: An enum's ``value`` costs more than the rest of a record.
ENDS = {end: end.value for end in End}

#: So many rows are inserted with one statement.
_TOGETHER = 16

#: The stderr of most tickets.
_NOTHING = bytearray()

#: What the journal writes.
Written: TypeAlias = JournalRecord | Noted | Lines


def write_records(connection: sqlite3.Connection, records: Iterable[Written], now: Stamp) -> None:
    """Write records, in a transaction that the caller began.

    Records are sorted by table, to be written together; within a table the last
    word counts. All of them but lines may come twice.

    Of what there is for every task, values are ``int``, ``float``, ``str`` or ``bytearray``: for
    any other (``bool``, ``bytes``, ``None``) sqlite3 looks for an adapter, which costs as much as
    half a row.

    Args:
        connection: where to.
        records: in their order.
        now: the wall clock, kept with tickets as the time of their giving out.
    """
    given: list[tuple[object, ...]] = []
    ended: list[tuple[object, ...]] = []
    done: dict[int, TaskDone] = {}
    failed: dict[int, tuple[int, str]] = {}
    reopened: list[tuple[int, int]] = []
    results: dict[int, tuple[StoredResult, ...]] = {}
    dropped: list[tuple[int]] = []
    for record in records:
        match record:
            case TicketGiven():
                ticket, task, client, host, managed, speaks = record
                given.append(
                    (
                        ticket,
                        task,
                        client if client.isascii() else text_of(client),
                        host if host.isascii() else text_of(host),
                        1 if managed else 0,
                        1 if speaks else 0,
                        now,
                    )
                )
            case TicketEnded():
                ticket, _, end, reason, exit_status, signal, seconds, stderr = record
                ended.append(
                    (
                        ENDS[end],
                        text_of(reason) if reason else "",
                        exit_status,
                        signal,
                        seconds,
                        bytearray(stderr) if stderr else _NOTHING,
                        ticket,
                    )
                )
            case ResultKept():
                results[record.ticket] = record.results
            case TaskDone():
                done[record.task] = record
                if failed:
                    failed.pop(record.task, None)
            case TaskFailed():
                failed[record.task] = (record.task, text_of(record.reason))
                done.pop(record.task, None)
            case TaskReopened():
                done.pop(record.task, None)
                failed.pop(record.task, None)
                reopened.append((record.task, record.ticket))
            case ResultDropped():
                results.pop(record.ticket, None)
                dropped.append((record.ticket,))
            case Collected():
                _write_collected(connection, record)
            case NotCollected():
                _write_not_collected(connection, record)
            case Lines():
                store_lines(connection, record.first, record.lines)
            case Noted():
                connection.execute(
                    "INSERT OR REPLACE INTO meta VALUES (?, ?)", (record.key, record.value)
                )
            case _:
                assert_never(record)
    _insert(
        connection,
        "INSERT OR IGNORE INTO tickets (ticket, task, client, host, managed, speaks, given)",
        given,
    )
    _each(
        connection,
        'UPDATE tickets SET "end" = ?, reason = ?, exit_status = ?, signal = ?, seconds = ?,'
        " stderr = ? WHERE ticket = ?",
        ended,
    )
    _each(connection, "DELETE FROM results WHERE ticket = ?", dropped)
    _write_results(connection, results)
    _each(connection, "DELETE FROM settled WHERE task = ?", [(task,) for task, _ in reopened])
    _insert(connection, "INSERT OR REPLACE INTO reopened (task, ticket)", reopened)
    _insert(connection, "INSERT OR REPLACE INTO settled (task, ticket)", [*done.values()])
    _insert(connection, "INSERT OR REPLACE INTO settled (task, reason)", [*failed.values()])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: BEGIN, then COMMIT or ROLLBACK."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        # SQLite has rolled back by itself after some errors, and not after others.
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _each(
    connection: sqlite3.Connection, statement: str, rows: Collection[tuple[object, ...]]
) -> None:
    if rows:
        connection.executemany(statement, rows)


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert rows.

    A statement that has ``_TOGETHER`` of them takes three quarters of the time of one for each,
    and lets go of the interpreter, for which the reactor may be waiting, once instead of each time.
    """
    if not rows:
        return
    width, whole = len(rows[0]), len(rows) - len(rows) % _TOGETHER
    for start in range(0, whole, _TOGETHER):
        values = tuple(chain.from_iterable(rows[start : start + _TOGETHER]))
        connection.execute(_statement(into, width, _TOGETHER), values)
    if whole < len(rows):
        connection.executemany(_statement(into, width, 1), rows[whole:])


@lru_cache(maxsize=64)
def _statement(into: str, width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"{into} VALUES {', '.join([row] * rows)}"


def _write_results(
    connection: sqlite3.Connection, results: Mapping[int, tuple[StoredResult, ...]]
) -> None:
    small: list[tuple[object, ...]] = []
    large: list[tuple[object, ...]] = []
    for ticket, kept in results.items():
        for place, (name, size, data, spool) in enumerate(kept):
            if data is not None:
                small.append((ticket, place, name, size, bytearray(data)))
            else:
                large.append((ticket, place, name, size, spool))
    into = "INSERT OR REPLACE INTO results (ticket, place, name, size,"
    _insert(connection, f"{into} data)", small)
    _insert(connection, f"{into} spool)", large)


def _write_collected(connection: sqlite3.Connection, record: Collected) -> None:
    (number,) = connection.execute(
        "INSERT INTO collected (file, rule, length, upto, crc) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (file) DO UPDATE SET rule = excluded.rule, length = excluded.length,"
        " upto = excluded.upto, crc = excluded.crc RETURNING id",
        (text_of(record.file), text_of(record.rule), record.length, record.upto, record.crc),
    ).fetchone()
    if record.anew:
        connection.execute("DELETE FROM collected_tasks WHERE id = ?", (number,))
    _each(
        connection,
        "DELETE FROM collected_tasks WHERE id = ? AND task = ?",
        [(number, task) for task in record.without],
    )
    _insert(
        connection,
        "INSERT OR IGNORE INTO collected_tasks (id, task)",
        [(number, task) for task in record.tasks],
    )


def _write_not_collected(connection: sqlite3.Connection, record: NotCollected) -> None:
    if record.reason is None:
        connection.execute("DELETE FROM not_collected WHERE task = ?", (record.task,))
    else:
        connection.execute(
            "INSERT OR REPLACE INTO not_collected VALUES (?, ?)",
            (record.task, text_of(record.reason)),
        )


def text_of(text: str) -> str:
    """Words of a peer as SQLite can keep them: a lone surrogate would fail the commit."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

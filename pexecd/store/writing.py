"""Records to rows: what one transaction of the journal writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, assert_never

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


@dataclass(frozen=True, slots=True)
class Noted:
    """A word about the session, for ``meta``."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of the table, the first of which has this number."""

    first: int
    lines: Sequence[Line]


#: An enum's ``value`` costs more than the rest of a record.
ENDS = {end: end.value for end in End}

#: What the journal writes.
Written: TypeAlias = JournalRecord | Noted | Lines


def write_records(connection: sqlite3.Connection, records: Iterable[Written], now: Stamp) -> None:
    """Write records, in a transaction that the caller began.

    Records are sorted by table, for one ``executemany`` each; within a table the last
    word counts. All of them but lines may come twice.

    Args:
        connection: where to.
        records: in their order.
        now: the wall clock, kept with tickets as the time of their giving out.
    """
    given: list[tuple[object, ...]] = []
    ended: list[tuple[object, ...]] = []
    settled: dict[int, tuple[object, ...]] = {}
    reopened: list[tuple[int, int]] = []
    results: dict[int, tuple[StoredResult, ...]] = {}
    dropped: list[tuple[int]] = []
    for record in records:
        match record:
            case TicketGiven():
                given.append(
                    (
                        record.ticket,
                        record.task,
                        text_of(record.client),
                        text_of(record.host),
                        record.managed,
                        record.speaks,
                        now,
                    )
                )
            case TicketEnded():
                ended.append(
                    (
                        ENDS[record.end],
                        text_of(record.reason),
                        record.exit_status,
                        record.signal,
                        record.seconds,
                        record.stderr,
                        record.ticket,
                    )
                )
            case ResultKept():
                results[record.ticket] = record.results
            case TaskDone():
                settled[record.task] = (record.task, record.ticket, None)
            case TaskFailed():
                settled[record.task] = (record.task, None, text_of(record.reason))
            case TaskReopened():
                settled.pop(record.task, None)
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
    connection.executemany(
        "INSERT OR IGNORE INTO tickets (ticket, task, client, host, managed, speaks, given)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        given,
    )
    connection.executemany(
        'UPDATE tickets SET "end" = ?, reason = ?, exit_status = ?, signal = ?, seconds = ?,'
        " stderr = ? WHERE ticket = ?",
        ended,
    )
    connection.executemany("DELETE FROM results WHERE ticket = ?", dropped)
    connection.executemany(
        "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)",
        [
            (ticket, place, result.name, result.size, result.data, result.spool)
            for ticket, kept in results.items()
            for place, result in enumerate(kept)
        ],
    )
    connection.executemany("DELETE FROM settled WHERE task = ?", [(task,) for task, _ in reopened])
    connection.executemany("INSERT OR REPLACE INTO reopened VALUES (?, ?)", reopened)
    connection.executemany("INSERT OR REPLACE INTO settled VALUES (?, ?, ?)", settled.values())


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


def _write_collected(connection: sqlite3.Connection, record: Collected) -> None:
    (number,) = connection.execute(
        "INSERT INTO collected (file, rule, length, upto, crc) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (file) DO UPDATE SET rule = excluded.rule, length = excluded.length,"
        " upto = excluded.upto, crc = excluded.crc RETURNING id",
        (text_of(record.file), text_of(record.rule), record.length, record.upto, record.crc),
    ).fetchone()
    if record.anew:
        connection.execute("DELETE FROM collected_tasks WHERE id = ?", (number,))
    connection.executemany(
        "DELETE FROM collected_tasks WHERE id = ? AND task = ?",
        [(number, task) for task in record.without],
    )
    connection.executemany(
        "INSERT OR IGNORE INTO collected_tasks VALUES (?, ?)",
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

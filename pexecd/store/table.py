"""The parameter table in the database: stored once, and changed when the user changed it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

#: A line: its cells, joined, and what the task is (16 bytes; None: not known, or not yet).
Line: TypeAlias = tuple[str, bytes | None]

_COMPARE = """
-- Tickets may have been given for lines that were not stored when the master was killed: nobody
-- was told those tasks, and they are like no other.
INSERT INTO tasks SELECT DISTINCT task, '', x'' FROM tickets
    WHERE task > 0 AND task NOT IN (SELECT number FROM tasks);
UPDATE tasks SET digest = digest_of(cells) WHERE digest IS NULL;
-- Two tasks are the same when their digests are, and when as many equal ones come before them.
-- Tasks that are no longer in the table have negative numbers. Those that left last have the
-- lowest, and stand in the table's order: so equal ones keep their places among each other.
CREATE TEMP TABLE known (digest BLOB, nth INTEGER, number INTEGER, PRIMARY KEY (digest, nth))
    WITHOUT ROWID;
INSERT INTO known
    SELECT digest, row_number() OVER (PARTITION BY digest ORDER BY number < 0, number), number
    FROM tasks WHERE digest IS NOT NULL;
CREATE TEMP TABLE moved (was INTEGER PRIMARY KEY, now INTEGER NOT NULL);
INSERT INTO moved SELECT known.number, coming.number FROM known JOIN
    (SELECT number, digest, row_number() OVER (PARTITION BY digest ORDER BY number) AS nth
    FROM coming WHERE digest IS NOT NULL) AS coming USING (digest, nth) ORDER BY known.number;
CREATE TEMP TABLE retired AS SELECT number FROM tasks
    WHERE number > 0 AND number NOT IN (SELECT was FROM moved) ORDER BY number
"""

_REPLACE = """
DELETE FROM tasks WHERE number IN (SELECT was FROM moved);
INSERT INTO moved SELECT number, (SELECT min(0, ifnull(min(number), 0)) FROM tasks)
    - (SELECT count(*) FROM retired) - 1 + retired.rowid FROM retired;
UPDATE tasks SET number = (SELECT now FROM moved WHERE was = number) WHERE number > 0;
INSERT INTO tasks SELECT number, cells, digest FROM coming ORDER BY number;
DELETE FROM moved WHERE was = now;
UPDATE tickets SET task = (SELECT now FROM moved WHERE was = task)
    WHERE task IN (SELECT was FROM moved)
"""

#: What the collect function was given must not be given to it again: its calls cannot be made
#: anew as a file can. Its rule is the order alone; see ``Collected``.
_CALLS = """
CREATE TEMP TABLE calls AS
    SELECT id, task FROM collected_tasks JOIN collected USING (id) WHERE rule = 'completion'
    UNION ALL
    SELECT id, number FROM collected JOIN tasks ON number BETWEEN 1 AND upto
    WHERE rule = 'parameters'
        AND (id, number) NOT IN (SELECT id, task FROM collected_tasks)
"""

_RESTORE_CALLS = """
UPDATE calls SET task = (SELECT now FROM moved WHERE was = task)
    WHERE task IN (SELECT was FROM moved);
DELETE FROM calls WHERE task < 0;
CREATE UNIQUE INDEX temp.each_call ON calls (id, task);
DELETE FROM collected_tasks;
DELETE FROM collected WHERE rule NOT IN ('completion', 'parameters');
INSERT INTO collected_tasks SELECT id, task FROM calls
    WHERE id IN (SELECT id FROM collected WHERE rule = 'completion');
UPDATE collected SET upto = ifnull((SELECT max(task) FROM calls WHERE calls.id = collected.id), 0)
    WHERE rule = 'parameters';
INSERT INTO collected_tasks SELECT id, number FROM collected JOIN tasks
    ON number BETWEEN 1 AND upto
    WHERE rule = 'parameters' AND (id, number) NOT IN (SELECT id, task FROM calls)
"""

#: Numbers on their way pass far above all others, for two tasks may change places.
_RENUMBER = """
UPDATE {0} SET task = (SELECT now FROM moved WHERE was = task) + (1 << 40)
    WHERE task IN (SELECT was FROM moved);
UPDATE {0} SET task = task - (1 << 40) WHERE task > (1 << 39)
"""
#: Tables with a row for some of the tasks.
_BY_TASK = ("settled", "reopened", "not_collected")

_TEMPORARY = ("coming", "known", "moved", "retired", "calls")


class Remapped(NamedTuple):
    """What became of the tasks when the table was changed."""

    #: In the new table, and known before: with all that they had.
    kept: int
    #: In the new table only.
    new: int
    #: No longer in the table; they are remembered.
    retired: int


def store_lines(connection: sqlite3.Connection, first: int, lines: Sequence[Line]) -> None:
    """Store lines of the table, the first of which has this number.

    The caller began the transaction.
    """
    if any(digest is not None for _, digest in lines):
        connection.executemany(
            "INSERT INTO tasks VALUES (?, ?, ?)",
            [(number, cells, digest) for number, (cells, digest) in enumerate(lines, first)],
        )
        return
    # One statement: SQLite lets go of the interpreter for each, and has to get it back, which
    # for each of a million lines takes long where another thread works.
    connection.execute(
        "INSERT INTO tasks SELECT ? + key, value, NULL FROM json_each(?)",
        (first, json.dumps([cells for cells, _ in lines], ensure_ascii=False)),
    )


def begins_with(connection: sqlite3.Connection, lines: Iterable[Line]) -> bool:
    """Whether the stored lines are the first of these; just as many are taken."""
    stored = connection.execute("SELECT cells FROM tasks WHERE number > 0 ORDER BY number")
    return all(cells == line for (cells,), (line, _) in zip(stored, lines))  # noqa: B905


def remap_table(
    connection: sqlite3.Connection,
    table: Iterable[Line],
    digest_of: Callable[[str], bytes | None] = lambda _: None,
) -> Remapped:
    """Put another table in the place of the one that is there; see ``Journal.remap``.

    The caller began the transaction.
    """
    _drop(connection)
    connection.create_function("digest_of", 1, digest_of)
    connection.execute(
        "CREATE TEMP TABLE coming (number INTEGER PRIMARY KEY, cells TEXT, digest BLOB)"
    )
    connection.executemany(
        "INSERT INTO coming VALUES (?, ?, ?)",
        ((number, cells, digest) for number, (cells, digest) in enumerate(table, 1)),
    )
    _run(connection, _COMPARE)
    total, kept, retired = (_count(connection, name) for name in ("coming", "moved", "retired"))
    _run(connection, _CALLS)
    _run(connection, _REPLACE)
    for name in _BY_TASK:
        _run(connection, _RENUMBER.format(name))
    _run(connection, _RESTORE_CALLS)
    _drop(connection)
    return Remapped(kept, total - kept, retired)


def _run(connection: sqlite3.Connection, script: str) -> None:
    # Not executescript: that would commit what was begun.
    for statement in script.split(";"):
        connection.execute(statement)


def _drop(connection: sqlite3.Connection) -> None:
    for name in _TEMPORARY:
        connection.execute(f"DROP TABLE IF EXISTS temp.{name}")


def _count(connection: sqlite3.Connection, name: str) -> int:
    (count,) = connection.execute(f"SELECT count(*) FROM temp.{name}").fetchone()  # noqa: S608
    return int(count)

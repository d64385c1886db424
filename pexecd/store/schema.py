"""The database of a session, its schema by version, and how to open it.

The parameter table is written once, and anew only when the user changed it: what became of a
task stands in ``settled``, which is small, so that neither a million pending tasks nor a
restart cost more than what has happened.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

from pexecd.errors import StateError
from pexecd.store.files import replacing
from pexecd.store.headers import check_files
from pexecd.store.mounts import TRUNCATE, journal_mode, mount_of
from pexecd.store.problems import damaged

#: "pxcd": tells our databases from everybody else's.
APPLICATION_ID = 0x70786364
#: Raise it, and add to ``_MIGRATIONS``, whenever a column or its meaning changes.
VERSION = 3

#: The cells of a task, joined; a cell cannot hold it (SPEC section 3).
SEPARATOR = "|"

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The parameter table. Tasks with negative numbers are no longer in it, but may come back. The
-- digest says what a task is, without its place; null: what meta says of the tasks decides.
CREATE TABLE tasks (number INTEGER PRIMARY KEY, cells TEXT NOT NULL, digest BLOB);

-- Tasks that are done (by this ticket) or have failed (ticket is null, for this reason).
CREATE TABLE settled (task INTEGER PRIMARY KEY, ticket INTEGER, reason TEXT);

-- Tasks that were settled and are to run again: tickets below this one no longer count.
CREATE TABLE reopened (task INTEGER PRIMARY KEY, ticket INTEGER NOT NULL);

-- Every ticket given out; those without an end live. Times in seconds, given since 1970.
CREATE TABLE tickets (
    ticket INTEGER PRIMARY KEY, task INTEGER NOT NULL, client TEXT NOT NULL, host TEXT NOT NULL,
    managed INTEGER NOT NULL, speaks INTEGER NOT NULL, given REAL NOT NULL,
    "end" TEXT, reason TEXT, exit_status INTEGER, signal INTEGER, seconds REAL, stderr BLOB
);

-- Results: small ones are here (data), larger ones in a file (spool, below the state folder).
CREATE TABLE results (
    ticket INTEGER NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL,
    data BLOB, spool TEXT, PRIMARY KEY (ticket, place)
);

-- How far each output was written, by which rule.
CREATE TABLE collected (
    id INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, rule TEXT NOT NULL,
    length INTEGER NOT NULL, upto INTEGER NOT NULL, crc INTEGER NOT NULL DEFAULT 0
);
-- By completion: the tasks in it. By parameters: those left out of it.
CREATE TABLE collected_tasks (
    id INTEGER NOT NULL, task INTEGER NOT NULL, PRIMARY KEY (id, task)
) WITHOUT ROWID;

CREATE TABLE not_collected (task INTEGER PRIMARY KEY, reason TEXT NOT NULL);
"""

#: From each version to the next one.
_MIGRATIONS = {
    1: """
ALTER TABLE tasks ADD COLUMN digest BLOB;
CREATE TABLE reopened (task INTEGER PRIMARY KEY, ticket INTEGER NOT NULL);
ALTER TABLE collected ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
""",
    # Digests and lines may be missing that an older master relies on.
    2: "",
}

_NAMES = frozenset(re.findall(r"CREATE TABLE (\w+)", _TABLES))


def open_database(path: Path, mode: str | None = None) -> sqlite3.Connection:
    """Open a session's database for writing; make it where there is none. Blocks.

    The connection may be used from any thread, by one at a time; transactions are begun
    by hand. A commit is on disk when it returns. A database of an older version is brought
    up to date, after a copy was made beside it (``session.db.before-v3``).

    Args:
        path: the file.
        mode: ``WAL`` or ``TRUNCATE``; None: whichever works on its file system. With
            ``TRUNCATE`` a commit waits for those who read.

    Raises:
        StateError: it is no database, another program's, a newer pexecd's, damaged, or
            on a file system where SQLite cannot keep it whole.
    """
    if mode is None:
        mode = journal_mode(mount_of(path.parent))
    if not mode:
        raise StateError(
            f"{path}: this file system has no locks that other computers see; name a place on "
            "a local disk with state = in [job]"
        )
    check_files(path)
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    try:
        version = _check(path, connection)
        _set_mode(path, connection, mode)
        connection.execute("PRAGMA synchronous = FULL")
        if version == 0:
            _run(connection, _TABLES, VERSION, application=APPLICATION_ID)
        elif version < VERSION:
            _migrate(path, connection, version)
        _check_tables(path, connection)
    except sqlite3.Error as error:
        connection.close()
        raise damaged(path, error) from None
    except StateError:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a session's database for reading beside its writer. Blocks."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
    )
    # Many queries, one moment: what is committed meanwhile is not seen.
    connection.execute("BEGIN")
    return connection


def backup_of(path: Path, version: int) -> Path:
    """Where the copy is that was made before a database became this version."""
    return path.with_name(f"{path.name}.before-v{version}")


def _check(path: Path, connection: sqlite3.Connection) -> int:
    version = _scalar(connection, "PRAGMA user_version")
    application = _scalar(connection, "PRAGMA application_id")
    empty = _scalar(connection, "SELECT count(*) FROM sqlite_master") == 0
    if application != APPLICATION_ID and not (empty and version == application == 0):
        raise StateError(f"{path}: another program's database; name another place with state =")
    if version > VERSION:
        raise StateError(
            f"{path}: written by a newer pexecd (schema {version}, this one knows {VERSION}); "
            "use that one, or start anew with --fresh"
        )
    return version


def _set_mode(path: Path, connection: sqlite3.Connection, mode: str) -> None:
    if mode == TRUNCATE:
        # Who has it alone needs no shared memory to get rid of a write-ahead log.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    (got,) = connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()
    if mode == TRUNCATE:
        connection.execute("PRAGMA locking_mode = NORMAL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # now it lets go
    if got != mode:
        raise StateError(
            f"{path}: SQLite's write-ahead log does not work on this file system; name a "
            "place on a local disk with state = in [job]"
        )


def _migrate(path: Path, connection: sqlite3.Connection, version: int) -> None:
    backup = backup_of(path, VERSION)
    try:
        with replacing(backup) as copy, closing(sqlite3.connect(copy)) as target:
            target.execute("PRAGMA journal_mode = OFF")
            connection.backup(target)
    except OSError as error:
        raise StateError(
            f"{backup}: no copy could be made before the database is brought up to date: "
            f"{error.strerror}; nothing was changed"
        ) from None
    script = "".join(_MIGRATIONS[older] for older in range(version, VERSION))
    _run(connection, script, VERSION)


def _run(
    connection: sqlite3.Connection, script: str, version: int, application: int | None = None
) -> None:
    """Change the schema in one transaction."""
    named = f"PRAGMA application_id = {application};" if application is not None else ""
    connection.executescript(
        f"BEGIN IMMEDIATE; {script} {named} PRAGMA user_version = {version}; COMMIT;"
    )


def _check_tables(path: Path, connection: sqlite3.Connection) -> None:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    missing = _NAMES - {name for (name,) in found}
    if missing:
        raise StateError(
            f"{path}: lacks the tables {', '.join(sorted(missing))}; bring it back from a "
            "backup, or start anew with --fresh"
        )


def _scalar(connection: sqlite3.Connection, query: str) -> int:
    (value,) = connection.execute(query).fetchone()
    return int(value)

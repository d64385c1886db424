from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pexecd.errors import StateError
from pexecd.store.mounts import TRUNCATE, WAL
from pexecd.store.schema import VERSION, open_database, open_reader
from tests.unit.store.conftest import Limit


def test_a_new_database_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    open_database(path).close()
    header = path.read_bytes()[:100]
    assert header[68:72] == b"pxcd"
    assert int.from_bytes(header[60:64]) == VERSION == 3


def test_an_empty_file_of_a_crash_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    path.touch()
    connection = open_database(path)
    assert connection.execute("SELECT count(*) FROM tasks").fetchone() == (0,)
    connection.close()


def test_every_commit_is_synchronous(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "session.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()


def refused(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(StateError) as error:
        open_database(path)
    assert path.read_bytes() == before
    return str(error.value)


def test_what_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    path.write_bytes(b"L|T\n32|2.2\n" * 500)
    assert refused(path) == (
        f"{path}: not a database of pexecd; move it away, or name another place with state ="
    )


@pytest.mark.parametrize("words", ["CREATE TABLE t (x)", "PRAGMA application_id = 7"])
def test_another_programs_database(tmp_path: Path, words: str) -> None:
    path = tmp_path / "session.db"
    other = sqlite3.connect(path)
    other.execute(words)
    other.close()
    assert "another program's database" in refused(path)


def test_a_newer_pexecds_database(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    connection = open_database(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    assert "written by a newer pexecd (schema 4, this one knows 3)" in refused(path)


def test_a_torn_database(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    connection = open_database(path)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO tasks VALUES (?, ?, NULL)", [(number, "x" * 50) for number in range(2, 1000)]
    )
    connection.execute("COMMIT")
    connection.close()
    whole = path.read_bytes()
    for size in (5000, len(whole) - 4096):
        path.write_bytes(whole[:size])
        assert re.search(r"is damaged: .* malformed|its end is missing", refused(path))
    path.write_bytes(whole[:-1])
    assert "session.db: its end is missing" in refused(path)


def test_tables_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    connection = open_database(path)
    connection.execute("DROP TABLE settled")
    connection.execute("DROP TABLE results")
    connection.close()
    assert "lacks the tables results, settled; " in refused(path)


def test_a_folder_in_the_place_of_the_database(tmp_path: Path) -> None:
    (tmp_path / "session.db").mkdir()
    with pytest.raises(StateError, match=r"session\.db: is a folder, not a file"):
        open_database(tmp_path / "session.db")


def test_a_full_disk_is_not_called_damage(tmp_path: Path, largest_file: Limit) -> None:
    with largest_file(512), pytest.raises(StateError, match="File too large; start again when"):
        open_database(tmp_path / "session.db")


# --- the write-ahead log ------------------------------------------------------------------------


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A database whose only row is in its write-ahead log."""
    (tmp_path / "from").mkdir()
    connection = open_database(tmp_path / "from" / "session.db")
    connection.execute("INSERT INTO meta VALUES ('a', 'b')")
    shutil.copytree(tmp_path / "from", tmp_path / "to")
    connection.close()
    (tmp_path / "to" / "session.db-shm").unlink()
    return tmp_path / "to" / "session.db"


def rows(path: Path) -> list[tuple[str, str]]:
    with closing(open_database(path)) as connection:
        return connection.execute("SELECT key, value FROM meta").fetchall()


def test_a_write_ahead_log_is_read(logged: Path) -> None:
    assert rows(logged) == [("a", "b")]


@pytest.mark.parametrize("place", [0, 5, 9, 20, 30])
def test_a_damaged_write_ahead_log_is_not_taken_for_an_empty_one(logged: Path, place: int) -> None:
    wal = logged.with_name("session.db-wal")
    content = bytearray(wal.read_bytes())
    content[place] ^= 0x55
    wal.write_bytes(content)
    with pytest.raises(StateError, match=r"session\.db-wal: is damaged, and with"):
        open_database(logged)
    assert wal.read_bytes() == content


def test_a_torn_end_of_the_write_ahead_log_was_never_confirmed(logged: Path) -> None:
    wal = logged.with_name("session.db-wal")
    wal.write_bytes(wal.read_bytes()[:-1])
    assert rows(logged) == []


@pytest.mark.parametrize("begun", [b"", b"7\x7f\x06", bytes(32), bytes(8192)])
def test_a_write_ahead_log_that_had_only_begun(logged: Path, begun: bytes) -> None:
    logged.with_name("session.db-wal").write_bytes(begun)
    assert rows(logged) == []


def test_a_write_ahead_log_that_cannot_be_read(logged: Path) -> None:
    wal = logged.with_name("session.db-wal")
    wal.unlink()
    wal.mkdir()
    with pytest.raises(StateError, match=r"session\.db-wal: is a folder, not a file"):
        open_database(logged)


# --- network file systems -----------------------------------------------------------------------


def test_without_shared_memory_there_is_no_write_ahead_log(tmp_path: Path) -> None:
    path = tmp_path / "session.db"
    connection = open_database(path, TRUNCATE)
    connection.execute("INSERT INTO meta VALUES ('a', 'b')")
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    # Others may read meanwhile, as ``Recovery`` does.
    with closing(open_reader(path)) as reader:
        assert reader.execute("SELECT * FROM meta").fetchall() == [("a", "b")]
    assert sorted(os.listdir(tmp_path)) == ["session.db", "session.db-journal"]
    connection.close()


def test_a_database_changes_its_mode_when_it_is_moved(logged: Path) -> None:
    with closing(open_database(logged, TRUNCATE)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
        assert not list(logged.parent.glob("*-wal"))
        assert not list(logged.parent.glob("*-shm"))
    with closing(open_database(logged, WAL)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert rows(logged) == [("a", "b")]


def test_where_locks_do_not_work_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no locks that other computers see; name a place on"):
        open_database(tmp_path / "session.db", "")
    assert not list(tmp_path.iterdir())


# --- migration ----------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE tasks (number INTEGER PRIMARY KEY, cells TEXT NOT NULL);

CREATE TABLE settled (task INTEGER PRIMARY KEY, ticket INTEGER, reason TEXT);

CREATE TABLE tickets (
    ticket INTEGER PRIMARY KEY, task INTEGER NOT NULL, client TEXT NOT NULL, host TEXT NOT NULL,
    managed INTEGER NOT NULL, speaks INTEGER NOT NULL, given REAL NOT NULL,
    "end" TEXT, reason TEXT, exit_status INTEGER, signal INTEGER, seconds REAL, stderr BLOB
);

CREATE TABLE results (
    ticket INTEGER NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL,
    data BLOB, spool TEXT, PRIMARY KEY (ticket, place)
);

CREATE TABLE collected (
    id INTEGER PRIMARY KEY, file TEXT NOT NULL UNIQUE, rule TEXT NOT NULL,
    length INTEGER NOT NULL, upto INTEGER NOT NULL
);
CREATE TABLE collected_tasks (
    id INTEGER NOT NULL, task INTEGER NOT NULL, PRIMARY KEY (id, task)
) WITHOUT ROWID;

CREATE TABLE not_collected (task INTEGER PRIMARY KEY, reason TEXT NOT NULL);
INSERT INTO meta VALUES ('tasks', '2');
INSERT INTO tasks VALUES (1, '32|2.2'), (2, '64|2.3');
INSERT INTO tickets VALUES (10000, 1, 'c', 'h', 1, 1, 1e9, 'done', '', 0, 0, 0.5, x'');
INSERT INTO results VALUES (10000, 0, 'output', 4, x'302e360a', NULL);
INSERT INTO settled VALUES (1, 10000, NULL);
PRAGMA application_id = 0x70786364;
PRAGMA user_version = 1;
"""


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    path = tmp_path / "session.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA journal_mode = WAL; {VERSION_1}")
    return path


def columns(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    return {
        name: connection.execute(f"PRAGMA table_info({name})").fetchall()
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    }


def test_an_older_database_is_brought_up_to_date(version_1: Path, tmp_path: Path) -> None:
    with closing(open_database(version_1)) as migrated:
        assert migrated.execute("PRAGMA user_version").fetchone() == (VERSION,)
        (tmp_path / "new").mkdir()
        with closing(open_database(tmp_path / "new" / "session.db")) as new:
            assert columns(migrated) == columns(new)
        assert migrated.execute("SELECT * FROM tasks").fetchall() == [
            (1, "32|2.2", None), (2, "64|2.3", None),
        ]  # fmt: skip
        assert migrated.execute("SELECT ticket FROM settled").fetchall() == [(10000,)]
        assert migrated.execute("SELECT * FROM reopened").fetchall() == []


def test_a_copy_is_made_first(version_1: Path) -> None:
    open_database(version_1).close()
    backup = version_1.with_name("session.db.before-v3")
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT data FROM results").fetchall() == [(b"0.6\n",)]
    content = backup.read_bytes()
    open_database(version_1).close()
    assert backup.read_bytes() == content
    assert not list(version_1.parent.glob("*.part*"))


def test_without_room_for_the_copy_nothing_is_changed(version_1: Path, largest_file: Limit) -> None:
    with largest_file(20_000), pytest.raises(StateError):
        open_database(version_1)
    with closing(sqlite3.connect(version_1)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert not list(version_1.parent.glob("*.before*"))


def test_a_copy_that_a_crash_left_unfinished_is_no_hindrance(version_1: Path) -> None:
    version_1.with_name("session.db.before-v3.part").write_bytes(b"half")
    open_database(version_1).close()
    assert [path.name for path in version_1.parent.glob("*.before*")] == ["session.db.before-v3"]

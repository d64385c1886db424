"""What goes wrong with disks and databases: what can pass, and what people are told."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from pexecd.errors import StateError

#: A disk with less free space than this (bytes) counts as full when it is tried: work that went
#: on with less would stop again at once.
RESERVE = 1024 * 1024
#: So many bytes are written to try a disk: quotas and read-only file systems show in no number.
_TRIED = 64 * 1024

#: Reasons that pass when somebody makes room, or mounts the disk for writing again.
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


def try_disk(folder: Path) -> OSError | None:
    """Write a little into a folder, durably, and delete it again. Blocks.

    Returns:
        None, or what went wrong; too little free space counts as a full disk.
    """
    path = folder / "probe.part"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(bytes(_TRIED))
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)
            path.unlink(missing_ok=True)
        status = os.statvfs(folder)
    except OSError as error:
        return error
    if status.f_bavail * status.f_frsize < RESERVE:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def no_room(folder: Path) -> str:
    """Why nothing can be stored in a folder just now, if that can pass; else empty. Blocks."""
    problem = try_disk(folder)
    if problem is None or problem.errno not in _PASSING:
        return ""
    return f"{folder}: {problem.strerror}"


def passing(error: sqlite3.Error, path: Path) -> str:
    """Why a commit failed, if trying again later can help; else empty. Blocks.

    Args:
        error: what SQLite said. It keeps the system's reason to itself, so the disk is tried.
        path: the database.
    """
    code = _primary(error)
    if code == sqlite3.SQLITE_FULL:
        return f"{path}: {os.strerror(errno.ENOSPC)}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{path}: another program has locked it"
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        problem = try_disk(path.parent)
        if problem is not None and problem.errno in _PASSING:
            return f"{path}: {problem.strerror}"
    return ""


def damaged(path: Path, error: sqlite3.Error) -> StateError:
    """The error for people when SQLite cannot work with a database at all. Blocks."""
    reason = passing(error, path)
    if reason:
        return StateError(f"{reason}; start again when that is over")
    match _primary(error):
        case sqlite3.SQLITE_NOTADB:
            said = "not a database of pexecd; move it away, or name another place with state ="
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            said = f"may not be read or written: {error}; look at the permissions in its folder"
        case sqlite3.SQLITE_IOERR:
            said = f"the disk fails: {error}; look at the system's log before you go on"
        case _:
            said = f"is damaged: {error}; bring it back from a backup, or start anew with --fresh"
    return StateError(f"{path}: {said}")


def _primary(error: sqlite3.Error) -> int:
    """SQLite's error code without its details; 0 if it came from Python."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

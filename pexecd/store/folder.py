"""The state folder of a session: private, and in the hands of one master at a time."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from pexecd.errors import StateError
from pexecd.store.files import sync

DATABASE = "session.db"
SPOOL = "spool"
_LOCK = "lock"
#: Kept by a fresh start: clients of the run before that are still there are told to go.
_CERTIFICATE = "certificate.pem"
#: There once a run has begun, and after that the database is, too.
_CARD = "session.json"
#: All that a master puts into the folder, but for the lock. The card goes first: who is killed
#: while deleting leaves a folder that can be begun in.
_CONTENT = (
    _CARD,
    DATABASE,
    f"{DATABASE}-*",  # SQLite's
    f"{DATABASE}.before-v*",
    SPOOL,
    "worker",
    "scratch",
    "log",
    "statistics.json",
    "joblog.tsv",
    "probe.part",
)


class StateFolder:
    """A state folder that this process holds. Made by ``claim``, given back by ``release``.

    Attributes:
        path: the folder.
        database, spool, certificate, worker, scratch, log, session, statistics, joblog: what is
            in it.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self._lock = lock
        self.path = path
        self.database = path / DATABASE
        self.spool = path / SPOOL
        self.certificate = path / _CERTIFICATE
        self.worker = path / "worker"
        self.scratch = path / "scratch"
        self.log = path / "log"
        self.session = path / _CARD
        self.statistics = path / "statistics.json"
        self.joblog = path / "joblog.tsv"

    @classmethod
    def claim(cls, path: Path) -> StateFolder:
        """Make the folder where it is missing, and lock it until ``release`` or our end.

        Blocks for some file operations.

        Raises:
            StateError: it cannot be made, is somebody else's, holds other files, or
                another master works with it.
        """
        try:
            _prepare(path)
            lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(
                f"{path}: cannot be used as state folder: {_words(error)}; name another "
                "place with state = in [job]"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 300, 0).decode("utf-8", "replace").strip() or "another process"
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise StateError(
                    f"{path}: cannot be locked ({error.strerror}); name a place on a local "
                    "disk with state = in [job]"
                ) from None
            raise StateError(
                f"{path}: held by {holder}, which works on this job; wait for its end, or press "
                "Ctrl-C there"
            ) from None
        # Where the disk is full the lock holds all the same, but nobody reads whose it is.
        with contextlib.suppress(OSError):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return cls(path, lock)

    def check(self) -> None:
        """See whether what an earlier run stored is there. Blocks.

        Raises:
            StateError: its database is gone: to begin anew would throw away the larger results.
        """
        size = self.database.stat().st_size if self.database.exists() else 0
        if not size and self.session.exists():
            raise StateError(
                f"{self.database}: is {'empty' if self.database.exists() else 'gone'}, though "
                "this folder was worked in; bring it back from a backup, or start anew with --fresh"
            )

    def clear(self) -> None:
        """Delete all that earlier masters stored here; for a fresh start. Blocks.

        Raises:
            StateError: something could not be deleted.
        """
        for path in [found for name in _CONTENT for found in self.path.glob(name)]:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise StateError(f"{path}: cannot be deleted: {error.strerror}") from None

    def release(self) -> None:
        """Let another master have it. The lock's file stays: deleting it would be a race."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock, 0)
        os.close(self._lock)


def _prepare(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(mode=0o700, parents=True)
        sync(path.parent)  # what is stored in it survives a power cut only if it does
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise StateError(
            f"{path}: belongs to another user; name another place with state = in [job]"
        )
    names = set(os.listdir(path))
    # A lock alone says little, for others call theirs so, too; and --fresh deletes.
    if names and DATABASE not in names and not (_LOCK in names and _all_ours(names)):
        raise StateError(
            f"{path}: not a state folder of pexecd, for it holds other files; name another "
            "place with state = in [job]"
        )
    if status.st_mode & 0o077:
        path.chmod(0o700)


def _all_ours(names: Iterable[str]) -> bool:
    """Whether a master without a database (it was about to make one) may have put these there."""
    return all(
        any(
            fnmatch.fnmatchcase(name, pattern) for pattern in (_LOCK, f"{_CERTIFICATE}*", *_CONTENT)
        )
        for name in names
    )


def _words(error: OSError) -> str:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, not a folder"
    return error.strerror or str(error)

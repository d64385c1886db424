"""Results as they arrive: small ones stay in memory, larger ones stream into files.

A larger result goes to a temporary name, is made durable (file, rename, folder), and is
referred to by the journal only then. So what the journal does not refer to is rubbish of
a crash, and is swept at the next start.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from time import monotonic

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import JournalError, StateError
from pexecd.ports import ISpool, IUpload, StoredResult
from pexecd.store.batches import Batches, IReactor
from pexecd.store.files import sync
from pexecd.store.problems import try_disk
from pexecd.units import Seconds

#: Results of up to so many bytes are kept in the database.
INLINE = 16 * 1024
#: An upload is written in pieces of so many bytes: each costs a turn of a thread. One that is
#: shorter is written, made durable and named in one turn.
PIECE = 256 * 1024
#: So many files are made durable at the same time: a slow disk takes as long for all as for one.
SYNCED_AT_ONCE = 16
#: A disk is slow that takes longer for a file. A quick one is asked for one after the other: to
#: hand each to a thread would take as long.
SLOW: Seconds = 0.002
#: When so many bytes of an upload wait for the disk, its peer is to pause.
MOST_WAITING = 1024 * 1024

_UNFINISHED = ".part"
_NAME_LENGTH = 60


@implementer(ISpool)
class Spool:
    """The folder of larger results.

    Args:
        folder: where the files are, in the state folder; made where it is missing.
        reactor: its thread pool does all work on files.
        inline: results of up to so many bytes are not written to a file.

    Raises:
        StateError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path, reactor: IReactor, inline: int = INLINE) -> None:
        self._folder = folder
        self._reactor = reactor
        self._inline = inline
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.stat()
        except OSError as error:
            raise _unusable(folder, error) from None
        self._rubbish = Batches[Path | FileIO](reactor, _dispose, "deleting results")
        self._syncers = ThreadPoolExecutor(SYNCED_AT_ONCE, "spool")
        #: Who waits for the next sync of the folder, and whether one is under way.
        self._unsynced: list[Deferred[None]] = []
        self._syncing = False

    def sweep(self, referred: Iterable[str]) -> int:
        """Delete what a crash left behind; blocks, so do it before anything arrives.

        Args:
            referred: the files that the journal refers to (``Recovery.spooled``).

        Returns:
            How many files were deleted.

        Raises:
            StateError: the folder cannot be read.
        """
        known = set(referred)
        try:
            rubbish = [
                Path(entry.path)
                for entry in os.scandir(self._folder)
                if f"{self._folder.name}/{entry.name}" not in known
                and not entry.is_dir(follow_symlinks=False)  # not ours
            ]
            _dispose(rubbish)
        except OSError as error:
            raise _unusable(self._folder, error) from None
        return len(rubbish)

    def upload(self, ticket: int) -> Upload:
        """See ``ISpool.upload``."""
        return Upload(
            self._folder, ticket, self._reactor, self._inline, self._rubbish, self._sync_folder
        )

    def store(
        self, results: Mapping[int, Mapping[str, bytes]]
    ) -> Deferred[dict[int, tuple[StoredResult, ...]]]:
        """See ``ISpool.store``."""
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, self._store, results)

    def _store(
        self, results: Mapping[int, Mapping[str, bytes]]
    ) -> dict[int, tuple[StoredResult, ...]]:
        """In a thread: write all, then have the disk take them together."""
        files: dict[str, FileIO] = {}
        folder = f"{self._folder}/"

        def write(ticket: int, name: str, data: bytes) -> StoredResult:
            if len(data) <= self._inline:
                return StoredResult(name, len(data), data, None)
            own = _name_for(ticket, name)
            path = folder + own
            files[path] = file = FileIO(path + _UNFINISHED, "xb")
            _write(file, data)
            return StoredResult(name, len(data), None, f"{self._folder.name}/{own}")

        try:
            stored = {
                ticket: tuple([write(ticket, name, data) for name, data in contents.items()])
                for ticket, contents in results.items()
            }
            self._sync_all([file.fileno() for file in files.values()])
            for path in files:
                os.rename(path + _UNFINISHED, path)
            sync(self._folder)
        except (OSError, RuntimeError) as error:  # the latter: it was closed meanwhile
            named = [Path(name) for path in files for name in (path + _UNFINISHED, path)]
            rubbish: list[Path | FileIO] = [*files.values(), *named]
            try:
                _dispose(rubbish)
            except OSError:  # a disk that became read-only, say
                for one in rubbish:
                    self._reactor.callFromThread(self._rubbish.add, one)
            words = error.strerror if isinstance(error, OSError) else error
            raise JournalError(f"{self._folder}: {words}") from None
        for file in files.values():
            file.close()
        return stored

    def _sync_all(self, files: Sequence[int]) -> None:
        """In a thread: have open files on disk; ``OSError`` is what one of them raised."""
        for number, file in enumerate(files):
            begun = monotonic()
            os.fsync(file)
            if monotonic() - begun > SLOW:
                for _ in self._syncers.map(os.fsync, files[number + 1 :]):
                    pass
                return

    def _sync_folder(self) -> Deferred[None]:
        """Make the names of all files in the folder durable, once for all who wait for it."""
        done: Deferred[None] = Deferred()
        self._unsynced.append(done)
        if not self._syncing:
            self._sync_for_all()
        return done

    def _sync_for_all(self) -> None:
        waiting, self._unsynced = self._unsynced, []
        self._syncing = True

        def synced(result: Failure | None) -> None:
            self._syncing = False
            if self._unsynced:
                self._sync_for_all()
            for done in waiting:
                done.callback(result)  # a Failure makes it an errback

        pool = self._reactor.getThreadPool()
        deferToThreadPool(self._reactor, pool, sync, self._folder).addBoth(synced)

    def fits(self, contents: Mapping[str, bytes]) -> bool:
        """See ``ISpool.fits``."""
        for data in contents.values():  # noqa: SIM110 - for every task: all() costs thrice as much
            if len(data) > self._inline:
                return False
        return True

    def path(self, result: StoredResult) -> Path | None:
        """See ``ISpool.path``."""
        return None if result.spool is None else self._folder.parent / result.spool

    def discard(self, results: Sequence[StoredResult]) -> None:
        """See ``ISpool.discard``."""
        for result in results:
            path = self.path(result)
            if path is not None:
                self._rubbish.add(path)

    def probe(self) -> Deferred[str]:
        """See ``ISpool.probe``; less free space than ``problems.RESERVE`` is no room."""
        pool = self._reactor.getThreadPool()
        tried = deferToThreadPool(self._reactor, pool, try_disk, self._folder)
        return tried.addCallback(
            lambda error: "" if error is None else f"{self._folder}: {error.strerror}"
        )

    def close(self) -> Deferred[None]:
        """Fires when all deletions are done."""
        self._syncers.shutdown(wait=False)
        return self._rubbish.idle()


@dataclass(slots=True, eq=False)
class _Part:
    """One result of an upload."""

    name: str
    #: What has arrived, while it is small; None: it is in the file.
    data: bytearray | None = field(default_factory=bytearray)
    size: int = 0
    #: Its final name, once it has outgrown memory; None before.
    path: Path | None = None

    @property
    def unfinished(self) -> Path:
        """Its name until it is whole."""
        assert self.path is not None
        return _unfinished(self.path)


@implementer(IUpload)
class Upload:
    """The results of one ticket while they arrive. One thread works on it at a time."""

    def __init__(
        self,
        folder: Path,
        ticket: int,
        reactor: IReactor,
        inline: int,
        rubbish: Batches[Path | FileIO],
        sync_folder: Callable[[], Deferred[None]],
    ) -> None:
        self._folder = folder
        self._ticket = ticket
        self._reactor = reactor
        self._inline = inline
        self._rubbish = rubbish
        self._sync_folder = sync_folder
        self._parts: list[_Part] = []
        self._backlog: list[tuple[_Part, bytes]] = []
        self._waiting_bytes = 0
        self._behind: list[Deferred[None]] = []
        self._working = False
        self._error: JournalError | None = None
        self._finished: Deferred[tuple[StoredResult, ...]] | None = None
        # Used in threads only, by one at a time:
        self._file: FileIO | None = None
        self._file_of: _Part | None = None

    def begin(self, name: str, length: int | None) -> None:
        """See ``IUpload.begin``; small results need no announced length to stay in memory."""
        del length
        self._parts.append(_Part(name))

    def write(self, data: bytes) -> Deferred[None] | None:
        """See ``IUpload.write``."""
        if self._error is not None:
            return None
        part = self._parts[-1]
        part.size += len(data)
        if part.data is not None:
            part.data += data
            if part.size <= self._inline:
                return None
            data, part.data = bytes(part.data), None
            part.path = self._folder / _name_for(self._ticket, part.name)
        self._backlog.append((part, data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= PIECE:
            self._go_on()
        if self._waiting_bytes <= MOST_WAITING:
            return None
        behind: Deferred[None] = Deferred()
        self._behind.append(behind)
        return behind

    def finish(self) -> Deferred[tuple[StoredResult, ...]]:
        """See ``IUpload.finish``."""
        if self._error is not None and not self._working:
            return fail(self._error)
        if not self._spooled():
            return succeed(self._results())
        self._finished = Deferred()
        self._go_on()
        return self._finished

    def abort(self) -> None:
        """See ``IUpload.abort``."""
        self._fail(JournalError(f"the upload for ticket {self._ticket} was given up"))

    # --- one piece of work in a thread at a time -----------------------------------------------

    def _go_on(self) -> None:
        if self._working:
            return
        if self._error is not None:
            self._give_up(self._error)
        elif self._finished is not None:
            rest, self._backlog = self._backlog, []
            self._in_thread(lambda: self._keep(rest), self._sync_folder).addCallback(self._kept)
        elif self._backlog:
            batch, self._backlog = self._backlog, []
            self._in_thread(lambda: self._store(batch)).addCallback(self._stored, batch)

    def _in_thread(
        self, work: Callable[[], None], then: Callable[[], Deferred[None]] | None = None
    ) -> Deferred[None]:
        """Run it, and what follows; then ``_working`` is over, what was raised is ``_error``."""

        def over(why: Failure | None) -> None:
            self._working = False
            if why is not None:
                error = why.value
                words = error.strerror if isinstance(error, OSError) else error
                self._fail(JournalError(f"{self._folder}: {words}"))

        self._working = True
        turn = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)
        if then is not None:
            turn.addCallback(lambda _: then())
        return turn.addBoth(over)

    def _stored(self, _: None, batch: Sequence[tuple[_Part, bytes]]) -> None:
        self._waiting_bytes -= sum(len(data) for _, data in batch)
        if self._waiting_bytes <= MOST_WAITING // 2:
            self._let_on()
        if self._waiting_bytes >= PIECE or self._finished is not None or self._error is not None:
            self._go_on()

    def _kept(self, _: None) -> None:
        if self._error is not None:
            self._go_on()
            return
        assert self._finished is not None
        finished, self._finished = self._finished, None
        finished.callback(self._results())

    def _let_on(self) -> None:
        behind, self._behind = self._behind, []
        for waiting in behind:
            waiting.callback(None)

    def _fail(self, error: JournalError) -> None:
        if self._error is None:
            self._error = error
            self._backlog.clear()
            self._waiting_bytes = 0
            self._let_on()
            self._go_on()

    def _give_up(self, error: JournalError) -> None:
        """No thread is at work any more: delete what there is, then tell."""
        if self._file is not None:
            self._rubbish.add(self._file)
            self._file = None
        for part in self._spooled():
            assert part.path is not None
            self._rubbish.add(part.unfinished)
            self._rubbish.add(part.path)
        self._parts.clear()
        if self._finished is not None:
            finished, self._finished = self._finished, None
            # Who hears that there is no room finds what was used given back.
            self._rubbish.idle().addCallback(lambda _: finished.errback(error))

    def _spooled(self) -> list[_Part]:
        return [part for part in self._parts if part.path is not None]

    def _results(self) -> tuple[StoredResult, ...]:
        return tuple(
            StoredResult(part.name, part.size, bytes(part.data), None)
            if part.data is not None
            else StoredResult(part.name, part.size, None, self._referred(part))
            for part in self._parts
        )

    def _referred(self, part: _Part) -> str:
        assert part.path is not None
        return f"{self._folder.name}/{part.path.name}"

    # --- in a thread ----------------------------------------------------------------------------

    def _store(self, batch: Sequence[tuple[_Part, bytes]]) -> None:
        for part, data in batch:
            if part is not self._file_of:
                self._seal()
                # Unbuffered: nothing is left to be written, and to fail, when it is closed.
                self._file = FileIO(part.unfinished, "xb")
                self._file_of = part
            assert self._file is not None
            _write(self._file, data)

    def _seal(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                os.fsync(file.fileno())

    def _keep(self, rest: Sequence[tuple[_Part, bytes]]) -> None:
        self._store(rest)
        self._seal()
        for part in self._spooled():
            assert part.path is not None
            part.unfinished.rename(part.path)


def _name_for(ticket: int, name: str) -> str:
    """A new file's final name; the result's own is never trusted, never special."""
    safe = re.sub(r"[^A-Za-z0-9_]+", "_", name)[:_NAME_LENGTH]
    return f"{ticket}-{secrets.token_hex(4)}-{safe}"


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + _UNFINISHED)


def _write(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _dispose(rubbish: Sequence[Path | FileIO]) -> None:
    for one in rubbish:
        if isinstance(one, FileIO):
            one.close()
        else:
            one.unlink(missing_ok=True)


def _unusable(folder: Path, error: OSError) -> StateError:
    return StateError(
        f"{folder}: cannot be used for results: {error.strerror}; repair it, or name another "
        "place with state = in [job]"
    )

"""The journal of a session: facts in, in order; one SQLite connection, one writer thread."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import JournalError, StateError
from pexecd.ports import IJournal, JoblogRow, JournalRecord, StoredResult, TaskRow
from pexecd.store.batches import IReactor
from pexecd.store.lately import Append, Lately
from pexecd.store.problems import damaged, passing
from pexecd.store.reading import read_ended, read_failures, read_results, read_rows
from pexecd.store.recovery import Recovery
from pexecd.store.schema import open_database
from pexecd.store.table import Line, Remapped, begins_with, remap_table, store_lines
from pexecd.store.thread import WorkThread
from pexecd.store.writing import Lines, Noted, Written, transaction, write_records
from pexecd.units import Seconds, Stamp

T = TypeVar("T")
#: Reads from the database, in the writer's thread.
_Query = Callable[[sqlite3.Connection], T]

#: How often a stalled journal tries again.
RETRIED: Seconds = 1.0

#: Under ``meta``: how many tasks there are.
_TASKS = "tasks"


@dataclass(slots=True)
class _Ask:
    query: _Query[Any]
    done: Deferred[Any]


@dataclass(slots=True)
class _Turn:
    """What came of a piece of work of the writer thread."""

    #: Answers to the queries, in their order; a ``Failure`` where there is none.
    answers: list[Any] = field(default_factory=list)
    #: Nothing was written, for a reason that can pass.
    stalled: str = ""
    #: Nothing was written, nor ever will be.
    error: JournalError | None = None


@implementer(IJournal)
class Journal:
    """The durable memory of one session.

    Whatever waits when the writer thread is free shares one commit. A commit that fails for a
    reason that can pass (disk full) goes back to the head of the queue, and is tried again every
    second together with what came meanwhile; queries are answered. After any other
    failure nothing is written any more: what came later may build on what was lost.

    ``open``, ``load``, ``begins_with`` and ``remap`` block: they belong before the reactor's
    start or in a thread, before anything else is asked.

    Attributes:
        meta: what ``load``, ``remap`` and ``note`` were given.
        tasks: how many tasks the table has.
        loaded: whether it is known.
        stored: how many of its lines are on disk; they are stored in their order.
        stalled: see ``IJournal``.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        reactor: IReactor,
        now: Callable[[], Stamp],
    ) -> None:
        self._path = path
        self._connection = connection
        self._reactor = reactor
        self._now = now
        self._queue: list[Append | _Ask] = []
        self._lately = Lately()
        self._working = False
        self._closing = False
        #: Until a stalled journal tries again.
        self._pause: IDelayedCall | None = None
        self._error: JournalError | None = None
        self._watchers: list[Callable[[str], None]] = []
        self._file = str(path)  # a Path takes as long to become words as the look at its file
        #: Of the database: what is committed to one that was deleted is not stored.
        self._inode = path.stat().st_ino
        self._thread = WorkThread("journal", reactor)
        self.meta: Mapping[str, str] = {}
        self.tasks = 0
        self.loaded = False
        self.stored = 0
        #: Queries that wait for lines up to a number to be stored.
        self._early: list[tuple[int, Deferred[None]]] = []
        self.stalled = ""

    @classmethod
    def open(
        cls,
        path: Path,
        reactor: IReactor,
        now: Callable[[], Stamp] = time.time,
        mode: str | None = None,
    ) -> Journal:
        """Open a session's database, or make it.

        Args:
            path: the file; its folder is claimed (``StateFolder``).
            reactor: where Deferreds fire, and the clock of tries on a full disk.
            now: the wall clock.
            mode: see ``open_database``.

        Raises:
            StateError: see ``open_database``.
        """
        connection = open_database(path, mode)
        journal = cls(path, connection, reactor, now)
        try:
            journal._read_meta()
        except sqlite3.Error as error:
            connection.close()
            raise damaged(path, error) from None
        return journal

    def _read_meta(self) -> None:
        meta = dict(self._connection.execute("SELECT key, value FROM meta").fetchall())
        self.loaded = _TASKS in meta
        self.tasks = int(meta.pop(_TASKS, 0))
        (self.stored,) = self._connection.execute(
            "SELECT max(0, ifnull(max(number), 0)) FROM tasks"
        ).fetchone()
        self.meta = meta

    def load(
        self, table: Iterable[Line], meta: Mapping[str, str], tasks: int | None = None
    ) -> None:
        """Begin a session: store the parameter table, or its first lines, before anything else.

        Args:
            table: lines in table order; those that follow are given to ``add``.
            meta: what else a later start must know (digests of table and recipe, say).
            tasks: how many lines the table has; None: these are all.

        Raises:
            StateError: a table was loaded before.
            JournalError: it could not be written; nothing has changed.
        """
        if self.loaded:
            raise StateError(f"{self._path}: holds a table already")
        lines = list(table)
        try:
            with transaction(self._connection):
                store_lines(self._connection, 1, lines)
                self._write_meta(meta, len(lines) if tasks is None else tasks)
            self._read_meta()
        except sqlite3.Error as error:
            raise self._lost(error) from None

    def add(self, lines: Sequence[Line]) -> Deferred[None]:
        """Store the next lines of the table that ``load`` has begun, when the last ones are.

        Returns:
            As ``append``.
        """
        first = self.stored + 1

        def added(_: None) -> None:
            self.stored += len(lines)
            early, self._early = self._early, []
            for entry in early:
                if entry[0] <= self.stored:
                    entry[1].callback(None)
                else:
                    self._early.append(entry)

        return self._append([Lines(first, lines)]).addCallback(added)

    def begins_with(self, lines: Iterable[Line]) -> bool:
        """Whether the lines that are stored are the first of these; just as many are taken.

        Raises:
            JournalError: they could not be read.
        """
        try:
            return begins_with(self._connection, lines)
        except sqlite3.Error as error:
            raise self._lost(error) from None

    def remap(
        self,
        table: Iterable[Line],
        meta: Mapping[str, str],
        digest_of: Callable[[str], bytes | None] = lambda _: None,
    ) -> Remapped:
        """Put another table in the place of the one that was loaded (SPEC section 4).

        A task is the same if its digest is, and if as many tasks with that digest come
        before it. Such tasks keep their tickets, results and ends under their new numbers.
        Those that are no longer in the table are left out of everything that is read, but
        remembered: one that comes back has all that it had. How far files were collected is
        forgotten: they are to be made anew. What the collect function was given is not given
        to it again, but for a line that had left the table and came back. A million lines
        take some ten seconds.

        Args:
            table: as for ``load``, all of it; a line without digest is a new task.
            meta: replaces what is noted under the same keys.
            digest_of: says of the cells of a stored line without digest what the task is.

        Returns:
            How many tasks were kept, are new, and left the table.

        Raises:
            JournalError: it could not be written; nothing has changed.
        """
        try:
            with transaction(self._connection):
                remapped = remap_table(self._connection, table, digest_of)
                self._write_meta(meta, remapped.kept + remapped.new)
            self._read_meta()
            self._lately = Lately()
        except sqlite3.Error as error:
            raise self._lost(error) from None
        return remapped

    def _write_meta(self, meta: Mapping[str, str], tasks: int) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [*meta.items(), (_TASKS, str(tasks))]
        )

    def note(self, key: str, value: str) -> Deferred[None]:
        """Keep one more word about the session, under ``meta``.

        Returns:
            As ``append``.
        """

        def noted(_: None) -> None:
            self.meta = {**self.meta, key: value}

        return self._append([Noted(key, value)]).addCallback(noted)

    def recovery(self) -> Recovery:
        """What a start needs to know of earlier runs; see there."""
        return Recovery(self._path)

    # --- IJournal ---------------------------------------------------------------------------

    def append(self, records: Sequence[JournalRecord]) -> Deferred[None]:
        """See ``IJournal.append``."""
        return self._append(records)

    def watch(self, changed: Callable[[str], None]) -> None:
        """See ``IJournal.watch``."""
        self._watchers.append(changed)

    def rows(self, first: int, count: int) -> Deferred[list[TaskRow]]:
        """See ``IJournal.rows``."""

        def read(_: None = None) -> Deferred[list[TaskRow]]:
            asked = self._ask(lambda connection: read_rows(connection, first, count))
            return asked.addCallback(self._lately.read)

        upto = min(first + count - 1, self.tasks)
        if not self._closing and (rows := self._lately.rows(first, upto)) is not None:
            return succeed(rows)
        if upto <= self.stored or self._closing:
            return read()
        stored: Deferred[None] = Deferred()
        self._early.append((upto, stored))
        return stored.addCallback(read)

    def results(self, tickets: Sequence[int]) -> Deferred[dict[int, tuple[StoredResult, ...]]]:
        """See ``IJournal.results``."""
        if not self._closing and (results := self._lately.results(tickets)) is not None:
            return succeed(results)
        return self._ask(lambda connection: read_results(connection, tickets))

    def failures(self, after: int, count: int) -> Deferred[list[tuple[int, str]]]:
        """See ``IJournal.failures``."""
        return self._ask(lambda connection: read_failures(connection, after, count))

    def ended(self, tickets: Sequence[int]) -> Deferred[list[tuple[JoblogRow, TaskRow]]]:
        """See ``IJournal.ended``."""
        if not self._closing and (ended := self._lately.ended(tickets)) is not None:
            return succeed(ended)
        return self._ask(lambda connection: read_ended(connection, tickets))

    def close(self) -> Deferred[None]:
        """See ``IJournal.close``."""
        if self._closing:
            return succeed(None)
        self._unpause()
        last = self._ask(lambda connection: connection.close())
        self._closing = True
        early, self._early = self._early, []
        for _, stored in early:
            stored.callback(None)  # and is refused

        def closed(_: object) -> None:
            self._thread.stop()

        return last.addCallback(closed)

    # --- the queue ----------------------------------------------------------------------------

    def _append(self, records: Sequence[Written]) -> Deferred[None]:
        if self._error is not None:
            return fail(self._error)
        append = Append(records)
        self._lately.written(append)
        return self._enqueue(append, append.done)

    def _ask(self, query: _Query[T]) -> Deferred[T]:
        done: Deferred[T] = Deferred()
        return self._enqueue(_Ask(query, done), done)

    def _enqueue(self, item: Append | _Ask, done: Deferred[T]) -> Deferred[T]:
        if self._closing:
            return fail(JournalError(f"{self._path}: closed"))
        self._queue.append(item)
        self._work()
        return done

    def _work(self) -> None:
        """Hand the writer what waits; while the journal pauses, the queries alone."""
        if self._working:
            return
        batch, self._queue = self._queue, []
        if self._pause is not None:
            self._queue = [item for item in batch if isinstance(item, Append)]
            batch = [item for item in batch if isinstance(item, _Ask)]
        if not batch:
            return
        self._working = True
        now = self._now()
        for item in batch:
            if isinstance(item, Append):
                item.now = now
        self._thread.do(lambda: partial(self._tell, self._turn(batch, now), batch))

    def _tell(self, turn: _Turn, batch: list[Append | _Ask]) -> None:
        """Back in the reactor thread: whoever appends from here on queues until the end."""
        appends = [item for item in batch if isinstance(item, Append)]
        if turn.stalled and self._closing:
            turn.error = JournalError(turn.stalled)
        if appends:
            self._change("" if turn.error else turn.stalled)
        if turn.error is not None:
            self._error = turn.error
            appends += [item for item in self._queue if isinstance(item, Append)]
            self._queue = [item for item in self._queue if isinstance(item, _Ask)]
            for append in appends:
                append.done.errback(turn.error)
        elif turn.stalled:
            self._queue[:0] = appends
            self._pause = self._reactor.callLater(RETRIED, self._unpause)
        else:
            for append in appends:
                append.committed, append.records = True, ()
            for append in appends:
                append.done.callback(None)
        asks = [item for item in batch if isinstance(item, _Ask)]
        for ask, answer in zip(asks, turn.answers, strict=True):
            ask.done.callback(answer)  # a Failure makes it an errback
        self._working = False
        self._work()

    def _unpause(self) -> None:
        """Try again what waits."""
        if self._pause is not None:
            if self._pause.active():
                self._pause.cancel()
            self._pause = None
            self._work()

    def _change(self, stalled: str) -> None:
        was, self.stalled = self.stalled, stalled
        if bool(was) != bool(stalled):
            for changed in self._watchers:
                changed(stalled)

    # --- in the writer thread -----------------------------------------------------------------

    def _turn(self, batch: Sequence[Append | _Ask], now: Stamp) -> _Turn:
        """One commit for all that wait, then the queries."""
        turn = _Turn()
        records = [record for item in batch if isinstance(item, Append) for record in item.records]
        if records:
            self._commit(records, now, turn)
        for item in batch:
            if isinstance(item, _Ask):
                try:
                    turn.answers.append(item.query(self._connection))
                except Exception as problem:  # the writer outlives every mistake
                    turn.answers.append(Failure(self._lost(problem)))
        return turn

    def _commit(self, records: Sequence[Written], now: Stamp, turn: _Turn) -> None:
        # Twice: what was in the way may be gone when one looks for it.
        for last in (False, True):
            try:
                with transaction(self._connection):
                    write_records(self._connection, records, now)
            except Exception as problem:
                if isinstance(problem, sqlite3.Error):
                    turn.stalled = passing(problem, self._path)
                if turn.stalled:
                    return
                if last:
                    turn.error = self._lost(problem)
            else:
                if not self._there():
                    turn.error = JournalError(
                        f"{self._path}: was deleted or moved while the master worked with it; "
                        "bring it back, or start anew with --fresh"
                    )
                return

    def _there(self) -> bool:
        try:
            return os.stat(self._file).st_ino == self._inode
        except OSError:
            return False

    def _lost(self, error: Exception) -> JournalError:
        lost = JournalError(f"{self._path}: {error}")
        lost.__cause__ = error  # its traceback, should it be a bug
        return lost

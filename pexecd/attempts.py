"""What people can read of each attempt, after the commit that ended it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.ports import IAttemptLog, IJournal, JoblogRow, TaskRow
from pexecd.store.thread import gently
from pexecd.telling import Teller
from pexecd.units import Seconds

T = TypeVar("T")

#: Ended tickets wait so long for others to be read and logged with, for each turn has its cost; but
#: not when they are so many: they would hold up the reactor, and may still be in memory now.
GATHERED: Seconds = 0.5
MANY = 512

#: So many are read together: bounds memory when many have waited.
TOGETHER = 4096


class Attempts:
    """Reads what ended from the journal and has it logged, many tickets at a time.

    Args:
        journal: where the attempts are.
        logs: where it goes.
        teller: knows the commands.
        clock: measures ``GATHERED``.
    """

    _log = Logger()

    def __init__(
        self, journal: IJournal, logs: Sequence[IAttemptLog], teller: Teller, clock: IReactorTime
    ) -> None:
        self._journal = journal
        self._logs = logs
        self._teller = teller
        self._clock = clock
        self._timer: IDelayedCall | None = None
        self._tickets: list[int] = []
        self._writing: Deferred[None] | None = None
        #: Somebody waits for the end.
        self._closing = False

    def begin(
        self,
        earlier: Callable[[], Sequence[Iterator[tuple[JoblogRow, TaskRow]]]],
        in_thread: Callable[[Callable[[], None]], Deferred[None]],
        in_reactor: Callable[[Callable[[], None]], object],
    ) -> Deferred[None]:
        """Write each log anew in the background, with what ended in earlier runs.

        Args:
            earlier: for each log what it may tell of; read in a thread.
            in_thread: runs a blocking function elsewhere.
            in_reactor: calls a function in the reactor thread.

        Returns:
            Fires when what ended until now is known: what ends from now on comes behind it.
        """
        known: Deferred[None] = Deferred()

        def rewrite() -> None:
            readers = [_begun(rows) for rows in earlier()]
            in_reactor(partial(known.callback, None))
            for log, rows in zip(self._logs, readers, strict=True):
                slowly = gently(rows, lambda: self._closing)
                log.rewrite((row, self._teller.command(task)) for row, task in slowly)

        def lost(why: Failure) -> None:
            self._lost(why)
            if not known.called:
                known.callback(None)

        self._writing = in_thread(rewrite).addErrback(lost)
        self._writing.addCallback(self._idle)
        return known

    def ended(self, tickets: Sequence[int]) -> None:
        """These tickets ended, and that is committed."""
        self._tickets += tickets
        if not self._tickets or self._writing is not None:
            return
        if self._timer is None:
            self._timer = self._clock.callLater(GATHERED, self._begin_writing)
        if len(self._tickets) >= MANY:
            self._timer.reset(0)  # after what is done now: an answer may follow

    def _begin_writing(self) -> None:
        self._timer = None
        self._writing = Deferred.fromCoroutine(self._write()).addErrback(self._lost)
        self._writing.addCallback(self._idle)

    def close(self) -> Deferred[None]:
        """Fires when all that ended is logged."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._closing = True
        while self._writing is not None or self._timer is not None:
            if self._timer is not None:
                self._timer.cancel()
                self._begin_writing()
            if self._writing is not None:
                written: Deferred[None] = Deferred()
                self._writing.addCallback(written.callback)
                await written
        for log in self._logs:
            await log.close()

    async def _write(self) -> None:
        while self._tickets:
            tickets, self._tickets = self._tickets[:TOGETHER], self._tickets[TOGETHER:]
            command = self._teller.command
            rows = [(row, command(task)) for row, task in await self._journal.ended(tickets)]
            for log in self._logs:
                log.add(rows)

    def _idle(self, _: None) -> None:
        self._writing = None
        self.ended([])  # what came meanwhile

    def _lost(self, why: Failure) -> None:
        self._tickets.clear()
        self._log.warn(
            "joblog.tsv and failures.log lack some attempts: {why}", why=why.getErrorMessage()
        )


def _begun(rows: Iterator[T]) -> Iterator[T]:
    """The same rows; the database is read as it is now."""
    return chain(list(islice(rows, 1)), rows)

"""Work that may wait a little: done in a thread, one batch at a time, order kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.units import Seconds

T = TypeVar("T")

#: After so long a batch that the disk refused is tried again.
RETRIED: Seconds = 5.0


class IReactor(IReactorThreads, IReactorTime):
    """What is needed of the reactor in this package."""


class Batches(Generic[T]):
    """Hands whatever was added to ``work``, in a thread.

    What is added while a batch is worked on makes the next batch. A batch that the disk
    refuses (``OSError``) is tried again after a while, with what came meanwhile, and a last
    time when somebody waits for ``idle``; people are told once. After any other error it is
    logged and dropped: nothing that cannot be made again belongs here.

    Args:
        reactor: its thread pool does the work, its clock measures the pauses.
        work: does a batch, or raises; then it may be done again from the start.
        doing: what it is, for the log.
        most: of a batch that waits for another try the last so many are kept.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactor,
        work: Callable[[list[T]], object],
        doing: str,
        most: int = 10_000,
    ) -> None:
        self._reactor = reactor
        self._work = work
        self._doing = doing
        self._most = most
        self._waiting: list[T] = []
        self._working = False
        self._refused = False
        #: Somebody waited already when the work began.
        self._last = False
        self._pause: IDelayedCall | None = None
        self._idle: list[Deferred[None]] = []

    def add(self, item: T) -> None:
        """Have this done, some time."""
        self._waiting.append(item)
        if self._pause is None:
            self._go_on()

    def idle(self) -> Deferred[None]:
        """Fires when all that was added has been worked on, or was tried a last time."""
        done: Deferred[None] = Deferred()
        self._idle.append(done)
        self._go_on()
        return done

    def _go_on(self) -> None:
        if self._working:
            return
        if self._pause is not None and self._pause.active():
            self._pause.cancel()
        self._pause = None
        if not self._waiting:
            self._over()
            return
        batch, self._waiting = self._waiting, []
        self._working = True
        self._last = bool(self._idle)
        pool = self._reactor.getThreadPool()
        turn = deferToThreadPool(self._reactor, pool, self._work, batch)
        turn.addCallbacks(self._done, self._failed, errbackArgs=(batch,))

    def _done(self, _: object) -> None:
        if self._refused:
            self._refused = False
            self._log.info("{doing}: works again", doing=self._doing)
        self._working = False
        self._go_on()

    def _failed(self, why: Failure, batch: list[T]) -> None:
        problem = why.getErrorMessage()
        self._working = False
        if not why.check(OSError):
            self._log.error(
                "{doing}: {problem}", doing=self._doing, problem=problem, log_failure=why
            )
            self._go_on()
            return
        if not self._refused:
            self._refused = True
            self._log.warn("{doing}: {problem}", doing=self._doing, problem=problem)
        if self._last:
            self._over()
            return
        self._waiting = [*batch, *self._waiting][-self._most :]
        if self._idle:
            self._go_on()
        else:
            self._pause = self._reactor.callLater(RETRIED, self._go_on)

    def _over(self) -> None:
        idle, self._idle = self._idle, []
        for done in idle:
            done.callback(None)

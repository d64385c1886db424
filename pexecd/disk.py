"""Whether the disk of a session takes what is written: work pauses while it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.errors import JournalError
from pexecd.units import Seconds

T = TypeVar("T")

#: How often it is tried whether there is room again.
TRIED: Seconds = 2.0


class Disk:
    """Knows whether there is room, tells people, and lets others wait for it.

    Two things can say that the disk is full: the journal, which goes on by itself and says
    so, and the spool, after which it is tried now and then.

    Args:
        clock: measures the tries.
        probe: tries whether there is room; fires with '' or with the reason why not.
        log: hears when work pauses and when it goes on.

    Attributes:
        full: why nothing can be stored just now; empty when all is well.
    """

    def __init__(
        self, clock: IReactorTime, probe: Callable[[], Deferred[str]], log: Logger
    ) -> None:
        self.full = ""
        self._clock = clock
        self._probe = probe
        self._log = log
        self._journal = ""
        self._spool = ""
        self._trying: IDelayedCall | None = None
        self._waiting: set[Deferred[None]] = set()
        self._confirming: set[Deferred[None]] = set()

    # --- who knows --------------------------------------------------------------------------

    def journal_changed(self, reason: str) -> None:
        """The journal cannot write, or (empty) can again."""
        self._journal = reason
        self._review()

    def spool_failed(self, reason: str) -> None:
        """A result could not be stored."""
        self._spool = reason
        if self._trying is None:
            self._trying = self._clock.callLater(TRIED, self._try)
        self._review()

    def _try(self) -> None:
        def tried(reason: str) -> None:
            self._trying = None
            if reason:
                self.spool_failed(reason)
            else:
                self._spool = ""
                self._review()

        self._probe().addCallback(tried)

    def _review(self) -> None:
        was, self.full = self.full, self._journal or self._spool
        if self.full and not was:
            tell_pause(self._log, self.full)
            confirming, self._confirming = self._confirming, set()
            for one in confirming:
                one.errback(JournalError(self.full))
        elif was and not self.full:
            tell_room(self._log)
            waiting, self._waiting = self._waiting, set()
            for one in waiting:
                one.callback(None)

    # --- who waits --------------------------------------------------------------------------

    def room(self, patience: Seconds | None = None) -> Deferred[None]:
        """Fires when there is room.

        Args:
            patience: for so long it is waited for; None: however long it takes.

        Returns:
            Fails with ``JournalError`` after ``patience`` seconds without, with
            ``CancelledError`` when it is cancelled.
        """
        if not self.full:
            return succeed(None)
        waiting: Deferred[None] = Deferred(self._waiting.discard)
        self._waiting.add(waiting)
        if patience is None:
            return waiting

        def late(_result: object, _patience: Seconds) -> None:
            raise JournalError(self.full)

        return waiting.addTimeout(patience, self._clock, late)

    def confirmed(self, writing: Deferred[None]) -> Deferred[None]:
        """What was appended to the journal, for a peer that is not kept waiting for room.

        Returns:
            Fires or fails as ``writing``; fails with ``JournalError`` as soon as the disk
            refuses. What was appended is written all the same when there is room.
        """
        answer: Deferred[None] = Deferred(self._confirming.discard)
        self._confirming.add(answer)

        def over(result: Failure | None) -> None:
            if answer in self._confirming:
                self._confirming.discard(answer)
                if isinstance(result, Failure):
                    answer.errback(result)
                else:
                    answer.callback(None)

        writing.addBoth(over)
        if self.full and answer in self._confirming:
            self._confirming.discard(answer)
            answer.errback(JournalError(self.full))
        return answer

    def close(self) -> None:
        """Try no more."""
        if self._trying is not None and self._trying.active():
            self._trying.cancel()
        self._trying = None


def tell_pause(log: Logger, reason: str) -> None:
    """Tell people that work pauses, and why."""
    log.warn(
        "work pauses, nothing can be stored: {reason}; it goes on by itself when that is over",
        reason=reason,
    )


def tell_room(log: Logger) -> None:
    """Tell people that it goes on."""
    log.warn("there is room again: work goes on")

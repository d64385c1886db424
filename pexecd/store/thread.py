"""A thread that does what it is handed, one thing after another."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from twisted.internet.interfaces import IReactorFromThreads


class WorkThread:
    """One thread of our own, for work that must keep its order.

    A thread pool of Twisted would do, but costs a tenth of a millisecond for each thing it is
    handed: as much as a commit.

    Args:
        name: of the thread, for who debugs.
        reactor: where results are told.
    """

    def __init__(self, name: str, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._work: SimpleQueue[Callable[[], Callable[[], object]] | None] = SimpleQueue()
        # A daemon: who ends without closing it has lost nothing that was confirmed.
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], Callable[[], object]]) -> None:
        """Run ``work`` in the thread, and what it returns in the reactor. It must not raise."""
        self._work.put(work)

    def stop(self) -> None:
        """End the thread when it has done what it was handed; waits for that."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._reactor.callFromThread(work())
            del work  # whatever it holds is not kept until there is more to do

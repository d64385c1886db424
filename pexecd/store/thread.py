"""Threads beside the reactor's: one that keeps an order; long loops that hold nobody up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeAlias, TypeVar

from twisted.internet.interfaces import IReactorFromThreads

T = TypeVar("T")
#: Goes through many things, perhaps ``gently``.
Each: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]

#: What a thread computes, the reactor cannot: after each piece of so many items it pauses for so
#: many times as long as the piece took. A piece of 25 takes some tenths of a millisecond.
_PIECE = 25
_PAUSE = 3


def gently(items: Iterable[T], hurry: Callable[[], bool]) -> Iterator[T]:
    """The same items, for a long loop in a thread: with pauses in which the reactor computes.

    Args:
        items: any number of them.
        hurry: says whether somebody waits for the end of the loop; then there are no pauses.
    """
    began = time.thread_time()
    for number, item in enumerate(items, 1):
        yield item
        if number % _PIECE == 0:
            if not hurry():
                time.sleep(_PAUSE * (time.thread_time() - began))
            began = time.thread_time()


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

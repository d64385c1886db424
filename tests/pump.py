"""A reactor for tests of things that work in threads: nothing runs until the test waits.

Time is a ``Clock``'s, threads are real, and there is no network. ``wait`` runs what threads
handed over until a Deferred has fired.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from pexecd.store.batches import IReactor

T = TypeVar("T")

#: A test that waits longer hangs; no passing test depends on it.
_HANGS = 60.0


@implementer(IReactor)
class Pump(Clock):
    """See the module. ``stop`` it at the end of the test."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._pool = ThreadPool(0, 4, "pump")
        self._pool.start()

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:  # noqa: A002
        self._calls.put(lambda: callable(*args, **kwargs))

    def callInThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None:  # noqa: A002
        self._pool.callInThread(callable, *args, **kwargs)

    def getThreadPool(self) -> ThreadPool:
        return self._pool

    def suggestThreadPoolSize(self, size: int) -> None:
        self._pool.adjustPoolsize(maxthreads=size)

    def step(self) -> None:
        """Run one thing that a thread hands over; wait for it."""
        self._calls.get(timeout=_HANGS)()

    def wait(self, deferred: Deferred[T]) -> T:
        """Run what threads hand over until this has fired; its result, or raise its error."""
        fired: list[Any] = []
        deferred.addBoth(fired.append)
        while not fired:
            self.step()
        if isinstance(fired[0], Failure):
            fired[0].raiseException()
        result: T = fired[0]
        return result

    def stop(self) -> None:
        """End the threads."""
        self._pool.stop()

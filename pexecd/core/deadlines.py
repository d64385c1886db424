"""When to look at what: one heap for all deadlines of a session."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

from pexecd.units import Instant

K = TypeVar("K", bound=Hashable)

#: So many dropped entries may stay in the heap, beyond as many as are valid.
_SLACK = 64


class Deadlines(Generic[K]):
    """At most one instant for each key, the earliest first; equal ones in the order of ``set``.

    Every method costs O(log n), amortised. What was dropped or set anew stays in the heap
    until it comes to the top or makes up more than half of it.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, K]] = []
        #: The number of each key's one valid entry.
        self._valid: dict[K, int] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._valid)

    def __contains__(self, key: K) -> bool:
        return key in self._valid

    @property
    def held(self) -> int:
        """Entries in memory, the dropped ones included."""
        return len(self._heap)

    def set(self, key: K, when: Instant) -> None:
        """Set the key's deadline, in place of the one it may have."""
        self._last += 1
        self._valid[key] = self._last
        heappush(self._heap, (when, self._last, key))
        if len(self._heap) > 2 * len(self._valid) + _SLACK:
            self._heap = [entry for entry in self._heap if self._valid.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def drop(self, key: K) -> None:
        """Forget the key's deadline, if it has one."""
        self._valid.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._valid.clear()

    def next(self) -> Instant | None:
        """The earliest deadline."""
        heap = self._heap
        while heap and self._valid.get(heap[0][2]) != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop(self, at: Instant) -> K | None:
        """Take out the earliest key that is due at ``at``; None if none is."""
        when = self.next()
        if when is None or when > at:
            return None
        key = heappop(self._heap)[2]
        del self._valid[key]
        return key

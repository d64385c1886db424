"""In which order tasks go into an output, and how far it has come."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple, Protocol

from pexecd.ports import Collected

#: So many tasks at most are read and written together: bounds how long the reactor has to do with
#: them. Where tasks end by the thousand a second, fewer would never be done with them.
TOGETHER = 2048
#: A stretch of the table that is looked at at once, however few of its tasks are done.
_STRETCH = 4096


class Settled:
    """What became of every task: eight bytes each, however many there are."""

    _PENDING = 0
    _FAILED = -1

    def __init__(self) -> None:
        self._tickets = array("q", [self._PENDING])
        self.done = 0

    def settle(self, task: int, ticket: int | None) -> bool:
        """This task is done or has failed.

        Returns:
            Whether that is news.
        """
        new = self._FAILED if ticket is None else ticket
        if task >= len(self._tickets):
            self._tickets.frombytes(bytes(8 * (task + 1 - len(self._tickets))))
        old = self._tickets[task]
        if old == new or old > 0:
            return False
        self.done += new > 0
        self._tickets[task] = new
        return True

    def ticket(self, task: int) -> int | None:
        """The ticket whose result it is; None when there is none."""
        ticket = self._tickets[task] if task < len(self._tickets) else self._PENDING
        return ticket if ticket > 0 else None

    def known(self, task: int) -> bool:
        """Whether it is done or has failed."""
        return task < len(self._tickets) and self._tickets[task] != self._PENDING

    def run(self, first: int, most: int) -> Iterator[int | None]:
        """As ``ticket``, of this task and of those behind it that are known: at most so many."""
        for ticket in self._tickets[first : first + most]:
            if ticket == self._PENDING:
                return
            yield ticket if ticket > 0 else None

    def __len__(self) -> int:
        """The highest number that was settled."""
        return len(self._tickets) - 1


class Batch(NamedTuple):
    """What comes next in an output."""

    #: Task and ticket.
    tasks: list[tuple[int, int]]
    #: See ``Collected``.
    upto: int
    noted: tuple[int, ...]


class Order(Protocol):
    """The order of one output. ``take`` looks; ``commit`` says that it was done."""

    #: How many tasks are in the output.
    count: int
    #: A task belongs before others that are in the output already.
    stale: bool

    @staticmethod
    def after(record: Collected) -> Collected:
        """What the other order has done, as one of this order: nothing of it is done again."""

    def restore(self, record: Collected) -> None:
        """Go on behind what was committed earlier; all that was settled is known by then."""

    def settled(self, task: int) -> None:
        """There is news of this task."""

    def take(self, most: int = TOGETHER) -> Batch | None:
        """What can be written next; None: nothing."""

    def commit(self, batch: Batch) -> None:
        """This was written."""

    def tail(self, most: int = TOGETHER) -> Iterator[list[tuple[int, int]]]:
        """What is done and stays behind a task that is not settled."""


class ByParameters:
    """In table order: everything behind a task waits until it is settled.

    Attributes:
        upto: all tasks up to this one are in the output or among the ``gaps``.
    """

    def __init__(self, settled: Settled) -> None:
        self._settled = settled
        self.upto = 0
        self._gaps: set[int] = set()
        #: A heap: those of them that are done by now, and some that have been made up.
        self._late: list[int] = []
        self.count = 0
        self.stale = False

    def restore(self, record: Collected) -> None:
        self.upto = record.upto
        self._gaps = set(record.tasks)
        self.count = record.upto - len(self._gaps)
        self.look_again()

    def settled(self, task: int) -> None:
        if task in self._gaps and self._settled.ticket(task) is not None:
            self.stale = True
            heappush(self._late, task)

    def take(self, most: int = TOGETHER) -> Batch | None:
        tasks: list[tuple[int, int]] = []
        gaps: list[int] = []
        upto = self.upto
        for ticket in self._settled.run(upto + 1, _STRETCH):
            if len(tasks) == most:
                break
            upto += 1
            if ticket is None:
                gaps.append(upto)
            else:
                tasks.append((upto, ticket))
        return Batch(tasks, upto, tuple(gaps)) if upto > self.upto else None

    def commit(self, batch: Batch) -> None:
        self.upto = batch.upto
        self._gaps.update(batch.noted)
        self.count += len(batch.tasks)
        for task in batch.noted:  # one of them may have been done since ``take``
            self.settled(task)

    def tail(self, most: int = TOGETHER) -> Iterator[list[tuple[int, int]]]:
        tasks: list[tuple[int, int]] = []
        for task in range(self.upto + 1, len(self._settled) + 1):
            ticket = self._settled.ticket(task)
            if ticket is not None:
                tasks.append((task, ticket))
            if len(tasks) == most:
                yield tasks
                tasks = []
        if tasks:
            yield tasks

    def look_again(self) -> None:
        """Find out about ``stale`` without having been told of news."""
        for task in self._gaps:
            self.settled(task)

    def late(self) -> tuple[int, int] | None:
        """A task that was left out, and its ticket: it is done by now."""
        while self._late:
            task = self._late[0]
            ticket = self._settled.ticket(task)
            if task in self._gaps and ticket is not None:
                return task, ticket
            heappop(self._late)
        self.stale = False
        return None

    def made_up(self, task: int) -> None:
        """A late one is in the output now, out of its place."""
        self._gaps.discard(task)
        self.count += 1

    @staticmethod
    def after(record: Collected) -> Collected:
        given = set(record.tasks)
        upto = max(given, default=0)
        gaps = tuple(task for task in range(1, upto + 1) if task not in given)
        return record._replace(upto=upto, tasks=gaps, anew=True)

    @property
    def gaps(self) -> tuple[int, ...]:
        """The tasks that were left out."""
        return tuple(sorted(self._gaps))


class ByCompletion:
    """As they are done."""

    stale = False

    def __init__(self, settled: Settled) -> None:
        self._settled = settled
        self._waiting: deque[int] = deque()
        #: They are in the output, and run again: their results were gone at the start.
        self._inside: set[int] = set()
        self.count = 0
        for task in range(1, len(settled) + 1):
            self.settled(task)

    def restore(self, record: Collected) -> None:
        inside = set(record.tasks)
        self._waiting = deque(task for task in self._waiting if task not in inside)
        self._inside = {task for task in inside if self._settled.ticket(task) is None}
        self.count = len(inside)

    @staticmethod
    def after(record: Collected) -> Collected:
        gaps = set(record.tasks)
        given = tuple(task for task in range(1, record.upto + 1) if task not in gaps)
        return record._replace(upto=0, tasks=given, anew=True)

    def settled(self, task: int) -> None:
        if task not in self._inside and self._settled.ticket(task) is not None:
            self._waiting.append(task)

    def take(self, most: int = TOGETHER) -> Batch | None:
        tasks = [self._waiting[place] for place in range(min(most, len(self._waiting)))]
        if not tasks:
            return None
        pairs = [(task, ticket) for task in tasks if (ticket := self._settled.ticket(task))]
        return Batch(pairs, 0, tuple(tasks))

    def commit(self, batch: Batch) -> None:
        for _ in batch.tasks:
            self._waiting.popleft()
        self.count += len(batch.tasks)

    def tail(self, most: int = TOGETHER) -> Iterator[list[tuple[int, int]]]:
        return iter(())

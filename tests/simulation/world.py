"""Time, chance, and the story of what happened in one history."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any


class BrokenError(AssertionError):
    """Something that must hold did not.

    Attributes:
        task: the task that it is about; 0 if it is about none.
    """

    def __init__(self, text: str, task: int = 0) -> None:
        super().__init__(text)
        self.task = task


class CrashError(Exception):
    """The master's process dies at this very place."""


class World:
    """A clock, a heap of things to come, dice, and a book that the story is written in.

    Args:
        seed: of the dice; the same seed gives the same history.
    """

    def __init__(self, seed: int) -> None:
        self.dice = Random(seed)
        self.now = 0.0
        #: How many things have happened.
        self.happened = 0
        #: The master dies after so many further steps; None: it does not.
        self.fatal_step: int | None = None
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._story: list[tuple[float, int, str, tuple[object, ...]]] = []

    # --- what happens ------------------------------------------------------------------------

    def later(self, seconds: float, function: Callable[..., object], *args: Any) -> None:
        """Let something happen."""
        self._scheduled += 1
        heappush(self._heap, (self.now + seconds, self._scheduled, function, args))

    def next(self) -> bool:
        """Let the next thing happen; False if there is none.

        Raises:
            CrashError: the master died of it.
        """
        if not self._heap:
            return False
        self.now, _, function, args = heappop(self._heap)
        self.happened += 1
        function(*args)
        return True

    def step(self) -> None:
        """A place in the master between two things that a crash may separate."""
        if self.fatal_step is not None:
            self.fatal_step -= 1
            if self.fatal_step < 0:
                self.fatal_step = None
                raise CrashError

    def chance(self, probability: float) -> bool:
        """Whether it happens this time."""
        return self.dice.random() < probability

    # --- the story -----------------------------------------------------------------------------

    def tell(self, task: int, text: str, *values: object) -> None:
        """Write a line of the story.

        Args:
            task: that it is about; 0: it matters to all.
            text: with ``%s`` for each value; put together only when somebody reads it.
            values: what goes there.
        """
        self._story.append((self.now, task, text, values))

    def story(self, task: int = 0) -> str:
        """What has happened, oldest first.

        Args:
            task: only what is about this task, or matters to all; 0: everything.
        """
        lines = []
        for at, about, text, values in self._story:
            if not task or about in {0, task}:
                label = f"task {about:2}" if about else ""
                lines.append(f"{at:9.3f}  {label:8} {text % values}")
        return "\n".join(lines)

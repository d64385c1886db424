"""How a running job looks: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, TextIO

from pexecd.core.values import Totals
from pexecd.summary import duration
from pexecd.units import Instant, Seconds

if TYPE_CHECKING:
    from rich.live import Live

#: How often a plain line is printed when there is no terminal.
PLAIN_EVERY: Seconds = 10.0

#: What keeps a run from beginning is printed once it takes so long.
PATIENCE: Seconds = 2.0

#: The rate is that of this last stretch of time.
RATE_OVER: Seconds = 30.0


class Progress:
    """The progress of one run.

    A run does not end because nobody looks any more: once the stream takes no more (its
    reader or terminal is gone, the disk is full) nothing is shown.

    Args:
        stream: where it is shown; None where the command was started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._history: deque[tuple[Instant, int]] = deque()
        self._plain_at: Instant | None = None
        self._doing = ""
        self._doing_since: Instant = 0.0
        self._shown: tuple[int, int] | None = None
        self._live: Live | None = None
        if stream is not None and stream.isatty():
            from rich.console import Console  # noqa: PLC0415
            from rich.live import Live  # noqa: PLC0415

            self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)
            self._live.start()

    def say(self, text: str) -> None:
        """Print a line of its own, above the live one."""
        with self._while_it_is_there():
            self._say(text)

    def _say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._stream is not None:
            print(text, file=self._stream, flush=True)

    def show(self, numbers: Totals | None, doing: str = "") -> None:
        """Renew what is shown; call it some times a second.

        Args:
            numbers: of this moment; None before work has begun.
            doing: what keeps it from beginning.
        """
        with self._while_it_is_there():
            if numbers is not None:
                self._show(numbers)
            elif doing:
                self._show_doing(doing)

    def _show_doing(self, doing: str) -> None:
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._doing_since = doing, now
        if self._live is not None:
            self._live.update(doing, refresh=True)
        elif now - self._doing_since >= PATIENCE:
            self._doing_since = inf
            self._say(doing)

    def _show(self, numbers: Totals) -> None:
        now = time.monotonic()
        line = self._line(numbers, now)
        if self._stream is None:
            return
        if self._live is not None:
            from rich.progress_bar import ProgressBar  # noqa: PLC0415
            from rich.table import Table  # noqa: PLC0415

            grid = Table.grid(padding=(0, 1))
            bar = ProgressBar(numbers.tasks, numbers.done + numbers.failed, width=24)
            grid.add_row(bar, line)
            self._live.update(grid, refresh=True)
        elif self._plain_at is None:
            self._plain_at = now
        elif now - self._plain_at >= PLAIN_EVERY and self._shown != (numbers.done, numbers.failed):
            self._plain_at = now
            self._shown = (numbers.done, numbers.failed)
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            with self._while_it_is_there():
                self._live.stop()

    @contextmanager
    def _while_it_is_there(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            if self._stream is not None:
                unheard(self._stream)
            self._stream = self._live = None

    def _line(self, numbers: Totals, now: Instant) -> str:
        settled = numbers.done + numbers.failed
        self._history.append((now, settled))
        while now - self._history[0][0] > RATE_OVER:
            self._history.popleft()
        since, before = self._history[0]
        parts = [f"{settled}/{numbers.tasks} tasks", f"{numbers.done} done"]
        if numbers.failed:
            parts.append(f"{numbers.failed} failed")
        parts.append(f"{numbers.running} running")
        if numbers.judging:
            parts[-1] += f" ({numbers.judging} to be validated)"
        if now - since > 1 and settled > before:
            rate = (settled - before) / (now - since)
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min")
            parts.append(f"{duration((numbers.tasks - settled) / rate)} left")
        return ", ".join(parts)


def unheard(stream: TextIO) -> None:
    """Nobody reads this stream any more: let Python not try once more at its end.

    That would spoil the exit status.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

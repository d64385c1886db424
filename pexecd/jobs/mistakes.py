"""Words for people who made a mistake in a file."""

# Tests: tests/unit/jobs/test_mistakes.py

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pexecd.errors import Mistake

#: So many mistakes of a large file are listed; the others are counted.
MOST_LISTED = 20


class Tally:
    """The mistakes of one file that may have a million: the first are kept, the rest counted."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._listed: list[Mistake] = []
        self._count = 0

    def add(self, line: int, text: str) -> None:
        self._count += 1
        if self._count <= MOST_LISTED:
            self._listed.append(Mistake(self._file, line, text))

    def __bool__(self) -> bool:
        return self._count > 0

    def __iter__(self) -> Iterator[Mistake]:
        yield from self._listed
        more = self._count - len(self._listed)
        if more:
            after = self._listed[-1].line
            yield Mistake(self._file, after, f"and {more} more like these in this file")


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known word, else nothing."""
    close = closest(word, known)
    return f" (did you mean '{close}'?)" if close else ""


def closest(word: str, known: Collection[str], likeness: float = 0.6) -> str | None:
    """The known word that is most like this, if any is that like it."""
    lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=likeness)
    return lower[close[0]] if close else None


def one_of(words: Iterable[str]) -> str:
    """``a, b or c``."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def unreadable(path: Path) -> str | None:
    """Why a file that is needed cannot be read, in words that follow its name; None: it can."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _because(error)
    except ValueError:  # a NUL in the name
        return "is no name of a file"
    if stat.S_ISDIR(mode):
        return "is a folder, a file was expected"
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    if not os.access(path, os.R_OK):
        return "cannot be read: permission denied"
    return None


def _because(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"

"""Cuts a body of the founding document's format into tokens, as it arrives.

A body is lines of ``Key=Value``, then sections, each a line ``[Name]``, ``Key=Value``
lines and perhaps a content between the lines ``--begin content--`` and
``--end content--``. docs/protocol.md tells it whole, tests/vectors shows it.

How its lines end: the lines of the frame may end with LF or CRLF. Where the line
``--begin content--`` ends with CRLF, a CRLF before the closing line belongs to the
frame, else only the LF of it does, so that a content may end with any byte.

No I/O, and never more in memory than a line of the frame and what came in last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from pexecd.errors import PexecdError, RequestRejectedError

BEGIN = b"--begin content--"
CLOSE = b"--end content--"
#: The longest line of a frame, in bytes; contents have lines of any length.
MAX_LINE = 8192


class MalformedBodyError(RequestRejectedError):
    """The body is not what the protocol says: 400, and the ticket stays as it was."""


class AmbiguousBodyError(PexecdError):
    """The body could be read in two ways: the attempt has failed (SPEC section 2)."""


class Section(NamedTuple):
    """A line ``[name]``."""

    name: str


class Pair(NamedTuple):
    """A line ``key=value``."""

    key: str
    value: str


class ContentBegun(NamedTuple):
    """A content begins; ``length`` where it was announced."""

    length: int | None


class Data(NamedTuple):
    """Some more bytes of the content; never none."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ContentEnded:
    """The content is complete."""


Token: TypeAlias = Section | Pair | ContentBegun | Data | ContentEnded


_NOT_THE_END = (
    "something other than a section follows the end of a content: its Length= is wrong,"
    " or it holds the line --end content-- and must be sent with Length="
)


class _State(Enum):
    LINES = auto()
    #: In a content that its closing line ends.
    CONTENT = auto()
    #: In a content whose length is known.
    COUNTED = auto()
    #: Behind the last byte of such a content: a line break, then the closing line.
    BREAK = auto()
    CLOSING = auto()
    #: Behind the closing line: another section or the end, or it was not the closing line.
    CLOSED = auto()


class Sections:
    """Cuts a body into tokens as it arrives, with any division into pieces.

    Args:
        max_line: the longest line of the frame.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._state = _State.LINES
        self._buffer = b""
        self._at = 0
        self._length: int | None = None
        self._missing = 0
        self._crlf = False
        self._fresh = False

    def feed(self, data: bytes) -> Iterator[Token]:
        """The tokens that these bytes complete. Exhaust it before the next call.

        Raises:
            MalformedBodyError: this is no body of the protocol.
            AmbiguousBodyError: it could be read in two ways.
        """
        self._buffer = self._buffer[self._at :] + data
        self._at = 0
        return self._tokens(final=False)

    def skip_content(self) -> None:
        """Somebody else has read a section to the end of its content: go on behind that."""
        self._state = _State.CLOSED

    def finish(self) -> Iterator[Token]:
        """The rest of the tokens: there are no more bytes. Raises as ``feed``."""
        yield from self._tokens(final=True)
        if self._state is _State.CONTENT:
            raise MalformedBodyError("the body ends within a content: no line --end content--")
        if self._state not in (_State.LINES, _State.CLOSED):
            raise AmbiguousBodyError("the body ends before the content is as long as its Length=")

    def _tokens(self, *, final: bool) -> Iterator[Token]:
        while True:
            before = self._at, self._state
            if self._state is _State.CONTENT:
                yield from self._content(final=final)
            elif self._state is _State.COUNTED:
                yield from self._counted()
            elif (line := self._line(final=final)) is not None:
                yield from self._take(line)
            if (self._at, self._state) == before:
                return

    def _line(self, *, final: bool) -> bytes | None:
        """The next line with its CR and without its LF, None if it is not there yet."""
        end = self._buffer.find(b"\n", self._at)
        rest = len(self._buffer) - self._at
        if (rest if end < 0 else end - self._at) > self._max_line:
            if self._state is not _State.LINES:
                raise AmbiguousBodyError(_NOT_THE_END)
            raise MalformedBodyError(f"a line of the frame is over {self._max_line} bytes")
        if end >= 0:
            line = self._buffer[self._at : end]
            self._at = end + 1
            return line
        if final and rest:
            line = self._buffer[self._at :]
            self._at = len(self._buffer)
            return line
        return None

    def _take(self, raw: bytes) -> Iterator[Token]:
        """A line of the frame."""
        line = raw.strip(b" \t\r")
        if self._state is _State.BREAK:
            if raw in (b"", b"\r"):
                self._state = _State.CLOSING
                return
            if self._length:
                raise AmbiguousBodyError(_NOT_THE_END)
            self._state = _State.CLOSING  # no byte at all is empty, too
        if self._state is _State.CLOSING:
            if raw not in (CLOSE, CLOSE + b"\r"):
                raise AmbiguousBodyError(_NOT_THE_END)
            self._state = _State.CLOSED
            yield ContentEnded()
        elif not line:
            return
        elif line.startswith(b"[") and line.endswith(b"]"):
            self._state = _State.LINES
            self._length = None
            yield Section(_text(line[1:-1]))
        elif self._state is _State.CLOSED:
            raise AmbiguousBodyError(_NOT_THE_END)
        elif line == BEGIN:
            self._crlf = raw.endswith(b"\r")
            self._fresh = True
            self._missing = self._length or 0
            self._state = _State.CONTENT if self._length is None else _State.COUNTED
            yield ContentBegun(self._length)
        else:
            yield self._pair(line)

    def _pair(self, line: bytes) -> Pair:
        key, equals, value = line.partition(b"=")
        if not equals:
            raise MalformedBodyError(f"expected Key=Value or a section, not {_shown(line)}")
        pair = Pair(_text(key.rstrip(b" \t")), _text(value.lstrip(b" \t")))
        if pair.key == "Length":
            if not re.fullmatch(r"[0-9]{1,18}", pair.value):
                raise MalformedBodyError(f"Length= is a number of bytes, not {_shown(value)}")
            self._length = int(pair.value)
        return pair

    def _counted(self) -> Iterator[Token]:
        data = self._buffer[self._at : self._at + self._missing]
        self._at += len(data)
        self._missing -= len(data)
        if not self._missing:
            self._state = _State.BREAK
        if data:
            yield Data(data)

    def _content(self, *, final: bool) -> Iterator[Token]:
        """Hand on what is certainly content; hold back what may belong to the closing line."""
        buffer, start = self._buffer, self._at
        if self._fresh:
            # Right behind the opening line the closing line has no line feed before it.
            after = self._behind_closing_line(start, final=final)
            if after is None:
                return
            self._fresh = False
            if after:
                self._at, self._state = after, _State.CLOSED
                yield ContentEnded()
                return
        search = start
        while (stop := buffer.find(b"\n" + CLOSE, search)) >= 0:
            after = self._behind_closing_line(stop + 1, final=final)
            if after != 0:
                break
            search = stop + 1
        else:
            stop, after = self._held(start), None
        if self._crlf and stop > start and buffer[stop - 1] == ord(b"\r"):
            stop -= 1
        self._at = after or stop
        if stop > start:
            yield Data(buffer[start:stop])
        if after:
            self._state = _State.CLOSED
            yield ContentEnded()

    def _behind_closing_line(self, at: int, *, final: bool) -> int | None:
        """Where the closing line that begins at ``at`` ends; 0: it is none; None: wait."""
        line = self._buffer[at : at + len(CLOSE) + 2]
        ending = line[len(CLOSE) :]
        if not line.startswith(CLOSE):
            return None if CLOSE.startswith(line) and not final else 0
        if ending.startswith(b"\n"):
            return at + len(CLOSE) + 1
        if ending == b"\r\n" or (final and ending in (b"", b"\r")):
            return at + len(line)
        return None if ending in (b"", b"\r") else 0

    def _held(self, start: int) -> int:
        """Where the beginning of what may become the closing line stands in the buffer."""
        last = self._buffer.rfind(b"\n", max(start, len(self._buffer) - len(CLOSE)))
        if last >= 0 and CLOSE.startswith(self._buffer[last + 1 :]):
            return last
        return len(self._buffer)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise MalformedBodyError(f"not UTF-8: {_shown(raw)}") from None


def _shown(raw: bytes) -> str:
    return ascii(raw[:60].decode("utf-8", "replace"))

"""The founding document's text format: bytes to values and back, without any I/O.

How a body is cut into lines and contents is told in ``sections``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pexecd.core.values import End, Failure
from pexecd.protocol.sections import (
    BEGIN,
    CLOSE,
    AmbiguousBodyError,
    ContentBegun,
    ContentEnded,
    Data,
    MalformedBodyError,
    Pair,
    Section,
    Sections,
    Token,
)

#: ``Timeout=`` of a task without any (SPEC section 2).
NO_TIMEOUT = 31536000
#: The most results that one upload may have.
MAX_RESULTS = 1000
#: The longest reason of a failure, in characters.
MAX_REASON = 1000


# --- values ----------------------------------------------------------------------------------


class InputFile(NamedTuple):
    """An ``[Input]`` section."""

    #: File name, or ``stdin``.
    file: str
    #: Its bytes, or a file that is streamed when it is sent.
    content: bytes | Path


class ResultFile(NamedTuple):
    """A ``[Result]`` section of a task."""

    name: str
    #: ``stdout``, ``stderr`` (only to clients that announced themselves) or a file.
    file: str


class TaskMessage(NamedTuple):
    """The body of a reply to ``/task``."""

    ticket: int
    #: Whole seconds; 31536000 for no limit.
    timeout: int
    #: One line in POSIX shell quoting.
    command_line: str
    inputs: tuple[InputFile, ...]
    results: tuple[ResultFile, ...]
    #: Its place in the table; sent as ``Task=`` to clients that announced themselves.
    task: int = 0
    #: Variables for the worker; sent as ``Environment=NAME=VALUE`` lines to those only.
    environment: tuple[tuple[str, str], ...] = ()


# --- writing ---------------------------------------------------------------------------------

# Wider than the rule for reading: some clients will cut blanks off every line they compare.
_CLOSING_LINE = re.compile(rb"(?m)^[ \t]*--end content--[ \t\r]*$")


def holds_closing_line(content: bytes | memoryview) -> bool:
    """Whether this content needs ``Length=`` to be told: it holds the closing line.

    Takes anything with a buffer, so an ``mmap`` of a large file too.
    """
    return _CLOSING_LINE.search(content) is not None


def encode_pairs(pairs: Sequence[tuple[str, str]]) -> bytes:
    """The body of ``/config``: ``Key=Value`` lines."""
    return "".join(_line(key, value) for key, value in pairs).encode()


def encode_task(
    message: TaskMessage, *, framed: bool, sizes: Mapping[Path, int] | None = None
) -> list[bytes | Path]:
    """A task as pieces to be sent one after another; a ``Path`` stands for that file's bytes.

    Args:
        message: the task.
        framed: for a client that announced itself: with ``Length=``, ``Task=`` and
            ``Environment=``. Without, no content may hold the closing line.
        sizes: the size in bytes of every file among the inputs.

    Raises:
        ValueError: it cannot be said: a value holds a line break.
    """
    ticket, timeout, command, inputs, results, task, environment = message
    text = b"Ticket=%d\nTimeout=%d\n" % (ticket, timeout)
    if framed:
        text += b"Task=%d\n" % task
        for name, value in environment:
            text += _line("Environment", f"{name}={value}").encode()
    pieces: list[bytes | Path] = []
    text += _line("CommandLine", command).encode()
    for item in inputs:
        content = item.content
        size = (sizes or {})[content] if isinstance(content, Path) else len(content)
        text += b"[Input]\n" + _line("File", item.file).encode()
        text += b"Length=%d\n%s\n" % (size, BEGIN) if framed else BEGIN + b"\n"
        if isinstance(content, Path):
            pieces += [text, content]
            text = b""
        else:
            text += content
        # An empty content is told without any byte: every reader takes that for empty.
        text += (b"\n" if size or framed else b"") + CLOSE + b"\n"
    pieces.append(text + _result_sections(results))
    return pieces


@lru_cache(maxsize=64)  # the same for all tasks of a job
def _result_sections(results: tuple[ResultFile, ...]) -> bytes:
    return b"".join(
        b"[Result]\n" + (_line("Name", result.name) + _line("File", result.file)).encode()
        for result in results
    )


def _line(key: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise ValueError(f"{key} holds a line break: {value!r}")
    return f"{key}={value}\n"


# --- uploads ---------------------------------------------------------------------------------


class ResultBegun(NamedTuple):
    """The bytes that follow are this result's; ``length`` where it was announced."""

    name: str
    length: int | None


@dataclass(frozen=True, slots=True)
class ResultEnded:
    """The result is complete."""


UploadEvent: TypeAlias = ResultBegun | Data | ResultEnded


#: The beginning and the end of a result as clients write it that announced themselves.
RESULT = re.compile(rb"\[Result\]\nName=([^\s=]{1,255})\nLength=([0-9]{1,9})\n--begin content--\n")
CLOSING = b"\n--end content--\n"


class UploadParser:
    """Reads the body of ``/complete``, with or without ``Length=``, as it arrives."""

    def __init__(self) -> None:
        self._begun = False
        self._sections = Sections()
        self._name: str | None = None
        self._open = False
        self._names: set[str] = set()

    def feed(self, data: bytes) -> Iterator[UploadEvent]:
        """What these bytes complete. Exhaust it before the next call; raises as ``Sections``."""
        if not self._begun:
            self._begun = True
            if whole := self._whole(data):
                return iter(whole)
        return self._events(self._sections.feed(data))

    def _whole(self, data: bytes) -> list[UploadEvent]:
        """What a body is that came in one piece and has one result: most are so.

        Returns:
            Nothing if it is to be read with more care.
        """
        head = RESULT.match(data)
        if head is None:
            return []
        start, end = head.end(), head.end() + int(head[2])
        try:
            name = head[1].decode()
        except UnicodeDecodeError:
            return []
        if data[end:] != CLOSING:
            return []
        self._names.add(name)
        self._sections.skip_content()
        content = [Data(data[start:end])] if end > start else []
        return [ResultBegun(name, end - start), *content, ResultEnded()]

    def finish(self) -> Iterator[UploadEvent]:
        """The rest of it: there are no more bytes."""
        yield from self._events(self._sections.finish())
        if self._open:
            raise MalformedBodyError("the last [Result] has no content")
        if not self._names:
            raise MalformedBodyError("the body is empty, expected [Result] sections")

    def _events(self, tokens: Iterator[Token]) -> Iterator[UploadEvent]:
        for token in tokens:
            match token:
                case Data():
                    yield token
                case ContentBegun(length):
                    yield ResultBegun(self._begin(), length)
                case ContentEnded():
                    self._open = False
                    yield ResultEnded()
                case Section(name):
                    self._section(name)
                case Pair(key, value):
                    self._pair(key, value)

    def _section(self, name: str) -> None:
        if name != "Result":
            # Behind a content this may as well be a line of it.
            error = AmbiguousBodyError if self._names else MalformedBodyError
            raise error(f"expected [Result], not the section {name[:60]!a}")
        if self._open:
            raise MalformedBodyError("a [Result] has no content")
        self._open = True
        self._name = None

    def _pair(self, key: str, value: str) -> None:
        if not self._open:
            raise MalformedBodyError(f"expected [Result] before {key[:60]!a}")
        if key == "Name":
            if self._name is not None:
                raise MalformedBodyError("a [Result] has two names")
            self._name = value

    def _begin(self) -> str:
        if not self._name:
            raise MalformedBodyError("a content without the Name= of its result")
        take_name(self._name, self._names)
        return self._name


def take_name(name: str, names: set[str]) -> None:
    """Add a result's name to those of its upload so far.

    Raises:
        AmbiguousBodyError: it was there before.
        MalformedBodyError: there are too many.
    """
    if name in names:
        raise AmbiguousBodyError(f"the upload has the result {name[:60]!a} twice")
    if len(names) == MAX_RESULTS:
        raise MalformedBodyError(f"more than {MAX_RESULTS} results")
    names.add(name)


# --- failures --------------------------------------------------------------------------------

_ENDS = {
    "exit": End.FAILED,
    "signal": End.FAILED,
    "timeout": End.TIMED_OUT,
    "missing": End.FAILED,
    "start": End.FAILED,
    "stopped": End.CANCELLED,
    "refused": End.FAILED,
}


def decode_failure(body: bytes) -> Failure:
    """The body of ``/failed``; what is not in the form of docs/protocol.md is a free text."""
    try:
        return _decode_form(body)
    except (MalformedBodyError, AmbiguousBodyError, ValueError):
        return Failure(_one_line(body.decode("utf-8", "replace")))


def _decode_form(body: bytes) -> Failure:
    pairs: dict[str, str] = {}
    stderr = b""
    for token in _all(body):
        match token:
            case Pair(key, value):
                pairs[key] = value
            case Data(data):
                stderr += data
            case Section():
                raise MalformedBodyError("a section in a failure")
    if pairs.get("Kind") not in _ENDS:
        raise MalformedBodyError("no Kind= that is known")
    return Failure(
        reason=_one_line(pairs.get("Reason", "")),
        end=_ENDS[pairs["Kind"]],
        exit_status=_small(pairs.get("Exit", "-1")),
        signal=_small(pairs.get("Signal", "0")),
        seconds=decode_seconds(pairs["Seconds"]) if "Seconds" in pairs else None,
        stderr=stderr,
    )


def decode_seconds(text: str) -> float:
    """How long a worker ran: not negative, at most ten years; else ``ValueError``."""
    seconds = float(text)
    if not 0 <= seconds < 10 * NO_TIMEOUT:
        raise ValueError("out of range")
    return seconds


def _small(text: str) -> int:
    number = int(text)
    if abs(number) >= 2**31:
        raise ValueError("out of range")
    return number


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:MAX_REASON] or "the client gave no reason"


def _all(body: bytes) -> Iterator[Token]:
    sections = Sections(max_line=len(body))
    yield from sections.feed(body)
    yield from sections.finish()

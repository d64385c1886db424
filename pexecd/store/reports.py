"""Files in the state folder for people and scripts: made from the journal, never read by us."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from twisted.internet.defer import Deferred
from zope.interface import implementer

from pexecd.core.values import End
from pexecd.errors import StateError, spoken
from pexecd.ports import IAttemptLog, JoblogRow
from pexecd.store.batches import Batches, IReactor
from pexecd.store.files import replacing
from pexecd.store.thread import Each, gently
from pexecd.units import Seconds

#: GNU parallel's nine columns, then ours.
_COLUMNS = (
    "Seq",
    "Host",
    "Starttime",
    "JobRuntime",
    "Send",
    "Receive",
    "Exitval",
    "Signal",
    "Command",
    "Ticket",
    "End",
    "Reason",
)
_Numbers: TypeAlias = Callable[[Each], Mapping[str, Any]]

#: Ends that leave nothing to be looked into.
_HARMLESS = frozenset({End.DONE.value, End.CANCELLED.value})

#: A column is one word to those who read it; a line is one line.
_PLAIN = str.maketrans("\t\n\r", "   ")

#: A line of joblog.tsv: filled in with % it costs less than as an f-string.
_LINE = "%d\t%s\t%.3f\t%.3f\t%d\t%d\t%d\t%d\t%s\t%d\t%s\t%s\n"


@implementer(IAttemptLog)
class _AttemptLog:
    """A text file that grows by an entry for each attempt.

    Args:
        path: the file.
        reactor: its thread pool does the writing.
    """

    #: What the file begins with.
    head = ""

    def __init__(self, path: Path, reactor: IReactor) -> None:
        self._path = path
        self._entries = Batches[str](reactor, self._append, f"writing {path}")

    def entry(self, row: JoblogRow, command: str) -> str:
        """What the file says of an attempt; empty for nothing."""
        raise NotImplementedError

    def rewrite(self, rows: Iterable[tuple[JoblogRow, str]]) -> None:
        """See ``IAttemptLog.rewrite``."""
        entries = (self.entry(row, command) for row, command in rows)
        try:
            _replace(self._path, chain([self.head], entries), 0o600)
        except OSError as error:
            raise _unwritten(self._path, error) from None

    def add(self, rows: Sequence[tuple[JoblogRow, str]]) -> None:
        """See ``IAttemptLog.add``."""
        text = "".join([self.entry(row, command) for row, command in rows])
        if text:
            self._entries.add(text)

    def close(self) -> Deferred[None]:
        """See ``IAttemptLog.close``."""
        return self._entries.idle()

    def _append(self, entries: Sequence[str]) -> None:
        with self._path.open("ab", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            left = memoryview("".join(entries).encode("utf-8", "surrogateescape"))
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(length)  # they are tried again: no entry stands there in half
                raise


@implementer(IAttemptLog)
class Joblog(_AttemptLog):
    """``joblog.tsv``: a line for each ticket that ended (two, when a late result turned it)."""

    head = "\t".join(_COLUMNS) + "\n"

    def entry(self, row: JoblogRow, command: str) -> str:
        """The line of an attempt."""
        return _line(row, command)


@implementer(IAttemptLog)
class FailureLog(_AttemptLog):
    """``log/failures.log``: what every attempt that failed left, none over another's."""

    def entry(self, row: JoblogRow, command: str) -> str:
        """The paragraph of an attempt; nothing for one that was done or cancelled."""
        if row.end in _HARMLESS:
            return ""
        began = datetime.fromtimestamp(row.given, UTC).isoformat(" ", "seconds")
        where = f"task {row.task}, ticket {row.ticket}, on {spoken(row.host)}"
        text = [
            f"{where}: {row.end}: {_plain(row.reason)}",
            f"  began {began}, took {row.seconds:.3f} s",
            *([f"  {how}"] if (how := _how_it_ended(row)) else []),
            f"  {command}",
            *(f"  | {line}" for line in row.stderr.decode("utf-8", "replace").splitlines()),
        ]
        return "\n".join(text) + "\n\n"


class StatisticsFile:
    """``statistics.json``: whoever reads it finds a whole one.

    Args:
        path: the file.
        reactor: its thread pool does the writing.

    Attributes:
        cost: the seconds of the processor that the last one took.
    """

    def __init__(self, path: Path, reactor: IReactor) -> None:
        self.cost: Seconds = 0.0
        self._path = path
        self._numbers = Batches[_Numbers](reactor, self._write, f"writing {path}", most=1)
        self._closing = False

    def write(self, numbers: Callable[[Each], Mapping[str, Any]]) -> None:
        """Replace it, some time soon; only the latest of several counts.

        Args:
            numbers: gives what is to be in it; called in a thread, with what it should go
                through all hosts with: it pauses now and then.
        """
        self._numbers.add(numbers)

    def close(self) -> Deferred[None]:
        """Fires when the latest numbers are written."""
        self._closing = True
        return self._numbers.idle()

    def _write(self, numbers: Sequence[_Numbers]) -> None:
        began = time.thread_time()
        _replace(self._path, _json(numbers[-1](self._each), self._each), 0o644)
        self.cost = time.thread_time() - began

    def _each(self, items: Iterable[Any]) -> Iterable[Any]:
        return gently(items, lambda: self._closing)


def write_json(path: Path, values: Mapping[str, Any], mode: int = 0o600) -> None:
    """Write a small JSON file in one step (``session.json``, say). Blocks.

    Args:
        path: the file; a file that is there is replaced.
        values: what JSON can hold.
        mode: its permissions, from the first moment on.

    Raises:
        StateError: it cannot be written; an older one is still there.
    """
    try:
        _replace(path, _json(values), mode)
    except OSError as error:
        raise _unwritten(path, error) from None


def _json(values: Mapping[str, Any], each: Each = iter) -> Iterator[str]:
    """As text: a line for each value, and for each entry of a value that is an object.

    With ``indent=`` the json module is some times slower, which counts where hosts are many.
    """
    encode = json.JSONEncoder(ensure_ascii=False).encode
    before = "{"
    for key, value in values.items():
        yield f"{before}\n  {encode(key)}: "
        before = ","
        if not isinstance(value, dict) or not value:
            yield encode(value)
            continue
        inner = "{"
        for name, entry in each(value.items()):
            yield f"{inner}\n    {encode(name)}: {encode(entry)}"
            inner = ","
        yield "\n  }"
    yield "\n}\n" if values else "{}\n"


def _replace(path: Path, text: Iterable[str], mode: int) -> None:
    with (
        replacing(path, mode) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape") as file,
    ):
        file.writelines(text)


def _unwritten(path: Path, error: OSError) -> StateError:
    return StateError(f"{path}: cannot be written: {error.strerror}; start again when it can be")


def _how_it_ended(row: JoblogRow) -> str:
    """The end of the worker itself, where it is known: not of a lost one, say."""
    if row.signal:
        return f"signal {row.signal}"
    return f"exit status {row.exit_status}" if row.exit_status >= 0 else ""


def _line(row: JoblogRow, command: str) -> str:
    # a restart writes a line for each ticket there ever was
    ticket, task, host, given, seconds, end, status, number, sent, received, reason, _ = row
    if not (host + command + reason).isprintable():
        host, command, reason = _plain(host), _plain(command), _plain(reason)
    return _LINE % (
        *(task, host, given, seconds, sent, received),
        *(status, number, command, ticket, end, reason),
    )


def _plain(text: str) -> str:
    return text if text.isprintable() else text.translate(_PLAIN)

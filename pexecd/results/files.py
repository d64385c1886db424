"""How collected files look, and the writing of them. All of it blocks: threads only.

- ``concat``: the bytes of the results, one after another, as they are.
- ``table``: a headline of the parameters' names and the result's, joined with ``|``, then a line
  for each task: its parameters and the result's one line. Blank lines around it do not count; of
  a result with more lines the first is taken, and that is counted. So it is a parameter
  table itself.
- ``block``: ``# task 17: L = 32 | T = 2.2``, then the result; a line feed is added where it ends
  without one.
- ``failed``: a parameter table of the failed sets, the reason of each in a ``#`` line above it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

from pexecd.jobs.values import CollectKind, CollectRule
from pexecd.ports import StoredResult

_SEPARATOR = "|"
#: A line of a table is never longer; what is beyond is cut.
_MOST_LINE = 1 << 20
_COPIED = 1 << 20


class OutputLostError(Exception):
    """The file does not hold what was written to it: somebody else had it."""


class Mark(NamedTuple):
    """How far a file is written: its length in bytes, and their CRC-32."""

    length: int = 0
    crc: int = 0


class Left(NamedTuple):
    """What a file looked like when we left it: whatever others do to it changes one of these."""

    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> Left:
        """Of an open file, with all that was written to it flushed."""
        status = os.fstat(file.fileno())
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Entry(NamedTuple):
    """One task's part of a file."""

    task: int
    #: Empty for ``concat``.
    cells: tuple[str, ...]
    result: StoredResult
    #: Where a larger result is.
    path: Path | None


@dataclass(slots=True)
class Written:
    """How a piece of writing went."""

    #: The end of the file now.
    mark: Mark
    #: The file itself.
    left: Left | None = None
    #: Tasks of which a table shows only the first line.
    cut: int = 0
    #: Tasks whose result could not be read any more.
    unreadable: int = 0


class Layout:
    """Writes the entries of one rule.

    Args:
        rule: says how.
        columns: the names of the parameters.
    """

    def __init__(self, rule: CollectRule, columns: Sequence[str]) -> None:
        self._rule = rule
        self._columns = columns

    def append(
        self, path: Path, mark: Mark, entries: Iterable[Entry], left: Left | None = None
    ) -> Written:
        """Cut a file back to its committed length, add entries, and make that durable.

        Args:
            path: the file; made anew, with its folders, when nothing is committed.
            mark: what is behind it was never committed.
            entries: in their order.
            left: how we left the file. Where it is not so any more, or where that is not known,
                what is committed is read, to see whether it is what was written.

        Raises:
            OSError: it cannot be written; what is committed is untouched.
            OutputLostError: it is shorter than what is committed, or not the same.
        """
        with _opened(path, mark, left) as file:
            written = Written(mark)
            summed = _Summed(file, mark.crc)
            if mark.length == 0 and self._rule.kind is CollectKind.TABLE:
                summed.write(headline([*self._columns, self._rule.result]))
            add = self._add_line if self._rule.kind is CollectKind.TABLE else self._add_whole
            for entry in entries:
                add(summed, entry, written)
            file.flush()
            written.mark = Mark(file.tell(), summed.crc)
            os.fsync(file.fileno())
            written.left = Left.of(file)
        return written

    def _add_line(self, file: _Summed, entry: Entry, written: Written) -> None:
        data = entry.result.data or b""
        if entry.path is not None:
            try:
                with FileIO(entry.path) as source:
                    data = source.read(_MOST_LINE)
            except FileNotFoundError:
                written.unreadable += 1
                return
        line, more = _one_line(data[:_MOST_LINE])
        if more:
            written.cut += 1
        file.write(b"%b|%b\n" % (_joined(entry.cells), line))

    def _add_whole(self, file: _Summed, entry: Entry, written: Written) -> None:
        try:
            # unbuffered: it is read in large pieces
            source: FileIO | io.BytesIO
            source = FileIO(entry.path) if entry.path else io.BytesIO(entry.result.data or b"")
        except FileNotFoundError:
            written.unreadable += 1
            return
        with source:
            if self._rule.kind is CollectKind.CONCAT:
                _copy(source, file, entry.result.size)
                return
            file.write(self._heading(entry))
            if _copy(source, file, entry.result.size) not in (b"\n", b""):
                file.write(b"\n")

    def _heading(self, entry: Entry) -> bytes:
        values = f" {_SEPARATOR} ".join(
            f"{name} = {cell}" for name, cell in zip(self._columns, entry.cells, strict=True)
        )
        return f"# task {entry.task}: {values}\n".encode("utf-8", "surrogateescape")


def headline(names: Sequence[str]) -> bytes:
    """The first line of a parameter table."""
    return _SEPARATOR.join(names).encode() + b"\n"


def row(cells: Sequence[str]) -> bytes:
    """A line of a parameter table."""
    return _joined(cells) + b"\n"


def _joined(cells: Sequence[str]) -> bytes:
    line = _SEPARATOR.join(cells)
    if line.startswith("#"):
        line = "\\" + line  # or it would be a comment to whoever reads the table
    elif line.startswith("\\#"):
        line = " " + line  # or it would be such a one
    return line.encode("utf-8", "surrogateescape")


def reason_line(task: int, reason: str) -> bytes:
    """A comment in a parameter table that says why a task failed."""
    return f"# task {task}: {' '.join(reason.split())}\n".encode("utf-8", "replace")


def add_bytes(path: Path, length: int, data: bytes) -> int:
    """Add bytes behind the first ``length`` ones, durably; its length then."""
    with path.open("r+b" if length else "wb") as file:
        file.truncate(length)
        file.seek(length)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def replace(temporary: Path, path: Path) -> None:
    """Put a file that is whole and durable in its place."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class _Summed:
    """Writes to a file and keeps the checksum of all that is in it."""

    def __init__(self, file: BinaryIO, crc: int) -> None:
        self._file = file
        self.crc = crc

    def write(self, data: bytes) -> None:
        self.crc = crc32(data, self.crc)
        self._file.write(data)


def _opened(path: Path, mark: Mark, left: Left | None = None) -> BinaryIO:
    if path.exists() and not (path.is_file() or path.is_dir()):  # open tells of folders
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))  # a pipe would wait
    if mark.length == 0:
        with contextlib.suppress(FileExistsError):  # a file there is open's to tell of
            path.parent.mkdir(parents=True)
        return path.open("wb")
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        raise OutputLostError from None
    try:
        if Left.of(file) != left and not _holds(file, mark):
            raise OutputLostError  # noqa: TRY301
        file.truncate(mark.length)
        file.seek(mark.length)
    except BaseException:
        file.close()
        raise
    return file


def _holds(file: BinaryIO, mark: Mark) -> bool:
    """Whether a file begins with what was written to it."""
    return file.seek(0, os.SEEK_END) >= mark.length and _sum_of(file, mark.length) == mark.crc


def _sum_of(file: BinaryIO, length: int) -> int:
    """The checksum of the first bytes of a file."""
    file.seek(0)
    crc = 0
    while length and (chunk := file.read(min(length, _COPIED))):
        crc = crc32(chunk, crc)
        length -= len(chunk)
    return crc


def _copy(source: FileIO | io.BytesIO, target: _Summed, size: int) -> bytes:
    """Copy a file of so many bytes; its last byte, should it have any."""
    last = b""
    # memory is taken for what is asked for, not for what comes
    while chunk := source.read(min(_COPIED, size + 1)):
        target.write(chunk)
        last = chunk[-1:]
    return last


def _one_line(data: bytes) -> tuple[bytes, bool]:
    """The first line that is not blank, without blanks around it; whether more follow."""
    line, _, more = data.strip().partition(b"\n")
    return line.rstrip(), bool(more)

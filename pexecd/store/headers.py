"""What SQLite passes over when it opens a database: damage that loses what was confirmed."""

from __future__ import annotations

import struct
from pathlib import Path

from pexecd.errors import StateError

_SIZE = 32
_MAGIC = 0x377F0682
_FORMAT = 3007000
_DATABASE = b"SQLite format 3\0"
_LEAST_PAGE = 512


def check_files(database: Path) -> None:
    """Look at the files of a database before SQLite does. Blocks.

    Raises:
        StateError: one is damaged, or cannot be read.
    """
    wal = database.with_name(database.name + "-wal")
    log = _begin(wal)
    # SQLite would take a log that it cannot read for an empty one. A torn end is nothing to
    # worry about: it was never confirmed.
    if not readable(log):
        raise StateError(
            f"{wal}: is damaged, and with it what was stored last; bring it back from a "
            "backup, or move it away to go on without that"
        )
    # Nor does it mind when the last page is not whole, which without a log is never right.
    begin = _begin(database)
    if not log and begin.startswith(_DATABASE) and database.stat().st_size % _page_size(begin):
        raise StateError(
            f"{database}: its end is missing; bring it back from a backup, or start anew with "
            "--fresh"
        )


def _page_size(header: bytes) -> int:
    size = int.from_bytes(header[16:18])
    return max(size, _LEAST_PAGE)  # 1 stands for 65536


def _begin(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_SIZE)
    except FileNotFoundError:
        return b""
    except IsADirectoryError:
        raise StateError(f"{path}: is a folder, not a file; move it away") from None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from None


def readable(header: bytes) -> bool:
    """Whether this is the header of a log, or of one that nothing was committed to.

    See "WAL header format" in SQLite's file format.
    """
    if len(header) < _SIZE or not any(header):
        return True  # the very first write, which the power cut
    magic, version = struct.unpack_from(">II", header)
    if magic & ~1 != _MAGIC or version != _FORMAT:
        return False
    words = struct.unpack_from(">6I" if magic & 1 else "<6I", header)
    first = second = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack_from(">II", header, 24)

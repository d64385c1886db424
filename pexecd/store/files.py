"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[Path]:
    """Write a file beside ``path`` that takes its place, durably, when the block ends. Blocks.

    Args:
        path: the file; what is there stays until the new one is whole.
        mode: the permissions of the new one, from the first moment on.

    Yields:
        The temporary file, empty.

    Raises:
        OSError: it cannot be written; as after any error in the block, nothing has changed.
    """
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
    try:
        yield temporary
        sync(temporary)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on disk. Blocks."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

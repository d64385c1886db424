"""Named tuples that are made for every task, or more than one for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T", bound=tuple[object, ...])


def by_place(kind: type[T]) -> Callable[[tuple[object, ...]], T]:
    """Makes named tuples of this kind in half of the time that its own name takes.

    Args:
        kind: a ``NamedTuple``.

    Returns:
        To be called with all values, in their order, in one tuple; nobody counts them.
    """
    return partial(tuple.__new__, kind)

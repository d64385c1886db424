"""How many files may be open: many for the master, as before for what it starts.

Each client has two connections, and a session's usual soft limit of 1024 is for programs that
still use ``select()``. Those that the master starts (clients, ssh, users' functions) may be such.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence

#: The master asks for so many at most.
MOST_OPEN = 65536

#: Runs a command with the soft limit that is its first argument.
_LIMITED = 'ulimit -S -n "$0"; exec "$@"'


class _Limit:
    """The soft limit of before; None: it was not raised."""

    before: int | None = None


def raise_limit() -> None:
    """Let this process have as many files open as it may, up to ``MOST_OPEN``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        _Limit.before = soft


def with_limit_before(command: Sequence[str]) -> list[str]:
    """A command that runs with the limit which this process had before ``raise_limit``.

    Args:
        command: the path of a program, and its arguments.
    """
    if _Limit.before is None:
        return list(command)
    return ["/bin/sh", "-c", _LIMITED, str(_Limit.before), *command]

"""One copy of the client for each folder, however many hosts share it (SPEC section 6)."""

# Tests: tests/unit/launch/test_shared.py

from __future__ import annotations

import secrets
from collections.abc import Callable

from twisted.internet.defer import Deferred


class Copies:
    """The copies that are under way, by what the hosts of a folder have in common.

    The first host that misses the client copies it; the others wait for that. Should it fail, the
    next one does. Who is wrong in thinking that it shares a folder loses time and nothing else.

    Attributes:
        run: a word of this run's, for the notes by which hosts find each other.
        finished: how many copies there were so far.
    """

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)
        self.finished = 0
        self._last: dict[str, int] = {}
        self._waiting: dict[str, list[Deferred[bool]]] = {}

    async def share(self, folder: str, since: int, copy: Callable[[], Deferred[None]]) -> bool:
        """Copy the client to a folder, unless another host does.

        Args:
            folder: the same word for all hosts that share it.
            since: what ``finished`` was before this host looked for the client.
            copy: copies it, within a deadline of its own.

        Returns:
            Whether this host has copied it; False: another one has.

        Raises:
            HostError: ``copy`` failed.
        """
        while True:
            if self._last.get(folder, 0) > since:
                return False
            if folder not in self._waiting:
                break
            waiting: Deferred[bool] = Deferred()
            self._waiting[folder].append(waiting)
            if await waiting:
                return False
        waiters = self._waiting[folder] = []
        copied = False
        try:
            await copy()
            copied = True
        finally:
            del self._waiting[folder]
            if copied:
                self.finished += 1
                self._last[folder] = self.finished
            for waiting in waiters:
                if not waiting.called:  # it may have been cancelled
                    waiting.callback(copied)
        return True

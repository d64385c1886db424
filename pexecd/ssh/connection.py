"""The connection of a user who is logged in: commands and copies, each in a channel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.conch.ssh.connection import SSHConnection
from twisted.internet.defer import Deferred, DeferredSemaphore
from zope.interface import implementer

from pexecd.errors import HostError
from pexecd.ports import CommandResult, IConnection
from pexecd.ssh.errors import TimedOutError
from pexecd.ssh.quiet import QUIET
from pexecd.ssh.scp import Upload
from pexecd.ssh.session import Command, Session
from pexecd.units import Seconds

if TYPE_CHECKING:
    from pexecd.ssh.transport import Transport

#: sshd allows ten sessions on a connection (MaxSessions), and when many end and begin at once
#: those that end still count for a moment: so half of it.
MOST_CHANNELS = 5

#: Stages, for messages.
COMMAND, COPY = "command", "copy"


@implementer(IConnection)
class Connection(SSHConnection):
    """See ``IConnection``. It is Conch's connection service, with an end that everybody hears of.

    Attributes:
        lost: as in ``IConnection``.
        error: why the connection is gone; None while it is there.
    """

    _log = QUIET

    def __init__(self, owner: Transport, host: str, reactor: Any, channel_limit: Seconds) -> None:
        """Prepare; the transport starts it once the user is logged in.

        Args:
            owner: what carries it.
            host: its name in messages.
            reactor: for deadlines, and threads that read files.
            channel_limit: how long the server may take to start a command.
        """
        super().__init__()
        self.lost: Deferred[HostError] = Deferred()
        self.error: HostError | None = None
        self._owner = owner
        self._host = host
        self._reactor = reactor
        self._channel_limit = channel_limit
        self._slots = DeferredSemaphore(MOST_CHANNELS)

    # --- IConnection -------------------------------------------------------------------------

    def run(self, command: str, stdin: bytes, timeout: Seconds) -> Deferred[CommandResult]:
        """See ``IConnection.run``."""
        return self._within(timeout, COMMAND, partial(Command, stdin, command))

    def copy(self, source: Path, target: str, mode: int, timeout: Seconds) -> Deferred[None]:
        """See ``IConnection.copy``.

        Raises:
            ValueError: a line feed or NUL in ``target``.
        """
        upload = partial(Upload, self._reactor, source, target, mode)
        return self._within(timeout, COPY, upload).addCallback(lambda _: None)

    def close(self) -> Deferred[None]:
        """See ``IConnection.close``."""
        return self._owner.close()

    def _within(
        self, limit: Seconds, stage: str, make: Callable[..., Session]
    ) -> Deferred[CommandResult]:
        def late(_: object, __: Seconds) -> CommandResult:
            raise TimedOutError(self._host, stage, f"not done within {limit:g} s")

        return Deferred.fromCoroutine(self._in_channel(stage, make)).addTimeout(
            limit, self._reactor, late
        )

    async def _in_channel(self, stage: str, make: Callable[..., Session]) -> CommandResult:
        await self._slots.acquire()
        try:
            if self.error is not None:
                raise self.error
            session = make(self._host, stage, self._reactor, self._channel_limit)
            self.openChannel(session)
            return await session.done
        finally:
            self._slots.release()

    # --- for the transport -------------------------------------------------------------------

    def connection_lost(self, error: HostError) -> None:
        """The connection is gone; Conch then closes the channels, which say why."""
        self.error = error
        self.lost.callback(error)

    def ask_for_life(self) -> None:
        """Send something that a living server answers; a refusal will do."""
        answer = self.sendGlobalRequest(b"keepalive@openssh.com", b"", wantReply=True)
        answer.addErrback(lambda _: None)

    # --- Conch -------------------------------------------------------------------------------

    def openChannel(self, channel: Session, extra: bytes = b"") -> None:
        channel.conn = self  # Conch does that later: too late for one that never opens
        super().openChannel(channel, extra)

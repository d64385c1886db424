"""The connection of a user who is logged in: commands, copies, tunnels, each in channels."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from twisted.conch.error import ConchError
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.connection import SSHConnection
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import ForwardRefusedError, HostError
from pexecd.ports import CommandResult, IConnection
from pexecd.ssh.errors import ChannelRefusedError, TimedOutError
from pexecd.ssh.quiet import QUIET
from pexecd.ssh.scp import Upload
from pexecd.ssh.session import Command, Session
from pexecd.ssh.stream import Stream
from pexecd.units import Seconds

#: sshd allows ten sessions on a connection (MaxSessions), and when many end and begin at once
#: those that end still count for a moment: so half of it.
MOST_CHANNELS = 5
#: After these pauses a session that was refused is asked for again: one that ended just now may
#: still count, and there are servers that allow only one.
ASKED_AGAIN: tuple[Seconds, ...] = (0.1, 0.3, 1.0)

#: How long a server may take to pass on what is in its tunnels before they are closed.
LAST_WORDS_LIMIT: Seconds = 3.0

#: Stages, for messages.
COMMAND, COPY, FORWARD = "command", "copy", "forward"

#: Where a forwarded port listens.
LOOPBACK = b"127.0.0.1"


class Carrier(Protocol):
    """What carries a connection."""

    def close(self) -> Deferred[None]:
        """Disconnect; fires when it is gone."""


@implementer(IConnection)
class Connection(SSHConnection):
    """See ``IConnection``. It is Conch's connection service, with an end that everybody hears of.

    Attributes:
        lost: as in ``IConnection``.
        error: why the connection is gone; None while it is there.
    """

    _log = QUIET

    def __init__(self, owner: Carrier, host: str, reactor: Any, channel_limit: Seconds) -> None:
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
        # by path or port
        self._forwards: dict[bytes | int, IProtocolFactory] = {}
        #: The network takes no more just now: streams wait.
        self.congested = False

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

    def forward(self, socket: str | None, factory: IProtocolFactory) -> Deferred[int]:
        """See ``IConnection.forward``."""
        return Deferred.fromCoroutine(self._forward(socket, factory))

    async def _forward(self, socket: str | None, factory: IProtocolFactory) -> int:
        if self.error is not None:
            raise self.error
        if socket is not None:
            path = os.fsencode(socket)
            await self._ask(b"streamlocal-forward@openssh.com", NS(path), "unix sockets")
            self._forwards[path] = factory
            return 0
        request = NS(LOOPBACK) + struct.pack(">L", 0)
        answer = await self._ask(b"tcpip-forward", request, "ports")
        (port,) = struct.unpack(">L", answer[:4])
        self._forwards[port] = factory
        return int(port)

    def _ask(self, request: bytes, data: bytes, what: str) -> Deferred[bytes]:
        """Ask the server for a forward; it never says why it does not want to."""

        def late(_: object, limit: Seconds) -> bytes:
            said = f"the SSH server does not answer within {limit:g} s"
            raise TimedOutError(self._host, FORWARD, said)

        def refused(failure: Failure) -> NoReturn:
            failure.trap(ConchError)
            raise self.error or ForwardRefusedError(
                self._host, FORWARD, f"the SSH server does not let {what} be forwarded"
            )

        answer: Deferred[bytes] = self.sendGlobalRequest(request, data, wantReply=True)
        return answer.addTimeout(self._channel_limit, self._reactor, late).addErrback(refused)

    def close(self) -> Deferred[None]:
        """See ``IConnection.close``."""
        if not self._forwards or self.error is not None:
            return self._owner.close()
        # When sshd hears of the end it forgets what it has not passed on; so let it answer first.
        passed_on = self.ask_for_life().addTimeout(LAST_WORDS_LIMIT, self._reactor)
        return passed_on.addErrback(lambda _: None).addCallback(lambda _: self._owner.close())

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
            for pause in ASKED_AGAIN:
                with suppress(ChannelRefusedError):
                    return await self._in_new_channel(stage, make)
                await deferLater(self._reactor, pause)
            return await self._in_new_channel(stage, make)
        finally:
            self._slots.release()

    def _in_new_channel(self, stage: str, make: Callable[..., Session]) -> Deferred[CommandResult]:
        if self.error is not None:
            raise self.error
        session = make(self._host, stage, self._reactor, self._channel_limit)
        self.openChannel(session)
        return session.done

    # --- for the transport -------------------------------------------------------------------

    def connection_lost(self, error: HostError) -> None:
        """The connection is gone; Conch then closes the channels, which say why."""
        self.error = error
        self.lost.callback(error)

    def ask_for_life(self) -> Deferred[None]:
        """Fires when a living server has answered, or the connection is gone."""
        answer: Deferred[bytes] = self.sendGlobalRequest(
            b"keepalive@openssh.com", b"", wantReply=True
        )
        # a refusal will do
        return answer.addErrback(lambda _: None).addCallback(lambda _: None)

    def set_congested(self, congested: bool) -> None:
        """The network takes no more just now, or it does again: streams wait, or go on."""
        self.congested = congested
        for channel in [] if congested else list(self.channels.values()):
            if isinstance(channel, Stream):
                channel.flush()

    # --- Conch -------------------------------------------------------------------------------

    def openChannel(self, channel: SSHChannel, extra: bytes = b"") -> None:
        channel.conn = self  # Conch does that later: too late for one that never opens
        super().openChannel(channel, extra)

    def adjustWindow(self, channel: SSHChannel, bytesToAdd: int) -> None:
        """Let the peer send more, but on a stream that is paused: it asks when it goes on."""
        if not (isinstance(channel, Stream) and channel.paused):
            super().adjustWindow(channel, bytesToAdd)

    def channel_forwarded_tcpip(self, window: int, packet: int, data: bytes) -> Stream | None:
        """Somebody on the host has connected to a port of ours."""
        _, rest = getNS(data)
        return self._stream(struct.unpack(">L", rest[:4])[0], window, packet)

    def channel_forwarded_streamlocal_openssh_com(
        self, window: int, packet: int, data: bytes
    ) -> Stream | None:
        """Somebody on the host has connected to a socket of ours."""
        return self._stream(getNS(data)[0], window, packet)

    def _stream(self, place: bytes | int, window: int, packet: int) -> Stream | None:
        factory = self._forwards.get(place)
        return Stream(factory, self._host, self._reactor, window, packet) if factory else None

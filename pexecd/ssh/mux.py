"""Conch over a connection of the system's ssh.

An ssh that shares its connection (ControlMaster) listens on a socket. Who asks there for proxy mode
may speak SSH's connection protocol in the clear, as if logged in: so commands, copies and channels
are those of ``Connection``, whoever did the handshake.

Source: OpenSSH's PROTOCOL.mux, version 4; proxy mode came with OpenSSH 7.4.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

from twisted.conch.ssh.common import NS, getNS
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import ForwardRefusedError, HostError
from pexecd.ssh.connection import FORWARD, LOOPBACK, Connection
from pexecd.ssh.errors import ConnectionLostError
from pexecd.units import Seconds

VERSION = 4
HELLO = 0x00000001
ALIVE_CHECK, ALIVE = 0x10000004, 0x80000005
TERMINATE = 0x10000005
OPEN_FORWARD, CLOSE_FORWARD = 0x10000006, 0x10000007
PROXY, PROXY_BEGINS = 0x1000000F, 0x8000000F
OK, DENIED, FAILED, REMOTE_PORT = 0x80000001, 0x80000002, 0x80000003, 0x80000007
#: In OPEN_FORWARD: the other way round, and a socket's path in place of an address.
REMOTE, IS_PATH = 2, 0xFFFFFFFE

#: No message or packet of ssh is longer.
LONGEST = 1024 * 1024

OPEN = "open"


class MuxError(Exception):
    """The ssh behind a control socket said no, or is none."""


class _Frames(Protocol):
    """Messages with their length in front; the master's first is its version."""

    transport: Any

    def __init__(self) -> None:
        self._received = b""
        self._hello = False

    def connectionMade(self) -> None:
        self.send(struct.pack(">LL", HELLO, VERSION))

    def send(self, message: bytes) -> None:
        self.transport.write(NS(message))

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        start, held = 0, self._received
        while len(held) - start >= 4:
            (length,) = struct.unpack_from(">L", held, start)
            if not 2 <= length <= LONGEST:
                self._broken(f"a message of {length} bytes")
                return
            if len(held) - start < 4 + length:
                break
            message = held[start + 4 : start + 4 + length]
            start += 4 + length
            try:
                self._take(message)
            except Exception as problem:  # of nonsense
                self._broken(repr(problem))
                return
        self._received = held[start:]

    def _take(self, message: bytes) -> None:
        if self._hello:
            self.messageReceived(message)
            return
        kind, version = struct.unpack(">LL", message[:8])
        if kind != HELLO or version != VERSION:
            raise MuxError(f"it speaks version {version}")
        self._hello = True
        self.begun()

    def begun(self) -> None:
        """Its version is right."""
        raise NotImplementedError

    def messageReceived(self, message: bytes) -> None:
        """Take a message."""
        raise NotImplementedError

    def _broken(self, why: str) -> None:
        self._received = b""
        self.transport.abortConnection()


class _Request(_Frames):
    """Asks one thing; ``answer`` fires with the reply's body, or fails with ``MuxError``.

    To TERMINATE the answer is that the ssh hangs up.
    """

    def __init__(self, kind: int, body: bytes) -> None:
        super().__init__()
        self.answer: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())
        self._kind = kind
        self._question = struct.pack(">LL", kind, 0) + body

    def begun(self) -> None:
        self.send(self._question)

    def messageReceived(self, message: bytes) -> None:
        (kind,) = struct.unpack(">L", message[:4])
        if self.answer.called:
            return
        if kind in (DENIED, FAILED):
            reason = getNS(message[8:])[0].decode("utf-8", "replace")
            self.answer.errback(MuxError(reason))
        elif self._kind == TERMINATE:
            return
        else:
            self.answer.callback(message[8:])
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.answer.called:
            return
        if self._kind == TERMINATE:
            self.answer.callback(b"")
        else:
            self.answer.errback(MuxError("ssh hung up"))


class MuxConnection(Connection):
    """See ``IConnection``. Forwards are the ssh's own: it passes on no requests for them."""

    def __init__(self, owner: MuxTransport, *args: Any) -> None:
        super().__init__(owner, *args)
        self._mux = owner
        self._listening: list[tuple[IListeningPort, _Noting]] = []

    def ask_for_life(self) -> Deferred[None]:
        """The ssh asks, by its own settings: fires at once."""
        return succeed(None)

    async def _forward(self, socket: str | None, factory: IProtocolFactory) -> int:
        """What connects on the host the ssh connects to a socket of ours."""
        if self.error is not None:
            raise self.error
        path = str(self._mux.folder / f"tunnel-{len(self._listening)}")
        noting = _Noting(factory)
        self._listening.append((self._reactor.listenUNIX(path, noting), noting))
        place, number = (socket, IS_PATH) if socket is not None else (LOOPBACK.decode(), 0)
        here = NS(os.fsencode(place)) + struct.pack(">L", number)
        there = NS(os.fsencode(path)) + struct.pack(">L", IS_PATH)
        forward = struct.pack(">L", REMOTE) + here + there
        what = "unix sockets" if socket is not None else "ports"
        try:
            answer = await self._mux.ask(OPEN_FORWARD, forward, self._channel_limit)
        except MuxError as problem:
            said = f"the SSH server does not let {what} be forwarded"
            refused = ForwardRefusedError(self._host, FORWARD, said, str(problem))
            raise self.error or refused from problem
        self._mux.forwards.append(forward)
        return int.from_bytes(answer[:4], "big")

    def stop_listening(self) -> None:
        """Let nobody in from the host any more."""
        for port, noting in self._listening:
            port.stopListening()
            noting.abort()


@implementer(IProtocolFactory)
class _Noting:
    """A factory that knows the protocols that it has built, and does not keep them."""

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self._built: WeakSet[Any] = WeakSet()

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        protocol = self._factory.buildProtocol(addr)
        if protocol is not None:
            self._built.add(protocol)
        return protocol

    def abort(self) -> None:
        """End what is there."""
        for protocol in list(self._built):
            if protocol.transport is not None:
                protocol.transport.abortConnection()


class MuxTransport(_Frames):
    """A control socket in proxy mode.

    Attributes:
        ready: fires with the ``MuxConnection``; fails with ``MuxError``.
        pid: of the ssh.
        folder: private, for sockets of ours.
        forwards: what the ssh was asked to forward.
        finish: called with why it is gone, before anybody else hears of it; fires with why,
            perhaps better, when all is cleaned up.
    """

    def __init__(
        self,
        host: str,
        reactor: Any,
        control: str,
        folder: Path,
        channel_limit: Seconds,
        close_limit: Seconds,
    ) -> None:
        super().__init__()
        self.ready: Deferred[MuxConnection] = Deferred(lambda _: self.transport.abortConnection())
        self.pid = 0
        self.folder = folder
        self.forwards: list[bytes] = []
        self.finish: Callable[[HostError], Deferred[HostError]] = succeed
        self._control = control
        self._connection = MuxConnection(self, host, reactor, channel_limit)
        self._connection.transport = self  # type: ignore[assignment]
        self._host = host
        self._reactor = reactor
        self._close_limit = close_limit
        self._proxy = False
        self._error: HostError | None = None
        self._gone = False
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None

    async def ask(self, kind: int, body: bytes, limit: Seconds) -> bytes:
        """See ``ask_ssh``."""
        return await ask_ssh(self._reactor, self._control, limit, kind, body)

    def begun(self) -> None:
        self.send(struct.pack(">LL", ALIVE_CHECK, 0))
        self.send(struct.pack(">LL", PROXY, 1))

    def messageReceived(self, message: bytes) -> None:
        if self._proxy:
            self._connection.packetReceived(message[1], message[2:])
            return
        kind, _, *_ = struct.unpack(">LL", message[:8])
        if kind == ALIVE:
            (self.pid,) = struct.unpack(">L", message[8:12])
        elif kind == PROXY_BEGINS:
            self._proxy = True
            self.transport.registerProducer(self, True)
            self._connection.serviceStarted()
            self.ready.callback(self._connection)
        else:
            raise MuxError("it does not know proxy mode")

    def _broken(self, why: str) -> None:
        if self._error is None:
            self._error = ConnectionLostError(self._host, OPEN, "the local ssh talks nonsense", why)
        super()._broken(why)

    def sendPacket(self, messageType: int, payload: bytes) -> None:
        """What Conch calls."""
        self.transport.write(struct.pack(">LBB", len(payload) + 2, 0, messageType) + payload)

    def pauseProducing(self) -> None:
        """The ssh takes no more just now."""
        self._connection.set_congested(True)

    def resumeProducing(self) -> None:
        """It does again."""
        self._connection.set_congested(False)

    def stopProducing(self) -> None:
        """The connection is gone, as ``connectionLost`` says."""

    def sendUnimplemented(self) -> None:
        """What Conch calls; it would say too little here to be of use."""

    def getPeer(self) -> object:
        """What Conch calls."""
        return self.transport.getPeer()

    def getHost(self) -> object:
        """What Conch calls."""
        return self.transport.getHost()

    def close(self) -> Deferred[None]:
        """Leave; fires when the connection is gone and ``finish`` has fired."""
        if self._gone:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        if self._error is None:
            self._error = ConnectionLostError(self._host, OPEN, "closed by pexecd")
            self._timer = self._reactor.callLater(self._close_limit, self.transport.abortConnection)
            self.transport.unregisterProducer()  # a paused one would keep the connection open
            self.transport.loseConnection()
        return done

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self._proxy:
            if not self.ready.called:
                self.ready.errback(MuxError("ssh hung up"))
            return
        if self._error is None:
            self._error = ConnectionLostError(self._host, OPEN, "the ssh that carried it has ended")
        self._connection.stop_listening()  # while the folder is there
        self.finish(self._error).addCallback(self._over)

    def _over(self, error: HostError) -> None:
        self._connection.connection_lost(error)
        self._connection.serviceStopped()
        self._gone = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)


def _connect(reactor: Any, socket: str, protocol: Protocol, limit: Seconds) -> Deferred[Any]:
    factory = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    connected: Deferred[Any] = UNIXClientEndpoint(reactor, socket, limit).connect(factory)
    return connected


async def ask_ssh(reactor: Any, socket: str, limit: Seconds, kind: int, body: bytes = b"") -> bytes:
    """Ask the ssh behind a control socket for something.

    Returns:
        The body of its reply.

    Raises:
        MuxError: it refused, went away, or did not answer within ``limit`` seconds.
    """
    request = _Request(kind, body)
    try:
        await _connect(reactor, socket, request, limit)
        return await request.answer.addTimeout(limit, reactor)
    except ConnectError as problem:
        raise MuxError(str(problem)) from problem
    except DeadlinePassedError:
        raise MuxError(f"ssh does not answer within {limit:g} s") from None


async def enter_ssh(
    reactor: Any, socket: str, transport: MuxTransport, limit: Seconds
) -> MuxConnection:
    """Use the connection of the ssh behind a control socket.

    Raises:
        MuxError: it cannot be used.
    """
    try:
        await _connect(reactor, socket, transport, limit)
        return await transport.ready.addTimeout(limit, reactor)
    except ConnectError as problem:
        raise MuxError(str(problem)) from problem
    except DeadlinePassedError:
        raise MuxError(f"ssh does not answer within {limit:g} s") from None

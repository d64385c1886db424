"""A channel that carries bytes both ways: the transport of a protocol, as a TCP connection is."""

# Tests: tests/system/test_tunnel.py

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.conch.ssh.channel import SSHChannel
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.ssh.quiet import QUIET

#: What the host may send on one stream before it must wait for us: the memory of a paused one.
WINDOW = 1024 * 1024
PACKET = 32 * 1024
#: A producer is paused when so much waits to be sent, and goes on when all has been.
MOST_WAITING = 128 * 1024

_events = Logger()


@implementer(ITCPTransport, IPushProducer)
class Stream(SSHChannel):
    """One connection that somebody on the host made to a socket or port of ours.

    Unlike Conch's own it has back-pressure both ways, queues in linear time, knows half-closed
    connections, and ends when its peer has.
    """

    #: The ``Connection`` that it belongs to.
    conn: Any
    _log = QUIET

    def __init__(
        self, factory: IProtocolFactory, host: str, clock: Any, window: int, packet: int
    ) -> None:
        """Prepare; ``channelOpen`` begins.

        Args:
            factory: builds the protocol.
            host: the peer's address, as protocols are told.
            clock: for what must not happen within a call.
            window: how many bytes the host takes at first.
            packet: how many in one packet.
        """
        super().__init__(
            localWindow=WINDOW, localMaxPacket=PACKET, remoteWindow=window, remoteMaxPacket=packet
        )
        #: The protocol reads nothing just now.
        self.paused = False
        self.disconnecting = False
        self._factory = factory
        self._peer = IPv4Address("TCP", host, 0)
        self._clock = clock
        self._protocol: Any = None
        # what came while paused; at most WINDOW bytes
        self._received: deque[bytes] = deque()
        self._eof = False
        self._delivery: IDelayedCall | None = None
        # what is to be sent
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._producer: Any = None
        self._producer_paused = False
        self._half_closing = self._half_closed = False

    # --- beginning and end ---------------------------------------------------------------------

    def channelOpen(self, specificData: bytes) -> None:
        protocol: IProtocol | None = self._factory.buildProtocol(self._peer)
        if protocol is None:
            self.conn.sendClose(self)
            return
        self._protocol = protocol
        self._guarded(protocol.makeConnection, self)

    def loseConnection(self) -> None:
        """Close when all is sent."""
        self.disconnecting = True
        self._go_on_closing()

    def abortConnection(self) -> None:
        """Close now."""
        self._waiting.clear()
        self.conn.sendClose(self)
        self._over(ConnectionLost())

    def loseWriteConnection(self) -> None:
        """Tell the peer, when all is sent, that no more will come."""
        self._half_closing = True
        self._go_on_closing()

    def _go_on_closing(self) -> None:
        if self._waiting or self._producer_paused:
            return
        if self.disconnecting:
            self.conn.sendClose(self)
            self._over(ConnectionDone())
        elif self._half_closing and not self._half_closed:
            self._half_closed = True
            self.conn.sendEOF(self)
            if IHalfCloseableProtocol.providedBy(self._protocol):
                self._protocol.writeConnectionLost()

    def closeReceived(self) -> None:
        """The host takes no more, and sends none."""
        self._waiting.clear()
        self.conn.sendClose(self)

    def closed(self) -> None:
        """Gone: closed by the host, or with the SSH connection."""
        self._over(ConnectionLost())

    def _over(self, reason: Exception) -> None:
        """Tell the protocol, once, that it can do nothing more with it."""
        protocol, self._protocol = self._protocol, None
        producer, self._producer = self._producer, None
        self._producer_paused = False
        self._received.clear()
        self._waiting.clear()
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        if producer is not None:
            producer.stopProducing()
        if protocol is not None:
            # not within this call: TLS has more to do after it asked for the end
            self._clock.callLater(0, protocol.connectionLost, Failure(reason))

    # --- receiving -----------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        if self.paused or self._received:
            self._received.append(data)
        else:
            self._deliver(data)

    def eofReceived(self) -> None:
        self._eof = True
        if not (self.paused or self._received):
            self._deliver_eof()

    def _deliver(self, data: bytes) -> None:
        if self._protocol is not None:
            self._guarded(self._protocol.dataReceived, data)

    def _guarded(self, function: Callable[[Any], object], argument: Any) -> None:
        """Call the protocol; what it trips over must not cost the host its connection."""
        try:
            function(argument)
        except Exception:
            _events.failure("a protocol in a tunnel failed")
            self.abortConnection()

    def _deliver_eof(self) -> None:
        self._eof = False
        if IHalfCloseableProtocol.providedBy(self._protocol):
            self._protocol.readConnectionLost()
        else:
            self.loseConnection()

    def pauseProducing(self) -> None:
        """Pass nothing on; the host may send a window's worth."""
        self.paused = True

    def resumeProducing(self) -> None:
        """Go on, but not within this call: no protocol expects that."""
        self.paused = False
        if self._delivery is None and self._protocol is not None:
            self._delivery = self._clock.callLater(0, self._catch_up)

    def _catch_up(self) -> None:
        self._delivery = None
        while self._received and not self.paused:
            self._deliver(self._received.popleft())
        if self.paused or self._protocol is None:
            return
        if self.localWindowLeft < self.localWindowSize // 2:
            self.conn.adjustWindow(self, self.localWindowSize - self.localWindowLeft)
        if self._eof:
            self._deliver_eof()

    def stopProducing(self) -> None:
        self.loseConnection()

    # --- sending -------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if not data or self._protocol is None or self._half_closed:
            return
        self._waiting.append(memoryview(data))
        self._waiting_bytes += len(data)
        self.flush()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def addWindowBytes(self, data: int) -> None:
        self.remoteWindowLeft += data
        self.flush()

    def flush(self) -> None:
        """Send what the host and the network take."""
        while self._waiting and self.remoteWindowLeft and not self.conn.congested:
            piece = self._waiting.popleft()
            size = min(len(piece), self.remoteWindowLeft, self.remoteMaxPacket)
            if size < len(piece):
                self._waiting.appendleft(piece[size:])
            self.remoteWindowLeft -= size
            self._waiting_bytes -= size
            self.conn.sendData(self, bytes(piece[:size]))
        if self._producer is not None:
            if self._waiting_bytes > MOST_WAITING and not self._producer_paused:
                self._producer_paused = True
                self._producer.pauseProducing()
            elif not self._waiting and self._producer_paused:
                self._producer_paused = False
                self._producer.resumeProducing()
        self._go_on_closing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Take a push producer; who has another kind wraps it, as twisted.web does."""
        if self._producer is not None or not streaming:
            raise RuntimeError("one push producer at a time")
        if self._protocol is None:
            producer.stopProducing()
            return
        self._producer, self._producer_paused = producer, False
        if self._waiting_bytes > MOST_WAITING:
            self._producer_paused = True
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer, self._producer_paused = None, False
        self._go_on_closing()

    # --- who -----------------------------------------------------------------------------------

    def getPeer(self) -> IPv4Address:
        return self._peer

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 0)

    # --- what the connection below sees to -------------------------------------------------------

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """It is always so."""

    def getTcpKeepAlive(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """It is always so."""

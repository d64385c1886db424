"""The HTTP server for clients: twisted.web's, with bounds, deadlines and old peers in mind.

- A peer may end lines with LF alone, send no ``Host``, and shut down its sending side
  after the request: it gets its answer all the same. Only a client that announced itself
  is taken to be gone then.
- Request line and headers are bounded in size and time, a body has to make progress,
  and so has a peer that reads a reply.
- Nothing that holds the session ID is logged.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from math import inf
from time import time
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    ISystemHandle,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.http_headers import Headers
from zope.interface import implementer

from pexecd.ports import IDirectory
from pexecd.protocol.arguments import announced
from pexecd.protocol.request import Request
from pexecd.protocol.resources import Root
from pexecd.units import Seconds


class Limits(NamedTuple):
    """How long a peer may take. All in seconds."""

    #: From the first byte of a request (or from connecting) to the end of its headers.
    head: Seconds = 30.0
    #: For every ``request.PROGRESS`` bytes of a body.
    body: Seconds = 60.0
    #: Without reading any of the reply.
    reply: Seconds = 60.0
    #: Between two requests on a connection.
    idle: Seconds = 120.0
    #: To read a refusal and close, when there is no going on with the connection.
    linger: Seconds = 5.0
    #: To acknowledge a task, for a peer that closed its side before it got one.
    confirm: Seconds = 10.0


#: So many bytes at most are read from a connection in one turn of the reactor, where a body comes.
#: Results of 100 kB that come ten at a time would take two turns each with Twisted's 64 KiB, which
#: are enough for heads: thousands of them keep the reactor from all others.
READ_AT_ONCE = 262144
#: So many replies at most are kept an eye on, for a peer that always asks ahead.
MOST_AHEAD = 100


@implementer(IHalfCloseableProtocol)
class Channel(http.HTTPChannel):
    """One connection."""

    delimiter = b"\n"
    maxHeaders = 100
    site: ProtocolSite
    transport: Any
    _networkProducer: Any

    def __init__(self) -> None:
        super().__init__()
        # Between two requests.
        self._idle = False
        # What the peer sends is thrown away while it reads our last words.
        self._linger = False
        self._closing = False
        self._lost = False
        self._read_closed = False
        self._held: Deferred[None] | None = None
        # For replies that may not have arrived; more than one where the peer asks ahead.
        self._undelivered: deque[Callable[[], None]] = deque(maxlen=MOST_AHEAD)
        # The peer asked for more before it could have had the last of them.
        self._asked_ahead = False
        self._confirming: IDelayedCall | None = None
        # The head of a reply whose body is about to be written.
        self._unsent = b""
        # What is written can be handed to the kernel by ourselves.
        self._direct = False
        # When the peer has taken too long, and when that is looked at.
        self._late_at = inf
        self._timer: IDelayedCall | None = None

    # --- receiving ---------------------------------------------------------------------------

    def connectionMade(self) -> None:
        self.timeOut: Seconds | None = self.site.limits.head  # type: ignore[assignment]
        self.site.connected.add(self)
        super().connectionMade()
        secure = self.isSecure()
        self._direct = isinstance(self.transport, Connection) and not secure
        self._tells_loss = ISystemHandle.providedBy(self.transport) and not secure
        self._peer: IAddress = super().getPeer()
        self._host: IAddress = super().getHost()

    def getPeer(self) -> IAddress:
        return self._peer

    def getHost(self) -> IAddress:
        return self._host

    def setTimeout(self, period: Seconds | None) -> Seconds | None:
        # Not TimeoutMixin's: it moves a timer four times in a request. This one is made anew only
        # where it would come too late; one that comes too early looks again.
        before, self.timeOut = self.timeOut, period
        self._late_at = inf
        if period is not None:
            self._late_at = self.site.reactor.seconds() + period
            if self._timer is not None and self._timer.getTime() > self._late_at:
                self._stop_timer()
            if self._timer is None:
                self._timer = self.callLater(period, self._look)
        return before

    def resetTimeout(self) -> None:
        if self.timeOut is not None:
            self.setTimeout(self.timeOut)

    def _look(self) -> None:
        self._timer = None
        left = self._late_at - self.site.reactor.seconds()
        if left <= 0:
            self.timeoutConnection()
        elif left != inf:
            self._timer = self.callLater(left, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        if self.line_mode and not (self.requests or self._buffer or self._read_closed):
            head = _HEAD.match(data)
            if head is not None and head.end() <= self.totalHeadersSize:
                self._take_head(head)
                data = data[head.end() :]
                if not data:
                    return
        if self._idle and not self._handlingRequest:
            self._idle = False
            self.setTimeout(self.site.limits.head)
        # Not HTTPChannel's: a peer that sends a byte now and then would never time out.
        LineReceiver.dataReceived(self, data)

    def _take_head(self, head: re.Match[bytes]) -> None:
        """What ``lineReceived`` does with this head, line by line."""
        request = self.requestFactory(self)
        self.requests.append(request)
        self._command, self._path, self._version, host, accept, length = head.groups()
        request.requestHeaders.addRawHeader(b"Host", host)
        request.requestHeaders.addRawHeader(b"Accept", accept)
        if length is not None:
            self.headerReceived(length)
        self.allHeadersReceived()
        if self.length == 0:
            self.allContentReceived()
        else:
            self.setRawMode()

    def lineReceived(self, line: bytes) -> None:
        if not self._closing:
            super().lineReceived(line.removesuffix(b"\r"))

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(super().headerReceived(line))
        except ValueError:  # a length of thousands of digits
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def rawDataReceived(self, data: bytes) -> None:
        if not self._closing:
            super().rawDataReceived(data)

    def allHeadersReceived(self) -> None:
        self._idle = False
        if not self._asked_ahead:
            self._undelivered.clear()  # a peer that asks for more has had its answer
        self.requests[-1].begin(self._command, self._path, self._version)
        if self.length != 0:
            self.setTimeout(self.site.limits.body)
        if self._direct:
            self.transport.bufferSize = READ_AT_ONCE if self.length != 0 else Connection.bufferSize
        super().allHeadersReceived()

    def _send100Continue(self) -> None:
        if not self.requests[-1].answered_early:
            super()._send100Continue()

    def hold(self, until: Deferred[None]) -> None:
        """Read no more before this fires: the body comes faster than it can be stored."""
        self._held = until
        self.transport.pauseProducing()
        self.setTimeout(None)
        until.addCallback(lambda _: self._go_on(until))

    def _go_on(self, after: Deferred[None]) -> None:
        if self._held is not after or self._lost:
            return
        self._held = None
        if self._transferDecoder is not None:
            self.setTimeout(self.site.limits.body)
        self.transport.resumeProducing()

    # --- replying ----------------------------------------------------------------------------

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        connection = request.requestHeaders.getRawHeaders(b"Connection")
        if connection is None:
            return version == b"HTTP/1.1"
        options = b",".join(connection).lower().replace(b" ", b"").split(b",")
        if version == b"HTTP/1.1":
            if b"close" in options:
                request.setHeader(b"Connection", b"close")
            return b"close" not in options
        return b"keep-alive" in options

    def settle_persistence(self, request: Request) -> None:
        """The headers of the reply are known: can an HTTP/1.0 connection stay open?"""
        if self.persistent and request.clientproto != b"HTTP/1.1":
            self.persistent = request.responseHeaders.hasHeader(b"Content-Length")
            if self.persistent:
                request.setHeader(b"Connection", b"keep-alive")

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        # Not sent yet: head and body are one piece.
        lines = [b"%b %b %b" % (version, code, reason), _server_and_date(int(time()))]
        for name, values in headers.getAllRawHeaders():
            lines += [b"%b: %b" % (name, value) for value in values]
        self._unsent += b"\r\n".join(lines) + b"\r\n\r\n"

    def write(self, data: bytes) -> None:
        """Send this, and what is unsent.

        The first piece of a reply goes at once if nothing waits before it: the reactor would be
        asked to say when there is room, and that costs as much as reading the request. Not what
        follows: a large file would keep all others waiting.
        """
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
            if self._direct and _is_empty(self.transport):
                sent = self.transport.writeSomeData(data)
                if not isinstance(sent, int):
                    # As the reactor would. It may not see it: the error is told only once.
                    self.transport.abortConnection()
                    return
                data = data[sent:]
        if data:
            self.transport.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def pauseProducing(self) -> None:
        super().pauseProducing()
        # twisted.web reads on while it answers: who asks and never reads would fill the memory.
        self._networkProducer.pauseProducing()
        if self._handlingRequest:
            self.setTimeout(self.site.limits.reply)

    def resumeProducing(self) -> None:
        if self._handlingRequest:
            self.setTimeout(None)
        super().resumeProducing()  # what it writes may be too much again
        if not (self._closing or self._waitingForTransport or any(self._dataBuffer)):
            self._networkProducer.resumeProducing()  # to see that the peer leaves

    def requestDone(self, request: Request) -> None:
        self._idle = True
        self._savedTimeOut = self.site.limits.idle
        self._linger = request.code >= 400
        super().requestDone(request)
        # While it is busy receiving, more requests may follow that were sent ahead.
        waits = self._handlingRequest or self._busyReceiving
        if self.persistent and self._read_closed and not waits:
            self.loseConnection()

    def watch(self, undelivered: Callable[[], None]) -> None:
        """Call this if it turns out that the reply just written never reached its peer.

        That is seen when the connection is reset, or when a peer that has closed its side
        acknowledges nothing. Its next request, or a clean end, say that all is well; a
        request that it sent before the reply was there says nothing. The end of a tunnel, or of
        TLS, tells nothing either way: there the silence of the ticket does (SPEC section 2).
        """
        if not self._tells_loss:
            return
        self._undelivered.append(undelivered)
        self._asked_ahead = any(self._dataBuffer)  # behind a body there is at least an empty piece

    def _respondToBadRequestAndDisconnect(self) -> None:
        if self._closing:
            return
        if not (self.requests and self.requests[-1].startedWriting):
            self.transport.write(_BAD_REQUEST)
        self._linger = True
        self.loseConnection()

    # --- the end -----------------------------------------------------------------------------

    def timeoutConnection(self) -> None:
        if self._closing:
            self.transport.abortConnection()
        else:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close when all is sent; wait for the peer where a reset could cost it the reply."""
        if self._closing:
            return
        self._closing = True
        limits = self.site.limits
        confirms = self._read_closed and self._undelivered
        lingers = self._linger and not self._read_closed
        if self.isSecure() or not (confirms or lingers):
            self.setTimeout(limits.reply)
            super().loseConnection()
            return
        self.setTimeout(limits.confirm if confirms else limits.linger)
        self._networkProducer.unregisterProducer()
        self._networkProducer.resumeProducing()  # to see its end
        self.transport.loseWriteConnection()

    def disconnect(self) -> None:
        """Close when all that was written is sent; there will be no more."""
        super().loseConnection()  # not the transport's alone: TLS stays open for its producer

    def readConnectionLost(self) -> None:
        """The peer has closed its side: it may have left, or just have nothing more to say."""
        if self._read_closed:
            return
        self._read_closed = True
        if self._closing:
            self.transport.loseConnection()
        elif not self._handlingRequest:
            self.loseConnection()
        elif announced(self.requests[0]):
            self.transport.abortConnection()

    def writeConnectionLost(self) -> None:
        """All is in the kernel's hands, and so is the end of our side."""
        if self._read_closed:
            self._confirm()

    def _confirm(self) -> None:
        """See whether the peer's kernel takes the reply, or says that nobody is there."""
        self._confirming = None
        handle = self.transport.getHandle()
        if handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abortConnection()
        elif _unacknowledged(handle):
            self._confirming = self.callLater(_CONFIRM_EVERY, self._confirm)
        else:
            self._undelivered.clear()
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = True
        self.site.connected.discard(self)
        if self._confirming is not None:
            self._confirming.cancel()
        self.stopProducing()  # the transport forgot who still writes when it was to close
        super().connectionLost(reason)
        self._stop_timer()
        if not reason.check(ConnectionDone):
            for undelivered in self._undelivered:
                undelivered()
        self._undelivered.clear()


#: The head of a request as our clients write it, read with one look instead of line by line.
#: What is different in any way is left to twisted.web.
_HEAD = re.compile(
    rb"(GET|POST) ([!-~]+) (HTTP/1\.1)\r\n"
    rb"Host: ([!-~]+)\r\n"
    rb"Accept: (application/x-pexec; framing=length)\r\n"
    rb"(?:(Content-Length: [0-9]{1,18})\r\n)?\r\n"
)

#: Seconds between two looks at whether a reply was acknowledged.
_CONFIRM_EVERY = 0.02


@lru_cache(maxsize=1)
def _server_and_date(second: int) -> bytes:
    """These headers of all replies of this second."""
    return b"Server: pexecd\r\nDate: %b" % http.datetimeToString(second)


def _is_empty(transport: Connection) -> bool:
    """Whether it is there, is to stay, and all that was written is sent."""
    waits = transport.dataBuffer or transport._tempDataLen  # noqa: SLF001 - known nowhere else
    # One that was aborted is there until the end of the reactor's turn.
    return bool(transport.connected) and not (transport._aborting or waits)  # noqa: SLF001


_REASON = b"this is no HTTP request, or its headers are too long\n"
_BAD_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nServer: pexecd\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
) % (len(_REASON), _REASON)


def _unacknowledged(handle: socket.socket) -> int:
    """Bytes (and the end of our side) that the peer has not acknowledged; 0 if unknown."""
    try:
        answer = fcntl.ioctl(handle.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    count: int = struct.unpack("i", answer)[0]
    return count


class ProtocolSite(server.Site):
    """Serves the six requests; other trees may be put beside them in ``resource``.

    Args:
        directory: finds the sessions.
        reactor: measures the deadlines.
        limits: the deadlines.

    Attributes:
        connected: the open connections.
    """

    noisy = False
    protocol = Channel  # type: ignore[assignment]  # no HTTP/2, so no wrapper around it
    requestFactory = Request  # type: ignore[assignment]
    resource: Root

    def __init__(
        self, directory: IDirectory, reactor: IReactorTime, limits: Limits | None = None
    ) -> None:
        super().__init__(Root(directory), reactor=reactor)
        self.limits = limits or Limits()
        self.connected: set[Channel] = set()

    def disconnect(self) -> None:
        """Close all connections, also those that wait for an answer: they get none."""
        for channel in list(self.connected):
            channel.disconnect()

    def startFactory(self) -> None:
        """Not twisted.web's: it opens the access log and keeps a clock for it."""

    def stopFactory(self) -> None:
        """See ``startFactory``."""

    def log(self, request: http.Request) -> None:
        """No access log: its lines would hold the session ID."""

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

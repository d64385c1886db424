"""A real site on loopback with a master in memory, and raw sockets to talk to it."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from pexecd.protocol.site import Channel, Limits, ProtocolSite
from tests.unit.protocol.fakes import SECRET, FakeDirectory, FakeSession

T = TypeVar("T")

ANNOUNCED = "Accept: application/x-pexec; framing=length"
S = "sessionID=" + quote(SECRET, safe="")
#: Seconds after which a socket of a test gives up: then something is broken.
PATIENCE = 30


@dataclass
class Response:
    version: str
    status: int
    headers: dict[str, str]
    body: bytes


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    *headers: str,
    version: str = "HTTP/1.0",
) -> bytes:
    lines = [f"{method} {path} {version}", *headers]
    if body is not None and not any(h.lower().startswith("content-length") for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def result(content: bytes, name: str = "output") -> bytes:
    return f"[Result]\nName={name}\n--begin content--\n".encode() + content + b"\n--end content--\n"


class Peer:
    """A blocking client on one connection; for use in a thread."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def finish_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave without a word: what is in flight is answered with RST."""
        linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self._buffer += data
        return bool(data)

    def rest(self) -> bytes:
        """All until the server closes."""
        while self._more():
            pass
        rest, self._buffer = self._buffer, b""
        return rest

    def response(self) -> Response:
        """The next response, by its Content-Length."""
        while b"\r\n\r\n" not in self._buffer:
            assert self._more(), f"closed after {self._buffer!r}"
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "a header twice"
        length = int(headers.get("Content-Length", "0"))
        while len(self._buffer) < length:
            assert self._more(), "closed within a body"
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Response(version, int(status), headers, body)


class Site(ProtocolSite):
    """Remembers its connections, so that a test can wait for their end."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.channels: list[tuple[Channel, Deferred[None]]] = []

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel = super().buildProtocol(addr)
        lost: Deferred[None] = Deferred()
        connection_lost = channel.connectionLost

        def ended(reason: Any) -> None:
            connection_lost(reason)
            lost.callback(None)

        channel.connectionLost = ended
        self.channels.append((channel, lost))
        return channel


class ServerCase(TestCase):
    """Tests against ``self.session``."""

    limits = Limits()
    reactor: Any = reactor

    def setUp(self) -> None:
        self.session = FakeSession()
        self.site = Site(FakeDirectory(self.session), self.reactor, self.limits)
        self.listening = self.reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.port = self.listening.getHost().port

    async def tearDown(self) -> None:  # type: ignore[override]
        await self.listening.stopListening()
        for channel, lost in self.site.channels:
            if not lost.called:
                channel.transport.abortConnection()
                await lost

    def file(self, content: bytes) -> Path:
        """A file with this content."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = Path(folder) / "content"
        path.write_bytes(content)
        return path

    def closed(self) -> Deferred[None]:
        """Fires when the connection made first has ended on this side."""
        return self.site.channels[0][1]

    def turn(self) -> Deferred[None]:
        """Fires when whatever runs just now is over."""
        over: Deferred[None] = Deferred()
        self.reactor.callLater(0, over.callback, None)
        return over

    async def run_peer(self, talk: Callable[[Peer], T]) -> T:
        """Run a blocking conversation in a thread."""

        def run() -> T:
            with Peer(self.port) as peer:
                return talk(peer)

        return await deferToThread(run)

    async def get(self, path: str, *headers: str) -> Response:
        return await self.ask(request("GET", path, None, *headers))

    async def post(self, path: str, body: bytes, *headers: str) -> Response:
        return await self.ask(request("POST", path, body, *headers))

    async def ask(self, data: bytes) -> Response:
        """One exchange of a client that reads to the end of the connection."""

        def talk(peer: Peer) -> Response:
            peer.send(data)
            response = peer.response()
            assert peer.rest() == b""
            return response

        return await self.run_peer(talk)

    async def wire(self, data: bytes) -> bytes:
        """All that the server says to this, to the end of the connection."""

        def talk(peer: Peer) -> bytes:
            peer.send(data)
            return peer.rest()

        return await self.run_peer(talk)

    def the_call(self) -> Any:
        """The only call that ended something."""
        (call,) = self.session.calls
        return call

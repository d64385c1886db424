"""Tunnels: programs on a host reach a factory of ours, through real sshd."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from pexecd.errors import ForwardRefusedError
from pexecd.jobs.values import HostSpec
from pexecd.ssh import Connector
from pexecd.ssh.errors import ConnectionLostError
from tests.system.sshd import Lab, Sshd

reactor: Any = installed_reactor
lab: Lab
plain: Sshd
MANY = 24 * 1024 * 1024


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab, plain  # noqa: PLW0603 - trial's TestCase takes no fixtures
    with Lab() as lab:
        plain = lab.sshd("127.0.0.31")
        yield


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """Notes what happens to it; ``until`` waits."""

    transport: Any
    factory: Any

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self.heard: list[str] = []
        self.paused = 0
        self._waiting: list[tuple[Any, Deferred[None]]] = []

    def until(self, condition: Any) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self.look()
        return waiting.addTimeout(30, reactor)

    def look(self) -> None:
        for entry in self._waiting[:]:
            if entry[0]():
                self._waiting.remove(entry)
                entry[1].callback(None)

    def connectionMade(self) -> None:
        self.factory.connected(self)

    def dataReceived(self, data: bytes) -> None:
        self.digest.update(data)
        self.size += len(data)
        self.look()

    def readConnectionLost(self) -> None:
        self.heard.append("eof")
        self.look()

    def writeConnectionLost(self) -> None:
        self.heard.append("said all")
        self.look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.heard.append(type(reason.value).__name__)
        self.look()

    # --- a producer that never has enough said

    def pauseProducing(self) -> None:
        self.paused += 1
        self.look()

    def resumeProducing(self) -> None:
        self.look()

    def stopProducing(self) -> None:
        self.heard.append("stop")


class Peers(Factory):
    noisy = False

    def __init__(self) -> None:
        self._waiting: list[Deferred[Peer]] = []

    def buildProtocol(self, addr: Any) -> Peer:
        peer = Peer()
        peer.factory = self
        return peer

    def connected(self, peer: Peer) -> None:
        self._waiting.pop(0).callback(peer)

    def next(self) -> Deferred[Peer]:
        waiting: Deferred[Peer] = Deferred()
        self._waiting.append(waiting)
        return waiting.addTimeout(30, reactor)


class TunnelCase(TestCase):
    async def connect(self, host: Sshd) -> Any:
        connector = Connector(reactor, lab.ssh_config(host))
        connection: Any = await connector.connect(HostSpec(host.address, host.address))
        self.addCleanup(connection.close)
        return connection

    async def tunnel(self, host: Sshd | None = None) -> tuple[Any, Peers, str]:
        """A connection, the factory at our end, and the socket on the host."""
        host = host or plain
        connection = await self.connect(host)
        folder = tempfile.mkdtemp(dir=host.home)
        os.chown(folder, host.user.uid, host.user.gid)
        peers, path = Peers(), f"{folder}/socket"
        self.assertEqual(await connection.forward(path, peers), 0)
        return connection, peers, path

    async def dial(self, peers: Peers, path: str) -> tuple[Peer, socket.socket]:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(30)
        self.addCleanup(sock.close)
        waiting = peers.next()
        await deferToThread(sock.connect, path)
        return await waiting, sock


class TestStreams(TunnelCase):
    async def test_bytes_go_both_ways_and_either_side_may_hang_up(self) -> None:
        connection, peers, path = await self.tunnel()
        peer, sock = await self.dial(peers, path)
        await deferToThread(sock.sendall, b"hello")
        await peer.until(lambda: peer.size == 5)
        peer.transport.write(b"world")
        self.assertEqual(await deferToThread(sock.recv, 9), b"world")
        peer.transport.loseConnection()
        self.assertEqual(await deferToThread(sock.recv, 9), b"")
        self.assertEqual(peer.heard, ["ConnectionDone"])
        peer, sock = await self.dial(peers, path)
        sock.close()
        await peer.until(lambda: "eof" in peer.heard)
        peer.transport.loseConnection()
        # nothing is left of a stream when both have closed it
        await connection.run("true", b"", 20)
        self.assertEqual(connection.channels, {})

    async def test_a_port_where_sockets_are_forbidden(self) -> None:
        host = lab.sshd("127.0.0.32", extra="AllowStreamLocalForwarding no")
        connection, peers = await self.connect(host), Peers()
        with self.assertRaises(ForwardRefusedError):
            await connection.forward(f"{host.home}/socket", peers)
        port = await connection.forward(None, peers)
        waiting = peers.next()
        sock = await deferToThread(socket.create_connection, ("127.0.0.1", port), 30)
        self.addCleanup(sock.close)
        peer = await waiting
        await deferToThread(sock.sendall, b"hello")
        await peer.until(lambda: peer.size == 5)
        peer.transport.loseConnection()

    async def test_forbidden_altogether(self) -> None:
        host = lab.sshd("127.0.0.33", extra="DisableForwarding yes")
        connection = await self.connect(host)
        for place in (f"{host.home}/socket", None):
            with self.assertRaises(ForwardRefusedError) as caught:
                await connection.forward(place, Peers())
            self.assertFalse(caught.exception.retry)
            self.assertIn("listen = in [job]", str(caught.exception))
        # the connection is as good as before
        self.assertEqual((await connection.run("true", b"", 20)).status, 0)

    async def test_a_paused_reader_holds_up_the_writer_and_costs_one_window(self) -> None:
        connection, peers, path = await self.tunnel()
        peer, sock = await self.dial(peers, path)
        peer.transport.pauseProducing()
        data = os.urandom(1 << 20) * (MANY >> 20)
        sending = deferToThread(sock.sendall, data)
        while peer.transport.localWindowLeft:
            await connection.run("true", b"", 20)
        self.assertEqual(sum(map(len, peer.transport._received)), peer.transport.localWindowSize)
        await connection.run("true", b"", 20)
        self.assertFalse(sending.called)
        self.assertEqual(peer.size, 0)
        peer.transport.resumeProducing()
        await sending
        await peer.until(lambda: peer.size == MANY)
        self.assertEqual(peer.digest.digest(), hashlib.sha256(data).digest())
        peer.transport.loseConnection()

    async def test_a_reader_on_the_host_that_stops_pauses_the_producer(self) -> None:
        _, peers, path = await self.tunnel()
        peer, sock = await self.dial(peers, path)
        peer.transport.registerProducer(peer, True)
        data = os.urandom(1 << 20)
        count = 0
        while not peer.paused:
            peer.transport.write(data)
            count += 1
            self.assertLess(count, 100)
            await deferLater(reactor, 0)
        peer.transport.unregisterProducer()
        # closed while all that is under way: it arrives all the same
        peer.transport.loseConnection()

        def read() -> int:
            size, digest = 0, hashlib.sha256()
            while piece := sock.recv(1 << 16):
                size += len(piece)
                digest.update(piece)
            self.assertEqual(digest.digest(), hashlib.sha256(data * count).digest())
            return size

        self.assertEqual(await deferToThread(read), count << 20)

    async def test_a_peer_that_closes_its_side_hears_the_answer(self) -> None:
        _, peers, path = await self.tunnel()
        peer, sock = await self.dial(peers, path)
        sock.sendall(b"question")
        sock.shutdown(socket.SHUT_WR)
        await peer.until(lambda: peer.heard == ["eof"])
        peer.transport.write(b"answer")
        peer.transport.loseWriteConnection()
        self.assertEqual(peer.heard, ["eof", "said all"])
        self.assertEqual(await deferToThread(sock.recv, 9), b"answer")
        self.assertEqual(await deferToThread(sock.recv, 9), b"")
        peer.transport.loseConnection()

    async def test_the_end_of_the_connection_is_the_end_of_its_streams(self) -> None:
        connection, peers, path = await self.tunnel()
        peer, _ = await self.dial(peers, path)
        peer.transport.registerProducer(peer, True)
        connection.lost.addErrback(lambda _: None)
        plain.drop_connections()
        await peer.until(lambda: "ConnectionLost" in peer.heard)
        self.assertEqual(peer.heard, ["stop", "ConnectionLost"])
        with self.assertRaises(ConnectionLostError):
            await connection.forward(None, peers)

    async def test_a_protocol_that_fails_costs_its_stream_alone(self) -> None:
        _, peers, path = await self.tunnel()
        peer, sock = await self.dial(peers, path)
        peer.dataReceived = lambda data: 1 / 0  # type: ignore[method-assign,assignment]
        await deferToThread(sock.sendall, b"hello")
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(await deferToThread(sock.recv, 9), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        peer, sock = await self.dial(peers, path)
        peer.transport.loseConnection()

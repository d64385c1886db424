"""Connects, failures and tunnels in a loop: neither memory nor descriptors nor timers grow.

A short version; for the long one say how many rounds (each is about fifty connections):

    PEXECD_LEAK_ROUNDS=400 python -m pytest -s tests/system/test_ssh_leaks.py
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import ClientFactory, Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.ssh.connector import Connector
from pexecd.ssh.errors import ConnectionLostError
from pexecd.ssh.transport import Deadlines
from tests.system.sshd import Lab, Sshd, make_key
from tests.system.test_ssh_ways import HARDENED, jump_to
from tests.waiting import LONG

reactor: Any = installed_reactor
ROUNDS = int(os.environ.get("PEXECD_LEAK_ROUNDS", "3"))
#: After so many rounds pools and caches are filled.
WARM_UP = max(3, min(40, ROUNDS // 4))
MOST_BYTES = 2 * 1024 * 1024
lab: Lab
plain: Sshd
gate: Sshd
hardened: Sshd


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab, plain, gate, hardened  # noqa: PLW0603 - trial's TestCase takes no fixtures
    with Lab() as lab:
        plain = lab.sshd("127.0.0.91", extra="MaxStartups 100")
        gate = lab.sshd("127.0.0.92", extra="MaxStartups 100", user=plain.user)
        hardened = lab.sshd("127.0.0.93", extra=HARDENED, user=plain.user)
        yield


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Once(Protocol):
    """Says something, and hears the answer."""

    def __init__(self) -> None:
        self.heard: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.loseConnection()
        self.heard.callback(data)


class ClientOf(ClientFactory):
    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        return self._protocol


def factory_of(protocol: Callable[[], Any]) -> Any:
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    return factory


def used() -> tuple[int, int, int]:
    """Resident bytes, descriptors, delayed calls."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))
    return pages * os.sysconf("SC_PAGE_SIZE"), descriptors, len(reactor.getDelayedCalls())


class TestLeaks(TestCase):
    timeout = 3600

    def setUp(self) -> None:
        strange = make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "id", "ed25519")
        hosts = (plain, gate, hardened)
        self.good = Connector(reactor, lab.ssh_config(*hosts))
        self.behind = Connector(reactor, lab.ssh_config(*hosts, extra=jump_to(plain, gate.address)))
        self.unknown = Connector(reactor, lab.ssh_config(*hosts, known_hosts=""))
        self.rejected = Connector(reactor, lab.ssh_config(*hosts, keys=[strange]))
        self.hasty = Connector(reactor, lab.ssh_config(), deadlines=Deadlines(greeting=0.05))
        self.host = HostSpec("plain", plain.address)
        self.source = Path(tempfile.mkdtemp(dir=lab.folder)) / "file"
        self.source.write_bytes(os.urandom(300_000))
        bound = socket.socket()
        self.addCleanup(bound.close)
        bound.bind(("127.0.0.1", 0))
        self.closed_port = bound.getsockname()[1]
        self.silent = reactor.listenTCP(0, factory_of(Protocol), interface="127.0.0.1")
        self.addCleanup(self.silent.stopListening)

    async def test_nothing_grows(self) -> None:
        for _ in range(WARM_UP):
            await self.round()
        before, began = await self.settled(), time.monotonic()
        for number in range(ROUNDS):
            await self.round()
            if number % 20 == 19:
                print(f"\n{number + 1} rounds, {time.monotonic() - began:.0f} s: {used()}")
        after = await self.settled(before)
        print(f"\nbefore {before}, after {after} in {time.monotonic() - began:.0f} s")
        self.assertEqual(after[1:], before[1:])
        self.assertLess(after[0] - before[0], MOST_BYTES)

    async def settled(self, goal: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
        """What is used when what has just ended is gone."""
        now = used()
        for _ in range(int(LONG / 0.1)):
            await deferLater(reactor, 0.1)
            last, now = now, used()
            if now[1:] == (goal[1:] if goal else last[1:]):
                break
        return now

    async def round(self) -> None:
        for host in (plain, gate, hardened):
            host.log.clear()  # which are in this process
        kinds = [
            *(self.works, self.copies, self.tunnels, self.dies, self.cancelled, self.slow) * 3,
            *(self.through_the_gate,) * 6,
            *(self.refused, self.not_known, self.not_let_in, self.silent_peer) * 3,
            *(self.by_the_systems_ssh,) * 2,
        ]
        await gatherResults([Deferred.fromCoroutine(kind()) for kind in kinds])

    # --- what may happen -----------------------------------------------------------------------

    async def works(self) -> None:
        connection = await self.good.connect(self.host)
        result = await connection.run("cat; echo oops >&2", b"x" * 100_000, 30)
        self.assertEqual(len(result.stdout), 100_000)
        await connection.close()

    async def copies(self) -> None:
        connection = await self.good.connect(self.host)
        await connection.copy(self.source, f"~/copy-{id(connection)}", 0o600, 30)
        await connection.run(f"rm copy-{id(connection)}", b"", 30)
        await connection.close()

    async def tunnels(self) -> None:
        connection = await self.good.connect(self.host)
        await self.use_tunnel(connection)
        await connection.close()

    async def use_tunnel(self, connection: Any) -> None:
        port = await connection.forward(None, factory_of(Echo))
        once = Once()
        reactor.connectTCP("127.0.0.1", port, ClientOf(once))
        self.assertEqual(await once.heard.addTimeout(LONG, reactor), b"hello")

    async def through_the_gate(self) -> None:
        connection = await self.behind.connect(self.host)
        await connection.run("true", b"", 30)
        await connection.close()

    async def by_the_systems_ssh(self) -> None:
        connection = await self.good.connect(HostSpec("hardened", hardened.address))
        await connection.run("true", b"", 30)
        await self.use_tunnel(connection)
        await connection.close()

    async def dies(self) -> None:
        connection = await self.good.connect(self.host)
        with self.assertRaises((ConnectionLostError, HostError)):
            await connection.run("kill -9 $PPID; exec sleep 10", b"", 30)
        await connection.close()

    async def slow(self) -> None:
        connection = await self.good.connect(self.host)
        with self.assertRaises(HostError):
            await connection.run("exec sleep 1", b"", 0.05)
        await connection.close()

    async def cancelled(self) -> None:
        waiting = self.behind.connect(self.host)
        await deferLater(reactor, 0.03)
        waiting.cancel()
        with contextlib.suppress(CancelledError):
            await (await waiting).close()

    async def refused(self) -> None:
        await self.fails(self.good, "127.0.0.1", self.closed_port)

    async def silent_peer(self) -> None:
        await self.fails(self.hasty, "127.0.0.1", self.silent.getHost().port)

    async def not_known(self) -> None:
        await self.fails(self.unknown, plain.address)

    async def not_let_in(self) -> None:
        await self.fails(self.rejected, plain.address)

    async def fails(self, opener: Connector, address: str, port: int | None = None) -> None:
        with self.assertRaises(HostError):
            await opener.connect(HostSpec("h", address, port=port))

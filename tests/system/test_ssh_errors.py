"""Reasons that take a network of its own to be provoked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.cable import Computer, Network
from tests.system.sshd import Lab, Sshd
from tests.waiting import LONG

#: Tries once by each of several settings, on a computer of the network, and tells how it went.
TRY = """
import json, pathlib, sys, time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from pexecd.jobs.values import HostSpec
from pexecd.ssh import Connector

reactor.seconds = time.monotonic
address, *configs = sys.argv[1:]

async def attempt(config):
    opener = Connector(reactor, pathlib.Path(config))
    try:
        connection = await opener.connect(HostSpec("far", address))
    except Exception as error:
        return [type(error).__name__, error.stage, error.retry]
    result = await connection.run("echo hello", b"", 20)
    await connection.close()
    return [type(connection).__name__, result.stdout.decode(), None]

async def go():
    print(json.dumps([await attempt(config) for config in configs]))
    reactor.stop()

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(go()))
reactor.run()
"""


class Site:
    """Two computers: a master's, and a host's."""

    def __init__(self, network: Network, lab: Lab) -> None:
        self.lab = lab
        self.here = network.computer()
        self.there = network.computer()
        self.host: Sshd = lab.sshd(self.there.address, port=2222, within=self.there.command())

    def attempt(self, computer: Computer | None = None) -> list[list[Any]]:
        """What came of it by Conch, and by the system's ssh."""
        limit = "ConnectTimeout 2\n"
        configs = [
            self.lab.ssh_config(self.host, extra=extra)
            for extra in (limit, f"{limit}BindAddress {self.here.address}")
        ]
        address = computer.address if computer else self.there.address
        program = [sys.executable, "-c", TRY, address, *map(str, configs)]
        done = subprocess.run(
            self.here.command(*program), stdout=subprocess.PIPE, timeout=LONG, check=True
        )
        told: list[list[Any]] = json.loads(done.stdout)
        return told


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with Network() as network, Lab() as lab:
        yield Site(network, lab)


def test_a_host_that_is_there(site: Site) -> None:
    told = site.attempt()
    assert told == [["Connection", "hello\n", None], ["MuxConnection", "hello\n", None]]


def test_no_route(site: Site) -> None:
    with site.there.cut("unreachable"):
        assert site.attempt() == [["NoRouteError", "connect", True]] * 2


def test_packets_vanish(site: Site) -> None:
    with site.there.cut("blackhole"):
        by_conch, by_ssh = site.attempt()
    assert by_conch == ["TimedOutError", "connect", True]
    # ssh's limit is for the greeting, too, and its words are the same
    assert (by_ssh[0], by_ssh[2]) == ("TimedOutError", True)


def test_nobody_listens(site: Site) -> None:
    assert site.attempt(computer=site.here) == [["RefusedError", "connect", True]] * 2

"""Computers on a network of their own, whose cables can be cut and mended.

Each computer is a network namespace with one cable, a veth pair, to a router in another
namespace. The addresses are 10.213.N.2, in there only: nothing of this machine's own network is
touched, and many such networks can be there at once. That takes root and ``ip``.

    with Network() as network:
        computer = network.computer()
        subprocess.run(computer.command("ip", "address"))
        with computer.cut("blackhole"):
            ...
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

from tests.system.sshd import end_process
from tests.waiting import LONG

#: How a cable is cut. blackhole: packets vanish without a word; unreachable: the router tells
#: who sent them that there is no way.
Cut = Literal["blackhole", "unreachable"]

_numbers = itertools.count(1)


def ip(*words: str) -> str:
    """Run ``ip``; returns what it printed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=LONG, check=False)
    if done.returncode:
        raise AssertionError(f"ip {' '.join(words)}: {done.stderr}")
    return done.stdout


class Computer:
    """One namespace and its cable to the router."""

    def __init__(self, network: Network, number: int) -> None:
        self.name = network.add_namespace(str(number))
        self.address = f"10.213.{number}.2"
        self._router = network.router
        self._link = f"to{number}"
        gate = f"10.213.{number}.1"
        ip(
            *("-n", self._router, "link", "add", self._link, "type", "veth"),
            *("peer", "name", "cable", "netns", self.name),
        )
        for place, link, address in (
            (self._router, self._link, gate),
            (self.name, "cable", self.address),
        ):
            ip("-n", place, "address", "add", f"{address}/24", "dev", link)
            ip("-n", place, "link", "set", link, "up")
        ip("-n", self.name, "route", "add", "default", "via", gate)

    def command(self, *words: str) -> list[str]:
        """A command that runs on this computer, with the process ID that it is started with."""
        return ["ip", "netns", "exec", self.name, *words]

    def slow(self, rate: str) -> None:
        """Limit what it sends, from now on; ``rate`` as ``tc`` has it: 4mbit."""
        limit = ["root", "tbf", "rate", rate, "burst", "32kb", "latency", "200ms"]
        command = self.command("tc", "qdisc", "add", "dev", "cable", *limit)
        subprocess.run(command, check=True, timeout=LONG)

    @contextlib.contextmanager
    def cut(self, how: Cut) -> Iterator[None]:
        """No packet comes or goes meanwhile."""
        ways = (["iif", self._link, how], ["to", self.address, how])
        for way in ways:
            ip("-n", self._router, "rule", "add", *way)
        try:
            yield
        finally:
            for way in ways:
                ip("-n", self._router, "rule", "del", *way)


class Network:
    """A router, and computers around it."""

    def __init__(self) -> None:
        self._prefix = f"pexecd-{os.getpid()}-{next(_numbers)}"
        self._namespaces: list[str] = []
        self._count = 0
        self.router = self.add_namespace("router")
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        subprocess.run(["ip", "netns", "exec", self.router, "sh", "-c", forward], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_namespace(self, name: str) -> str:
        """A new one, until the network closes; returns its full name."""
        name = f"{self._prefix}-{name}"
        ip("netns", "add", name)
        self._namespaces.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def computer(self) -> Computer:
        """One more."""
        self._count += 1
        return Computer(self, self._count)

    def close(self) -> None:
        """End what runs in there, remove the namespaces; their cables go with them."""
        for name in self._namespaces:
            for pid in ip("netns", "pids", name).split():
                end_process(int(pid))
            ip("netns", "delete", name)

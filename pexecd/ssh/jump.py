"""Jump hosts: a channel through one is the transport of the next connection.

The connection to a jump host, here called a gate, is shared by all hosts behind it and closed
when none of them needs it any more.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.conch.error import ConchError
from twisted.conch.ssh.common import NS
from twisted.internet.defer import Deferred, DeferredSemaphore, succeed
from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.ssh.connection import Connection
from pexecd.ssh.errors import (
    ConnectionLostError,
    JumpRefusedError,
    NameUnknownError,
    NoRouteError,
    RefusedError,
    SettingsError,
    TimedOutError,
)
from pexecd.ssh.settings import Settings, parse_jump
from pexecd.ssh.stream import Stream
from pexecd.units import Seconds

#: More at once through one gate would only wait for each other there.
MOST_HANDSHAKES = 8

CONNECT = "connect"
#: RFC 4254, section 5.1.
PROHIBITED = 1

#: In which words a gate says why it could not connect (those of its C library), and what they mean.
REASONS: tuple[tuple[str, type[HostError]], ...] = (
    ("refused", RefusedError),
    ("timed out", TimedOutError),
    ("No route", NoRouteError),
    ("unreachable", NoRouteError),
    ("not known", NameUnknownError),
    ("name resolution", NameUnknownError),
    ("No address", NameUnknownError),
    ("nodename", NameUnknownError),
)


class Gate:
    """A jump host, and the way to it.

    Attributes:
        route: the jump hosts on the way, itself at the end.
        host: itself; None: what stands in the settings makes no sense.
        name: as people would write it.
        handshakes: whoever logs in to a host behind it holds one.
    """

    def __init__(self, route: tuple[str, ...], closed: Callable[[Gate], None]) -> None:
        self.route = route
        try:
            self.host: HostSpec | None = parse_jump(route[-1])
            self.name = self.host.name
        except ValueError:
            self.host, self.name = None, route[-1]
        self.handshakes = DeferredSemaphore(MOST_HANDSHAKES)
        self.connection: Connection | None = None
        #: The gate that it waits for, while it does.
        self.before: Gate | None = None
        self._users = 0
        self._waiting: list[Deferred[Connection]] = []
        self._opening: Deferred[Any] | None = None
        self._closed = closed

    def enter(self, opener: Callable[[Gate], Awaitable[Connection]]) -> Deferred[Connection]:
        """Take part in its connection; once it has fired, ``release`` gives it back.

        Args:
            opener: connects it, if nobody else has.

        Returns:
            Fires with the connection; fails with a ``HostError`` of the gate.
        """
        self._users += 1
        if self.connection is not None:
            return succeed(self.connection)
        waiting: Deferred[Connection] = Deferred(self._not_waiting)
        self._waiting.append(waiting)
        if self._opening is None:
            self._opening = Deferred.fromCoroutine(self._open(opener))
            self._opening.addErrback(self._failed)
        return waiting

    def release(self) -> Deferred[None]:
        """One user less; fires when the connection is gone, if that was the last one."""
        self._users -= 1
        if self._users or self.connection is None:
            return succeed(None)
        self._closed(self)
        return self.connection.close()

    async def _open(self, opener: Callable[[Gate], Awaitable[Connection]]) -> None:
        connection = await opener(self)
        self.connection = connection
        connection.lost.addCallback(self._lost)
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(connection)

    def _lost(self, error: HostError) -> HostError:
        self._closed(self)
        return error

    def _failed(self, reason: Failure) -> None:
        self._closed(self)
        waiting, self._waiting = self._waiting, []
        self._users -= len(waiting)
        for each in waiting:
            each.errback(reason)

    def _not_waiting(self, waiting: Deferred[Connection]) -> None:
        self._users -= 1
        self._waiting.remove(waiting)
        if not self._waiting and self._opening is not None:
            self._closed(self)
            self._opening.cancel()


class Gates:
    """All gates that are in use."""

    def __init__(self, opener: Callable[[Gate], Awaitable[Connection]]) -> None:
        """Prepare.

        Args:
            opener: connects a gate, by way of those before it on its route.
        """
        self._opener = opener
        self._gates: dict[tuple[str, ...], Gate] = {}

    async def enter(self, host: str, route: tuple[str, ...], asking: Gate | None) -> Gate:
        """Find or open the gate at the end of a route.

        Args:
            host: who wants to go through it, for messages.
            route: the jump hosts on the way.
            asking: the gate that is to be reached through it, if it is one.

        Returns:
            It has a connection; call its ``release`` when that is no longer needed.

        Raises:
            HostError: of the class that fits what happened at the gate, and of ``host``.
        """
        gate = self._gates.get(route)
        if gate is None:
            gate = self._gates[route] = Gate(route, self._forget)
        before: Gate | None = gate
        while before is not None:
            if before is asking:
                raise SettingsError(host, CONNECT, f"ProxyJump leads in a circle by {gate.name}")
            before = before.before
        if asking is not None:
            asking.before = gate
        try:
            await gate.enter(self._opener)
        except HostError as error:
            raise at_gate(error, host, gate) from error
        finally:
            if asking is not None:
                asking.before = None
        return gate

    def _forget(self, gate: Gate) -> None:
        if self._gates.get(gate.route) is gate:
            del self._gates[gate.route]


def at_gate(error: HostError, host: str, gate: Gate) -> HostError:
    """What went wrong at a gate, as an error of a host behind it."""
    what = error.what if error.gate else f"jump host {gate.name}: {error.what}"
    renamed = type(error)(host, error.stage, what, error.said)
    renamed.gate = error.gate or gate.name
    return renamed


async def go_through(
    clock: IReactorTime, gate: Gate, host: str, settings: Settings, protocol: Any, limit: Seconds
) -> None:
    """Connect a protocol to a host behind a gate; when its connection ends, the gate is released.

    Args:
        clock: for ``limit``.
        gate: connected.
        host: its name in messages.
        settings: where it is, as seen from the gate.
        protocol: is connected when this returns.
        limit: for the gate to connect (seconds).

    Raises:
        HostError: the gate did not get there, or did not want to; it was not released.
    """
    connection = gate.connection
    where = f"{settings.hostname} port {settings.port} from jump host {gate.name}"
    if connection is None or connection.error is not None:
        what = f"the connection to jump host {gate.name} was lost"
        raise ConnectionLostError(host, CONNECT, what)
    there = NS(settings.hostname.encode()) + struct.pack(">L", settings.port)
    way = Way(gate, protocol, host, clock)
    connection.openChannel(way, there + NS(b"127.0.0.1") + struct.pack(">L", 0))
    try:
        await way.opened.addTimeout(limit, clock)
    except DeadlinePassedError:
        what = f"no connection to {where} within {limit:g} s"
        raise TimedOutError(host, CONNECT, what) from None
    except ConchError as refusal:
        words = refusal.value.decode("utf-8", "replace") if refusal.value else ""
        if refusal.data == PROHIBITED:
            what = f"jump host {gate.name} does not forward connections"
            raise JumpRefusedError(host, CONNECT, what, words) from None
        kind = next((kind for said, kind in REASONS if said in words), NoRouteError)
        raise kind(host, CONNECT, f"no connection to {where}", words) from None
    except ConnectionLost as problem:
        what = f"the connection to jump host {gate.name} was lost"
        raise ConnectionLostError(host, CONNECT, what) from problem


class Way(Stream):
    """A channel through a gate, which is to a protocol what a socket would be.

    Attributes:
        opened: fires when the gate has connected, and the protocol is; fails with ``ConchError``,
            or when the gate is lost. Cancelling it gives the channel up.
    """

    name = b"direct-tcpip"

    def __init__(self, gate: Gate, protocol: IProtocol, host: str, clock: Any) -> None:
        factory: Any = Factory.forProtocol(lambda: protocol)
        super().__init__(factory, host, clock, 0, 0)
        self.opened: Deferred[None] = Deferred(self._give_up)
        self._gate = gate
        self._ended = False

    def channelOpen(self, specificData: bytes) -> None:
        if self.opened.called:
            self.conn.sendClose(self)
        else:
            super().channelOpen(specificData)
            self.opened.callback(None)

    def openFailed(self, reason: Exception) -> None:
        if not self.opened.called:
            self.opened.errback(reason)

    def _give_up(self, _: Deferred[None]) -> None:
        """If it opens now, ``channelOpen`` closes it."""

    def _deliver_eof(self) -> None:
        self.abortConnection()  # as a socket: the host will not listen, either

    def closed(self) -> None:
        self._over(self.conn.error or ConnectionDone())

    def _over(self, reason: Exception) -> None:
        # whoever waits for the end of the protocol may rely on the gate's, too
        if self._protocol is not None and not self._ended:
            self._ended = True
            over = super()._over
            # not within this call: as with a socket nobody expects that
            self._gate.release().addCallback(lambda _: self._clock.callLater(0, over, reason))

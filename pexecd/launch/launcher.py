"""Keeps a client on every host of a job."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import HostError, StateError, spoken
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import (
    ENDS_AT_LOGOUT,
    RUNNING,
    START,
    STARTED,
    NoPythonError,
    OldClientError,
    StartFailedError,
    ThisComputerError,
    explain,
)
from pexecd.launch.local import LocalClient, Spare
from pexecd.launch.remote import start_client, why_not
from pexecd.launch.shared import Copies
from pexecd.launch.start import client_lines, command_by_hand
from pexecd.launch.tunnel import Tunnel, address_seen
from pexecd.ports import (
    ClientOrder,
    IConnection,
    IConnector,
    IHostWatcher,
    ILauncher,
    TunnelEnd,
)
from pexecd.units import Seconds

#: The longest pause between attempts.
LONGEST_PAUSE: Seconds = 300.0
#: A client that lived so long was well: the pauses begin anew.
GOOD_LIFE: Seconds = 60.0

#: The longest pause between looks whether a client has ended, for another to begin.
OLD_CLIENT_PAUSE: Seconds = 60.0

#: What a client's log has before each line: of no use within a message.
_STAMP = re.compile(r"^[0-9: -]+ pexec_client\[\d+\]: ", re.MULTILINE)


def pause(attempt: int, jitter: float, least: Seconds = 0.0) -> Seconds:
    """How long to wait after a failed attempt: doubling, from 1 to 2 s up to 5 minutes.

    Args:
        attempt: the number of the attempt that failed, from 1.
        jitter: from 0 to 1, by chance, so that hosts that failed together come back apart.
        least: never shorter than that.
    """
    shortest = min(LONGEST_PAUSE, 2.0 ** min(attempt, 30)) / 2
    return max(shortest, least) * (1 + jitter)


@implementer(ILauncher)
class Launcher:
    """See ``ILauncher``.

    A host over SSH has one connection: as long as its client needs the tunnel in it; one that
    reaches the master directly lives by itself once it is started. A client on this computer
    is a child process, which ``leave`` sets free.
    """

    def __init__(
        self,
        reactor: Any,
        hosts: Sequence[HostSpec],
        order: Callable[[HostSpec], ClientOrder],
        watcher: IHostWatcher,
        connector: IConnector,
        *,
        tunnel_end: Callable[[], Deferred[TunnelEnd]] | None = None,
        client: Path | None = None,
        spare: Spare | None = None,
        outdated: Container[str] = (),
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare; ``start`` begins.

        Args:
            reactor: for time and processes.
            hosts: of the cluster file.
            order: what the client of a host is told.
            watcher: hears how the hosts are.
            connector: opens SSH connections.
            tunnel_end: says where the tunnels lead of hosts whose order names no server.
            client: the client's file; default: the one that comes with pexecd.
            spare: a client here that was started already.
            outdated: hosts that have changed since an earlier run, whose clients may be there.
            jitter: chance, from 0 to 1, for the pauses between attempts.
        """
        self._log = Logger()
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._order = order
        self._watcher = watcher
        self._connector = connector
        self._tunnel_end = tunnel_end
        self._client = client or client_file()
        self._spare = spare
        self._outdated = outdated
        self._jitter = jitter
        self._copies = Copies()
        self._hosts = {host.name: host for host in hosts}
        self._keepers: dict[str, _Keeper] = {}
        self._running: dict[str, Deferred[None]] = {}
        self._stopped = False

    def start(self) -> None:
        """See ``ILauncher.start``."""
        for name, host in self._hosts.items():
            self._begin(host, replaces=name in self._outdated)

    def _begin(self, host: HostSpec, *, replaces: bool = False) -> None:
        """Keep a client there, or say how to start it by hand."""
        order = self._order(host)
        if not host.start:
            text = command_by_hand(host, order, self._client)
            self._log.info("{host}: {text}", host=spoken(host.name), text=text)
            return
        kind = _LocalKeeper if host.local else _SSHKeeper
        keeper = self._keepers[host.name] = kind(
            self._reactor,
            host,
            order,
            self._watcher,
            self._connector,
            self._client,
            self._jitter,
            self._copies,
        )
        keeper.replaces = replaces
        keeper.tunnel_end = self._tunnel_end
        keeper.spare = self._spare
        kept = Deferred.fromCoroutine(keeper.keep()).addErrback(self._ended, host.name)
        self._running[host.name] = kept

    def change(self, hosts: Sequence[HostSpec]) -> None:
        """See ``ILauncher.change``."""
        if self._stopped:
            return
        before, self._hosts = self._hosts, {host.name: host for host in hosts}
        for name, keeper in self._keepers.items():
            if name not in self._hosts or not self._hosts[name].start:
                keeper.retire()
        for name, host in self._hosts.items():
            if name in before and before[name]._replace(line=host.line) == host:
                continue
            if name in before or name in self._keepers:
                self._watcher.client_outdated(name)
            if name in self._keepers and host.start:
                self._keepers[name].change(host, self._order(host))
            else:
                self._begin(host, replaces=name in before)

    def revive(self, host: str) -> None:
        """See ``ILauncher.revive``."""
        if host in self._keepers:
            self._keepers[host].revive()

    def wind_down(self) -> Deferred[None]:
        """See ``ILauncher.wind_down``."""
        return Deferred.fromCoroutine(self._stop(tunnels=False))

    def stop(self) -> Deferred[None]:
        """See ``ILauncher.stop``."""
        return Deferred.fromCoroutine(self._stop(tunnels=True))

    def leave(self) -> Deferred[None]:
        """See ``ILauncher.leave``."""
        for keeper in self._keepers.values():
            keeper.leaving = True
        return self.stop()

    def terminate(self) -> None:
        """Tell local clients to end, for a master that will not see it."""
        for keeper in self._keepers.values():
            keeper.terminate()

    async def _stop(self, *, tunnels: bool) -> None:
        self._stopped = True
        # not now: a keeper that has just told the watcher something may be who calls
        await deferLater(self._clock, 0)
        ending = []
        for host, keeper in self._keepers.items():
            keeper.stopping = True
            if host in self._running and (tunnels or not keeper.holds_tunnel):
                ending.append(self._running.pop(host))
        for kept in ending:
            kept.cancel()
        await DeferredList(ending)

    def _ended(self, reason: Failure, host: str) -> None:
        if reason.check(CancelledError) and self._keepers[host].stopping:
            return
        self._log.failure("{host}: the launcher failed", reason, host=spoken(host))
        error = HostError(host, START, "a bug of pexecd, see the log", repr(reason.value))
        self._watcher.host_failed(error, final=True)


class _Keeper:
    """Keeps the client of one host; ``keep`` runs until it is cancelled or all is lost.

    Attributes:
        leaving: whether the client carries on when ``keep`` is cancelled.
        retired: no client is to be started any more; the one that is there ends by itself.
        replaces: a client that is there already must end before another is started.
        tunnel_end: says where a tunnel leads.
        spare: a client on this computer that was started already.
        holds_tunnel: whether a client may need it just now; also before it is there.
        stopping: ``keep`` was cancelled. It must not rely on CancelledError alone: some steps
            of Twisted end with an error of their own then, as looking up a name does.
    """

    tunnel_end: Callable[[], Deferred[TunnelEnd]] | None = None
    spare: Spare | None = None
    holds_tunnel = False
    leaving = False
    retired = False
    replaces = False
    stopping = False

    def __init__(
        self,
        reactor: Any,
        host: HostSpec,
        order: ClientOrder,
        watcher: IHostWatcher,
        connector: IConnector,
        client: Path,
        jitter: Callable[[], float],
        copies: Copies,
    ) -> None:
        self._log = Logger()
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._host = host
        self._order = order
        self._watcher = watcher
        self._connector = connector
        self._client = client
        self._jitter = jitter
        self._copies = copies
        self._revived: Deferred[None] | None = None
        self._resting: Deferred[None] | None = None

    async def keep(self) -> None:
        """Start the client, and start it again when it is needed."""
        attempt = 0
        while True:
            if self.retired:
                await self._rest(None)
                continue
            began = self._clock.seconds()
            host = self._host
            try:
                tell = await self._run()
            except (HostError, OSError, StateError) as problem:
                if self.stopping:
                    return
                error = problem if isinstance(problem, HostError) else self._here(problem)
                if self.retired or self._host is not host:
                    attempt, self.replaces = 0, True
                    continue
                old = isinstance(error, OldClientError)
                if old:
                    self._watcher.client_outdated(host.name)
                else:
                    self._watcher.host_failed(error, not error.retry)
                if not error.retry:
                    await self._rest(None)
                    continue
                good = not old and self._clock.seconds() - began > GOOD_LIFE
                attempt = 1 if good else attempt + 1
                wait = pause(attempt, self._jitter(), error.least_pause)
                await self._rest(min(wait, OLD_CLIENT_PAUSE) if old else wait)
            else:
                if self.stopping:
                    return
                attempt = 0
                revived = self._revived = Deferred()
                tell()
                if self._host is not host:
                    self.replaces = True
                    self._go_on()
                await revived

    async def _rest(self, seconds: Seconds | None) -> None:
        """Wait so long (None: for ever), or until the host is changed."""
        resting = self._resting = Deferred()
        timer = None if seconds is None else self._clock.callLater(seconds, self._wake)
        try:
            await resting
        finally:
            self._resting = None
            if timer is not None and timer.active():
                timer.cancel()

    def _wake(self) -> None:
        if self._resting is not None:
            resting, self._resting = self._resting, None
            resting.callback(None)

    def retire(self) -> None:
        """Start no client any more."""
        self.retired = True

    def change(self, host: HostSpec, order: ClientOrder) -> None:
        """Another client is wanted, as soon as the one that is there has ended."""
        self._host, self._order = host, order
        self.retired, self.replaces = False, True
        if self._resting is not None:
            self._wake()
        else:
            self._go_on()

    async def _run(self) -> Callable[[], None]:
        """Start the client, and go on until nothing is left to do unless somebody misses it.

        Returns:
            What to tell the watcher.

        Raises:
            HostError: it should be tried again, if ever.
        """
        raise NotImplementedError

    def revive(self) -> None:
        """Go on, if the client was last known to be well."""
        if not self.retired:
            self._go_on()

    def _go_on(self) -> None:
        if self._revived is not None:
            revived, self._revived = self._revived, None
            revived.callback(None)

    def _is_not_old(self, status: int | str | None) -> None:
        """Raise ``OldClientError`` if the client that is there is the one to be replaced."""
        if self.replaces and status == RUNNING:
            raise OldClientError(self._host.name, START, "the client there has not ended yet")
        if status == STARTED:
            self.replaces = False

    def _here(self, problem: Exception) -> HostError:
        """No file, process or thread could be had, say, or the tunnel's certificate is damaged."""
        what = "this computer could not do its part"
        return ThisComputerError(self._host.name, START, what, str(problem))

    def terminate(self) -> None:
        """Tell the client to end, if that takes no time."""

    def _words(self, said: bytes) -> str:
        """What a host said, for a message; it might repeat the secret that it was told."""
        words = _STAMP.sub("", said.decode("utf-8", "replace"))
        return words.replace(self._order.session, "SESSION")


class _LocalKeeper(_Keeper):
    """A child process: its end is known at once."""

    _process: LocalClient | None = None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    async def _run(self) -> Callable[[], None]:
        name = self._host.name
        python = self._host.python or sys.executable
        client = self.spare.take(python) if self.spare is not None else None
        try:
            client = client or LocalClient(self._reactor, python, self._client)
        except OSError as error:
            said = f"{python}: {error.strerror}"
            raise NoPythonError(name, START, "no usable Python", said) from None
        client.tell(client_lines(self._host, self._order))
        self._process = client
        self._watcher.host_started(name)
        try:
            await client.wait()
        except CancelledError:
            if self.leaving:
                client.leave()
            else:
                await client.stop()
                # Nobody need wait for it to hear that the run is over.
                self._watcher.client_ended(name, client.how)
            raise
        self._is_not_old(client.status)
        if client.status == RUNNING:
            # an earlier master's child, which goes on for us
            return partial(self._watcher.host_started, name)
        words = self._words(client.stderr)
        known = explain(name, client.status, words)
        if known is None:
            ended = partial(self._watcher.client_ended, name, client.how)
            if client.status == STARTED:
                return ended
            ended()
            known = StartFailedError(name, START, f"its client ended with {client.how}", words)
        raise known


class _SSHKeeper(_Keeper):
    """Starts the client as the founding document says (SPEC section 4.2), and keeps its tunnel."""

    _warned = False

    async def _run(self) -> Callable[[], None]:
        self._program()  # without it nobody need be bothered
        tunnel: Tunnel | None = None
        connection: IConnection | None = None
        try:
            if not self._order.server and self.tunnel_end is not None:
                # At once: an earlier master's client may be there that has to hear of the end.
                self.holds_tunnel = True
                tunnel = Tunnel(self._host, await self.tunnel_end())
            connection = await self._connector.connect(self._host)
            if tunnel is None:
                server = await self._server(connection)
                if await self._start(connection, server):
                    await self._keep_tunnel(connection, server)  # the connection alone
            else:
                await self._keep_tunnel(connection, await tunnel.open(connection))
        finally:
            self.holds_tunnel = False
            if connection is not None:
                if tunnel is not None and not self.leaving:
                    with suppress(HostError):
                        await tunnel.remove(connection)
                await connection.close()
        return partial(self._watcher.host_started, self._host.name)

    def _program(self) -> ClientProgram:
        """Read each time: pexecd may be upgraded under a long run."""
        try:
            return ClientProgram.read(self._client)
        except OSError as error:
            what = f"{self._client} cannot be read on this machine"
            raise StartFailedError(self._host.name, START, what, error.strerror or "") from None

    async def _server(self, connection: IConnection) -> str:
        """At which address the host reaches the master."""
        if self._order.seen_at is not None:
            seen = self._order.seen_at(await address_seen(connection))
            return seen or self._order.server
        return self._order.server

    async def _keep_tunnel(self, connection: IConnection, server: str) -> NoReturn:
        """Start the client, and start it again when somebody misses it, as long as that lasts.

        Raises:
            HostError: the client does not start, or the connection is lost.
        """
        looks = 0
        while True:
            again = None
            host = self._host
            if not (self.retired or self.stopping):
                try:
                    await self._start(connection, server)
                except OldClientError:  # what it has yet to say comes through this tunnel
                    self._watcher.client_outdated(self._host.name)
                    looks += 1
                    again = min(pause(looks, self._jitter()), OLD_CLIENT_PAUSE)
                else:
                    looks = 0
            self.holds_tunnel = True
            if self._host is not host:  # changed meanwhile
                self.replaces = True
                continue
            await self._hold(connection, again, started=not looks)

    async def _hold(
        self, connection: IConnection, seconds: Seconds | None, *, started: bool
    ) -> None:
        """Wait until somebody misses the client, the host is changed, or the time is up.

        Raises:
            HostError: the connection is lost, and the tunnel with it.
        """
        waiting = self._revived = Deferred()

        def lost(error: HostError) -> HostError:
            if self._revived is waiting:
                self._revived = None
                waiting.errback(error)
            return error

        connection.lost.addCallback(lost)
        timer = None if seconds is None else self._clock.callLater(seconds, self._go_on)
        try:
            if started and not (self.retired or self.stopping):
                self._watcher.host_started(self._host.name)
            await waiting
        finally:
            if timer is not None and timer.active():
                timer.cancel()
            if self._revived is waiting:
                self._revived = None

    async def _start(self, connection: IConnection, server: str) -> bool:
        """Start the client, or see that it runs.

        Returns:
            Whether it ends with the connection, whatever it does (``ENDS_AT_LOGOUT``).

        Raises:
            HostError: neither.
        """
        host, order = self._host, self._order._replace(server=server)
        ended = await start_client(
            connection, host, order, self._program(), self._copies, self._clock, self._words
        )
        self._is_not_old(ended.status)
        if ended.status not in (STARTED, RUNNING):
            raise await why_not(connection, host, ended, self._words)
        ends_at_logout = bool(ended.facts.get("ends_at_logout"))
        if ends_at_logout and not self._warned:
            self._warned = True
            self._log.warn("{host}: {what}", host=spoken(host.name), what=ENDS_AT_LOGOUT)
        return ends_at_logout

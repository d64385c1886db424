"""Connecting to a host as the user's SSH settings say."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import error
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    DeferredSemaphore,
)
from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.ports import IConnection, IConnector
from pexecd.ssh.agent import AgentClient, AgentError, connect_agent
from pexecd.ssh.binary import SystemSSH
from pexecd.ssh.connection import Connection
from pexecd.ssh.errors import (
    GSSAPI,
    HOSTBASED,
    HostKeyChangedError,
    HostKeyUnknownError,
    KeysRejectedError,
    NameUnknownError,
    NoCommonAlgorithmError,
    NoRouteError,
    RefusedError,
    SettingsError,
    TimedOutError,
)
from pexecd.ssh.jump import Gate, Gates, go_through
from pexecd.ssh.keys import identities, load_certificates, load_key_files
from pexecd.ssh.knownhosts import (
    KnownKeys,
    add_known_host,
    known_keys,
    lookup_name,
    read_known_hosts,
)
from pexecd.ssh.names import look_up
from pexecd.ssh.settings import Settings, read_settings
from pexecd.ssh.transport import Deadlines, Transport, left_out
from pexecd.units import Seconds

#: More at once would hold up the event loop (each costs it some milliseconds), or this machine
#: (`ssh -G`).
MOST_HANDSHAKES = 16
#: Seconds until one that does not answer lets others pass.
SOON: Seconds = 1.0
#: Logins by the system's ssh: each costs this machine most of a tenth of a second.
MOST_PROGRAMS = 16
#: So many more may wait for hosts that do not answer, and so keep nobody else waiting; each may
#: have two sockets open.
MOST_AT_ONCE = 128

#: No socket has a longer path; Twisted trips over one.
LONGEST_SOCKET_PATH = 107

CONNECT = "connect"

_events = Logger()


@implementer(IConnector)
class Connector:
    """See ``IConnector``."""

    def __init__(
        self,
        reactor: Any,
        config: Path | None,
        environ: Mapping[str, str] | None = None,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
    ) -> None:
        """Prepare.

        Args:
            reactor: for sockets, time, threads and processes.
            config: ``[ssh] config`` of the job: as with ``ssh -F``.
            environ: ``PATH`` to ssh, ``SSH_AUTH_SOCK``; default: this process's environment.
            deadlines: for each stage.
        """
        self._reactor = reactor
        self._config = config
        self._environ = os.environ if environ is None else environ
        self._deadlines = deadlines
        self._turns = DeferredSemaphore(MOST_AT_ONCE)
        self._handshakes = DeferredSemaphore(MOST_HANDSHAKES)
        self._programs = DeferredSemaphore(MOST_PROGRAMS)
        self._known_hosts_lock = DeferredLock()
        self._by_ssh = SystemSSH(reactor, self._environ, deadlines)
        self._gates = Gates(self._open_gate)
        #: Why hosts (by what means them to ssh) were found to need the system's ssh.
        self._ssh_needed: dict[tuple[str, ...], str] = {}

    def connect(self, host: HostSpec) -> Deferred[IConnection]:
        """See ``IConnector.connect``."""
        return Deferred.fromCoroutine(self._in_turn(host))

    async def _in_turn(self, host: HostSpec) -> IConnection:
        async with self._turns:
            try:
                return await self._connect(host)
            except error.ConnectingCancelledError:
                raise CancelledError from None

    async def _connect(self, host: HostSpec) -> Connection:
        return await self._open(host.name, await self._settings(host), None)

    async def _settings(self, host: HostSpec, jumps: Sequence[str] = ()) -> Settings:
        async with self._handshakes:
            limit = self._deadlines.settings
            return await read_settings(
                self._reactor, host, self._config, self._environ, limit, jumps
            )

    async def _open(self, host: str, settings: Settings, gate: Gate | None) -> Connection:
        """Connect by Conch, or by the system's ssh where Conch cannot.

        Args:
            host: its name in messages.
            settings: how to reach it.
            gate: it is one.
        """
        shared = await self._by_ssh.shared(host, settings)
        if shared is not None:
            path = settings.control_path
            _events.info("{host}: by the connection shared at {path}", host=host, path=path)
            return shared
        known = await self._in_thread(_look_up, settings)
        way = settings.target
        reason = self._ssh_needed.get(way) or settings.needs_ssh or left_out(settings.algorithms)
        if not reason and known.authorities and not known.plain:
            reason = "@cert-authority in known_hosts"
        if not reason:
            try:
                return await self._by_conch(host, settings, known, gate)
            except HostError as problem:
                reason = _why_ssh(problem, settings, known)
                if not reason:
                    raise
                self._ssh_needed[way] = reason
        _events.info("{host}: by the system's ssh, because of {reason}", host=host, reason=reason)
        async with self._programs:
            return await self._by_ssh.connect(host, settings)

    async def _by_conch(
        self,
        host: str,
        settings: Settings,
        known: KnownKeys,
        gate: Gate | None,
    ) -> Connection:
        files = await self._in_thread(load_key_files, settings.identity_files)
        certificates = await self._in_thread(
            load_certificates, settings.certificate_files, settings.identity_files
        )
        agent, agent_keys = await self._ask_agent(settings)
        try:
            offers, useless = identities(
                files,
                agent,
                agent_keys,
                only_files=settings.identities_only,
                certificates=certificates,
                certificates_first=bool(settings.certificate_files),
            )
            transport = Transport(
                self._reactor,
                host,
                settings,
                known=known,
                identities=offers,
                useless=useless,
                deadlines=self._deadlines,
            )
            return await self._log_in(host, settings, transport, gate)
        finally:
            if agent is not None:
                agent.close()

    async def _open_gate(self, gate: Gate) -> Connection:
        if gate.host is None:
            raise SettingsError(gate.name, CONNECT, "ProxyJump names no host")
        settings = await self._settings(gate.host, gate.route[:-1])
        return await self._open(gate.name, settings, gate)

    async def _ask_agent(
        self, settings: Settings
    ) -> tuple[AgentClient | None, list[tuple[bytes, str]]]:
        """Like ssh, go on without an agent that is not there or gives no sensible answer."""
        if settings.agent is None or len(os.fsencode(settings.agent)) > LONGEST_SOCKET_PATH:
            return None, []
        limit = self._deadlines.connect
        try:
            agent = await connect_agent(self._reactor, settings.agent, limit)
        except error.ConnectError:
            return None, []
        try:
            return agent, await agent.identities().addTimeout(limit, self._reactor)
        except (AgentError, DeadlinePassedError) as problem:
            _events.warn("ssh-agent is not used: {problem}", problem=problem)
            agent.close()
            return None, []
        except CancelledError:
            agent.close()
            raise

    async def _log_in(
        self, host: str, settings: Settings, transport: Transport, gate: Gate | None
    ) -> Connection:
        try:
            if not settings.jumps:
                reach = partial(self._reach, host, settings, transport)
                return await self._in_slot(transport, reach, nullcontext())
            last = await self._gates.enter(host, settings.jumps, gate)
            limit = settings.connect_timeout or self._deadlines.connect
            reach = partial(go_through, self._reactor, last, host, settings, transport, limit)
            try:
                return await self._in_slot(transport, reach, last.handshakes)
            finally:
                if not transport.connected:  # else its end releases the gate
                    await last.release()
        except BaseException:
            if transport.connected:
                await transport.close()
            raise
        finally:
            if transport.new_host_key is not None and transport.proved:
                await self._remember(host, settings, transport.new_host_key)

    async def _in_slot(
        self,
        transport: Transport,
        reach: Callable[[], Coroutine[Any, Any, None]],
        through: Any,
    ) -> Connection:
        """Connect and log in, when it is this one's turn (by ``through``, too).

        A server counts whoever has connected and not logged in yet, so nobody connects before
        that; but one that does not answer soon lets others pass until it does.
        """
        async with through, self._handshakes:
            reaching = Deferred.fromCoroutine(reach())
            if await self._soon(reaching):
                transport.begin()
                return await transport.ready
        await reaching
        async with through, self._handshakes:
            transport.begin()
            return await transport.ready

    async def _soon(self, reaching: Deferred[None]) -> bool:
        """Whether it fires within ``SOON``; raises what it fails with. Cancelled with this."""
        known: Deferred[bool] = Deferred(lambda _: reaching.cancel())

        def tell(result: Failure | None) -> Failure | None:
            if known.called:
                return result  # whoever waits for it now hears of it
            known.callback(True if result is None else result)
            return None

        timer = self._reactor.callLater(SOON, known.callback, False)
        reaching.addBoth(tell)
        try:
            return await known
        except CancelledError:
            if not reaching.called:
                await reaching.addErrback(lambda _: None)  # it has something to tidy up
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def _reach(self, host: str, settings: Settings, transport: Transport) -> None:
        limit = settings.connect_timeout or self._deadlines.connect
        addresses = await self._addresses(host, settings, limit)
        factory = Factory.forProtocol(lambda: transport)
        factory.noisy = False
        deadline = self._reactor.seconds() + limit
        while True:
            address = addresses.pop(0)
            # like ssh one after another, but a dead one leaves time for those behind it
            share = max(0.0, deadline - self._reactor.seconds()) / (len(addresses) + 1)
            kind = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
            try:
                await kind(self._reactor, address, settings.port, share).connect(factory)
            except error.ConnectError as problem:
                if not addresses:
                    raise _explain(host, settings, problem, limit) from problem
            else:
                return

    async def _addresses(self, host: str, settings: Settings, limit: Seconds) -> list[str]:
        name = settings.hostname
        try:
            found = look_up(self._reactor, name, settings.address_family)
            return await found.addTimeout(limit, self._reactor)
        except DeadlinePassedError:
            what = f"the name service does not answer for {name} within {limit:g} s"
            raise TimedOutError(host, CONNECT, what) from None
        except (socket.gaierror, UnicodeError) as problem:
            said = problem.strerror if isinstance(problem, socket.gaierror) else str(problem)
            what = f"no address for {name}"
            raise NameUnknownError(host, CONNECT, what, said or "") from problem

    async def _remember(self, host: str, settings: Settings, key: bytes) -> None:
        if not settings.own_known_hosts:
            return
        file = settings.known_hosts[0]
        name = lookup_name(settings.hostname, settings.port, settings.host_key_alias)
        await self._known_hosts_lock.acquire()
        try:
            await self._in_thread(add_known_host, file, name, key, hashed=settings.hash_known_hosts)
        except OSError as problem:
            _events.warn(
                "{host}: its new host key cannot be written to {file}: {problem}",
                host=host,
                file=str(file),
                problem=problem,
            )
        finally:
            self._known_hosts_lock.release()

    def _in_thread(self, function: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, function, *args, **kwargs)


def _why_ssh(problem: HostError, settings: Settings, known: KnownKeys) -> str:
    """Why the system's ssh may do where Conch failed; empty: it would fail as well."""
    if problem.gate:
        return ""
    if isinstance(problem, NoCommonAlgorithmError):
        return problem.what
    if isinstance(problem, HostKeyUnknownError | HostKeyChangedError) and known.authorities:
        return "@cert-authority in known_hosts"
    if isinstance(problem, KeysRejectedError):
        if settings.gssapi and GSSAPI in problem.methods:
            return f"GSSAPIAuthentication ({problem.what})"
        if settings.hostbased and HOSTBASED in problem.methods:
            return f"HostbasedAuthentication ({problem.what})"
    return ""


def _look_up(settings: Settings) -> KnownKeys:
    entries = read_known_hosts(settings.known_hosts)
    return known_keys(entries, settings.hostname, settings.port, settings.host_key_alias)


def _explain(
    host: str, settings: Settings, problem: error.ConnectError, limit: Seconds
) -> HostError:
    where = f"{settings.hostname} port {settings.port}"
    if isinstance(problem, error.ConnectionRefusedError):
        return RefusedError(host, CONNECT, f"connection refused by {where}")
    timed_out = isinstance(problem, error.TimeoutError | error.TCPTimedOutError)
    if timed_out or problem.osError == errno.ETIMEDOUT:
        return TimedOutError(host, CONNECT, f"no connection to {where} within {limit:g} s")
    # without a number it is Twisted's, which says that the connection was closed cleanly
    said = os.strerror(problem.osError) if problem.osError else ""
    return NoRouteError(host, CONNECT, f"no connection to {where}", said)

"""Keeps a client on every host of a job."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import HostError, spoken
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import (
    ENDS_AT_LOGOUT,
    RUNNING,
    START,
    STARTED,
    NoPythonError,
    StartFailedError,
    explain,
)
from pexecd.launch.local import LocalClient
from pexecd.launch.remote import start_client, why_not
from pexecd.launch.shared import Copies
from pexecd.launch.start import client_lines, command_by_hand
from pexecd.ports import ClientOrder, IConnector, IHostWatcher, ILauncher
from pexecd.units import Seconds

#: The longest pause between attempts.
LONGEST_PAUSE: Seconds = 300.0
#: A client that lived so long was well: the pauses begin anew.
GOOD_LIFE: Seconds = 60.0

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

    A host over SSH has a connection only while its client is started: the client then
    lives by itself. A client on this computer is a child process, which ``leave`` sets free.
    """

    def __init__(
        self,
        reactor: Any,
        hosts: Sequence[HostSpec],
        order: Callable[[HostSpec], ClientOrder],
        watcher: IHostWatcher,
        connector: IConnector,
        *,
        client: Path | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare; ``start`` begins.

        Args:
            reactor: for time and processes.
            hosts: of the cluster file.
            order: what the client of a host is told.
            watcher: hears how the hosts are.
            connector: opens SSH connections.
            client: the client's file; default: the one that comes with pexecd.
            jitter: chance, from 0 to 1, for the pauses between attempts.
        """
        client = client or client_file()
        copies = Copies()
        self._log = Logger()
        self._clock: IReactorTime = reactor
        self._watcher = watcher
        self._keepers: dict[str, _Keeper] = {}
        for host in hosts:
            if host.start:
                kind = _LocalKeeper if host.local else _SSHKeeper
                self._keepers[host.name] = kind(
                    reactor, host, order(host), watcher, connector, client, jitter, copies
                )
        self._by_hand = [
            (host.name, command_by_hand(host, order(host), client))
            for host in hosts
            if not host.start
        ]
        self._running: list[Deferred[None]] = []

    def start(self) -> None:
        """See ``ILauncher.start``."""
        for host, text in self._by_hand:
            self._log.info("{host}: {text}", host=spoken(host), text=text)
        self._running = [
            Deferred.fromCoroutine(keeper.keep()).addErrback(self._ended, host)
            for host, keeper in self._keepers.items()
        ]

    def revive(self, host: str) -> None:
        """See ``ILauncher.revive``."""
        if host in self._keepers:
            self._keepers[host].revive()

    def stop(self) -> Deferred[None]:
        """See ``ILauncher.stop``."""
        return Deferred.fromCoroutine(self._stop())

    def leave(self) -> Deferred[None]:
        """See ``ILauncher.leave``."""
        for keeper in self._keepers.values():
            keeper.leaving = True
        return self.stop()

    def terminate(self) -> None:
        """Tell local clients to end, for a master that will not see it."""
        for keeper in self._keepers.values():
            keeper.terminate()

    async def _stop(self) -> None:
        # not now: a keeper that has just told the watcher something may be who calls
        await deferLater(self._clock, 0)
        for keeper in self._keepers.values():
            keeper.stopping = True
        running, self._running = self._running, []
        for kept in running:
            kept.cancel()
        await DeferredList(running)

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
        stopping: ``keep`` was cancelled. It must not rely on CancelledError alone: some steps
            of Twisted end with an error of their own then, as looking up a name does.
    """

    leaving = False
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

    async def keep(self) -> None:
        """Start the client, and start it again when it is needed."""
        attempt = 0
        while True:
            began = self._clock.seconds()
            try:
                tell = await self._run()
            except HostError as error:
                if self.stopping:
                    return
                self._watcher.host_failed(error, not error.retry)
                if not error.retry:
                    return
                attempt = 1 if self._clock.seconds() - began > GOOD_LIFE else attempt + 1
                wait = pause(attempt, self._jitter(), error.least_pause)
                await deferLater(self._clock, wait)
            else:
                if self.stopping:
                    return
                attempt = 0
                revived = self._revived = Deferred()
                tell()
                await revived

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
        if self._revived is not None:
            revived, self._revived = self._revived, None
            revived.callback(None)

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
        lines = client_lines(self._host, self._order)
        try:
            client = LocalClient(self._reactor, python, self._client, lines)
        except OSError as error:
            said = f"{python}: {error.strerror}"
            raise NoPythonError(name, START, "no usable Python", said) from None
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
    """Starts the client as the founding document says (SPEC section 4.2)."""

    async def _run(self) -> Callable[[], None]:
        # read each time: pexecd may be upgraded under a long run
        try:
            program = ClientProgram.read(self._client)
        except OSError as error:
            what = f"{self._client} cannot be read on this machine"
            raise StartFailedError(self._host.name, START, what, error.strerror or "") from None
        connection = await self._connector.connect(self._host)
        try:
            ended = await start_client(
                connection,
                self._host,
                self._order,
                program,
                self._copies,
                self._clock,
                self._words,
            )
            if ended.status not in (STARTED, RUNNING):
                raise await why_not(connection, self._host, ended, self._words)
            if ended.facts.get("ends_at_logout"):
                self._log.warn("{host}: {what}", host=spoken(self._host.name), what=ENDS_AT_LOGOUT)
        finally:
            await connection.close()
        return partial(self._watcher.host_started, self._host.name)

"""Tries the hosts of a job without starting anything: ``pexecd check --hosts``."""

# Tests: tests/unit/launch/test_probe.py, tests/system/test_check_hosts.py

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.errors import HostError, spoken
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import (
    ENDS_AT_LOGOUT,
    NO_PLATFORM,
    START,
    NoPythonError,
    StartFailedError,
    explain,
)
from pexecd.launch.local import find_python
from pexecd.launch.remote import holder, run_script, why_not
from pexecd.launch.shared import Copies
from pexecd.launch.start import check_input, clean_input
from pexecd.ports import CommandResult, IConnection, IConnector
from pexecd.units import Seconds

#: So often a connection is tried where an SSH server turns it away for being too busy.
TRIES = 3
#: Less room than that (in bytes) is worth a word.
LITTLE_ROOM = 100_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of trying a host."""

    host: str
    #: ``ready``, ``unusable``, or ``by hand``: not tried, for who works there starts its client.
    status: str
    #: Why it is unusable; else empty.
    reason: str = ""
    #: What to know of a host that is ready.
    warnings: tuple[str, ...] = ()
    platform: str = ""
    #: Its version.
    python: str = ""
    #: Cores that it may use, and workers that it would run at once.
    cores: int = 0
    slots: int = 0
    #: Bytes.
    free: int = 0
    #: Other hosts that have the same folder.
    shares: tuple[str, ...] = ()


class Probe:
    """Tries all hosts at once.

    Each is looked at over a connection of its own, which stays until all have been: by what they
    see of each other's notes it is known which share a folder. Then the notes go.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        hosts: Sequence[HostSpec],
        platforms: Sequence[str],
        connector: IConnector,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Prepare.

        Args:
            reactor: for time and processes.
            hosts: of the cluster file.
            platforms: those that there are executables for; none: the worker is on the hosts.
            connector: opens SSH connections.
            jitter: chance, from 0 to 1, for pauses.
        """
        self._reactor = reactor
        self._clock: IReactorTime = reactor
        self._hosts = hosts
        self._platforms = platforms
        self._connector = connector
        self._jitter = jitter
        self._run = Copies().run
        path = client_file()
        self._program = ClientProgram.read(path)
        self._source = path.read_bytes()
        self._findings: dict[str, Finding] = {}
        #: Whose note each host has found.
        self._holders: dict[str, str] = {}
        self._connecting: dict[str, Deferred[IConnection]] = {}
        self._looked: Deferred[None] = Deferred()

    @property
    def left(self) -> int:
        """How many hosts have not answered yet."""
        return len(self._hosts) - len(self._findings)

    async def run(self) -> list[Finding]:
        """Try them all; the findings, in the hosts' order."""
        for host in self._hosts:
            if not host.start:
                self._found(Finding(host.name, "by hand"))
        await DeferredList(
            [
                Deferred.fromCoroutine(self._try(host)).addErrback(self._failed, host)
                for host in self._hosts
                if host.start
            ]
        )
        return [self._with_others(host) for host in self._hosts]

    def stop(self) -> None:
        """Look at no further host; ``run`` ends when nothing is left on those being looked at."""
        for name, trying in self._connecting.copy().items():
            trying.cancel()
            self._connecting.pop(name, None)

    async def _try(self, host: HostSpec) -> None:
        connection: IConnection | _Here
        if host.local:
            _find_python(host)
            connection = _Here(self._reactor, host)
        else:
            self._connecting[host.name] = Deferred.fromCoroutine(self._connect(host))
            connection = await self._connecting[host.name]
            self._connecting.pop(host.name, None)
        try:
            facts = await self._look(connection, host)
            self._holders[host.name] = holder(host, facts)
            self._found(self._finding(host, facts))
            await self._all_looked()
            await self._clean(connection, host, facts["made"])
        finally:
            await connection.close()

    async def _connect(self, host: HostSpec) -> IConnection:
        """Connect; where the server says that it is too busy just now, try again some times."""
        for _ in range(TRIES - 1):
            try:
                return await self._connector.connect(host)
            except HostError as error:
                if not error.busy:
                    raise
                await deferLater(self._clock, error.least_pause * (0.5 + self._jitter()))
        return await self._connector.connect(host)

    async def _look(self, connection: Any, host: HostSpec) -> dict[str, Any]:
        stdin = check_input(_with_python(host), self._program, self._source, self._run)
        ended = await run_script(connection, stdin, self._program.sha256, _words)
        if ended.status != 0 or not ended.facts:
            raise await why_not(connection, host, ended, _words, "a look at the host")
        return ended.facts

    async def _clean(self, connection: Any, host: HostSpec, made: Sequence[str]) -> None:
        stdin = clean_input(_with_python(host), self._program, made, self._run)
        try:
            ended = await run_script(connection, stdin, self._program.sha256, _words)
            words = f"ended with {ended.status}: {ended.words}" if ended.status else ""
        except HostError as error:
            words = error.reason
        if words:
            self._log.warn(
                "{host}: cleaning up: {words}; the next run there does it",
                host=spoken(host.name),
                words=words,
            )

    def _finding(self, host: HostSpec, facts: Mapping[str, Any]) -> Finding:
        platform = host.platform or facts["platform"]
        if self._platforms and platform not in self._platforms and "any" not in self._platforms:
            error = explain(
                host.name, NO_PLATFORM, f"{platform}, there is {', '.join(self._platforms)}"
            )
            assert error is not None
            return Finding(host.name, "unusable", error.reason)
        warnings = []
        if facts["ends_at_logout"] and not host.local:
            warnings.append(ENDS_AT_LOGOUT)
        if facts["free"] < LITTLE_ROOM:
            warnings.append(f"there is little room in {host.dir}")
        return Finding(
            host.name,
            "ready",
            warnings=tuple(warnings),
            platform=platform,
            python=facts["python"],
            cores=facts["cores"],
            slots=host.slots or facts["cores"],
            free=facts["free"],
        )

    def _found(self, finding: Finding) -> None:
        self._findings[finding.host] = finding
        if not self.left:
            self._looked.callback(None)

    def _failed(self, reason: Failure, host: HostSpec) -> None:
        if host.name in self._findings:
            return  # it has been looked at
        error = reason.value
        words = error.reason if isinstance(error, HostError) else f"not tried to the end: {error!r}"
        self._found(Finding(host.name, "unusable", words))

    async def _all_looked(self) -> None:
        looked: Deferred[None] = Deferred()
        self._looked.addCallback(looked.callback)
        await looked

    def _with_others(self, host: HostSpec) -> Finding:
        """Its finding, with the hosts that share its folder, and whether that was told right."""
        finding = self._findings[host.name]
        mine = self._holders.get(host.name)
        if finding.status != "ready":
            return finding
        same = [
            other.name
            for other in self._hosts
            if other is not host and self._holders.get(other.name) == mine
        ]
        wrong = [
            other.name
            for other in self._hosts
            if host.shared
            and (other.shared, other.dir) == (host.shared, host.dir)
            and other.name in self._holders
            and self._holders[other.name] != mine
        ]
        warnings = finding.warnings
        if wrong:
            warnings += (f"shared={host.shared}, but its folder is not that of {', '.join(wrong)}",)
        return replace(finding, shares=tuple(same), warnings=warnings)


class _Here:
    """This computer, in the place of an SSH connection."""

    def __init__(self, reactor: Any, host: HostSpec) -> None:
        self._reactor = reactor
        self._host = host

    def run(self, command: str, stdin: bytes, timeout: Seconds) -> Deferred[CommandResult]:
        """See ``IConnection.run``."""
        running: Deferred[Any] = getProcessOutputAndValue(
            "/bin/sh",
            ["-c", command],
            env=dict(os.environ),
            path=str(Path.home()),
            reactor=self._reactor,
            stdinBytes=stdin,
        )

        def failed(reason: Failure) -> CommandResult:
            if reason.check(DeadlinePassedError):
                words = f"no answer within {timeout:g} s"
                raise StartFailedError(self._host.name, START, words)
            out, err, signal = cast("Exception", reason.value).args
            return CommandResult(None, str(signal), out, err)

        running.addTimeout(timeout, self._reactor)
        ended: Deferred[CommandResult] = running.addCallbacks(
            lambda ended: CommandResult(ended[2], None, ended[0], ended[1]), failed
        )
        return ended

    async def close(self) -> None:
        """See ``IConnection.close``."""


def _with_python(host: HostSpec) -> HostSpec:
    """Here the client is started with the Python that runs this."""
    return host._replace(python=host.python or sys.executable) if host.local else host


def _find_python(host: HostSpec) -> None:
    """Here no other Python is taken in the place of one that is not there."""
    python = host.python or sys.executable
    try:
        find_python(python)
    except OSError as error:
        said = f"{python}: {error.strerror}"
        raise NoPythonError(host.name, START, "no usable Python", said) from None


def _words(said: bytes) -> str:
    return said.decode("utf-8", "replace")

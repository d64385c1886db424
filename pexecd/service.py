"""One job from its files to an exit status: all wiring of a run."""

from __future__ import annotations

import errno
import gc
import ipaddress
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger, globalLogPublisher, textFileLogObserver
from twisted.python.failure import Failure

from pexecd.attempts import Attempts
from pexecd.clusterfile import ClusterFile
from pexecd.core.effects import Finish, TicketEnded
from pexecd.core.values import Outcome, Totals
from pexecd.disk import TRIED, tell_pause, tell_room
from pexecd.errors import BAD_INPUT, BadInputError, JournalError, PexecdError, StateError
from pexecd.faraway import LateConnector, Secured
from pexecd.jobs import Renderer
from pexecd.jobs.doubts import doubts
from pexecd.jobs.reach import as_tcp, is_loopback, is_secure, needs_tunnel
from pexecd.jobs.values import HostSpec, Job
from pexecd.launch.launcher import Launcher
from pexecd.launch.local import Spare
from pexecd.master import Master, Parts, RunningSession
from pexecd.notify import Notifier
from pexecd.openfiles import raise_limit
from pexecd.pilot import estimate, spread
from pexecd.ports import ClientOrder, CollectReport
from pexecd.protocol.site import ProtocolSite
from pexecd.results import Collector, Judge
from pexecd.state import Start, State, prepare, rebuild, repairs, store_rest
from pexecd.store import (
    FailureLog,
    Joblog,
    Journal,
    Line,
    Remapped,
    Spool,
    StateFolder,
    StatisticsFile,
    no_room,
    write_json,
)
from pexecd.summary import Snapshot, lines, summary
from pexecd.telling import Teller
from pexecd.units import Seconds

T = TypeVar("T")

#: How often statistics.json is renewed ...
RENEWED: Seconds = 2.0
#: ... but for so many hosts that this would take more than this share of a core.
STATISTICS_SHARE = 0.01

#: How often objects that hold each other are looked for. Python itself looks through all objects
#: when there are a quarter more: with ten thousand clients that stops everything for most of a
#: second, to find hardly any.
CYCLES_SOUGHT: Seconds = 600.0
_NEVER = 1_000_000

#: A thread that computes lets others go on after so long. The reactor's would wait Python's 5 ms
#: for each of its system calls, and with it every client.
LET_GO: Seconds = 0.001

#: How long a port that is in use is waited for.
PORT_PATIENCE: Seconds = 30.0

#: Whether clients may be there that were not told the end of the run: ``left`` or ``told``.
_CLIENTS = "clients"
#: The hosts that the cluster file has named so far, with what it said of them: JSON.
_HOSTS = "hosts"

#: What this computer calls a master that listens on all its addresses.
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class JobService(Service):
    """One job from its files to an exit status.

    Args:
        reactor: the reactor; its clock is set to the monotonic one.
        job: the job, read and checked.
        start: how to begin where earlier runs left results.
        spare: a client on this computer that was started already.

    Attributes:
        ended: fires with None when all is over and nothing is left running; never fails.
        status: the exit status (SPEC section 4); 1 until the end is known.
        problem: why the job could not be worked on, in one line; else empty.
        interrupted: why the run was interrupted; empty when it was not.
        doing: what keeps it from beginning, for who waits; empty afterwards.

    Two ways lead out before the end. ``interrupt`` ends the run: workers and clients stop.
    ``stopService``, or whatever goes wrong in here, ends the master alone, as ``kill -9``
    would: the clients carry on, and the next master goes on with them.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        job: Job,
        start: Start = Start(),  # noqa: B008 - frozen
        spare: Spare | None = None,
    ) -> None:
        # reactor.seconds() is wall time and can jump: no deadline may depend on it.
        reactor.seconds = time.monotonic
        self.ended: Deferred[None] = Deferred()
        self.status = Outcome.SOME_FAILED.value
        self.problem = ""
        self.interrupted = ""
        self.doing = ""
        self._reactor = reactor
        self._job = job
        self._start = start
        self._spare = spare
        self._session: RunningSession | None = None
        self._launcher: Launcher | None = None
        self._started = time.time()
        self._began = time.monotonic()
        self._leaving = False
        self._notifier = Notifier(os.environ)
        self._numbers: dict[str, Any] | None = None
        #: When statistics.json was renewed last.
        self._written = 0.0
        self._cluster: ClusterFile | None = None
        #: The URL of the master for other computers, if there are any.

    # --- what others see ----------------------------------------------------------------------

    def startService(self) -> None:
        """Begin; how it ends is seen in ``ended``."""
        raise_limit()
        super().startService()
        work = Deferred.fromCoroutine(self._work()).addErrback(self._broken)
        work.addCallback(self.ended.callback)

    def stopService(self) -> Deferred[None]:
        """Leave clients and workers alone; fires when all else has ended."""
        super().stopService()
        self._leaving = True
        if self._session is not None and not self._session.finished.called:
            self._log.info("{name}: leaving; its clients carry on", name=self._job.name)
            self._session.finished.errback(_LeavingError())
        stopped: Deferred[None] = Deferred()
        self.ended.addCallback(stopped.callback)
        return stopped

    def interrupt(self, reason: str) -> None:
        """End the run in order; what is stored stays stored."""
        self.interrupted = self.interrupted or reason
        if self._session is not None:
            self._session.interrupt(reason)

    def terminate(self) -> None:
        """Tell clients on this computer to end, for a caller that leaves this very moment."""
        if self._launcher is not None:
            self._launcher.terminate()

    def totals(self) -> Totals | None:
        """The numbers of this moment; None before work has begun."""
        return self._session.totals() if self._session else None

    def numbers(self) -> dict[str, Any] | None:
        """What statistics.json holds: the final ones after ``ended``, None if there are none."""
        return self._numbers

    # --- the run --------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Everything, from an unopened state folder to one that is let go of.

        Whatever was opened is closed in reverse order, however this ends.
        """
        async with AsyncExitStack() as stack:
            if self._spare is not None:
                _closing(stack, self._spare.stop)
            self._say("reading what is stored")
            _tune_interpreter(stack, self._reactor)
            folder = await self._in_thread(StateFolder.claim, self._job.state)
            stack.callback(folder.release)
            port_before = "0"
            if self._start.fresh:
                port_before = await self._in_thread(_free_port_of, folder.session)
                await self._in_thread(folder.clear)
            await self._in_thread(folder.check)
            await self._wait_for_room(folder)
            _log_to(stack, folder.log)
            for doubt in doubts(self._job):
                self._log.warn("{doubt}", doubt=doubt)
            journal = await self._in_thread(Journal.open, folder.database, self._reactor)
            _closing(stack, journal.close)
            state, rest = await self._state_from(folder, journal)
            if self._start.fresh:
                await journal.note("port", port_before)
            if self._leaving:
                raise _LeavingError
            session, collector = await self._session_for(stack, folder, state)
            statistics = StatisticsFile(folder.statistics, self._reactor)
            _closing(stack, statistics.close)
            self.doing = ""
            session.go_on(state.kept, strangers=journal.meta.get(_CLIENTS) == "left")
            before = _note_hosts(journal, self._job.hosts)
            session.hosts_were(before)
            self._session = session
            # it may fail before it is awaited
            stack.callback(session.finished.addErrback, lambda _: None)
            stack.callback(self._store_table(journal, rest).cancel)
            master = Master()
            master.add(session)
            site = ProtocolSite(master, self._reactor)
            stack.callback(site.disconnect)
            secured = Secured(folder.certificate, site, self._in_thread)
            factory, pin = cast("IProtocolFactory", site), ""
            if is_secure(self._job.listen):
                end = await secured.tunnel_end()
                factory, pin = end.pinned, end.fingerprint
            elif not all(host.local for host in self._job.hosts):
                await secured.tunnel_end()  # what is wrong with it is told at once
            port = await self._listen(stack, factory, state)
            here = server_here(port.host, port.port, pin)
            self._log.info(
                "{job.name}: {job.tasks} tasks; process {pid} listens at {url}",
                job=self._job,
                pid=os.getpid(),
                url=here,
            )
            await self._in_thread(write_json, folder.session, _card(state, here, self._job))
            if self.interrupted:
                session.interrupt(self.interrupted)
            ways = await self._in_thread(Ways.of, self._job, here, port.host, port.port, pin)
            launcher = self._launcher_for(session, state, ways, secured, before)
            session.launcher = self._launcher = launcher
            _closing(stack, launcher.leave)
            _note(journal, _CLIENTS, "left")
            launcher.start()
            if self._job.cluster is not None:
                changed = partial(self._hosts_changed, journal, session, launcher)
                self._cluster = ClusterFile(self._job, self._reactor, self._in_thread, changed)
                self._cluster.start()
                stack.callback(self._cluster.stop)
            self._notifier.ready()
            renewal = LoopingCall(self._renew, session, statistics)
            renewal.clock = self._reactor
            renewal.start(RENEWED)
            try:
                finish = await session.finished
                if self._cluster is not None:
                    self._cluster.stop()
                if finish.outcome is not Outcome.SUCCEEDED:
                    # Workers here that work for nothing are stopped now, not at the next ping.
                    await launcher.wind_down()
                await session.clients_left()
                _note(journal, _CLIENTS, "told")
            finally:
                renewal.stop()
                self._notifier.stopping()
            await launcher.stop()
            # Last, for clients that leave may still bring results.
            report = await collector.finish()
            finish = _in_the_end(finish, session.totals(), report)
            self.status = finish.outcome.value
            self._numbers = numbers = summary(self._snapshot(session), finish, report)
            if self._start.pilot:
                numbers["pilot"] = await self._in_thread(self._estimate, session, state, folder)
            self._log.info("the end: {text}", text=lines(numbers)[0])
            statistics.write(lambda _: numbers)

    def _estimate(
        self, session: RunningSession, state: State, folder: StateFolder
    ) -> dict[str, Any]:
        """What the tasks of a pilot say of the others. Blocks."""
        tasks = state.journal.tasks
        return estimate(
            state.recovery.samples(spread(self._start.pilot, tasks)),
            tasks - session.totals().tasks,
            sum(session.slots.values()),
            shutil.disk_usage(folder.path).free,
        )

    def _renew(self, session: RunningSession, statistics: StatisticsFile) -> None:
        at = time.monotonic()
        if at >= self._written + statistics.cost / STATISTICS_SHARE:
            self._written = at
            at_this_moment = self._snapshot(session)
            statistics.write(lambda each: summary(at_this_moment, each=each))
        now = session.totals()
        paused = f"paused: {session.disk.full}; " if session.disk.full else ""
        self._notifier.status(f"{paused}{now.done} of {now.tasks} done, {now.failed} failed")

    def _say(self, doing: str) -> None:
        self.doing = doing
        self._notifier.status(doing)

    def _stay(self) -> None:
        """For a time when no client can hear what would end the run in order."""
        if self.interrupted or self._leaving:
            raise _LeavingError

    async def _wait_for_room(self, folder: StateFolder) -> None:
        """On a full disk not even the journal can be opened."""
        told = False
        while reason := await self._in_thread(no_room, folder.path):
            self._stay()
            if not told:
                tell_pause(self._log, reason)
                told = True
            self._say(f"paused: {reason}")
            await deferLater(self._reactor, TRIED)
        if told:
            tell_room(self._log)

    async def _state_from(
        self, folder: StateFolder, journal: Journal
    ) -> tuple[State, Iterator[Line]]:
        """The state, and the lines of the table that are still to be stored."""
        prepared = await self._in_thread(prepare, self._job, self._start, journal)
        if prepared.remapped is not None:
            self._log.warn("{text}", text=_changed(prepared.remapped))
        records = await self._in_thread(repairs, self._start, journal.recovery())
        for record in records:
            if isinstance(record, TicketEnded):
                self._log.warn("task {one.task}: {one.reason}", one=record)
        await journal.append(records)
        seconds = self._reactor.seconds()
        state = await self._in_thread(rebuild, self._job, self._start, folder, journal, seconds)
        return state, prepared.rest

    def _store_table(self, journal: Journal, rest: Iterator[Line]) -> Deferred[None]:
        """Store the rest of the table in the background; what goes wrong ends the master."""

        def stored(_: None) -> None:
            self._log.info("the whole table is stored")

        storing = Deferred.fromCoroutine(store_rest(journal, rest, self._in_thread))
        return storing.addCallback(stored).addErrback(self._fail)

    async def _session_for(
        self, stack: AsyncExitStack, folder: StateFolder, state: State
    ) -> tuple[RunningSession, Collector]:
        job, reactor = self._job, self._reactor
        spool = Spool(folder.spool, reactor)
        logs = (
            Joblog(folder.joblog, reactor),
            FailureLog(folder.log / "failures.log", reactor),
        )
        _closing(stack, spool.close)
        judge = Judge(job, folder.path, reactor)
        _closing(stack, judge.close)
        collector = Collector(
            job,
            state.journal,
            state.recovery,
            spool,
            folder.path,
            reactor,
            recollect=self._start.recollect,
        )
        _closing(stack, collector.close)
        teller = Teller(job, Renderer(job), self._in_thread)

        recovery = state.recovery
        await self._in_thread(lambda: spool.sweep(recovery.spooled()))
        attempts = Attempts(state.journal, logs, teller, reactor)
        _closing(stack, attempts.close)
        await attempts.begin(
            lambda: (recovery.ended(), recovery.ended(failures=True)),
            self._in_thread,
            reactor.callFromThread,
        )
        session = RunningSession(
            job,
            state.core,
            Parts(state.journal, spool, judge, collector, teller, attempts),
            state.executables,
            state.session_id,
            state.public,
            reactor,
            self._fail,
        )
        session.failures.update(state.failures)
        stack.callback(session.close)
        return session, collector

    async def _listen(
        self, stack: AsyncExitStack, factory: IProtocolFactory, state: State
    ) -> IPv4Address | IPv6Address:
        """Listen for clients; the port of the first time is used again (SPEC section 3).

        An earlier master, or a connection of its, may hold it for a moment.

        Raises:
            StateError: it is still held after ``PORT_PATIENCE``.
        """
        kept = state.journal.meta.get("port", "0")
        description = self._job.listen or f"port {kept} of 127.0.0.1"
        patience = time.monotonic() + PORT_PATIENCE
        while True:
            try:
                port = await self._open_port(int(kept), factory)
                break
            except CannotListenError as error:
                self._stay()
                in_use = error.socketError.errno == errno.EADDRINUSE
                if not in_use or time.monotonic() > patience:
                    advice = "change listen = in [job]"
                    if in_use:
                        advice = f"end the program that does, or {advice}"
                    raise StateError(
                        f"cannot listen on {description}: {error.socketError}; {advice}"
                    ) from None
                self._log.warn("waiting for {description}: it is in use", description=description)
                await deferLater(self._reactor, 1.0)
        _closing(stack, port.stopListening)
        address = cast("IPv4Address | IPv6Address", port.getHost())
        if self._job.listen is None and str(address.port) != kept:
            await state.journal.note("port", str(address.port))
        return address

    async def _open_port(self, kept: int, factory: IProtocolFactory) -> IListeningPort:
        if self._job.listen is None:
            port = self._reactor.listenTCP(kept, factory, interface="127.0.0.1")
            return cast("IListeningPort", port)
        # Here, because it loads TLS with it: see ``faraway``.
        from twisted.internet.endpoints import serverFromString  # noqa: PLC0415

        try:
            endpoint = serverFromString(self._reactor, as_tcp(self._job.listen))
        except LookupError:
            raise StateError(
                f"cannot listen on {self._job.listen}: systemd handed over no such socket; look at "
                "the socket unit, or change listen = in [job]"
            ) from None
        return cast("IListeningPort", await endpoint.listen(factory))

    def _launcher_for(
        self,
        session: RunningSession,
        state: State,
        ways: Ways,
        secured: Secured,
        before: Mapping[str, str],
    ) -> Launcher:
        def order(host: HostSpec) -> ClientOrder:
            return ClientOrder(state.session_id, state.public, *ways.to(host))

        return Launcher(
            self._reactor,
            self._job.hosts,
            order,
            session,
            LateConnector(self._reactor, self._job.ssh_config, self._in_thread),
            tunnel_end=secured.tunnel_end,
            spare=self._spare,
            outdated={
                host.name
                for host in self._job.hosts
                if before.get(host.name, _words(host)) != _words(host)
            },
        )

    def reread(self) -> None:
        """Read the cluster file now, as SIGHUP asks for."""
        if self._cluster is not None:
            self._cluster.look(at_once=True).addErrback(
                lambda why: self._log.failure("the cluster file was not read", why)
            )

    def _hosts_changed(
        self,
        journal: Journal,
        session: RunningSession,
        launcher: Launcher,
        hosts: Sequence[HostSpec],
    ) -> Deferred[None]:
        """Go on with these hosts; fires when that has begun."""
        _note_hosts(journal, hosts)
        session.hosts_changed([host.name for host in hosts])
        launcher.change(hosts)
        return succeed(None)

    # --- odds and ends --------------------------------------------------------------------------

    def _snapshot(self, session: RunningSession) -> Snapshot:
        return Snapshot.of(session, self._started, time.monotonic() - self._began)

    def _in_thread(self, function: Callable[..., T], *args: Any) -> Deferred[T]:
        pool = self._reactor.getThreadPool()
        return deferToThreadPool(self._reactor, pool, function, *args)

    def _fail(self, why: Failure) -> None:
        """The master can do no more; its clients carry on."""
        session = self._session
        if session is not None and not session.finished.called:
            session.finished.errback(why)

    def _broken(self, why: Failure) -> None:
        if why.check(_LeavingError):
            self.status = Outcome.INTERRUPTED.value
            return
        self.status = BAD_INPUT if why.check(BadInputError, StateError) else 1
        self.problem = why.getErrorMessage()
        error = why.value
        if isinstance(error, OSError) and error.filename and error.strerror:
            # A disk that is full, something in the place of a folder: nothing that we can mend.
            self.status = BAD_INPUT
            name = error.filename2 or error.filename
            self.problem = f"{name}: {error.strerror}; start again when that is mended"
        elif not why.check(PexecdError):
            self._log.failure("a bug of pexecd", why)
            self.problem = f"a bug of pexecd: {self.problem!r}"


class _LeavingError(Exception):
    """The master leaves before the end of the run."""


def _in_the_end(finish: Finish, totals: Totals, report: CollectReport) -> Finish:
    """How a run ended, with what came late.

    Valid results that clients brought as they left may have made every task done after all; and
    one whose results are not all where they belong was no success.
    """
    if finish.outcome is Outcome.SOME_FAILED and totals.done == totals.tasks:
        finish = Finish(Outcome.SUCCEEDED)
    if finish.outcome is Outcome.SUCCEEDED and (report.not_collected or report.errors):
        return Finish(Outcome.SOME_FAILED, "not all results could be collected")
    return finish


def _changed(remapped: Remapped) -> str:
    return (
        f"the parameter table or the command has changed: {remapped.kept} tasks keep what they "
        f"have, {remapped.new} are new, {remapped.retired} are in the table no more"
    )


class Ways(NamedTuple):
    """How hosts reach the master."""

    job: Job
    #: The URL at which this computer does.
    here: str
    #: That for other computers, where it is known; else the best guess.
    elsewhere: str
    #: Makes a better one from the address at which a host sees this computer.
    seen_at: Callable[[str], str] | None

    @classmethod
    def of(cls, job: Job, here: str, listening: str, port: int, pin: str) -> Ways:
        """Find out.

        Blocks: it may ask the name service who this computer is.

        Args:
            job: may say it, with ``advertise``.
            here: the URL at which this computer reaches the master.
            listening: the address that the master listens on.
            port: and its port.
            pin: the checksum of its certificate; empty: no TLS.
        """
        if job.advertise:
            address = job.advertise.rstrip("/")
            return cls(job, here, f"{address}#{pin}" if pin else address, None)
        if listening not in _HERE:
            return cls(job, here, _url(listening, port, pin), None)  # it is there and nowhere else
        if job.cluster is None:
            return cls(job, here, here, None)

        def seen_at(address: str) -> str:
            return _url(address, port, pin) if is_own_address(address, listening) else ""

        return cls(job, here, _url(socket.getfqdn(), port, pin), seen_at)

    def to(self, host: HostSpec) -> tuple[str, Callable[[str], str] | None]:
        """``server`` and ``seen_at`` of a host's ``ClientOrder``."""
        if _is_here(host):
            return self.here, None
        if needs_tunnel(host, self.job.listen, self.job.advertise):
            return "", None
        return self.elsewhere, self.seen_at


def _is_here(host: HostSpec) -> bool:
    """This computer. Over SSH even a loopback address may lead to another: its port, say."""
    return host.local or (not host.start and is_loopback(host.address))


def is_own_address(address: str, listening: str) -> bool:
    """Whether who connects to this address meets a master that listens on all of a kind.

    It is not where the host sees a gate between us, or a router that translates.

    Args:
        address: an IPv4 or IPv6 address.
        listening: 0.0.0.0, or ``::`` for both kinds.
    """
    try:
        version = ipaddress.ip_address(address).version
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        if version == 6 and ":" not in listening:
            return False
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # nothing is sent; only own addresses can be bound to
    except (OSError, ValueError):
        return False
    return True


def server_here(listening: str, port: int, pin: str = "") -> str:
    """The URL at which this computer reaches the master.

    Args:
        listening: the address that the master listens on.
        port: and its port.
        pin: the checksum of its certificate; empty: no TLS.
    """
    return _url(_HERE.get(listening, listening), port, pin)


def _url(address: str, port: int, pin: str) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"https://{host}:{port}#{pin}" if pin else f"http://{host}:{port}"


def _free_port_of(card: Path) -> str:
    """The port in the ``session.json`` of a run that is thrown away, if it is free; else "0".

    Clients of that run that are still there come to this port, and hear that they may go:
    otherwise they and their workers would stay for all of ``patience``. Blocks.
    """
    try:
        port = urlsplit(json.loads(card.read_bytes())["url"]).port or 0
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (OSError, ValueError, LookupError, TypeError):
        return "0"
    return str(port)


def _card(state: State, url: str, job: Job) -> dict[str, Any]:
    """``session.json``: what a script needs to take part (SPEC section 3)."""
    return {
        "url": url,
        "session": state.session_id,
        "worker": job.worker.name,
        "pid": os.getpid(),
    }


def _closing(stack: AsyncExitStack, close: Callable[[], Any]) -> None:
    """Wait for a Deferred-returning ``close`` when the stack unwinds."""

    async def wait() -> None:
        await maybeDeferred(close)

    stack.push_async_callback(wait)


def _log_to(stack: AsyncExitStack, folder: Path) -> None:
    """Keep the log of the run in the state folder, too."""
    folder.mkdir(mode=0o700, exist_ok=True)
    file = stack.enter_context((folder / "master.log").open("a", encoding="utf-8"))
    observer = textFileLogObserver(file)
    globalLogPublisher.addObserver(observer)
    stack.callback(globalLogPublisher.removeObserver, observer)


def _tune_interpreter(stack: AsyncExitStack, reactor: Any) -> None:
    """For answers without delay, whatever there is to do beside them."""
    sys.setswitchinterval(LET_GO)
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    gc.freeze()  # what is loaded by now stays: it need not be looked at again
    gc.enable()  # the command has switched it off, for the time of its imports
    seeking = LoopingCall(gc.collect)
    seeking.clock = reactor
    seeking.start(CYCLES_SOUGHT, now=False)
    stack.callback(seeking.stop)


def _note_hosts(journal: Journal, hosts: Iterable[HostSpec]) -> Mapping[str, str]:
    """Note what the cluster file says of each host; returns what it said before."""
    before: dict[str, str] = json.loads(journal.meta.get(_HOSTS, "{}"))
    now = before | {host.name: _words(host) for host in hosts}
    if now != before:
        _note(journal, _HOSTS, json.dumps(now))
    return before


def _words(host: HostSpec) -> str:
    return repr(host._replace(line=0))


def _note(journal: Journal, key: str, value: str) -> None:
    """Nobody waits for this: what follows from it is journalled behind it.

    Should the last word on clients be lost, the next run waits a little more, or less.
    """
    journal.note(key, value).addErrback(lambda why: why.trap(JournalError) and None)

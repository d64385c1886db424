"""The one place where events become effects, records and deeds.

A ``Master`` holds any number of sessions; a ``RunningSession`` is one job being worked on.
Whatever happens (a client asks, a result is on disk, a deadline comes) becomes an event,
goes through the pure core, and comes back as effects: the records among them are journalled
first, and only after their commit are the deeds performed, in order.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, assert_never, get_args

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure as TwistedFailure
from zope.interface import implementer

from pexecd.attempts import Attempts
from pexecd.core.effects import (
    Assign,
    Deed,
    Discard,
    Effect,
    Finish,
    Judge,
    Record,
    Refuse,
    Revive,
    Settle,
    Supply,
    TaskFailed,
    Tell,
    TicketEnded,
)
from pexecd.core.events import (
    AskWithdrawn,
    BodyEnded,
    BodyStarted,
    ClientGone,
    ClientHeard,
    ClientSupposed,
    Event,
    Exchanged,
    HostDrained,
    HostsUnusable,
    JudgeFailed,
    ResultJudged,
    ResultStored,
    StopAsked,
    TaskAsked,
    TaskUntold,
    TicketFailed,
    TicketPinged,
    TicketUndelivered,
    TimePassed,
)
from pexecd.core.session import Session
from pexecd.core.values import Caller, Failure, Statistics, Totals
from pexecd.disk import Disk
from pexecd.errors import (
    HostError,
    JournalError,
    WrongPlatformError,
    WrongSessionError,
    spoken,
)
from pexecd.jobs.values import Job
from pexecd.judging import Judging, spawn
from pexecd.ports import (
    ICollector,
    IDirectory,
    IHostWatcher,
    IJournal,
    IJudge,
    ILauncher,
    ISession,
    ISpool,
    IUpload,
    JournalRecord,
    NoTask,
    ResultDropped,
    ResultKept,
    StoredResult,
    TaskRow,
    TaskSupply,
    Verdict,
)
from pexecd.protocol.exchange import EXCHANGE_MOST, Posted
from pexecd.protocol.wire import TaskMessage
from pexecd.telling import TableFeed, Teller, UntellableError
from pexecd.tuples import by_place
from pexecd.units import Instant, Seconds

_RECORDS = frozenset(get_args(Record))
_kept = by_place(ResultKept)
_stored = by_place(StoredResult)

#: IDs of clients begin so: no peer's address does.
_CLIENT = "client-"

#: So long a client that asks for a task is kept waiting for room on the disk.
ROOM_PATIENCE: Seconds = 30.0

#: So many failed tasks keep their reason in memory; the ``failed`` file has them all.
FAILURES_TOLD = 1000


class Executable(NamedTuple):
    """The worker for one platform, as it is sent to clients."""

    path: Path
    md5: str
    sha256: str


@dataclass(slots=True)
class HostReport:
    """How a host of the cluster is."""

    #: ``starting``, ``up``, ``waiting`` (it is tried again), ``unusable``, ``ended``, ``changing``
    #: (its client is to end before another begins) or ``removed`` from the cluster file.
    status: str = "starting"
    #: Why, in one line; empty when all is well.
    reason: str = ""


class Parts(NamedTuple):
    """What a running session works with."""

    journal: IJournal
    spool: ISpool
    judge: IJudge
    collector: ICollector
    teller: Teller
    attempts: Attempts


@implementer(ISession, IHostWatcher)
class RunningSession:
    """One job being worked on.

    Args:
        job: what is to be done.
        core: its state; nobody else may feed it events.
        parts: journal, spool, judge, collector and words.
        executables: the worker for each platform (or ``any``).
        session_id: the secret.
        public: the session's public name.
        clock: tells and keeps the time.
        stop: called when the journal is lost: nothing can be confirmed any more.

    Attributes:
        finished: fires with the core's ``Finish`` when the run is over.
        hosts: how each host is, by name.
        slots: how many workers the last client of each host runs at once, by name; of those that
            came since this master began and said it.
        failures: the first failed tasks with their reasons.
        disk: knows whether anything can be stored just now.
    """

    launcher: ILauncher | None = None
    log = Logger()

    def __init__(
        self,
        job: Job,
        core: Session,
        parts: Parts,
        executables: Mapping[str, Executable],
        session_id: str,
        public: str,
        clock: IReactorTime,
        stop: Callable[[TwistedFailure], None],
    ) -> None:
        self.job = job
        self.session_id = session_id
        self.public = public
        self.max_result = job.max_result
        self.result_names = tuple(rule.name for rule in job.results)
        self.finished: Deferred[Finish] = Deferred()
        self.hosts = {host.name: HostReport() for host in job.hosts}
        self.slots: dict[str, int] = {}
        self.failures: dict[int, str] = {}
        self.disk = Disk(clock, parts.spool.probe, self.log)
        parts.journal.watch(self.disk.journal_changed)
        self._core = core
        self._parts = parts
        self._feed = TableFeed(parts.journal)
        self._executables = executables
        self._clock = clock
        self._stop = stop
        self._ask_numbers = count(1)
        self._asks: dict[int, Deferred[TaskMessage | NoTask]] = {}
        self._ask_of: dict[Deferred[TaskMessage | NoTask], int] = {}
        self._exchanges: dict[int, Deferred[TaskSupply]] = {}
        self._exchange_of: dict[Deferred[TaskSupply], int] = {}
        self._clients: dict[str, str] = {}
        #: No host can be used, and the core knows that.
        self._no_use = False
        self._judging = Judging(
            parts.journal,
            parts.judge,
            self._feed,
            job.columns,
            self.disk,
            self._judged,
            self.log,
        )
        #: Events that wait for their records, or for earlier ones, to be on disk.
        self._writing = 0
        self._timer: IDelayedCall | None = None
        #: The deadline that it was set for.
        self._timer_for: Instant = 0.0
        self._left: Deferred[None] | None = None

    # --- events in, records, deeds out ---------------------------------------------------

    def _submit(self, event: Event, *first: JournalRecord) -> Deferred[None]:
        """Let the core decide about an event, journal what it says, then do it.

        Args:
            event: what happened.
            first: records that belong to the event, written in the same transaction.

        Returns:
            Fires after the commit and the deeds. Fails with ``JournalError``; the master
            stops then, for memory and disk no longer agree.
        """
        return self._carry_out(self._core.handle(event), first, awaited=True)

    def _carry_out(
        self, effects: Sequence[Effect], first: Sequence[JournalRecord], *, awaited: bool
    ) -> Deferred[None]:
        records: list[JournalRecord] = list(first)
        deeds: list[Deed] = []
        for effect in effects:
            if type(effect) in _RECORDS:
                records.append(effect)  # type: ignore[arg-type]
            else:
                deeds.append(effect)  # type: ignore[arg-type]
        self._arm()
        if not records and not (self._writing and (deeds or awaited)):
            self._perform(deeds)
            return succeed(None)
        # Also what needs no record waits: it may follow from records that are not on disk yet.
        self._writing += 1

        def committed(_: None) -> None:
            self._writing -= 1
            self._note(records)
            self._perform(deeds)

        def lost(why: TwistedFailure) -> TwistedFailure:
            self._writing -= 1
            why.trap(JournalError)
            self._stop(why)
            return why

        return self._parts.journal.append(records).addCallbacks(committed, lost)

    def _happened(self, event: Event, *first: JournalRecord) -> None:
        """Submit an event that nobody waits for."""
        effects = self._core.handle(event)
        if not (effects or first) and self._left is None:
            self._arm()  # most pings end here
            return
        self._carry_out(effects, first, awaited=False).addErrback(
            lambda why: why.trap(JournalError) and None
        )

    def _note(self, records: Sequence[JournalRecord]) -> None:
        ended = []
        for record in records:
            if type(record) is TicketEnded:
                ended.append(record.ticket)
            elif type(record) is TaskFailed and len(self.failures) < FAILURES_TOLD:
                self.failures[record.task] = record.reason
        self._parts.attempts.ended(ended)

    def _perform(self, deeds: Sequence[Deed]) -> None:
        for deed in deeds:
            match deed:  # the frequent ones first
                case Settle():
                    if deed.ticket is not None:
                        self.failures.pop(deed.task, None)
                    self._parts.collector.settle(deed.task, deed.ticket)
                case Assign():
                    self._assign(deed)
                case Refuse():
                    waiting = self._answerable(deed.ask)
                    if waiting is not None:
                        waiting.callback(NoTask(deed.retry_after))
                case Supply():
                    self._supply(deed)
                case Judge():
                    self._judging.add(deed)
                case Discard():
                    self._judging.forget(deed.ticket)
                    spawn(self._discard(deed.ticket), self.log, "deleting a result")
                case Revive():
                    self.log.warn(
                        "{host}: nothing was heard of its client for too long; it is started "
                        "again if it is gone",
                        host=spoken(deed.host),
                    )
                    if self.launcher is not None:
                        self.launcher.revive(deed.host)
                case Tell():
                    (self.log.warn if deed.warning else self.log.info)("{text}", text=deed.text)
                case Finish():
                    if not self.finished.called:  # the master may be leaving already
                        self.finished.callback(deed)
                case _:
                    assert_never(deed)
        self._judging.begin()
        if self._left is not None:
            self._clock.callLater(0, self._check_left)

    def _now(self) -> Instant:
        return self._clock.seconds()

    def _arm(self) -> None:
        """One delayed call for all deadlines of the session: too early is harmless."""
        deadline = self._core.next_deadline
        if deadline is None:
            return
        if self._timer is not None:
            # Its own time is a moment later: the same deadline would be set again at every event.
            if self._timer_for <= deadline:
                return
            self._timer.cancel()
        self._timer_for = deadline
        self._timer = self._clock.callLater(max(0.0, deadline - self._now()), self._due)

    def _due(self) -> None:
        self._timer = None
        self._happened(TimePassed(self._now()))

    # --- what clients ask (ISession) ----------------------------------------------------

    def config(
        self, caller: Caller, platform: str | None, slots: int | None
    ) -> Sequence[tuple[str, str]]:
        """See ``ISession.config``."""
        job = self.job
        if slots is not None:
            self.slots[caller.host] = slots
        pairs = [
            ("DeleteWorker", _yes_no(job.delete_worker)),
            ("DeleteClient", _yes_no(job.delete_client)),
            ("Ping", str(round(job.ping))),
        ]
        if not caller.speaks:
            self._happened(ClientHeard(self._now(), caller))
            return pairs
        executable = self._executable(platform) if platform is not None else None
        client = caller.client
        if not client.startswith(_CLIENT):
            client = _CLIENT + secrets.token_hex(6)
        self._clients[client] = caller.host
        self._happened(
            ClientHeard(self._now(), Caller(client, caller.host, caller.managed, speaks=True))
        )
        pairs += [
            ("Client", client),
            ("Session", self.public),
            ("Patience", str(round(job.patience))),
            ("KeepFailed", _yes_no(job.keep_failed)),
            ("Nice", str(job.worker.nice)),
            ("Exchange", "/exchange"),
            ("ExchangeMost", str(EXCHANGE_MOST)),
        ]
        if self._executables:
            pairs.append(("Worker", job.worker.name))
        if executable is not None:
            pairs += [("MD5", executable.md5), ("SHA256", executable.sha256)]
        pairs += [("Environment", f"{name}={value}") for name, value in job.env.items()]
        return pairs

    def worker(self, caller: Caller, name: str, platform: str) -> Path:
        """See ``ISession.worker``."""
        if name != self.job.worker.name or not self._executables:
            raise WrongSessionError(f"this session has no worker {name!r}")
        executable = self._executable(platform)
        assert executable is not None
        self._happened(ClientHeard(self._now(), caller))
        self.log.info("{host}: worker fetched", host=spoken(caller.host))
        return executable.path

    def _executable(self, platform: str) -> Executable | None:
        if not self._executables:
            return None
        found = self._executables.get(platform) or self._executables.get("any")
        if found is None:
            known = ", ".join(sorted(self._executables))
            raise WrongPlatformError(
                f"no executable of {self.job.worker.name} for {platform} (there is: {known})"
            )
        return found

    def ask(self, caller: Caller, worker: str | None) -> Deferred[TaskMessage | NoTask]:
        """See ``ISession.ask``."""
        if worker is not None and worker != self.job.worker.name:
            return fail(WrongSessionError(f"this session's worker is not {worker!r}"))
        if caller.managed:  # also one that an earlier master gave its ID
            self._clients[caller.client] = caller.host
        if self.disk.full:
            return Deferred.fromCoroutine(self._ask_when_there_is_room(caller))
        return self._ask(caller)

    async def _ask_when_there_is_room(self, caller: Caller) -> TaskMessage | NoTask:
        await self.disk.room(ROOM_PATIENCE)
        return await self._ask(caller)

    def _ask(self, caller: Caller) -> Deferred[TaskMessage | NoTask]:
        waiting: Deferred[TaskMessage | NoTask] = Deferred(self._peer_left)
        asked = self._asking(waiting, caller)

        def lost(why: TwistedFailure) -> None:
            one = self._answerable(asked.ask)
            if one is not None:
                one.errback(why)

        self._submit(asked).addErrback(lost)
        return waiting

    def _asking(self, waiting: Deferred[TaskMessage | NoTask], caller: Caller) -> TaskAsked:
        """Give a waiting request a number that the core can name it by."""
        asked = TaskAsked(self._now(), next(self._ask_numbers), caller)
        self._asks[asked.ask] = waiting
        self._ask_of[waiting] = asked.ask
        return asked

    def _answerable(self, ask: int) -> Deferred[TaskMessage | NoTask] | None:
        """Take the request that waits under this number; None when its peer has left."""
        waiting = self._asks.pop(ask, None)
        if waiting is not None:
            del self._ask_of[waiting]
        return waiting

    def _peer_left(self, waiting: Deferred[TaskMessage | NoTask]) -> None:
        ask = self._ask_of.get(waiting)
        if ask is not None:
            self._answerable(ask)
            self._happened(AskWithdrawn(self._now(), ask))

    def _assign(self, deed: Assign) -> None:
        """Put a task into words and hand it to the request that waits for it."""
        row = self._feed.ready(deed.task)
        if row is None or not deed.caller.speaks:
            spawn(self._assign_later(deed), self.log, f"telling task {deed.task}")
            return
        told: TaskMessage | UntellableError
        try:
            told = self._parts.teller.message(row, deed.ticket)
        except UntellableError as problem:
            told = problem
        self._answer(deed, told)

    async def _assign_later(self, deed: Assign) -> None:
        teller = self._parts.teller
        told: TaskMessage | UntellableError | JournalError
        try:
            row = await self._feed.row(deed.task)
            if deed.caller.speaks:
                told = teller.message(row, deed.ticket)
            else:
                told = await teller.plain_message(row, deed.ticket)
        except (UntellableError, JournalError) as problem:
            told = problem
        self._answer(deed, told)

    def _answer(self, deed: Assign, told: TaskMessage | UntellableError | JournalError) -> None:
        waiting = self._answerable(deed.ask)
        if waiting is None:  # the peer left between decision and commit
            self._happened(TicketUndelivered(self._now(), deed.ticket))
        elif isinstance(told, TaskMessage):
            waiting.callback(told)
        elif isinstance(told, UntellableError):
            again = self._asking(waiting, deed.caller)
            self._happened(TaskUntold(again.at, deed.ticket, str(told), told.demanding, again))
        else:
            self._happened(TicketUndelivered(self._now(), deed.ticket))
            waiting.errback(told)

    def exchange(
        self, caller: Caller, posted: Posted, want: int, worker: str | None
    ) -> Deferred[TaskSupply]:
        """See ``ISession.exchange``."""
        if worker is not None and worker != self.job.worker.name:
            return fail(WrongSessionError(f"this session's worker is not {worker!r}"))
        if caller.managed:
            self._clients[caller.client] = caller.host
        if self.disk.full:
            return fail(JournalError(self.disk.full))
        waiting: Deferred[TaskSupply] = Deferred(self._exchanger_left)
        ask = next(self._ask_numbers)
        self._exchanges[ask] = waiting
        self._exchange_of[waiting] = ask
        large = [
            ticket
            for ticket, _, contents in posted.complete
            if not self._parts.spool.fits(contents)
        ]
        if large:
            spawn(self._spool_first(ask, caller, want, posted, large), self.log, "an exchange")
        else:
            self._exchange(ask, caller, want, posted, {})
        return waiting

    def _exchange(
        self,
        ask: int,
        caller: Caller,
        want: int,
        posted: Posted,
        spooled: Mapping[int, tuple[StoredResult, ...]],
    ) -> None:
        """The results are where they belong: let the core decide, and journal all at once."""
        core = self._core
        kept = []
        for ticket, _, contents in posted.complete:
            if core.wanted(ticket):
                results = spooled.get(ticket) or _inline(contents)
                kept.append(_kept((ticket, core.task_of(ticket), results)))
            elif ticket in spooled:  # a repeat, or another copy, was faster
                self._parts.spool.discard(spooled[ticket])
        event = Exchanged(
            self._now(),
            ask,
            caller,
            want,
            [(ticket, seconds) for ticket, seconds, _ in posted.complete],
            posted.failed,
            posted.running,
            posted.waiting,
            posted.back,
        )
        confirmed = self.disk.confirmed(self._submit(event, *kept))
        confirmed.addErrback(self._exchange_failed, ask)

    def _exchange_failed(self, why: TwistedFailure, ask: int) -> None:
        why.trap(JournalError)
        waiting = self._exchanger(ask)
        if waiting is not None:
            waiting.errback(why)

    async def _spool_first(
        self, ask: int, caller: Caller, want: int, posted: Posted, large: Sequence[int]
    ) -> None:
        """Put the larger results on disk before all is journalled."""
        wanted = {
            ticket: contents
            for ticket, _, contents in posted.complete
            if ticket in large and self._core.wanted(ticket)
        }
        try:
            spooled = await self._parts.spool.store(wanted)
        except JournalError as error:
            self.disk.spool_failed(str(error))
            self._exchange_failed(TwistedFailure(), ask)
            return
        self._exchange(ask, caller, want, posted, spooled)

    def _exchanger(self, ask: int) -> Deferred[TaskSupply] | None:
        """Take the exchange that waits under this number; None when its peer has left."""
        waiting = self._exchanges.pop(ask, None)
        if waiting is not None:
            del self._exchange_of[waiting]
        return waiting

    def _exchanger_left(self, waiting: Deferred[TaskSupply]) -> None:
        ask = self._exchange_of.get(waiting)
        if ask is not None:
            self._exchanger(ask)

    def _supply(self, deed: Supply) -> None:
        """Put the tasks of an exchange into words and hand them to who waits for them."""
        rows = [self._feed.ready(task) for _, task in deed.given]
        if None in rows:
            spawn(self._supply_later(deed), self.log, "answering an exchange")
        else:
            self._hand_over(deed, rows)

    async def _supply_later(self, deed: Supply) -> None:
        rows: list[TaskRow | None] = []
        for _, task in deed.given:
            try:
                rows.append(await self._feed.row(task))
            except JournalError:
                rows.append(None)
        self._hand_over(deed, rows)

    def _hand_over(self, deed: Supply, rows: Sequence[TaskRow | None]) -> None:
        teller = self._parts.teller
        messages: list[TaskMessage] = []
        for (ticket, _), row in zip(deed.given, rows, strict=True):
            if row is None:
                self._happened(TicketUndelivered(self._now(), ticket))
                continue
            try:
                messages.append(teller.message(row, ticket))
            except UntellableError as error:
                self._happened(TaskUntold(self._now(), ticket, str(error), error.demanding, None))
        waiting = self._exchanger(deed.ask)
        if waiting is None:  # the peer left between decision and commit
            for message in messages:
                self._happened(TicketUndelivered(self._now(), message.ticket))
            return
        left = "end" if deed.end else "none" if deed.none else ""
        waiting.callback(TaskSupply(messages, deed.over, left))

    def undelivered(self, ticket: int) -> None:
        """See ``ISession.undelivered``."""
        self._happened(TicketUndelivered(self._now(), ticket))

    def ping(self, caller: Caller, ticket: int) -> bool:
        """See ``ISession.ping``."""
        self._happened(TicketPinged(self._now(), ticket))
        return not self._core.over(ticket)

    def upload(self, caller: Caller, ticket: int) -> IUpload | None:
        """See ``ISession.upload``."""
        if not self._core.wanted(ticket):
            return None
        if self.disk.full:
            raise JournalError(self.disk.full)
        self._happened(BodyStarted(self._now(), ticket))
        return self._parts.spool.upload(ticket)

    def complete(
        self, caller: Caller, ticket: int, upload: IUpload | None, seconds: Seconds | None
    ) -> Deferred[None]:
        """See ``ISession.complete``."""
        if upload is None:  # 200 says "stored": what made it useless must be on disk, too
            return self.disk.confirmed(self._submit(TicketPinged(self._now(), ticket)))
        return Deferred.fromCoroutine(self._complete(ticket, upload, seconds))

    async def _complete(self, ticket: int, upload: IUpload, seconds: Seconds | None) -> None:
        try:
            results = await upload.finish()
        except JournalError as error:
            self._happened(BodyEnded(self._now(), ticket))
            self.disk.spool_failed(str(error))
            raise
        if not self._core.wanted(ticket):  # a repeat, or another copy, was faster
            upload.abort()
            # 200 says "stored": ``_submit`` waits for those before us.
            await self.disk.confirmed(self._submit(BodyEnded(self._now(), ticket)))
            return
        kept = ResultKept(ticket, self._core.task_of(ticket), results)
        stored = ResultStored(self._now(), ticket, seconds)
        await self.disk.confirmed(self._submit(stored, kept))

    def abandon(self, caller: Caller, ticket: int, upload: IUpload) -> None:
        """See ``ISession.abandon``."""
        upload.abort()
        self._happened(BodyEnded(self._now(), ticket))

    def fail(
        self, caller: Caller, ticket: int, failure: Failure, upload: IUpload | None
    ) -> Deferred[None]:
        """See ``ISession.fail``."""
        if upload is not None:
            self.abandon(caller, ticket, upload)
        return self.disk.confirmed(self._submit(TicketFailed(self._now(), ticket, failure)))

    # --- how the hosts are (IHostWatcher) -------------------------------------------------

    def host_started(self, host: str) -> None:
        """See ``IHostWatcher.host_started``."""
        if self.hosts[host].status == "removed":
            return
        self.hosts[host] = HostReport("up")
        self._happened(ClientSupposed(self._now(), host))
        self.log.info("{host}: client started", host=spoken(host))

    def host_failed(self, error: HostError, final: bool) -> None:
        """See ``IHostWatcher.host_failed``."""
        if self.hosts[error.host].status == "removed":
            return
        self.hosts[error.host] = HostReport("unusable" if final else "waiting", error.reason)
        self.log.warn("{error}", error=error)
        self._look_for_use(str(error))

    def client_ended(self, host: str, status: str) -> None:
        """See ``IHostWatcher.client_ended``."""
        if self.hosts[host].status != "removed":
            self.hosts[host] = HostReport("ended", status)
        self.log.info("{host}: client ended: {status}", host=spoken(host), status=status)
        for client, its_host in list(self._clients.items()):
            if its_host == host:
                del self._clients[client]
                self._happened(ClientGone(self._now(), client))

    def client_outdated(self, host: str) -> None:
        """See ``IHostWatcher.client_outdated``."""
        if self.hosts[host].status != "changing":
            reason = "its client ends when its workers have, then another is started"
            self.hosts[host] = HostReport("changing", reason)
            self.log.info("{host}: {reason}", host=spoken(host), reason=reason)
        self._happened(HostDrained(self._now(), host, returns=True))

    def hosts_were(self, names: Iterable[str]) -> None:
        """These were hosts in earlier runs, whose clients may be there yet."""
        for host in names:
            if host not in self.hosts:
                self._remove(host)

    def hosts_changed(self, names: Collection[str]) -> None:
        """From now on these are the hosts; the clients of others end when their workers have."""
        for host, report in self.hosts.items():
            if host not in names and report.status != "removed":
                self._remove(host)
        for host in names:
            before = self.hosts.get(host)
            if before is None or before.status == "removed":
                self.log.info("{host}: new in the cluster file", host=spoken(host))
                self.hosts[host] = HostReport()
            if before is not None and before.status == "removed":
                self._happened(HostDrained(self._now(), host, returns=True))
        self._look_for_use("no host in the cluster file can be used")

    def _remove(self, host: str) -> None:
        self.log.info("{host}: not in the cluster file any more", host=spoken(host))
        self.hosts[host] = HostReport("removed", "not in the cluster file any more")
        self._happened(HostDrained(self._now(), host, returns=False))

    def _look_for_use(self, reason: str) -> None:
        """Tell the core when no host is of use any more, and when one is again."""
        unusable = {report.status for report in self.hosts.values()} - {"removed"} == {"unusable"}
        if unusable or self._no_use:
            self._no_use = unusable
            self._happened(HostsUnusable(self._now(), reason if unusable else ""))

    # --- results ----------------------------------------------------------------------------

    def _judged(self, verdicts: Sequence[tuple[int, Verdict]]) -> None:
        """What was judged at the same time is journalled together."""
        now = self._now()
        effects: list[Effect] = []
        for ticket, verdict in verdicts:
            event: Event = JudgeFailed(now, ticket, verdict.reason)
            if verdict.valid is not None:
                event = ResultJudged(now, ticket, verdict.valid, verdict.reason)
            effects += self._core.handle(event)
        self._carry_out(effects, (), awaited=False).addErrback(
            lambda why: why.trap(JournalError) and None
        )

    async def _discard(self, ticket: int) -> None:
        """Delete a result that is no use: first from the books, then from the disk."""
        results = (await self._parts.journal.results([ticket])).get(ticket, ())
        await self._parts.journal.append([ResultDropped(ticket)])
        self._parts.spool.discard(results)

    # --- life and end -----------------------------------------------------------------------

    def go_on(self, kept: Sequence[int], *, strangers: bool = False) -> None:
        """Begin, or go on where the journal stopped.

        Args:
            kept: tickets whose results are stored but were not judged.
            strangers: see ``Session.resume``.
        """
        effects = self._core.resume(self._now(), kept, strangers=strangers)
        self._carry_out(effects, (), awaited=False).addErrback(lambda why: why.trap(JournalError))

    def totals(self) -> Totals:
        """The numbers of this moment, for all hosts together."""
        return self._core.totals()

    def statistics(self) -> Statistics:
        """The numbers of this moment; costs time for each host."""
        return self._core.statistics()

    def interrupt(self, reason: str) -> None:
        """Stop the run: workers and clients end, what is stored stays stored."""
        self._happened(StopAsked(self._now(), reason))

    def clients_left(self) -> Deferred[None]:
        """Fires when every live client has heard that the run is over, or two pings passed."""
        left: Deferred[None] = Deferred()
        self._left = left
        # Not at once: answers may wait for the disk, or for whoever called us.
        self._clock.callLater(0, self._check_left)
        return left.addTimeout(2 * self.job.ping + 5, self._clock, lambda *_: None)

    def _check_left(self) -> None:
        if self._left is not None and not (self._writing or self._core.clients_left()):
            left, self._left = self._left, None
            left.callback(None)

    def close(self) -> None:
        """Forget the deadlines and who still waits.

        Those get no answer, for 503 would tell an old client to die while tasks are left; the
        next master will answer.
        """
        self._judging.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.disk.close()
        self._asks.clear()
        self._ask_of.clear()
        self._exchanges.clear()
        self._exchange_of.clear()


def _inline(contents: Mapping[str, bytes]) -> tuple[StoredResult, ...]:
    results: tuple[StoredResult, ...] = ()
    for name, data in contents.items():  # mostly one: a comprehension costs more
        results += (_stored((name, len(data), data, None)),)
    return results


def _yes_no(value: bool) -> str:
    return "Yes" if value else "No"


@implementer(IDirectory)
class Master:
    """All sessions of this process, by their secret IDs."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, RunningSession] = {}

    def add(self, session: RunningSession) -> None:
        """From now on its clients are heard."""
        self._sessions[_digest(session.session_id)] = session

    def remove(self, session: RunningSession) -> None:
        """Its clients get 403 from now on."""
        self._sessions.pop(_digest(session.session_id), None)

    def find(self, session_id: str) -> RunningSession | None:
        """See ``IDirectory.find``."""
        # Looking up a digest tells nothing of how much of a guess was right.
        return self._sessions.get(_digest(session_id))


def _digest(session_id: str) -> bytes:
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).digest()

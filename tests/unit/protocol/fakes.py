"""A master of one session that lives in memory and remembers what it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from pexecd.core.values import Caller, Failure
from pexecd.errors import WrongPlatformError, WrongSessionError
from pexecd.ports import IDirectory, ISession, IUpload, NoTask, StoredResult, TaskSupply
from pexecd.protocol.exchange import Posted
from pexecd.protocol.wire import TaskMessage
from pexecd.units import Seconds

#: A secret session ID, with what URLs must escape.
SECRET = "s3cret+/="


@implementer(IUpload)
class FakeUpload:
    """Keeps results in memory, or of large ones only size and checksum."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self.begun: list[tuple[str, int | None]] = []
        self.contents: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.checksums: dict[str, Any] = {}
        self.state = "open"
        self.written = 0

    def begin(self, name: str, length: int | None) -> None:
        assert self.state == "open"
        assert name not in self.contents
        self.begun.append((name, length))
        self.contents[name] = b""
        self.sizes[name] = 0
        self.checksums[name] = hashlib.sha256()

    def write(self, data: bytes) -> Deferred[None] | None:
        assert self.state == "open"
        assert data
        if self._session.broken is not None:
            raise self._session.broken
        name = self.begun[-1][0]
        self.sizes[name] += len(data)
        self.checksums[name].update(data)
        if self.sizes[name] < 1_000_000:
            self.contents[name] += data
        self.written += len(data)
        return self._session.behind(self)

    def finish(self) -> Deferred[tuple[StoredResult, ...]]:
        assert self.state == "open"
        self.state = "finished"
        return succeed(
            tuple(
                StoredResult(name, self.sizes[name], self.contents[name], None)
                for name, _ in self.begun
            )
        )

    def abort(self) -> None:
        self.state = "aborted"


@dataclass
class Call:
    """One call that ended an upload or a ticket."""

    what: str
    caller: Caller
    ticket: int
    upload: FakeUpload | None = None
    failure: Failure | None = None
    seconds: Seconds | None = None


@implementer(ISession)
@dataclass
class FakeSession:
    """See the module. Tests set the fields that say how it answers."""

    result_names: tuple[str, ...] = ("output",)
    max_result: int | None = None
    tasks: list[TaskMessage | NoTask | Exception] = field(default_factory=list)
    workers: dict[tuple[str, str], Path] = field(default_factory=dict)
    #: Tickets that are over: pinged with 205, and their uploads are of no use.
    over: set[int] = field(default_factory=set)
    #: What ``complete`` and ``fail`` fail with.
    error: Exception | None = None
    #: What every write to an upload raises.
    broken: Exception | None = None
    #: What ``complete`` and ``fail`` wait for.
    gate: Deferred[None] | None = None
    #: What every write to an upload says to wait for.
    disk: Deferred[None] | None = None

    calls: list[Call] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    platforms: list[str | None] = field(default_factory=list)
    asks: list[Deferred[TaskMessage | NoTask]] = field(default_factory=list)
    posted: list[Posted] = field(default_factory=list)
    #: Those that wait for ``gate``.
    exchanges: list[Deferred[TaskSupply]] = field(default_factory=list)
    withdrawn: int = 0
    lost: list[int] = field(default_factory=list)
    uploads: list[FakeUpload] = field(default_factory=list)
    #: Fires at the next ``ask``, ``write``, ``abandon`` or ``undelivered``, with its name.
    waiting: dict[str, list[Deferred[None]]] = field(default_factory=dict)

    def next(self, what: str) -> Deferred[None]:
        """Fires when this is called next."""
        fired: Deferred[None] = Deferred()
        self.waiting.setdefault(what, []).append(fired)
        return fired

    def _tell(self, what: str) -> None:
        for fired in self.waiting.pop(what, []):
            fired.callback(None)

    def behind(self, upload: FakeUpload) -> Deferred[None] | None:
        self._tell("write")
        return self.disk

    # --- ISession ----------------------------------------------------------------------------

    def config(
        self, caller: Caller, platform: str | None, slots: int | None
    ) -> Sequence[tuple[str, str]]:
        self.callers.append(caller)
        self.platforms.append(platform)
        if platform == "vax":
            raise WrongPlatformError("no executable for vax")
        return [("DeleteWorker", "Yes"), ("DeleteClient", "No"), ("Ping", "10")]

    def worker(self, caller: Caller, name: str, platform: str) -> Path:
        if name != "ising":
            raise WrongSessionError("no such worker")
        try:
            return self.workers[name, platform]
        except KeyError:
            raise WrongPlatformError(f"no executable for {platform}") from None

    def ask(self, caller: Caller, worker: str | None) -> Deferred[TaskMessage | NoTask]:
        self.callers.append(caller)

        def withdraw(_: object) -> None:
            self.withdrawn += 1
            self._tell("withdraw")

        asked: Deferred[TaskMessage | NoTask] = Deferred(withdraw)
        if worker not in (None, "ising"):
            asked.errback(WrongSessionError("no such worker"))
        elif self.tasks:
            answer = self.tasks.pop(0)
            if isinstance(answer, Exception):
                asked.errback(answer)
            else:
                asked.callback(answer)
        else:
            self.asks.append(asked)
        self._tell("ask")
        return asked

    def exchange(
        self, caller: Caller, posted: Posted, want: int, worker: str | None
    ) -> Deferred[TaskSupply]:
        self.callers.append(caller)
        self.posted.append(posted)

        def withdraw(_: object) -> None:
            self.withdrawn += 1
            self._tell("withdraw")

        answered: Deferred[TaskSupply] = Deferred(withdraw)
        if worker not in (None, "ising"):
            answered.errback(WrongSessionError("no such worker"))
        elif self.error is not None:
            answered.errback(self.error)
        elif self.gate is not None:
            self.exchanges.append(answered)
        else:
            tasks = [task for task in self.tasks[:want] if isinstance(task, TaskMessage)]
            del self.tasks[:want]
            left = "end" if want and not tasks else ""
            named = [*(ticket for ticket, _ in posted.running), *posted.waiting]
            over = [ticket for ticket in named if ticket in self.over]
            answered.callback(TaskSupply(tasks, over, left))
        self._tell("exchange")
        return answered

    def undelivered(self, ticket: int) -> None:
        self.lost.append(ticket)
        self._tell("undelivered")

    def ping(self, caller: Caller, ticket: int) -> bool:
        self.callers.append(caller)
        return ticket not in self.over

    def upload(self, caller: Caller, ticket: int) -> IUpload | None:
        if ticket in self.over:
            return None
        self.uploads.append(FakeUpload(self))
        return self.uploads[-1]

    def complete(
        self, caller: Caller, ticket: int, upload: IUpload | None, seconds: Seconds | None
    ) -> Deferred[None]:
        if upload is None:
            return self._stored()
        assert isinstance(upload, FakeUpload)
        self.calls.append(Call("complete", caller, ticket, upload, seconds=seconds))
        upload.finish()
        return self._stored()

    def abandon(self, caller: Caller, ticket: int, upload: IUpload) -> None:
        assert isinstance(upload, FakeUpload)
        self.calls.append(Call("abandon", caller, ticket, upload))
        upload.abort()
        self._tell("abandon")

    def fail(
        self, caller: Caller, ticket: int, failure: Failure, upload: IUpload | None
    ) -> Deferred[None]:
        assert upload is None or isinstance(upload, FakeUpload)
        self.calls.append(Call("fail", caller, ticket, upload, failure))
        if upload is not None:
            upload.abort()
        return self._stored()

    def _stored(self) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        if self.error is not None:
            done.errback(self.error)
        elif self.gate is not None:
            self.gate.chainDeferred(done)
        else:
            done.callback(None)
        self._tell("stored")
        return done


@implementer(IDirectory)
@dataclass
class FakeDirectory:
    """Knows one session, by ``SECRET``."""

    session: FakeSession = field(default_factory=FakeSession)

    def find(self, session_id: str) -> ISession | None:
        return self.session if session_id == SECRET else None

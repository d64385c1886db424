"""Makes the collected files from committed results, in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.errors import PexecdError
from pexecd.jobs.values import Job
from pexecd.ports import Collected, CollectReport, ICollector, IJournal, ISpool
from pexecd.results.files import add_bytes, headline, reason_line, replace, row
from pexecd.results.judge import LIMIT
from pexecd.results.order import TOGETHER, Settled
from pexecd.results.outputs import FileOutput, FunctionOutput, Output, Reader
from pexecd.results.processes import IReactor, Runners
from pexecd.units import Seconds

T = TypeVar("T")

#: The least time between two pieces: each costs an fsync. What is settled meanwhile is gathered.
GATHERED: Seconds = 0.5


class Earlier(Protocol):
    """What earlier runs left in the journal; all of it blocks (``store.Recovery`` has it)."""

    def settled(self) -> Iterable[tuple[int, int | None]]:
        """Tasks and their tickets; None: failed."""

    def collected(self) -> Mapping[str, Collected]:
        """How far each output was written."""

    def not_collected(self) -> Mapping[int, str]:
        """Tasks for which the collect function raised, and why."""


@implementer(ICollector)
class Collector:
    """The collected files, and the calls of the collect function, of one job.

    It begins by itself with what earlier runs settled.

    Args:
        job: its collect rules.
        journal: where results are, and where it is noted how far each file was written.
        earlier: read once, in a thread.
        spool: where larger results are.
        state: the state folder.
        reactor: threads, time, and the process of the collect function.
        recollect: try again the tasks that were not collected in earlier runs.
        limit: seconds for each call of the collect function.
    """

    _log = Logger()

    def __init__(
        self,
        job: Job,
        journal: IJournal,
        earlier: Earlier,
        spool: ISpool,
        state: Path,
        reactor: IReactor,
        *,
        recollect: bool = False,
        limit: Seconds = LIMIT,
    ) -> None:
        self._job = job
        self._journal = journal
        self._reactor = reactor
        self._recollect = recollect
        self._settled = Settled()
        self._reader = Reader(job, journal, spool)
        self._files = [
            FileOutput(rule, job, self._reader, journal, self._in_thread) for rule in job.collect
        ]
        self._runners = Runners(reactor, job.folder, state / "scratch" / "collect", 1, limit)
        self._function: FunctionOutput | None = None
        if job.collect_function is not None:
            self._function = FunctionOutput(
                job.collect_function, job, self._reader, journal, self._runners, state
            )
        self._outputs: list[Output] = [*self._files]
        if self._function is not None:
            self._outputs.append(self._function)
        self._locks = {output: DeferredLock() for output in self._outputs}
        self._timer: IDelayedCall | None = None
        #: When the last piece was written, or could not be.
        self._written = -inf
        self._closing = False
        self._problem = ""
        #: What was settled while the journal was still being read.
        self._unread: list[tuple[int, int | None]] | None = []
        self._opening = Deferred.fromCoroutine(self._open(earlier)).addErrback(self._not_opened)

    def _in_thread(self, work: Callable[[], T]) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    async def _open(self, earlier: Earlier) -> None:
        before, not_collected = await self._in_thread(lambda: self._read(earlier))
        for task, ticket in self._unread or ():
            self._settled.settle(task, ticket)
        self._unread = None
        for output in self._outputs:
            output.begin(self._settled, before)
        if self._function is not None:
            self._function.not_collected.update(not_collected)
            if self._recollect:
                self._function.again()
        self._soon()

    def _read(self, earlier: Earlier) -> tuple[Mapping[str, Collected], Mapping[int, str]]:
        for task, ticket in earlier.settled():
            self._settled.settle(task, ticket)
        return earlier.collected(), earlier.not_collected()

    def _not_opened(self, why: Failure) -> None:
        self._problem = f"nothing was collected: {why.getErrorMessage()}"
        if not why.check(PexecdError):
            self._log.failure("beginning to collect", why)

    # --- ICollector -------------------------------------------------------------------------

    def settle(self, task: int, ticket: int | None) -> None:
        """See ``ICollector.settle``."""
        if self._unread is not None:
            self._unread.append((task, ticket))
        elif self._settled.settle(task, ticket):
            for output in self._outputs:
                output.order.settled(task)
            self._soon()

    def finish(self) -> Deferred[CollectReport]:
        """See ``ICollector.finish``."""
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> CollectReport:
        await self._opening
        if self._problem:
            return CollectReport(0, errors=(self._problem,))
        works = [self._work(output, complete=True) for output in self._outputs]
        await gatherResults([Deferred.fromCoroutine(work) for work in works])
        errors = [output.problem for output in self._outputs if output.problem]
        try:
            await self._write_failed()
        except OSError as error:
            errors.append(f"{self._job.failed}: cannot be written: {error.strerror}")
        except PexecdError as error:
            errors.append(f"{self._job.failed}: {error}")
        return CollectReport(
            min((output.count for output in self._outputs), default=0),
            tuple(sorted(self._function.not_collected.items())) if self._function else (),
            tuple(self._warnings()),
            tuple(errors),
        )

    def close(self) -> Deferred[None]:
        """See ``ICollector.close``; an open ``finish`` fires with what it has."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for output in self._outputs:
            output.stop()
        await self._runners.close()
        await self._opening
        for lock in self._locks.values():
            await lock.run(lambda: None)

    # --- in the background -------------------------------------------------------------------

    def _soon(self) -> None:
        if self._timer is None and not self._closing:
            wait = max(0.0, self._written + GATHERED - self._reactor.seconds())
            self._timer = self._reactor.callLater(wait, self._advance)

    def _advance(self) -> None:
        self._timer = None
        for output, lock in self._locks.items():
            if not lock.locked:
                Deferred.fromCoroutine(self._work(output, complete=False))

    async def _work(self, output: Output, *, complete: bool) -> None:
        """Never fails; one at a time for each output."""
        async with self._locks[output]:
            try:
                if complete:
                    await output.complete()
                else:
                    done = await output.advance()
                    worked = done or output.problem
                    while done and not output.short:
                        done = await output.advance()
                    if worked:
                        self._written = self._reactor.seconds()
                    if done:
                        self._soon()  # for what was settled meanwhile
            except CancelledError:
                output.problem = f"{output.key}: collecting was stopped"
            except Exception as bug:
                self._log.failure("collecting {key}", key=output.key)
                output.problem = f"{output.key}: {bug!r}"

    async def _write_failed(self) -> None:
        """The table of the failed sets: written anew, for a retry may have emptied it."""
        path = self._job.failed
        if path is None:
            return
        temporary = path.with_name(path.name + ".part")

        def add(length: int, data: bytes) -> Deferred[int]:
            return self._in_thread(lambda: add_bytes(temporary, length, data))

        length = await add(0, headline(self._job.columns))
        last = 0
        while failures := await self._journal.failures(last, TOGETHER):
            cells = await self._reader.cells([task for task, _ in failures])
            lines = [reason_line(task, reason) + row(cells[task]) for task, reason in failures]
            length = await add(length, b"".join(lines))
            last = failures[-1][0]
        await self._in_thread(lambda: replace(temporary, path))

    def _warnings(self) -> list[str]:
        warnings = []
        sets = max(self._job.tasks, len(self._settled))
        missing = sets - self._settled.done
        if missing and self._outputs:
            warnings.append(f"{missing} of {sets} sets have no result and are left out")
        for file in self._files:
            if file.cut:
                warnings.append(
                    f"{file.key}: results of more than one line: {file.cut}; the table has their "
                    "first lines"
                )
            if file.unreadable:
                warnings.append(
                    f"{file.key}: results that are gone from the state folder: {file.unreadable}; "
                    "left out"
                )
        return warnings

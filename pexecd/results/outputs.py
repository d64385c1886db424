"""One collected file, or the user's collect function: read, write, then commit, again and again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from pexecd.errors import JournalError
from pexecd.jobs.values import CollectKind, CollectRule, FunctionRef, Job
from pexecd.ports import Collected, IJournal, ISpool, JournalRecord, NotCollected, StoredResult
from pexecd.results.files import (
    Entry,
    Layout,
    Left,
    Mark,
    OutputLostError,
    Written,
    replace,
)
from pexecd.results.order import TOGETHER, ByCompletion, ByParameters, Order, Settled
from pexecd.results.processes import Runners, request
from pexecd.tuples import by_place

#: So many bytes of results, about, are read and written together: bounds memory (small results
#: come from the journal), and what must be written again after a crash.
PIECE = 16 << 20
#: So many tasks are, where it is not known yet how large their results are.
FIRST = 16

#: Lines of the table between two tasks that are read rather than asked for separately.
_NEAR = 64

_entry = by_place(Entry)


class Reader:
    """Reads what outputs need from journal and spool."""

    def __init__(self, job: Job, journal: IJournal, spool: ISpool) -> None:
        self.columns = job.columns
        self._journal = journal
        self._spool = spool

    async def cells(self, tasks: Sequence[int]) -> dict[int, tuple[str, ...]]:
        """The table's lines of these tasks."""
        found: dict[int, tuple[str, ...]] = {}
        for first, last in _stretches(sorted(tasks)):
            for line in await self._journal.rows(first, last - first + 1):
                found[line.number] = line.cells
        return found

    async def results(self, tickets: Sequence[int]) -> dict[int, tuple[StoredResult, ...]]:
        """All results of these tickets."""
        return await self._journal.results(tickets)

    async def entries(
        self, tasks: Sequence[tuple[int, int]], rule: CollectRule
    ) -> tuple[list[Entry], int]:
        """What a file by this rule holds of tasks and their tickets; how many are missing."""
        cells: dict[int, tuple[str, ...]] = {}
        if rule.kind is not CollectKind.CONCAT:
            cells = await self.cells([task for task, _ in tasks])
        results = await self.results([ticket for _, ticket in tasks])
        entries = [
            _entry((task, cells.get(task, ()), result, self._spool.path(result)))
            for task, ticket in tasks
            for result in results.get(ticket, ())
            if result.name == rule.result
        ]
        return entries, len(tasks) - len(entries)


class Output(ABC):
    """What the collector asks of each output.

    Attributes:
        order: how far it has come.
        problem: why it cannot go on just now; empty when all is well.
        short: the last piece was a small one: what follows may wait for more to come.
    """

    log = Logger()

    def __init__(self, key: str, made_by: str, job: Job, journal: IJournal) -> None:
        self.problem = ""
        self.short = False
        self.key = key
        #: What the journal calls it.
        self._noted_as = key.removeprefix(f"{job.folder}/")
        self._made_by = made_by
        self._order_of = ByCompletion if job.by_completion else ByParameters
        #: Nothing is committed that can be built on.
        self._new = True
        self.order: Order
        self._journal = journal
        self._committing: Deferred[None] | None = None
        self._stopping = False

    def begin(self, settled: Settled, before: Mapping[str, Collected]) -> None:
        """Go on behind what earlier runs committed, unless another rule made it."""
        self._settled = settled
        self.order = self._order_of(settled)
        record = before.get(self._noted_as)
        if record is not None and record.rule == self._made_by:
            self._restore(record)
        elif record is not None:
            self._begin_after(record)

    def _begin_after(self, record: Collected) -> None:  # noqa: B027 - files are made anew
        """Another rule made it."""

    def _restore(self, record: Collected) -> None:
        self.order.restore(record)
        self._new = False

    def _record(
        self,
        upto: int,
        tasks: tuple[int, ...],
        anew: bool,
        mark: Mark = Mark(),  # noqa: B008
    ) -> Collected:
        return Collected(
            self._noted_as, mark.length, upto, tasks, rule=self._made_by, anew=anew, crc=mark.crc
        )

    @property
    @abstractmethod
    def count(self) -> int:
        """How many tasks are in it."""

    async def advance(self) -> bool:
        """Do the next piece; False: there is none, or there is a problem."""
        return await self._trying(self._next)

    async def complete(self) -> None:
        """All that is settled is in, as far as it can be now."""
        while await self.advance():
            pass

    @abstractmethod
    async def _next(self) -> bool:
        """Do the next piece, if there is one."""

    async def _trying(self, work: Callable[[], Awaitable[bool]]) -> bool:
        problem = ""
        try:
            return await work()
        except OSError as error:
            problem = f"{self.key}: cannot be written: {error.strerror}"
        except JournalError as error:
            problem = f"{self.key}: {error}"
        finally:
            if problem and problem != self.problem:
                self.log.error("{problem}", problem=problem)
            self.problem = problem
        return False

    def stop(self) -> None:
        """End at the next safe point, with ``CancelledError``."""
        self._stopping = True
        if self._committing is not None:
            self._committing.cancel()

    async def _commit(self, records: Sequence[JournalRecord]) -> None:
        """Journal them. Who closes does not wait for that: the journal may be stalled."""
        self._committing = self._journal.append(records)
        if self._stopping:
            self._committing.cancel()
        try:
            await self._committing
        finally:
            self._committing = None

    def _go_on(self) -> None:
        if self._stopping:
            raise CancelledError("the collector was closed")


class FileOutput(Output):
    """A collected file.

    By parameters it may hold, once it is complete, tasks behind one that is not settled:
    they are behind the committed length, so whoever goes on cuts them off first.

    Attributes:
        cut: tasks of which a table shows only the first line.
        unreadable: tasks whose result was gone.
    """

    def __init__(
        self,
        rule: CollectRule,
        job: Job,
        reader: Reader,
        journal: IJournal,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
    ) -> None:
        order = "completion" if job.by_completion else "parameters"
        made_by = f"{rule.kind.value} {rule.result} {order} {'|'.join(job.columns)}"
        super().__init__(str(rule.path), made_by, job, journal)
        self._rule = rule
        self._reader = reader
        self._in_thread = in_thread
        self._layout = Layout(rule, job.columns)
        self._mark = Mark()
        #: How many tasks the next piece has, by the size of the results in the last one.
        self._together = FIRST
        #: The file as we wrote it last; None: by an earlier run.
        self._left: Left | None = None
        self._behind = 0
        self.cut = 0
        self.unreadable = 0

    @property
    def count(self) -> int:
        return self.order.count + self._behind

    def _restore(self, record: Collected) -> None:
        super()._restore(record)
        self._mark = Mark(record.length, record.crc)

    async def complete(self) -> None:
        for _ in range(2):  # a second time, should somebody have changed the file meanwhile
            await super().complete()
            if self.problem or await self._trying(self._end) or self.problem:
                return
        self.problem = f"{self.key}: somebody else writes to it"

    async def _next(self) -> bool:
        batch = self.order.take(self._together)
        if batch is None:
            return False
        self.short = len(batch.tasks) + len(batch.noted) < self._together
        mark = await self._append(self._rule.path, self._mark, batch.tasks)
        if mark is None:
            return True
        await self._commit([self._record(batch.upto, batch.noted, self._new, mark)])
        self._mark, self._new = mark, False
        self.order.commit(batch)
        return True

    async def _end(self) -> bool:
        """What can be done only now; False when the file must be made anew first."""
        if isinstance(self.order, ByParameters) and self.order.stale and not await self._anew():
            return False
        mark = await self._append(self._rule.path, self._mark, [])
        self._behind = 0
        for tasks in self.order.tail(self._together):
            if mark is None:
                break
            mark = await self._append(self._rule.path, mark, tasks)
            self._behind += len(tasks)
        return mark is not None

    async def _append(
        self, path: Path, mark: Mark, tasks: Sequence[tuple[int, int]]
    ) -> Mark | None:
        """The file's end then; None when it was lost, and is to be made anew."""
        self._go_on()
        entries, missing = await self._reader.entries(tasks, self._rule)
        left = self._left
        try:
            written: Written = await self._in_thread(
                lambda: self._layout.append(path, mark, entries, left)
            )
        except OutputLostError:
            self.log.warn("{file} was changed by somebody else: it is made anew", file=self.key)
            self._forget()
            return None
        self._left = written.left
        if entries:
            mean = sum(entry.result.size for entry in entries) // len(entries)
            self._together = max(1, min(TOGETHER, PIECE // max(1, mean)))
        self.cut += written.cut
        self.unreadable += written.unreadable + missing
        return written.mark

    def _forget(self) -> None:
        self._mark, self._new = Mark(), True
        self.order = self._order_of(self._settled)
        self.cut = self.unreadable = 0

    async def _anew(self) -> bool:
        """A task was done after others had passed it: the file is made a second time.

        False: what was made of it was lost.
        """
        temporary = self._rule.path.with_name(self._rule.path.name + ".part")
        order = ByParameters(self._settled)
        mark = Mark()
        self.cut = self.unreadable = 0
        while (batch := order.take(self._together)) is not None:
            after = await self._append(temporary, mark, batch.tasks)
            if after is None:
                return False
            mark = after
            order.commit(batch)
        cut, unreadable = self.cut, self.unreadable
        # Between rename and commit the journal must not vouch for the old file's length.
        await self._commit([self._record(0, (), anew=True)])
        self._forget()
        await self._in_thread(lambda: replace(temporary, self._rule.path))
        await self._commit([self._record(order.upto, order.gaps, anew=True, mark=mark)])
        self._mark, self._new, self.order = mark, False, order
        order.look_again()
        self.cut, self.unreadable = cut, unreadable
        return True


class FunctionOutput(Output):
    """The user's collect function: called for each done task, one at a time.

    After a crash the task of that moment may be given to it a second time. A task that is
    done later than those behind it comes late: what the function did with them is its own.

    Attributes:
        not_collected: tasks for which it raised, and why.
    """

    def __init__(
        self,
        function: FunctionRef,
        job: Job,
        reader: Reader,
        journal: IJournal,
        runners: Runners,
        state: Path,
    ) -> None:
        made_by = "completion" if job.by_completion else "parameters"
        super().__init__(f"{function.path}:{function.name}", made_by, job, journal)
        self._function = function
        self._reader = reader
        self._runners = runners
        self._state = state
        self._again: list[int] = []
        #: Earlier calls, now that they are noted otherwise.
        self._noted_anew: Collected | None = None
        self.not_collected: dict[int, str] = {}

    @property
    def count(self) -> int:
        return self.order.count - len(self.not_collected)

    def _begin_after(self, record: Collected) -> None:
        """The order was changed: what was given to the function is not given to it again."""
        self._noted_anew = self._order_of.after(record)._replace(rule=self._made_by)
        self._restore(self._noted_anew)

    def again(self) -> None:
        """Try those that were not collected once more."""
        self._again = sorted(self.not_collected)

    async def _next(self) -> bool:
        """Another try, or a late task, or the next in order."""
        order = self.order
        if self._noted_anew is not None:
            await self._commit([self._noted_anew])
            self._noted_anew = None
        if self._again:
            task = self._again[0]
            ticket = self._settled.ticket(task)
            if ticket is not None:
                await self._commit(await self._collect(task, ticket))
            self._again.pop(0)
            return True
        if isinstance(order, ByParameters) and (late := order.late()) is not None:
            records = await self._collect(*late)
            made_up = self._record(order.upto, (), anew=False)._replace(without=late[:1])
            await self._commit([*records, made_up])
            order.made_up(late[0])
            return True
        batch = order.take(1)
        if batch is None:
            return False
        records = [self._record(batch.upto, batch.noted, self._new)]
        for task, ticket in batch.tasks:
            records += await self._collect(task, ticket)
        await self._commit(records)
        self._new = False
        order.commit(batch)
        return True

    async def _collect(self, task: int, ticket: int) -> list[JournalRecord]:
        self._go_on()
        cells = (await self._reader.cells([task]))[task]
        results = (await self._reader.results([ticket])).get(ticket, ())
        parameters = dict(zip(self._reader.columns, cells, strict=True))
        asked = request(parameters, results, self._state, (), self._function, "collect")
        answer = await self._runners.call(asked)
        if "error" in answer:
            self.not_collected[task] = answer["error"]
            return [NotCollected(task, answer["error"])]
        if self.not_collected.pop(task, None) is not None:
            return [NotCollected(task, None)]
        return []


def _stretches(tasks: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of stretches of the table that hold these tasks."""
    found: list[tuple[int, int]] = []
    for task in tasks:
        if found and task - found[-1][1] <= _NEAR:
            found[-1] = (found[-1][0], task)
        else:
            found.append((task, task))
    return found

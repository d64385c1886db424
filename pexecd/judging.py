"""Stored results on their way to a verdict: some at a time, the others wait on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.core.effects import Judge
from pexecd.disk import Disk
from pexecd.errors import JournalError
from pexecd.ports import IJournal, IJudge, Verdict
from pexecd.telling import TableFeed

#: So many results are read and validated at once.
AT_ONCE = 8


class Judging:
    """Has results validated.

    Args:
        journal: where the results are.
        judge: validates them.
        feed: reads their parameters.
        columns: the names of these.
        disk: on one that is full validation may fail for that: then it waits, and tries again.
        judged: called with tickets and verdicts: of all that were judged at once.
        log: hears of what should not happen.
    """

    def __init__(
        self,
        journal: IJournal,
        judge: IJudge,
        feed: TableFeed,
        columns: Sequence[str],
        disk: Disk,
        judged: Callable[[Sequence[tuple[int, Verdict]]], None],
        log: Logger,
    ) -> None:
        self._journal = journal
        self._judge = judge
        self._feed = feed
        self._columns = columns
        self._disk = disk
        self._judged = judged
        self._log = log
        self._waiting: OrderedDict[int, Judge] = OrderedDict()
        self._running = 0
        self._beginning = False
        self._verdicts: list[tuple[int, Verdict]] = []
        self._closed = False

    def add(self, deed: Judge) -> None:
        """Validate this result when its turn comes, from the next ``begin`` on."""
        self._waiting[deed.ticket] = deed

    def begin(self) -> None:
        """Validate as many of those that wait as may be validated at once."""
        if self._beginning:
            return  # what is judged at once ends in here
        self._beginning = True
        while self._waiting and self._running < AT_ONCE:
            self._running += 1
            _, deed = self._waiting.popitem(last=False)
            spawn(self._one(deed), self._log, f"validating ticket {deed.ticket}")
        self._beginning = False
        verdicts, self._verdicts = self._verdicts, []
        if verdicts:
            self._judged(verdicts)

    def forget(self, ticket: int) -> None:
        """The result of this ticket is no use any more: it is not validated if it still waits."""
        self._waiting.pop(ticket, None)

    def close(self) -> None:
        """Begin no more, and tell of no verdict: the next master has them validated."""
        self._closed = True
        self._waiting.clear()

    async def _one(self, deed: Judge) -> None:
        try:
            verdict = await self._verdict(deed)
            while verdict.valid is None and self._disk.full:
                await self._disk.room()
                verdict = await self._verdict(deed)
        finally:
            self._running -= 1
        if not self._closed:
            self._verdicts.append((deed.ticket, verdict))
            self.begin()

    async def _verdict(self, deed: Judge) -> Verdict:
        try:
            row = self._feed.ready(deed.task) or await self._feed.row(deed.task)
            results = (await self._journal.results([deed.ticket])).get(deed.ticket, ())
            parameters = dict(zip(self._columns, row.cells, strict=True))
            return await self._judge.judge(deed.task, parameters, results)
        except JournalError as error:
            return Verdict(None, str(error))


def spawn(coroutine: Coroutine[Deferred[Any], Any, object], log: Logger, doing: str) -> None:
    """Let a coroutine run in the background; its error is logged, never lost."""

    def ended(reason: Failure) -> None:
        if not reason.check(CancelledError):
            log.failure("{doing} failed", reason, doing=doing)

    Deferred.fromCoroutine(coroutine).addErrback(ended)

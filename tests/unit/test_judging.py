"""How many results are judged at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger
from zope.interface import implementer

from pexecd.core.effects import Judge
from pexecd.disk import Disk
from pexecd.judging import AT_ONCE, Judging
from pexecd.ports import IJudge, StoredResult, Verdict
from pexecd.telling import TableFeed
from tests.contract.memory import MemoryJournal

TASKS = 2000
DISK = Disk(Clock(), lambda: succeed(""), Logger())


@implementer(IJudge)
class FirstLater:
    """Gives the verdict on all but the first so many at once."""

    def __init__(self, later: int) -> None:
        self.later: list[Deferred[Verdict]] = [Deferred() for _ in range(later)]
        self._left = later

    def judge(
        self, task: int, parameters: Mapping[str, str], results: Sequence[StoredResult]
    ) -> Deferred[Verdict]:
        if self._left:
            self._left -= 1
            return self.later[self._left]
        return succeed(Verdict(valid=True))

    def close(self) -> Deferred[None]:
        return succeed(None)


def test_thousands_may_wait_and_be_judged_at_once() -> None:
    journal = MemoryJournal([(str(task),) for task in range(1, TASKS + 1)])
    judge = FirstLater(AT_ONCE)
    judged: list[Sequence[tuple[int, Verdict]]] = []
    judging = Judging(journal, judge, TableFeed(journal), ("n",), DISK, judged.append, Logger())
    for task in range(1, TASKS + 1):
        judging.add(Judge(task, task))
    judging.begin()
    assert judged == []
    judge.later.pop().callback(Verdict(valid=False))
    (told,) = judged
    assert [ticket for ticket, _ in told] == [1, *range(AT_ONCE + 1, TASKS + 1)], "in their order"


def test_what_fails_on_a_full_disk_is_judged_again_when_there_is_room() -> None:
    journal = MemoryJournal([("1",)])
    judge = FirstLater(1)
    judged: list[Sequence[tuple[int, Verdict]]] = []
    disk = Disk(Clock(), lambda: succeed(""), Logger())
    judging = Judging(journal, judge, TableFeed(journal), ("n",), disk, judged.append, Logger())
    judging.add(Judge(1, 1))
    judging.begin()
    disk.journal_changed("no space left")
    judge.later.pop().callback(Verdict(None, "no space left for what validation writes"))
    assert judged == []
    disk.journal_changed("")
    assert judged == [[(1, Verdict(valid=True))]]

"""A table that was changed: the collect function is not called again for what it had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pexecd.core.effects import TaskDone, TaskReopened, TicketEnded, TicketGiven
from pexecd.core.values import End
from pexecd.ports import Collected, JournalRecord, ResultDropped, ResultKept, StoredResult
from pexecd.store.journal import Journal
from tests.pump import Pump

FUNCTION = "collect.py:collect"


@pytest.fixture
def journal(tmp_path: Path, pump: Pump) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "session.db", pump)
    yield journal
    pump.wait(journal.close())


def done(task: int) -> list[JournalRecord]:
    ticket = 9999 + task
    return [
        TicketGiven(ticket, task, "c", "h", managed=True, speaks=True),
        ResultKept(ticket, task, (StoredResult("output", 1, b"1", None),)),
        TicketEnded(ticket, task, End.DONE),
        TaskDone(task, ticket),
    ]


def lines(words: str) -> list[tuple[str, bytes]]:
    return [(word, word.encode().ljust(16)) for word in words]


#: Before: a b c d e f; b is not settled, f is done and was not given to the function yet.
@pytest.mark.parametrize(
    ("after", "called"),
    [
        ("abcdef", {1, 3, 4, 5}),
        ("abcdefgh", {1, 3, 4, 5}),
        ("fedcba", {2, 3, 4, 6}),
        ("xaybzc", {2, 6}),
        ("bf", set()),
    ],
)
def test_what_was_given_by_parameters(
    journal: Journal, pump: Pump, after: str, called: set[int]
) -> None:
    journal.load(lines("abcdef"), {})
    pump.wait(journal.append([record for task in (1, 3, 4, 5, 6) for record in done(task)]))
    record = Collected(FUNCTION, 0, 5, (2,), rule="parameters")
    pump.wait(journal.append([record, Collected("out", 9, 1, rule="table output parameters n")]))
    journal.remap(lines(after), {})
    collected = journal.recovery().collected()
    assert set(collected) == {FUNCTION}
    progress = collected[FUNCTION]
    assert set(range(1, progress.upto + 1)) - set(progress.tasks) == called


def test_a_task_whose_result_was_gone_had_its_call(journal: Journal, pump: Pump) -> None:
    journal.load(lines("abcd"), {})
    pump.wait(journal.append([record for task in (1, 2, 3) for record in done(task)]))
    pump.wait(journal.append([Collected(FUNCTION, 0, 3, rule="parameters")]))
    pump.wait(journal.append([ResultDropped(10001), TaskReopened(2, 10003)]))
    journal.remap(lines("xabcd"), {})
    progress = journal.recovery().collected()[FUNCTION]
    assert (progress.upto, progress.tasks) == (4, (1,))


@pytest.mark.parametrize(("after", "called"), [("abcdef", {1, 4}), ("dxa", {1, 3}), ("bf", set())])
def test_what_was_given_by_completion(
    journal: Journal, pump: Pump, after: str, called: set[int]
) -> None:
    journal.load(lines("abcdef"), {})
    pump.wait(journal.append([record for task in (1, 3, 4) for record in done(task)]))
    pump.wait(journal.append([Collected(FUNCTION, 0, 0, (4, 1), rule="completion")]))
    journal.remap(lines(after), {})
    assert set(journal.recovery().collected()[FUNCTION].tasks) == called

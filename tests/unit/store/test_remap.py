"""A table that was changed: what is the same task keeps all that it had, wherever it is now."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given as example
from hypothesis import settings
from hypothesis import strategies as st

from pexecd.core.effects import (
    TaskDone,
    TaskFailed,
    TaskReopened,
    TasksSettled,
    TicketEnded,
    TicketGiven,
    TicketsPast,
    TicketsUsed,
)
from pexecd.core.values import End
from pexecd.errors import JournalError
from pexecd.ports import Collected, JournalRecord, NotCollected, ResultKept, StoredResult, TaskRow
from pexecd.store.journal import Journal
from pexecd.store.recovery import Recovery
from pexecd.store.schema import open_database
from pexecd.store.table import Line, Remapped, remap_table, store_lines
from pexecd.store.writing import transaction, write_records
from tests.pump import Pump
from tests.unit.store.conftest import Limit


def table(words: Sequence[str]) -> list[Line]:
    """A line of one cell for each word; the same word is the same task."""
    return [(word, word.encode().ljust(16)) for word in words]


@pytest.fixture
def journal(tmp_path: Path, pump: Pump) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "session.db", pump)
    yield journal
    pump.wait(journal.close())


def done(task: int, ticket: int) -> list[JournalRecord]:
    """All that is written of a task that is done."""
    return [
        TicketGiven(ticket, task, "c", "h", managed=True, speaks=True),
        ResultKept(ticket, task, (StoredResult("output", 1, b"%d" % (ticket % 10), None),)),
        TicketEnded(ticket, task, End.DONE),
        TaskDone(task, ticket),
    ]


def settled(journal: Journal) -> dict[int, int | None]:
    return dict(journal.recovery().settled())


def test_lines_in_the_middle_moved_and_removed(journal: Journal, pump: Pump) -> None:
    journal.load(table("abcdef"), {"table": "1", "session": "s"})
    pump.wait(journal.append([*done(1, 10000), *done(3, 10001), *done(6, 10002)]))
    pump.wait(journal.append([TaskFailed(5, "no"), NotCollected(3, "KeyError")]))
    remapped = journal.remap(table("fxacyd"), {"table": "2"})
    assert remapped == Remapped(kept=4, new=2, retired=2)
    assert (journal.tasks, journal.meta) == (6, {"table": "2", "session": "s"})
    assert settled(journal) == {1: 10002, 3: 10000, 4: 10001}
    assert pump.wait(journal.failures(0, 10)) == []
    assert journal.recovery().not_collected() == {4: "KeyError"}
    rows = pump.wait(journal.rows(1, 100))
    assert rows == [TaskRow(number, (word,)) for number, word in enumerate("fxacyd", 1)]
    told = pump.wait(journal.ended([10000, 10001, 10002]))
    assert [(row.ticket, row.task, line.cells) for row, line in told] == [
        (10000, 3, ("a",)), (10001, 4, ("c",)), (10002, 1, ("f",)),
    ]  # fmt: skip


def test_a_line_that_comes_back_has_its_result_again(journal: Journal, pump: Pump) -> None:
    journal.load(table("ab"), {})
    pump.wait(journal.append([*done(1, 10000), TaskFailed(2, "no"), TaskReopened(2, 10001)]))
    assert journal.remap(table("c"), {}) == Remapped(kept=0, new=1, retired=2)
    recovery = journal.recovery()
    assert list(recovery.replay()) == [TicketsUsed(10000)]
    assert (recovery.kept(), list(recovery.ended())) == ([], [])
    assert journal.remap(table("cba"), {}) == Remapped(kept=3, new=0, retired=0)
    assert settled(journal) == {3: 10000}
    assert TaskReopened(2, 10001) in list(recovery.replay())
    assert len(pump.wait(journal.results([10000]))) == 1


def test_files_of_retired_tasks_are_not_rubbish(journal: Journal, pump: Pump) -> None:
    journal.load(table("a"), {})
    kept = ResultKept(10000, 1, (StoredResult("output", 10**6, None, "spool/x"),))
    pump.wait(journal.append([*done(1, 10000), kept]))
    journal.remap([], {})
    assert journal.tasks == 0
    assert journal.recovery().spooled() == {"spool/x"}
    assert journal.recovery().lost() == [], "nobody misses it"


def test_a_ticket_number_of_a_retired_task_is_not_used_again(journal: Journal, pump: Pump) -> None:
    journal.load(table("ab"), {})
    pump.wait(journal.append([*done(1, 10000), *done(2, 10007)]))
    journal.remap(table("a"), {})
    assert journal.recovery().next_ticket() == 10008
    assert TicketsUsed(10007) in list(journal.recovery().replay())


def test_how_far_was_collected_is_forgotten(journal: Journal, pump: Pump) -> None:
    journal.load(table("ab"), {})
    pump.wait(journal.append([Collected("/out", 10, 2, (1,))]))
    journal.remap(table("ab"), {})
    assert journal.recovery().collected() == {}


def test_lines_without_digest_are_new(journal: Journal, pump: Pump) -> None:
    journal.load([("a", None), ("b", b"b" * 16)], {})
    pump.wait(journal.append([*done(1, 10000), *done(2, 10001)]))
    remapped = journal.remap([("b", b"b" * 16), ("a", None)], {})
    assert remapped == Remapped(kept=1, new=1, retired=1)
    assert settled(journal) == {1: 10001}


def test_without_room_nothing_has_changed(
    journal: Journal, pump: Pump, largest_file: Limit, tmp_path: Path
) -> None:
    journal.load(table("ab"), {"table": "1"})
    pump.wait(journal.append(done(1, 10000)))
    room = (tmp_path / "session.db-wal").stat().st_size + 100_000
    many = [*(os.urandom(100).hex() for _ in range(5000)), "a"]
    with largest_file(room), pytest.raises(JournalError):
        journal.remap(table(many), {"table": "2"})
    assert (journal.tasks, journal.meta["table"]) == (2, "1")
    assert settled(journal) == {1: 10000}
    assert journal.remap(table(many), {"table": "2"}).kept == 1
    assert settled(journal) == {5001: 10000}


def test_a_table_with_a_mistake_in_it_changes_nothing(journal: Journal) -> None:
    def broken() -> Iterator[Line]:
        yield "x", None
        raise ValueError("line 2")

    journal.load(table("ab"), {})
    with pytest.raises(ValueError, match="line 2"):
        journal.remap(broken(), {})
    assert journal.remap(table("ab"), {}).kept == 2


def test_digests_that_were_not_stored_are_made_when_they_are_needed(
    journal: Journal, pump: Pump
) -> None:
    def digest_of(cells: str) -> bytes:
        return cells.encode().ljust(16)

    journal.load([(word, None) for word in "abc"], {})
    pump.wait(journal.append([*done(1, 10000), *done(2, 10001), *done(3, 10002)]))
    assert journal.remap(table("ca"), {}, digest_of) == Remapped(kept=2, new=0, retired=1)
    assert settled(journal) == {1: 10002, 2: 10000}
    # the one that left was digested under what was true then
    assert journal.remap(table("b"), {}, lambda _: b"x" * 16).kept == 1
    assert settled(journal) == {1: 10001}


def test_tickets_of_lines_that_never_were_stored_are_no_other_tasks(
    journal: Journal, pump: Pump
) -> None:
    given = [TicketGiven(10000 + task, task, "c", "h", True, True) for task in (1, 2, 3)]
    journal.load(table("a"), {}, tasks=3)
    pump.wait(journal.append([*given, *done(1, 10009), TaskFailed(3, "its client was lost")]))
    assert journal.remap(table("xya"), {}) == Remapped(kept=1, new=2, retired=2)
    assert (journal.tasks, journal.stored, settled(journal)) == (3, 3, {3: 10009})
    facts = list(journal.recovery().replay())
    assert [fact.first for fact in facts if isinstance(fact, TicketsPast)] == [10009]
    assert [fact.ticket for fact in facts if isinstance(fact, TicketGiven)] == [10001]
    journal.remap(table("bca"), {})
    assert settled(journal) == {3: 10009}


# --- against a model ----------------------------------------------------------------------------


@dataclass
class Known:
    """What a task has."""

    tickets: list[int] = field(default_factory=list)
    settled: int | None = None
    failed: str | None = None
    reopened: int | None = None
    not_collected: str | None = None


words = st.lists(st.sampled_from("abcde"), max_size=9)
facts = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["done", "failed", "given", "reopened", "odd"])),
    max_size=6,
)


def identities(table_words: Sequence[str]) -> list[tuple[str, int]]:
    """What each line is: its word, and how many equal ones came before."""
    seen: Counter[str] = Counter()
    found = []
    for word in table_words:
        found.append((word, seen[word]))
        seen[word] += 1
    return found


@example(first=words, steps=st.lists(st.tuples(facts, words), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_remapping_agrees_with_a_simple_model(
    first: list[str], steps: list[tuple[list[tuple[int, str]], list[str]]]
) -> None:
    with TemporaryDirectory() as folder, closing(open_database(Path(folder) / "s.db")) as database:
        database.execute("PRAGMA synchronous = OFF")  # only for speed
        model: dict[tuple[str, int], Known] = {}
        store_lines(database, 1, table(first))
        now = identities(first)
        ticket = 10000
        for happened, after in steps:
            records: list[JournalRecord] = []
            for place, what in happened:
                if not now:
                    continue
                task = place % len(now) + 1
                known = model.setdefault(now[task - 1], Known())
                if what in ("done", "given"):
                    known.tickets.append(ticket)
                    records.append(TicketGiven(ticket, task, "c", "h", True, True))
                if what == "done":
                    known.settled, known.failed = ticket, None
                    records.append(TaskDone(task, ticket))
                elif what == "failed":
                    known.settled, known.failed = None, f"failed before {ticket}"
                    records.append(TaskFailed(task, known.failed))
                elif what == "reopened":
                    known.settled = known.failed = None
                    known.reopened = ticket
                    records.append(TaskReopened(task, ticket))
                elif what == "odd":
                    known.not_collected = f"odd before {ticket}"
                    records.append(NotCollected(task, known.not_collected))
                ticket += what in ("done", "given")
            with transaction(database):
                write_records(database, records, 0.0)
            before, now = now, identities(after)
            ever = model.keys() | set(before)
            with transaction(database):
                remapped = remap_table(database, table(after))
            for line in before:
                model.setdefault(line, Known())
            assert remapped == Remapped(
                kept=len([line for line in now if line in ever]),
                new=len([line for line in now if line not in ever]),
                retired=len(set(before) - set(now)),
            )
            check(Recovery(Path(folder) / "s.db"), now, model, ticket)


def check(
    recovery: Recovery, now: list[tuple[str, int]], model: dict[tuple[str, int], Known], ticket: int
) -> None:
    tickets: dict[int, list[int]] = {}
    reopened, settled, used = {}, b"", 0
    for fact in recovery.replay():
        if isinstance(fact, TicketGiven):
            tickets.setdefault(fact.task, []).append(fact.ticket)
        elif isinstance(fact, TicketsPast):
            for number, task in enumerate(fact.tasks, fact.first):
                tickets.setdefault(task, []).append(number)
        elif isinstance(fact, TaskReopened):
            reopened[fact.task] = fact.ticket
        elif isinstance(fact, TasksSettled):
            settled = fact.ends
        elif isinstance(fact, TicketsUsed):
            used = fact.upto
    assert used == ticket - 1
    tasks = list(enumerate((model.get(line, Known()) for line in now), 1))
    assert tickets == {task: known.tickets for task, known in tasks if known.tickets}
    over = [(task, known) for task, known in tasks if known.settled or known.failed]
    becomes = {task: 1 if known.settled else 2 for task, known in over}
    assert {task: end for task, end in enumerate(settled) if end} == becomes
    assert reopened == {
        task: known.reopened for task, known in tasks if known.reopened and task not in becomes
    }
    assert dict(recovery.settled()) == {task: known.settled for task, known in over}
    reasons = {task: known.failed for task, known in tasks if known.failed}
    assert recovery.failures(len(now)) == reasons
    odd = {task: known.not_collected for task, known in tasks if known.not_collected}
    assert recovery.not_collected() == odd

"""What is told from memory is what the database would tell."""

from __future__ import annotations

from pathlib import Path
from random import Random

from pexecd.core.effects import TaskDone, TicketEnded, TicketGiven
from pexecd.core.values import End
from pexecd.ports import JournalRecord, ResultDropped, ResultKept, StoredResult, TaskRow
from pexecd.store.lately import Append, Lately
from pexecd.store.reading import read_ended, read_results, read_rows
from pexecd.store.schema import open_database
from pexecd.store.table import store_lines
from pexecd.store.writing import transaction, write_records

TASKS = 20


def given(ticket: int, task: int = 1) -> TicketGiven:
    return TicketGiven(ticket, task, "client", "host \ud800", managed=True, speaks=False)


def ended(ticket: int, task: int = 1, end: End = End.DONE) -> TicketEnded:
    return TicketEnded(ticket, task, end, "why \udcff", 3, 9, 0.25, b"\xff stderr")


def kept(ticket: int, data: bytes | None = b"0.6\n") -> ResultKept:
    results = (
        StoredResult("output", len(data or b""), data, None if data else "spool/1"),
        StoredResult("other", 2, b"1\n", None),
    )
    return ResultKept(ticket, 1, results)


def write(lately: Lately, *records: JournalRecord) -> Append:
    append = Append(records)
    lately.written(append)
    append.committed = True
    return append


def some_records(dice: Random, tickets: range) -> list[JournalRecord]:
    """What might be written next of these tickets."""
    records: list[JournalRecord] = []
    for _ in range(dice.randint(0, 12)):
        ticket = dice.choice(tickets)
        task = ticket % TASKS + 1
        choice: list[JournalRecord] = [
            given(ticket, task),
            ended(ticket, task, dice.choice(list(End))),
            kept(ticket, dice.choice([b"0.6\n", b"1" * dice.randint(1, 2000), None])),
            ResultDropped(ticket),
            TaskDone(task, ticket),
        ]
        records.append(dice.choice(choice))
    return records


def in_order(records: list[JournalRecord], known: set[int]) -> list[JournalRecord]:
    """Without what cannot be: a ticket that is given twice, or words about one that was not."""
    possible: list[JournalRecord] = []
    for record in records:
        assert isinstance(record, TicketGiven | TicketEnded | TaskDone | ResultKept | ResultDropped)
        if isinstance(record, TicketGiven) != (record.ticket in known):
            possible.append(record)
            known.add(record.ticket)
    return possible


def test_memory_tells_what_the_database_tells(tmp_path: Path) -> None:
    told = 0
    for seed in range(30):
        dice = Random(seed)
        connection = open_database(tmp_path / f"{seed}.db")
        connection.execute("PRAGMA synchronous = OFF")
        store_lines(connection, 1, [(str(task), None) for task in range(1, TASKS + 1)])
        lately = Lately(most=dice.choice([2_000, 10_000, 1 << 20]))
        known: set[int] = set()
        for turn in range(40):
            tickets = range(10000 + 2 * turn, 10010 + 2 * turn)
            append = Append(in_order(some_records(dice, tickets), known), now=turn / 4)
            lately.written(append)
            with transaction(connection):
                write_records(connection, append.records, append.now)
            append.committed = True
            first = dice.randint(1, TASKS)
            lately.read(read_rows(connection, first, 5))
            some = dice.choices(tickets, k=3)
            if (results := lately.results(some)) is not None:
                assert results == read_results(connection, some)
                told += 1
            if (found := lately.ended(some)) is not None:
                assert sorted(found) == sorted(read_ended(connection, some))
                told += 1
            if (rows := lately.rows(first, first + 2)) is not None and first + 2 <= TASKS:
                assert rows == read_rows(connection, first, 3)
                told += 1
        connection.close()
    assert told > 500


def test_what_is_not_committed_is_not_told() -> None:
    lately = Lately()
    write(lately, given(10000), kept(10000))
    assert lately.results([10000]) == {10000: kept(10000).results}
    for record in (kept(10000, b"new"), ResultDropped(10000), ended(10000)):
        append = Append([record])
        lately.written(append)
        assert lately.results([10000]) is None
        append.committed = True
        assert lately.results([10000]) is not None
    assert lately.results([10000]) == {}


def test_an_earlier_process_gave_the_ticket() -> None:
    lately = Lately()
    write(lately, kept(10000), ended(10000))
    assert lately.results([10000]) is None
    assert lately.ended([10000]) is None


def test_a_line_that_was_not_read_lately() -> None:
    lately = Lately()
    write(lately, given(10000), ended(10000))
    assert lately.ended([10000]) is None
    lately.read([TaskRow(1, ("32",))])
    assert lately.ended([10000]) is not None


def test_memory_is_bounded() -> None:
    lately = Lately(most=100_000)
    for ticket in range(10000, 20000):
        write(lately, given(ticket), kept(ticket, b"1" * 1000))
        lately.read([TaskRow(ticket, ("1" * 1000,))])
    held = [ticket for ticket in range(10000, 20000) if lately.results([ticket]) is not None]
    lines = [ticket for ticket in range(10000, 20000) if lately.rows(ticket, ticket) is not None]
    assert held == list(range(held[0], 20000)), "what came last"
    assert 60 < len(held) < 140
    assert lines == list(range(lines[0], 20000))
    assert 60 < len(lines) < 140


def test_what_workers_said_before_they_failed_counts_too() -> None:
    lately = Lately(most=100_000)
    for ticket in range(10000, 10200):
        end = TicketEnded(ticket, 1, End.FAILED, "why", 3, stderr=b"1" * 1000)
        write(lately, given(ticket), end)
    held = [ticket for ticket in range(10000, 10200) if lately.results([ticket]) is not None]
    assert held == list(range(held[0], 10200))
    assert 60 < len(held) < 140

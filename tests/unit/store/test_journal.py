from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import gatherResults

from pexecd.core.effects import (
    Record,
    Replayed,
    TaskDone,
    TaskFailed,
    TaskReopened,
    TasksSettled,
    TicketEnded,
    TicketGiven,
    TicketsPast,
    TicketsUsed,
)
from pexecd.core.session import Session
from pexecd.core.values import End, Policy
from pexecd.errors import JournalError, StateError
from pexecd.ports import (
    Collected,
    JoblogRow,
    JournalRecord,
    NotCollected,
    ResultDropped,
    ResultKept,
    StoredResult,
    TaskRow,
)
from pexecd.store import recovery
from pexecd.store.journal import Journal
from pexecd.store.recovery import LostResult
from pexecd.store.table import Line
from tests.pump import Pump
from tests.unit.store.conftest import Limit

TABLE: list[Line] = [("32|2.2", b"a" * 16), ("64|2.3", b"b" * 16), ("128|", None)]


def open_journal(folder: Path, pump: Pump) -> Journal:
    return Journal.open(folder / "session.db", pump, now=lambda: 1e9)


@pytest.fixture
def journal(tmp_path: Path, pump: Pump) -> Iterator[Journal]:
    journal = open_journal(tmp_path, pump)
    yield journal
    pump.wait(journal.close())


def done(*tasks: int) -> TasksSettled:
    return TasksSettled(bytes(task in tasks for task in range(max(tasks) + 1)))


def replayed(journal: Journal) -> list[Replayed]:
    """All that is replayed, but for the number of tickets."""
    return [fact for fact in journal.recovery().replay() if not isinstance(fact, TicketsUsed)]


def given(ticket: int, task: int = 1) -> TicketGiven:
    return TicketGiven(ticket, task, "client", "host", managed=True, speaks=False)


def ended(ticket: int, end: End, task: int = 1) -> TicketEnded:
    return TicketEnded(ticket, task, end, f"because {end.value}", 3, 9, 0.25, b"\xff stderr")


def past(ticket: int, end: End, task: int = 1) -> TicketsPast:
    return TicketsPast(ticket, (task,), ("host",), (end,), (0.25,))


def kept(ticket: int, data: bytes | None = b"0.6\n", task: int = 1) -> ResultKept:
    spool = None if data is not None else f"spool/{ticket}"
    return ResultKept(ticket, task, (StoredResult("output", 4, data, spool),))


# --- the table ---------------------------------------------------------------------------------


def test_a_loaded_table_is_known_at_the_next_start(tmp_path: Path, pump: Pump) -> None:
    journal = open_journal(tmp_path, pump)
    assert not journal.loaded
    journal.load(TABLE, {"table": "sha256", "recipe": "r"})
    pump.wait(journal.note("port", "8080"))
    assert (journal.loaded, journal.tasks) == (True, 3)
    pump.wait(journal.close())

    journal = open_journal(tmp_path, pump)
    assert (journal.loaded, journal.tasks) == (True, 3)
    assert journal.meta == {"table": "sha256", "recipe": "r", "port": "8080"}
    assert pump.wait(journal.rows(3, 1)) == [TaskRow(3, ("128", ""))]
    with pytest.raises(StateError, match="holds a table already"):
        journal.load(TABLE, {})
    pump.wait(journal.close())


def test_an_empty_table(journal: Journal, pump: Pump) -> None:
    journal.load([], {})
    assert (journal.loaded, journal.tasks) == (True, 0)
    assert pump.wait(journal.rows(1, 10)) == []


def numbered(first: int, last: int) -> list[Line]:
    return [(f"line {number}", None) for number in range(first, last + 1)]


def test_a_table_is_stored_in_pieces_and_what_is_there_can_be_read(
    journal: Journal, pump: Pump
) -> None:
    journal.load(numbered(1, 10), {}, tasks=30)
    assert (journal.loaded, journal.tasks, journal.stored) == (True, 30, 10)
    assert len(pump.wait(journal.rows(1, 10))) == 10
    early = [journal.rows(first, 10) for first in (26, 6, 16)]
    pump.wait(journal.add(numbered(11, 20)))
    assert [row.number for row in pump.wait(early[1])] == list(range(6, 16))
    pump.wait(journal.append([]))
    assert not early[0].called
    assert not early[2].called
    pump.wait(journal.add(numbered(21, 30)))
    assert [row.cells for row in pump.wait(early[0])] == [(f"line {n}",) for n in range(26, 31)]
    assert len(pump.wait(early[2])) == 10
    assert journal.stored == 30


def test_who_waits_for_lines_that_do_not_come_is_told_at_the_end(
    tmp_path: Path, pump: Pump
) -> None:
    journal = open_journal(tmp_path, pump)
    journal.load(numbered(1, 10), {}, tasks=30)
    early = journal.rows(6, 10)
    closed = journal.close()
    with pytest.raises(JournalError, match="closed"):
        pump.wait(early)
    pump.wait(closed)


def test_after_a_kill_while_the_table_is_stored_it_goes_on_behind_what_is_there(
    tmp_path: Path, pump: Pump
) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from pexecd.core.effects import TaskDone\nfrom pexecd.store.journal import Journal\n"
        "from tests.pump import Pump\n"
        "from tests.unit.store.test_journal import numbered\n"
        "pump = Pump(); journal = Journal.open(Path(sys.argv[1]), pump)\n"
        "journal.load(numbered(1, 10), {'table': 'x'}, tasks=30)\n"
        "pump.wait(journal.add(numbered(11, 20)))\n"
        "pump.wait(journal.append([TaskDone(3, 10002)]))\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "session.db"])
    assert killed.returncode == -9
    journal = open_journal(tmp_path, pump)
    assert (journal.loaded, journal.tasks, journal.stored) == (True, 30, 20)
    assert journal.meta == {"table": "x"}
    table = iter(numbered(1, 30))
    assert journal.begins_with(table)
    pump.wait(journal.add(list(table)))
    assert [row.number for row in pump.wait(journal.rows(1, 100))] == list(range(1, 31))
    assert replayed(journal) == [done(3)]
    assert not journal.begins_with([*numbered(1, 28), ("another", None), *numbered(30, 30)])
    pump.wait(journal.close())


def test_lines_wait_for_room_as_everything_does(
    journal: Journal, pump: Pump, largest_file: Limit
) -> None:
    journal.load(numbered(1, 10), {}, tasks=5000)
    with largest_file(512):
        added = journal.add(numbered(11, 5000))
        pump.step()
        assert journal.stalled
        assert journal.stored == 10
    pump.advance(1)
    pump.wait(added)
    assert len(pump.wait(journal.rows(1, 5000))) == journal.stored == 5000


ODD = ['"', "\\", "\\u0041", "a\tb", "\u2028\x85 \U0001f600", "'; --", "null", "1e3", "[1]", ""]


def test_cells_are_kept_as_they_are(journal: Journal, pump: Pump) -> None:
    journal.load([(cells, None) for cells in ODD], {})
    assert [row.cells for row in pump.wait(journal.rows(1, 100))] == [(cells,) for cells in ODD]


def test_a_table_that_does_not_fit(journal: Journal, largest_file: Limit) -> None:
    with largest_file(100_000), pytest.raises(JournalError):
        journal.load(((str(number) * 20, None) for number in range(100_000)), {})
    assert not journal.loaded
    journal.load(TABLE, {})
    assert journal.tasks == 3


# --- commits -----------------------------------------------------------------------------------


def test_all_that_wait_share_a_commit(journal: Journal, pump: Pump, tmp_path: Path) -> None:
    wal = tmp_path / "session.db-wal"
    page = 4096 + 24
    pump.wait(journal.append([given(10000)]))
    alone = wal.stat().st_size
    pump.wait(gatherResults([journal.append([given(10001 + n)]) for n in range(50)]))
    # The first went alone, the others together: two commits of a page or two, not fifty.
    assert wal.stat().st_size - alone <= 6 * page


def test_what_was_confirmed_is_there_after_a_kill(tmp_path: Path, pump: Pump) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from pexecd.core.effects import TaskDone\nfrom pexecd.store.journal import Journal\n"
        "from tests.pump import Pump\n"
        "pump = Pump(); journal = Journal.open(Path(sys.argv[1]), pump)\n"
        "for n in range(1, 21):\n"
        "    pump.wait(journal.append([TaskDone(n, 10000 + n)]))\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "session.db"])
    assert killed.returncode == -9
    journal = open_journal(tmp_path, pump)
    assert list(journal.recovery().settled()) == [(n, 10000 + n) for n in range(1, 21)]
    pump.wait(journal.close())


def test_a_full_disk_is_tried_every_second_and_no_more(
    journal: Journal, pump: Pump, largest_file: Limit
) -> None:
    told: list[str] = []
    journal.watch(told.append)
    with largest_file(512):
        waiting = journal.append([TaskDone(1, 10001)])
        for _ in range(5):
            pump.step()
            (retry,) = pump.getDelayedCalls()
            assert retry.getTime() - pump.seconds() == 1
            pump.advance(0.75)
            journal.append([TaskDone(2, 10002)])
            pump.advance(0.25)
        pump.step()
        assert told == [f"{journal.recovery()._path}: File too large"]
    assert not waiting.called
    pump.advance(1)
    pump.wait(waiting)
    assert told[1:] == [""]
    assert replayed(journal) == [done(1, 2)]
    assert pump.getDelayedCalls() == []


def test_another_program_that_locks_the_database_is_waited_for(
    journal: Journal, pump: Pump, tmp_path: Path
) -> None:
    journal._connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(tmp_path / "session.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = journal.append([TaskDone(1, 10001)])
    pump.step()
    assert journal.stalled == f"{tmp_path}/session.db: another program has locked it"
    other.close()
    pump.advance(1)
    pump.wait(waiting)


def test_a_word_noted_on_a_full_disk_is_noted_later(
    journal: Journal, pump: Pump, largest_file: Limit
) -> None:
    with largest_file(512):
        noted = journal.note("port", "8080")
        pump.step()
        assert journal.stalled
        assert "port" not in journal.meta
    pump.advance(1)
    pump.wait(noted)
    assert journal.meta["port"] == "8080"


def test_after_a_record_that_cannot_be_written_nothing_is(journal: Journal, pump: Pump) -> None:
    broken = TaskFailed(1, object())  # type: ignore[arg-type]
    first = journal.append([TaskDone(2, 10000), broken])
    behind = journal.append([TaskDone(3, 10001)])
    for lost in (first, behind):
        with pytest.raises(JournalError, match=r"session\.db: "):
            pump.wait(lost)
    with pytest.raises(JournalError):
        pump.wait(journal.append([TaskDone(4, 10002)]))
    assert replayed(journal) == []
    assert pump.wait(journal.results([10000])) == {}
    assert not journal.stalled


def test_a_damaged_database_is_no_reason_to_wait(
    journal: Journal, pump: Pump, tmp_path: Path
) -> None:
    journal._connection.execute("DROP TABLE settled")
    with pytest.raises(JournalError, match="no such table"):
        pump.wait(journal.append([TaskDone(1, 10000)]))


def test_while_a_commit_runs_the_reactor_goes_on(journal: Journal, pump: Pump) -> None:
    fired: list[str] = []
    journal.append([given(10000)]).addCallback(lambda _: fired.append("committed"))
    fired.append("elsewhere")
    pump.wait(journal.append([]))
    assert fired == ["elsewhere", "committed"]


def test_what_a_callback_appends_is_written(journal: Journal, pump: Pump) -> None:
    nested = journal.append([given(10000)]).addCallback(
        lambda _: journal.append([ended(10000, End.DONE)])
    )
    pump.wait(nested)
    assert len(replayed(journal)) == 2


# --- recovery ----------------------------------------------------------------------------------


def test_replay_gives_every_fact_in_an_order_to_build_on(journal: Journal, pump: Pump) -> None:
    records: list[JournalRecord] = [
        given(10000, 1),
        given(10001, 2),
        TaskFailed(3, "never worked"),
        ended(10000, End.FAILED, 1),
        given(10002, 1),
        ended(10002, End.DONE, 1),
        TaskDone(1, 10002),
        given(10003, 2),
        given(10004, 3),
        ended(10001, End.LOST, 2),
    ]
    pump.wait(journal.append(records))
    assert replayed(journal) == [
        TasksSettled(b"\0\1\0\2"),
        past(10000, End.FAILED),
        given(10001, 2),
        ended(10001, End.LOST, 2),
        past(10002, End.DONE),
        given(10003, 2),
        given(10004, 3),  # settled, but it lives
    ]


@pytest.mark.parametrize("together", [1, 2, 3, 256])
def test_it_does_not_matter_how_many_tickets_are_read_together(
    journal: Journal, pump: Pump, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr(recovery, "_TOGETHER", together)
    monkeypatch.setattr(recovery, "_PIECE", together)
    records: list[JournalRecord] = []
    over: dict[int, int] = {}
    for task, letter in enumerate("ddd-dddf.ddfd.-dd--.ddd", 1):
        ticket = 10000 + task
        if letter == "-":
            continue  # its number never reached the disk
        records.append(given(ticket, task))
        if letter == "d":
            records += [ended(ticket, End.DONE, task), TaskDone(task, ticket)]
            over[ticket] = task
        elif letter == "f":
            records += [ended(ticket, End.FAILED, task), TaskFailed(task, "no")]
            over[ticket] = task
    pump.wait(journal.append(records))
    facts = replayed(journal)
    assert facts[0] == TasksSettled(bytes(map(int, "011101112011210011000111")))
    single = [one for one in records if isinstance(one, TicketGiven) and one.ticket not in over]
    assert [fact for fact in facts if isinstance(fact, TicketGiven)] == single
    told = [fact for fact in facts if isinstance(fact, TicketsPast)]
    assert [
        (number, task, end)
        for fact in told
        for number, (task, end) in enumerate(zip(fact.tasks, fact.ends, strict=True), fact.first)
    ] == [(one.ticket, one.task, one.end) for one in records if isinstance(one, TicketEnded)]
    if together == 256:
        assert [fact.first for fact in told] == [10001, 10005, 10010, 10016, 10021]


def test_a_second_end_replaces_the_first(journal: Journal, pump: Pump) -> None:
    pump.wait(journal.append([given(10000), ended(10000, End.LOST), TaskFailed(1, "lost")]))
    pump.wait(journal.append([ended(10000, End.DONE), TaskDone(1, 10000)]))
    assert replayed(journal) == [TasksSettled(b"\0\1"), past(10000, End.DONE)]


def test_results_that_wait_for_their_verdict(journal: Journal, pump: Pump) -> None:
    tickets = {
        10000: None,  # lives, stored: waits
        10001: End.LOST,  # a late result: waits
        10002: End.DONE,
        10003: End.INVALID,
        10004: End.CANCELLED,  # the run was interrupted; a late result: waits
        10005: End.FAILED,  # but another copy won
    }
    records: list[JournalRecord] = [given(10006, 9), TaskDone(6, 10007)]
    for task, (ticket, end) in enumerate(tickets.items(), 1):
        records += [given(ticket, task), kept(ticket, task=task)]
        if end is not None:
            records.append(ended(ticket, end, task))
    pump.wait(journal.append(records))
    assert journal.recovery().kept() == [10000, 10001, 10004]


def test_a_reopened_task_is_replayed_before_the_first_ticket_that_counts(
    journal: Journal, pump: Pump
) -> None:
    facts: list[Record] = [
        given(10000, 1),
        given(10001, 2),
        given(10002, 1),
        TaskReopened(2, 10003),
    ]
    pump.wait(journal.append([TaskFailed(1, "no"), *facts[:2]]))
    pump.wait(journal.append([TaskReopened(1, 10002), *facts[2:], TaskDone(3, 10001)]))
    assert list(journal.recovery().replay()) == [
        TasksSettled(b"\0\0\0\1"),
        *facts[:2],
        TaskReopened(1, 10002),
        *facts[2:],
        TicketsUsed(10002),
    ]
    pump.wait(journal.append([TaskDone(1, 10002)]))  # and is settled: that comes first of all
    assert TaskReopened(1, 10002) not in replayed(journal)
    assert dict(journal.recovery().settled()) == {1: 10002, 3: 10001}


def test_a_result_whose_file_is_gone_is_found_and_its_task_runs_again(
    journal: Journal, pump: Pump, tmp_path: Path
) -> None:
    tickets = {10000: "whole", 10001: "gone", 10002: "cut", 10003: "unjudged", 10004: "old"}
    (tmp_path / "spool").mkdir()
    for ticket, size in ((10000, 4), (10002, 3), (10005, 4)):
        (tmp_path / "spool" / str(ticket)).write_bytes(b"x" * size)
    records: list[JournalRecord] = []
    for task, (ticket, what) in enumerate(tickets.items(), 1):
        records += [given(ticket, task), kept(ticket, None, task)]
        if what == "old":  # nobody needs it any more, for its task has another
            records.append(ended(ticket, End.FAILED, task))
        elif what != "unjudged":
            records += [ended(ticket, End.DONE, task), TaskDone(task, ticket)]
    records += [given(10005, 5), kept(10005, None, 5), ended(10005, End.DONE), TaskDone(5, 10005)]
    pump.wait(journal.append(records))
    recovery = journal.recovery()
    lost = recovery.lost()
    assert lost == [
        LostResult(10001, 2, "spool/10001", done=True),
        LostResult(10002, 3, "spool/10002", done=True),
        LostResult(10003, 4, "spool/10003", done=False),
    ]
    assert recovery.next_ticket() == 10006
    for one in lost:
        repaired: list[JournalRecord] = [
            ResultDropped(one.ticket),
            TicketEnded(one.ticket, one.task, End.LOST, "gone"),
        ]
        if one.done:
            repaired.append(TaskReopened(one.task, 10006))
        pump.wait(journal.append(repaired))
    assert recovery.lost() == []
    assert dict(recovery.settled()) == {1: 10000, 5: 10005}
    assert recovery.kept() == []
    session = Session(Policy(), 5, 0.0)
    session.replay(recovery.replay())
    session.resume(0.0)
    numbers = session.statistics()
    assert TaskReopened(2, 10006) in list(recovery.replay())
    assert (numbers.done, numbers.failed, numbers.pending, numbers.running) == (2, 0, 3, 0)


def test_without_a_spool_every_larger_result_is_lost(journal: Journal, pump: Pump) -> None:
    pump.wait(journal.append([given(10000), kept(10000, None), TaskDone(1, 10000)]))
    assert [one.ticket for one in journal.recovery().lost()] == [10000]


def test_counts_and_what_else_a_start_asks_for(journal: Journal, pump: Pump) -> None:
    journal.load(TABLE, {})
    pump.wait(
        journal.append(
            [
                given(10000),
                kept(10000, None),
                kept(10001),
                TaskDone(1, 10000),
                TaskFailed(2, "no"),
                Collected("/a", 10, 2, (2,), rule="table"),
                Collected("/b", 0, 0, (5, 3), rule="concat"),
                NotCollected(1, "ValueError"),
                NotCollected(3, "KeyError"),
            ]
        )
    )
    pump.wait(
        journal.append(
            [
                Collected("/b", 7, 0, (4,), rule="concat"),
                NotCollected(1, None),
                Collected("/a", 30, 9, (7, 8), rule="block", anew=True),
            ]
        )
    )
    recovery = journal.recovery()
    counts = recovery.counts()
    assert (counts.done, counts.failed, counts.living) == (1, 1, 1)
    assert recovery.spooled() == {"spool/10000"}
    assert recovery.not_collected() == {3: "KeyError"}
    assert recovery.collected() == {
        "/a": Collected("/a", 30, 9, (7, 8), rule="block"),
        "/b": Collected("/b", 7, 0, (3, 4, 5), rule="concat"),
    }


def test_the_joblog_can_be_written_anew(journal: Journal, pump: Pump) -> None:
    journal.load(TABLE, {})
    pump.wait(
        journal.append(
            [given(10000, 2), given(10001, 1), kept(10000), ended(10000, End.DONE, 2)],
        )
    )
    assert list(journal.recovery().ended()) == [
        (
            JoblogRow(
                10000, 2, "host", 1e9, 0.25, "done", 3, 9, 0, 4, "because done", b"\xff stderr"
            ),
            TaskRow(2, ("64", "2.3")),
        )
    ]


def test_recovery_sees_one_moment(journal: Journal, pump: Pump) -> None:
    pump.wait(journal.append([TaskDone(1, 10000), TaskDone(2, 10001)]))
    replay = journal.recovery().replay()
    assert next(replay) == TasksSettled(b"\0\1\1")
    pump.wait(journal.append([TaskDone(3, 10002)]))
    assert list(replay) == [TicketsUsed(9999)]


@pytest.mark.parametrize("instead", [None, b"another"])
def test_what_is_committed_to_a_deleted_database_is_not_stored(
    tmp_path: Path, pump: Pump, instead: bytes | None
) -> None:
    journal = open_journal(tmp_path, pump)
    journal.load(TABLE, {})
    pump.wait(journal.append([given(10000)]))
    (tmp_path / "session.db").rename(tmp_path / "moved")
    if instead is not None:
        (tmp_path / "session.db").write_bytes(instead)
    for ticket in (10001, 10002):
        with pytest.raises(JournalError, match=r"session\.db: was deleted or moved while"):
            pump.wait(journal.append([given(ticket)]))
    pump.wait(journal.close())


def test_a_database_that_was_damaged_behind_us(tmp_path: Path, pump: Pump) -> None:
    journal = open_journal(tmp_path, pump)
    journal.load(numbered(1, 10), {})
    pump.wait(journal.append([given(10000 + number) for number in range(1000)]))
    pump.wait(journal.close())
    path = tmp_path / "session.db"
    content = path.read_bytes()
    path.write_bytes(content[: 4096 * 12] + b"\xff" * (len(content) - 4096 * 12))
    journal = open_journal(tmp_path, pump)
    with pytest.raises(StateError, match=r"session\.db: is damaged: .*--fresh"):
        replayed(journal)
    pump.wait(journal.close())

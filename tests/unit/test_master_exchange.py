"""The exchange in the master: one transaction, journal first, and peers that leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from pexecd.core.effects import TaskFailed, TicketEnded, TicketGiven
from pexecd.core.values import Caller, End, Failure, Outcome
from pexecd.errors import JournalError, WrongSessionError
from pexecd.jobs.templates import Pattern
from pexecd.jobs.values import InputKind, InputRule
from pexecd.ports import NoTask, ResultDropped, ResultKept, TaskSupply, Verdict
from pexecd.protocol.exchange import Posted
from tests.contract.memory import MemoryJournal
from tests.unit.test_master import CLIENT, OTHER, MasterCase

LARGE = b"x" * 20_000


class ExchangeTests(MasterCase):
    def setUp(self) -> None:
        super().setUp()
        self.grow(10)

    def grow(self, tasks: int, **settings: object) -> None:
        """A new session, with so many tasks."""
        self.session.close()
        self.table = [(str(n),) for n in range(1, tasks + 1)]
        self.journal = MemoryJournal(self.table)
        self.session = self.make(**settings)  # type: ignore[arg-type]

    def exchange(
        self, want: int = 0, *, caller: Caller = CLIENT, **posted: list[object]
    ) -> Deferred[TaskSupply]:
        return self.session.exchange(caller, Posted(**posted), want, None)  # type: ignore[arg-type]

    def supply(
        self, want: int = 0, *, caller: Caller = CLIENT, **posted: list[object]
    ) -> TaskSupply:
        return self.successResultOf(self.exchange(want, caller=caller, **posted))

    def fetch(self, count: int, caller: Caller = CLIENT) -> list[int]:
        return [message.ticket for message in self.supply(count, caller=caller).tasks]

    def kinds(self, start: int) -> list[str]:
        return [type(record).__name__ for record in self.journal.records[start:]]

    def ends(self) -> dict[int, End]:
        return {one.ticket: one.end for one in self.journal.records if isinstance(one, TicketEnded)}

    def kept(self) -> dict[int, Mapping[str, bytes | None]]:
        return {
            one.ticket: {result.name: result.data for result in one.results}
            for one in self.journal.records
            if isinstance(one, ResultKept)
        }

    # --- journal first -----------------------------------------------------------------------

    def test_it_brings_tasks_in_words(self) -> None:
        supply = self.supply(3)
        assert [(one.ticket, one.task, one.command_line) for one in supply.tasks] == [
            (10000, 1, "work 1"), (10001, 2, "work 2"), (10002, 3, "work 3"),
        ]  # fmt: skip
        assert (supply.over, supply.left) == ((), "")

    def test_nothing_is_told_before_all_of_it_is_on_disk(self) -> None:
        one, two = self.fetch(2)
        before = len(self.journal.records)
        self.journal.hold()
        waiting = self.exchange(
            1, complete=[(one, 0.5, {"output": b"1"})], failed=[(two, Failure("oops"))]
        )
        self.assertNoResult(waiting)
        assert self.journal.records[before:] == []
        assert self.collector.settled == []
        self.journal.release()
        assert [message.task for message in self.successResultOf(waiting).tasks] == [3]
        assert self.kinds(before) == [
            "ResultKept", "TicketEnded", "TaskDone", "TicketEnded", "TicketGiven",
        ]  # fmt: skip
        assert self.collector.settled == [(1, one)]
        assert self.kept() == {one: {"output": b"1"}}

    def test_it_is_one_transaction(self) -> None:
        tickets = self.fetch(4)
        transactions: list[int] = []
        append = self.journal.append

        def counted(records: object) -> Deferred[None]:
            transactions.append(len(records))  # type: ignore[arg-type]
            return append(records)  # type: ignore[arg-type]

        self.journal.append = counted  # type: ignore[method-assign]
        self.supply(3, complete=[(ticket, 0.1, {"output": b"1"}) for ticket in tickets])
        assert transactions == [4 * 3 + 3]

    def test_what_needs_no_record_waits_for_what_came_before(self) -> None:
        (ticket,) = self.fetch(1)
        self.journal.hold()
        stored = self.store(ticket)
        repeat = self.exchange(complete=[(ticket, 0.5, {"output": b"1"})])
        ping = self.exchange(running=[(ticket, 1.0)])
        for waiting in (stored, repeat, ping):
            self.assertNoResult(waiting)
        self.journal.release()
        self.successResultOf(stored)
        assert self.successResultOf(repeat) == TaskSupply([], (), "")
        assert self.successResultOf(ping) == TaskSupply([], (ticket,), "")

    def test_a_ping_alone_needs_no_disk(self) -> None:
        one, two = self.fetch(2)
        before = len(self.journal.records)
        assert self.supply(running=[(one, 1.0)], waiting=[two]).over == ()
        assert len(self.journal.records) == before

    # --- what it says -------------------------------------------------------------------------

    def test_none_and_end(self) -> None:
        self.grow(2)
        one, two = self.fetch(2)
        assert self.supply(1, caller=OTHER).left == "none"
        assert self.supply(1, complete=[(one, 0.5, {"output": b"1"})]).left == "none"
        assert self.supply(complete=[(two, 0.5, {"output": b"2"})]).left == ""
        assert self.supply(1).left == "end"
        finish = self.successResultOf(self.session.finished)
        assert finish.outcome is Outcome.SUCCEEDED
        left = self.session.clients_left()
        self.clock.advance(0)
        self.assertNoResult(left)
        assert self.supply(1, caller=OTHER).left == "end"
        self.clock.advance(0)
        self.successResultOf(left)

    def test_an_end_that_waits_for_the_disk_is_waited_for(self) -> None:
        self.grow(1)
        (ticket,) = self.fetch(1)
        self.journal.hold()
        waiting = self.exchange(1, complete=[(ticket, 0.5, {"output": b"1"})])
        left = self.session.clients_left()
        self.clock.advance(0)
        self.assertNoResult(left)
        self.journal.release()
        assert self.successResultOf(waiting).left == "end"
        self.clock.advance(0)
        self.successResultOf(left)

    def test_results_are_judged(self) -> None:
        self.grow(2, validates=True)
        tickets = self.fetch(2)
        self.supply(complete=[(ticket, 0.5, {"output": b"1"}) for ticket in tickets])
        assert [task for task, _, _ in self.judge.asked] == [1, 2]
        for _, _, verdict in self.judge.asked:
            verdict.callback(Verdict(True))
        assert self.collector.settled == [(1, 10000), (2, 10001)]

    def test_another_worker_is_refused(self) -> None:
        asked = self.session.exchange(CLIENT, Posted(), 1, "other")
        self.failureResultOf(asked, WrongSessionError)
        asked = self.session.exchange(CLIENT, Posted(), 1, "work")
        assert len(self.successResultOf(asked).tasks) == 1

    def test_a_client_that_only_exchanged_is_known_when_it_dies(self) -> None:
        self.fetch(2)
        self.session.client_ended("node1", "signal 9")
        assert self.ends() == {10000: End.LOST, 10001: End.LOST}

    def test_tasks_that_cannot_be_told_leave_the_others(self) -> None:
        self.session.close()
        self.table = [(str(n),) for n in range(1, 4)]
        self.journal = MemoryJournal(self.table)
        rule = InputRule("data", InputKind.FILE, Pattern.parse("$n"))
        self.session = self.make(inputs=(rule,), attempts=1)
        folder = self.session.job.folder
        folder.mkdir(parents=True)
        (folder / "2").write_bytes(b"")
        assert [message.task for message in self.supply(3).tasks] == [2]
        assert self.ends() == {10000: End.FAILED, 10002: End.FAILED}
        assert [one.task for one in self.journal.records if isinstance(one, TaskFailed)] == [1, 3]
        assert self.session.statistics().running == 1

    # --- peers that leave ----------------------------------------------------------------------

    def test_a_peer_that_leaves_before_the_commit_takes_nothing(self) -> None:
        (ticket,) = self.fetch(1)
        self.journal.hold()
        waiting = self.exchange(3, complete=[(ticket, 0.5, {"output": b"1"})])
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.journal.release()
        assert self.ends() == {
            10000: End.DONE, 10001: End.CANCELLED, 10002: End.CANCELLED, 10003: End.CANCELLED,
        }  # fmt: skip
        assert self.collector.settled == [(1, ticket)]
        assert [message.task for message in self.supply(3).tasks] == [2, 3, 4]

    def test_a_peer_that_leaves_after_its_answer_takes_its_tasks(self) -> None:
        waiting = self.exchange(2)
        waiting.cancel()
        assert len(self.successResultOf(waiting).tasks) == 2
        assert self.session.statistics().running == 2

    def test_what_did_not_reach_its_peer_is_given_to_others(self) -> None:
        for ticket in self.fetch(2):
            self.session.undelivered(ticket)
        assert self.ends() == {10000: End.CANCELLED, 10001: End.CANCELLED}
        assert [message.task for message in self.supply(2, caller=OTHER).tasks] == [1, 2]

    def test_a_repeat_changes_nothing(self) -> None:
        one, two, three = self.fetch(3)
        posted: dict[str, Any] = {
            "complete": [(one, 0.5, {"output": b"1"})],
            "failed": [(two, Failure("oops"))],
            "back": [three],
        }
        self.supply(0, **posted)
        before = len(self.journal.records)
        for _ in range(2):
            assert self.supply(0, **posted) == TaskSupply([], (), "")
        assert [
            one for one in self.journal.records[before:] if not isinstance(one, ResultDropped)
        ] == []
        assert self.kept() == {one: {"output": b"1"}}
        assert self.collector.settled == [(1, one)]

    def test_a_repeat_that_overtakes_its_commit_waits_for_it(self) -> None:
        (ticket,) = self.fetch(1)
        self.journal.hold()
        first = self.exchange(complete=[(ticket, 0.5, {"output": b"1"})])
        first.cancel()
        self.failureResultOf(first, CancelledError)
        again = self.exchange(complete=[(ticket, 0.5, {"output": b"1"})])
        self.assertNoResult(again)
        self.journal.release()
        self.successResultOf(again)
        assert len(self.kept()) == 1

    def test_one_that_waits_when_the_master_leaves_gets_no_answer(self) -> None:
        self.journal.hold()
        waiting = self.exchange(1)
        self.session.close()
        self.journal.release()
        self.assertNoResult(waiting)

    # --- disks ---------------------------------------------------------------------------------

    def test_a_full_disk_takes_no_exchange(self) -> None:
        (ticket,) = self.fetch(1)
        self.session.disk.journal_changed("disk full")
        before = len(self.journal.records)
        waiting = self.exchange(2, complete=[(ticket, 0.5, {"output": b"1"})])
        self.failureResultOf(waiting, JournalError)
        assert len(self.journal.records) == before
        self.session.disk.journal_changed("")
        assert len(self.supply(2, complete=[(ticket, 0.5, {"output": b"1"})]).tasks) == 2

    def test_a_disk_that_fills_up_confirms_nothing_but_goes_on_later(self) -> None:
        (ticket,) = self.fetch(1)
        self.journal.full = True
        waiting = self.exchange(2, complete=[(ticket, 0.5, {"output": b"1"})])
        self.failureResultOf(waiting, JournalError)
        self.journal.full = False
        assert not self.stopped
        assert self.collector.settled == [(1, ticket)]
        assert self.ends() == {10000: End.DONE, 10001: End.CANCELLED, 10002: End.CANCELLED}
        supply = self.supply(2, complete=[(ticket, 0.5, {"output": b"1"})])
        assert [message.task for message in supply.tasks] == [2, 3]
        assert len(self.kept()) == 1

    def test_a_broken_disk_stops_the_master(self) -> None:
        self.journal.broken = True
        self.failureResultOf(self.exchange(2), JournalError)
        assert self.stopped

    def test_larger_results_go_to_the_spool(self) -> None:
        one, two, three = self.fetch(3)
        self.supply(
            complete=[
                (one, 0.5, {"output": b"1"}),
                (two, 0.5, {"output": LARGE}),
                (three, 0.5, {"output": b"3"}),
            ]
        )
        assert self.spool.kept.keys() == {two}
        assert self.kept() == {
            one: {"output": b"1"}, two: {"output": LARGE}, three: {"output": b"3"},
        }  # fmt: skip
        assert [task for task, _ in self.collector.settled] == [1, 2, 3]

    def test_results_that_are_no_use_when_others_are_on_disk_are_deleted(self) -> None:
        (first,) = self.fetch(1)
        for _ in self.table[1:]:
            self.task()
        copy = self.task(OTHER)
        assert copy.task == 1
        self.spool.gate = Deferred()
        waiting = self.exchange(caller=OTHER, complete=[(copy.ticket, 0.5, {"output": LARGE})])
        self.assertNoResult(waiting)
        self.successResultOf(self.exchange(complete=[(first, 0.5, {"output": b"1"})]))
        self.spool.gate.callback(None)
        self.successResultOf(waiting)
        assert [result.data for result in self.spool.discarded] == [LARGE]
        assert self.kept().keys() == {first}
        assert self.ends()[copy.ticket] is End.CANCELLED

    def test_a_peer_that_leaves_while_its_results_go_to_disk(self) -> None:
        (ticket,) = self.fetch(1)
        self.spool.gate = Deferred()
        waiting = self.exchange(2, complete=[(ticket, 0.5, {"output": LARGE})])
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.spool.gate.callback(None)
        assert self.collector.settled == [(1, ticket)]
        assert self.session.statistics().running == 0

    def test_a_full_spool_keeps_nothing_of_an_exchange(self) -> None:
        one, two = self.fetch(2)
        self.spool.full = True
        waiting = self.exchange(
            1, complete=[(one, 0.5, {"output": LARGE}), (two, 0.5, {"output": LARGE})]
        )
        self.failureResultOf(waiting, JournalError)
        assert not self.spool.kept
        assert self.session.disk.full
        assert self.session.statistics().running == 2
        self.spool.full = False
        self.clock.advance(2)
        supply = self.supply(
            complete=[(one, 0.5, {"output": LARGE}), (two, 0.5, {"output": LARGE})]
        )
        assert supply == TaskSupply([], (), "")
        assert [task for task, _ in self.collector.settled] == [1, 2]

    # --- mistakes of ours ------------------------------------------------------------------------

    def test_who_exchanges_is_not_left_waiting_for_a_bug_of_ours(self) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("a bug")

        self.session._core.handle = broken  # type: ignore[method-assign,assignment]
        with self.assertRaises(RuntimeError):
            self.exchange(1)

    def test_all_tickets_are_told_by_their_records(self) -> None:
        supply = self.supply(2, caller=OTHER)
        assert [one for one in self.journal.records if isinstance(one, TicketGiven)] == [
            TicketGiven(message.ticket, message.task, "c-2", "node2", managed=True, speaks=True)
            for message in supply.tasks
        ]

    def test_a_held_request_hears_of_the_end_in_an_exchange(self) -> None:
        self.grow(1, duplicates=1)
        (ticket,) = self.fetch(1)
        held = self.session.ask(OTHER, None)
        self.supply(complete=[(ticket, 0.5, {"output": b"1"})])
        assert self.successResultOf(held) == NoTask(None)

"""Events become effects, records and deeds: in this order, whatever is slow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pexecd import attempts
from pexecd.attempts import Attempts
from pexecd.core.effects import Record, TaskFailed, TicketEnded, TicketGiven
from pexecd.core.session import Session
from pexecd.core.values import Caller, End, Failure, Outcome, Policy
from pexecd.errors import HostError, JournalError, WrongPlatformError, WrongSessionError
from pexecd.jobs import Renderer
from pexecd.jobs.templates import CommandPattern, Pattern
from pexecd.jobs.values import HostSpec, InputKind, InputRule, Job, WorkerRule
from pexecd.master import Executable, Master, Parts, RunningSession
from pexecd.ports import (
    CollectReport,
    IAttemptLog,
    ICollector,
    IHostWatcher,
    IJudge,
    ISession,
    JoblogRow,
    NoTask,
    ResultKept,
    StoredResult,
    Verdict,
)
from pexecd.protocol.wire import TaskMessage
from pexecd.telling import TableFeed, Teller
from tests.contract.memory import MemoryJournal, MemorySpool

CLIENT = Caller("c-1", "node1", managed=True, speaks=True)
OTHER = Caller("c-2", "node2", managed=True, speaks=True)
OLD = Caller("10.0.0.9", "10.0.0.9")


@implementer(IJudge)
class PatientJudge:
    """Verdicts come when the test gives them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Mapping[str, str], Deferred[Verdict]]] = []

    def judge(
        self, task: int, parameters: Mapping[str, str], results: Sequence[StoredResult]
    ) -> Deferred[Verdict]:
        verdict: Deferred[Verdict] = Deferred()
        self.asked.append((task, parameters, verdict))
        return verdict

    def close(self) -> Deferred[None]:
        return succeed(None)


@implementer(ICollector)
class ListCollector:
    """Remembers what was settled."""

    def __init__(self) -> None:
        self.settled: list[tuple[int, int | None]] = []

    def settle(self, task: int, ticket: int | None) -> None:
        self.settled.append((task, ticket))

    def finish(self) -> Deferred[CollectReport]:
        return succeed(CollectReport(len(self.settled)))

    def close(self) -> Deferred[None]:
        return succeed(None)


@implementer(IAttemptLog)
class ListLog:
    """Remembers the lines of joblog.tsv."""

    def __init__(self) -> None:
        self.lines: list[tuple[JoblogRow, str]] = []

    def rewrite(self, rows: Iterable[tuple[JoblogRow, str]]) -> None:
        self.lines = list(rows)

    def add(self, rows: Sequence[tuple[JoblogRow, str]]) -> None:
        self.lines += rows

    def close(self) -> Deferred[None]:
        return succeed(None)


class MasterCase(TestCase):
    """Tests against ``self.session``, with all but its core and the master in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.table = [(str(n),) for n in range(1, 4)]
        self.journal = MemoryJournal(self.table)
        self.spool = MemorySpool()
        self.judge = PatientJudge()
        self.collector = ListCollector()
        self.log = ListLog()
        self.stopped: list[object] = []
        self.session = self.make()

    def make(
        self,
        inputs: tuple[InputRule, ...] = (),
        platform: str = "any",
        core: Session | None = None,
        **policy: object,
    ) -> RunningSession:
        folder = Path(self.mktemp())
        job = Job(
            path=folder / "job.ini",
            folder=folder,
            name="job",
            parameters=folder / "table.txt",
            columns=("n",),
            worker=WorkerRule("work", CommandPattern.parse("work $n")),
            hosts=(HostSpec("node1", "node1"), HostSpec("node2", "node2")),
            state=folder / "state",
            inputs=inputs,
            env={"THREADS": "1"},
        )
        teller = Teller(job, Renderer(job), lambda work: succeed(work()))
        session = RunningSession(
            job,
            core or Session(Policy(**policy), len(self.table), self.clock.seconds()),  # type: ignore[arg-type]
            Parts(
                self.journal,
                self.spool,
                self.judge,
                self.collector,
                teller,
                Attempts(self.journal, [self.log], teller, self.clock),
            ),
            {platform: Executable(folder / "work", "md5", "sha")},
            "secret",
            "job-1",
            self.clock,
            self.stopped.append,
        )
        self.addCleanup(session.close)
        return session

    def task(self, caller: Caller = CLIENT) -> TaskMessage:
        message = self.successResultOf(self.session.ask(caller, None))
        assert isinstance(message, TaskMessage)
        return message

    def copy_of_first(self) -> int:
        """The ticket of a copy of the first task, for another host."""
        for _ in self.table[1:]:
            self.task()
        message = self.task(OTHER)
        assert message.task == 1
        return message.ticket

    def store(self, ticket: int, text: bytes = b"1") -> Deferred[None]:
        upload = self.session.upload(CLIENT, ticket)
        assert upload is not None
        upload.begin("output", None)
        upload.write(text)
        return self.session.complete(CLIENT, ticket, upload, 0.5)


class MasterTests(MasterCase):
    def test_it_keeps_its_ports(self) -> None:
        verifyObject(ISession, self.session)
        verifyObject(IHostWatcher, self.session)
        verifyObject(IJudge, self.judge)
        verifyObject(ICollector, self.collector)
        verifyObject(IAttemptLog, self.log)

    def test_a_task_is_told_only_when_its_ticket_is_on_disk(self) -> None:
        self.journal.hold()
        waiting = self.session.ask(CLIENT, "work")
        self.assertNoResult(waiting)
        self.journal.release()
        message = self.successResultOf(waiting)
        assert isinstance(message, TaskMessage)
        assert (message.ticket, message.command_line) == (10000, "work 1")
        assert self.journal.records == [
            TicketGiven(10000, 1, "c-1", "node1", managed=True, speaks=True)
        ]

    def test_a_repeated_report_waits_for_the_first(self) -> None:
        ticket = self.task().ticket
        second = self.session.upload(CLIENT, ticket)
        assert second is not None
        self.journal.hold()
        first = self.store(ticket)
        again = self.session.complete(CLIENT, ticket, second, None)
        self.assertNoResult(first)
        self.assertNoResult(again)
        self.journal.release()
        self.successResultOf(first)
        self.successResultOf(again)
        assert self.collector.settled == [(1, ticket)]
        assert len([one for one in self.journal.records if isinstance(one, ResultKept)]) == 1

    def test_a_result_of_no_use_waits_for_what_made_it_so(self) -> None:
        first, copy = self.task().ticket, self.copy_of_first()
        self.journal.hold()
        stored = self.store(first)
        assert self.session.upload(OTHER, copy) is None
        confirmed = self.session.complete(OTHER, copy, None, None)
        self.assertNoResult(confirmed)
        self.journal.release()
        self.successResultOf(stored)
        self.successResultOf(confirmed)

    def test_a_repeated_failure_waits_for_the_first(self) -> None:
        ticket = self.task().ticket
        self.journal.hold()
        reports = [self.session.fail(CLIENT, ticket, Failure("oops"), None) for _ in range(2)]
        for report in reports:
            self.assertNoResult(report)
        self.journal.release()
        for report in reports:
            self.successResultOf(report)

    def test_nobody_is_told_to_die_before_the_last_result_is_on_disk(self) -> None:
        tickets = [self.task().ticket for _ in self.table]
        for ticket in tickets[:-1]:
            self.successResultOf(self.store(ticket))
        self.journal.hold()
        self.store(tickets[-1])
        asked = self.session.ask(OTHER, None)
        self.assertNoResult(asked)
        self.journal.release()
        assert self.successResultOf(asked) == NoTask(None)

    def test_a_result_and_what_follows_from_it_are_one_transaction(self) -> None:
        ticket = self.task().ticket
        before = len(self.journal.records)
        self.successResultOf(self.store(ticket))
        kinds = [type(record).__name__ for record in self.journal.records[before:]]
        assert kinds == ["ResultKept", "TicketEnded", "TaskDone"]
        self.clock.advance(attempts.GATHERED)
        ((row, command),) = self.log.lines
        assert (row.ticket, row.task, row.end, command) == (ticket, 1, "done", "work 1")

    def test_a_peer_that_leaves_before_the_commit_takes_nothing(self) -> None:
        self.journal.hold()
        waiting = self.session.ask(CLIENT, None)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.journal.release()
        assert self.session.statistics().running == 0
        ended = [one for one in self.journal.records if isinstance(one, TicketEnded)]
        assert [one.end for one in ended] == [End.CANCELLED]
        assert self.task().task == 1

    def test_a_held_request_is_given_up_when_its_peer_leaves(self) -> None:
        self.session.close()
        self.session = self.make(duplicates=1)
        tickets = [self.task().ticket for _ in self.table]
        held = self.session.ask(OTHER, None)
        second = self.session.ask(OTHER, None)
        held.cancel()
        self.failureResultOf(held, CancelledError)
        self.successResultOf(
            self.session.fail(CLIENT, tickets[0], Failure("exit status 1", exit_status=1), None)
        )
        message = self.successResultOf(second)
        assert isinstance(message, TaskMessage)
        assert message.task == 1

    def test_a_held_request_is_answered_when_its_time_is_over(self) -> None:
        for _ in self.table:
            self.task()
        held = self.session.ask(CLIENT, None)
        self.assertNoResult(held)
        self.clock.advance(30)
        answer = self.successResultOf(held)
        assert isinstance(answer, NoTask)
        assert answer.retry_after is not None

    def test_after_the_last_result_clients_are_told_to_die(self) -> None:
        for _ in self.table:
            self.successResultOf(self.store(self.task().ticket))
        finish = self.successResultOf(self.session.finished)
        assert finish.outcome is Outcome.SUCCEEDED
        left = self.session.clients_left()
        self.clock.advance(0)
        self.assertNoResult(left)
        assert self.successResultOf(self.session.ask(CLIENT, None)) == NoTask(None)
        self.clock.advance(0)
        self.successResultOf(left)

    def test_a_client_whose_answer_waits_for_the_disk_is_waited_for(self) -> None:
        tickets = [self.task().ticket for _ in self.table]
        for ticket in tickets[:-1]:
            self.successResultOf(self.store(ticket))
        self.journal.hold()
        self.store(tickets[-1])
        asked = self.session.ask(CLIENT, None)
        left = self.session.clients_left()
        self.clock.advance(0)
        self.assertNoResult(left)
        self.journal.release()
        assert self.successResultOf(asked) == NoTask(None)
        self.clock.advance(0)
        self.successResultOf(left)

    def test_clients_that_never_ask_again_are_waited_for_two_pings_long(self) -> None:
        self.task()
        self.session.interrupt("SIGINT")
        assert self.successResultOf(self.session.finished).outcome is Outcome.INTERRUPTED
        left = self.session.clients_left()
        self.assertNoResult(left)
        self.clock.advance(25)
        self.successResultOf(left)

    def test_what_follows_from_new_settings_at_a_restart_is_journalled(self) -> None:
        ticket = self.task().ticket
        self.successResultOf(self.session.fail(CLIENT, ticket, Failure("oops"), None))
        self.session.close()
        core = Session(Policy(attempts=1), len(self.table), self.clock.seconds())
        core.replay([one for one in self.journal.records if isinstance(one, Record)])
        self.session = self.make(core=core)
        self.session.go_on([])
        assert self.journal.records[-1] == TaskFailed(1, "oops")
        assert self.collector.settled == [(1, None)]

    def test_a_verdict_decides(self) -> None:
        self.session.close()
        self.session = self.make(validates=True)
        ticket = self.task().ticket
        self.successResultOf(self.store(ticket))
        ((task, parameters, verdict),) = self.judge.asked
        assert (task, parameters) == (1, {"n": "1"})
        assert self.session.ping(CLIENT, ticket)
        verdict.callback(Verdict(False, "not a number"))
        assert self.collector.settled == []
        assert self.session.statistics().hosts["node1"].ends[End.INVALID] == 1
        assert not self.session.ping(CLIENT, ticket)

    def test_many_results_are_validated_some_at_a_time(self) -> None:
        self.table = [(str(n),) for n in range(30)]
        self.journal = MemoryJournal(self.table)
        self.session.close()
        self.session = self.make(validates=True)
        for _ in self.table:
            self.successResultOf(self.store(self.task().ticket))
        assert len(self.judge.asked) == 8
        for _, _, verdict in self.judge.asked:  # grows as it goes on
            verdict.callback(Verdict(True))
        assert len(self.judge.asked) == 30
        assert self.successResultOf(self.session.finished).outcome is Outcome.SUCCEEDED

    def test_a_result_that_is_no_use_any_more_is_not_validated(self) -> None:
        self.table = [(str(n),) for n in range(8)]
        self.journal = MemoryJournal(self.table)
        self.session.close()
        self.session = self.make(validates=True)
        tickets = [self.task().ticket for _ in self.table]
        tickets += [self.task(OTHER).ticket for _ in self.table]
        for ticket in tickets:
            self.successResultOf(self.store(ticket))
        assert len(self.judge.asked) == 8
        for _, _, verdict in reversed(self.judge.asked[:8]):
            verdict.callback(Verdict(True))  # makes place for the first copy that still waits
        assert [task for task, _, _ in self.judge.asked[8:]] == [1, 2, 3, 4]
        assert self.successResultOf(self.session.finished).outcome is Outcome.SUCCEEDED

    def test_after_the_end_nothing_more_is_validated(self) -> None:
        self.table = [(str(n),) for n in range(30)]
        self.journal = MemoryJournal(self.table)
        self.session.close()
        self.session = self.make(validates=True)
        for _ in self.table:
            self.successResultOf(self.store(self.task().ticket))
        self.session.close()
        records = len(self.journal.records)
        for _, _, verdict in self.judge.asked:  # as those of a judge that closes
            verdict.callback(Verdict(None, "closed"))
        assert (len(self.judge.asked), len(self.journal.records)) == (8, records)

    def test_a_disk_that_refuses_confirms_nothing(self) -> None:
        ticket = self.task().ticket
        self.journal.broken = True
        self.failureResultOf(self.store(ticket), JournalError)
        assert self.stopped

    def test_on_a_full_disk_work_pauses_and_goes_on_by_itself(self) -> None:
        ticket, other = self.task().ticket, self.task(OTHER).ticket
        self.journal.full = True
        self.failureResultOf(self.store(ticket), JournalError)
        assert self.session.disk.full
        waiting = self.session.ask(OTHER, None)
        self.assertNoResult(waiting)
        with self.assertRaises(JournalError):
            self.session.upload(OTHER, other)
        self.journal.full = False
        assert not self.stopped
        assert isinstance(self.successResultOf(waiting), TaskMessage)
        assert self.collector.settled == [(1, ticket)]
        assert self.session.upload(CLIENT, ticket) is None
        self.successResultOf(self.session.complete(CLIENT, ticket, None, None))
        assert len([one for one in self.journal.records if isinstance(one, ResultKept)]) == 1

    def test_who_asks_while_the_disk_is_full_is_told_to_come_back_in_the_end(self) -> None:
        self.session.disk.journal_changed("disk full")
        waiting = self.session.ask(CLIENT, None)
        self.clock.advance(30)
        self.failureResultOf(waiting, JournalError)
        leaving = self.session.ask(CLIENT, None)
        leaving.cancel()
        self.failureResultOf(leaving, CancelledError)
        self.session.disk.journal_changed("")
        assert self.session.statistics().tickets == 0

    def test_an_input_that_is_gone_uses_an_attempt_and_the_client_gets_another_task(self) -> None:
        self.session.close()
        gone = InputRule("data", InputKind.FILE, Pattern.parse("gone/$n"))
        self.session = self.make(inputs=(gone,), attempts=1)
        answer = self.successResultOf(self.session.ask(CLIENT, None))
        assert answer == NoTask(None)
        assert self.session.statistics().failed == 3
        assert "gone/1" in self.session.failures[1]

    def test_a_mistake_of_ours_in_telling_a_task_holds_up_no_other_task(self) -> None:
        def mistake(cells: Sequence[str]) -> str:
            if cells == ("1",):
                raise RuntimeError("of ours")
            return f"work {cells[0]}"

        self.session.close()
        self.session = self.make(attempts=1)
        self.patch(self.session._parts.teller._renderer, "line", mistake)

        assert [self.task(CLIENT).task, self.task(OLD).task] == [2, 3]
        assert "of ours" in self.session.failures[1]
        assert len(self.flushLoggedErrors(RuntimeError)) == 1

    def test_a_client_that_did_not_announce_itself_gets_variables_in_the_command(self) -> None:
        assert self.task(OLD).command_line == "env THREADS=1 work 1"
        assert self.task(CLIENT).command_line == "work 2"

    def test_config_says_newer_things_only_to_those_who_ask(self) -> None:
        assert [key for key, _ in self.session.config(OLD, None, None)] == [
            "DeleteWorker", "DeleteClient", "Ping",
        ]  # fmt: skip
        pairs = dict(self.session.config(CLIENT, "linux-x86_64", None))
        assert pairs["SHA256"] == "sha"
        assert pairs["Worker"] == "work"
        assert pairs["Environment"] == "THREADS=1"
        again = Caller(pairs["Client"], "node1", managed=True, speaks=True)
        assert dict(self.session.config(again, None, None))["Client"] == pairs["Client"]

    def test_the_slots_of_a_host_are_those_of_its_last_client(self) -> None:
        self.session.config(CLIENT, None, 2)
        self.session.config(OLD, None, None)
        assert self.session.slots == {CLIENT.host: 2}
        self.session.config(CLIENT, None, 16)
        assert self.session.slots == {CLIENT.host: 16}

    def test_a_platform_without_executable_is_named(self) -> None:
        self.session.close()
        self.session = self.make(platform="linux-x86_64")
        with self.assertRaises(WrongPlatformError) as caught:
            self.session.config(CLIENT, "darwin-aarch64", None)
        assert "darwin-aarch64" in str(caught.exception)
        with self.assertRaises(WrongPlatformError):
            self.session.worker(CLIENT, "work", "darwin-aarch64")

    def test_wrong_names_are_refused(self) -> None:
        self.failureResultOf(self.session.ask(CLIENT, "other"), WrongSessionError)
        with self.assertRaises(WrongSessionError):
            self.session.worker(CLIENT, "other", "any")
        assert self.session.worker(CLIENT, "work", "linux-x86_64").name == "work"

    def test_the_tickets_of_a_client_that_died_are_lost_at_once(self) -> None:
        pairs = dict(self.session.config(CLIENT, None, None))
        caller = Caller(pairs["Client"], "node1", managed=True, speaks=True)
        self.task(caller)
        self.session.client_ended("node1", "signal 9")
        assert self.session.statistics().running == 0
        assert self.task(OTHER).task == 1
        assert self.session.hosts["node1"].status == "ended"

    def test_a_run_without_any_usable_host_ends(self) -> None:
        for host in ("node1", "node2"):
            self.session.host_failed(HostError(host, "connect", "host key unknown"), final=True)
        finish = self.successResultOf(self.session.finished)
        assert finish.outcome is Outcome.NO_HOST

    def test_sessions_are_found_by_their_secret(self) -> None:
        master = Master()
        master.add(self.session)
        assert master.find("secret") is self.session
        assert master.find("Secret") is None
        assert master.find("\udcff") is None
        master.remove(self.session)
        assert master.find("secret") is None


class TableFeedTests(TestCase):
    def test_each_chunk_is_read_once_for_all_who_wait(self) -> None:
        journal = MemoryJournal([(str(n),) for n in range(1, 1001)])
        reads: list[int] = []
        slow: list[tuple[Deferred[object], object]] = []

        class Slow(MemoryJournal):
            def rows(self, first: int, count: int) -> Deferred[object]:  # type: ignore[override]
                reads.append(first)
                later: Deferred[object] = Deferred()
                slow.append((later, journal.rows(first, count).result))
                return later

        feed = TableFeed(Slow())
        waiting = [feed.row(task) for task in (1, 2, 256, 129)]
        for later, rows in slow:
            later.callback(rows)
        assert [self.successResultOf(one).cells for one in waiting] == [
            ("1",), ("2",), ("256",), ("129",),
        ]  # fmt: skip
        assert reads == [1, 257]
        assert self.successResultOf(feed.row(200)).cells == ("200",)
        assert reads == [1, 257]

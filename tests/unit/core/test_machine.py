"""Whatever clients, hosts, networks and validators do: nothing is lost, nothing counts twice."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pexecd.core.effects import (
    Assign,
    Discard,
    Effect,
    Finish,
    Judge,
    Record,
    Refuse,
    Settle,
    Supply,
    TaskDone,
    TaskFailed,
    TaskReopened,
    TicketEnded,
    TicketGiven,
)
from pexecd.core.events import (
    AskWithdrawn,
    BodyEnded,
    BodyStarted,
    ClientGone,
    ClientHeard,
    Event,
    Exchanged,
    HostDrained,
    HostsUnusable,
    JudgeFailed,
    ResultJudged,
    ResultStored,
    StopAsked,
    TaskAsked,
    TaskUntold,
    TicketFailed,
    TicketPinged,
    TicketUndelivered,
    TimePassed,
)
from pexecd.core.session import Session
from pexecd.core.values import Caller, End, Failure, Outcome, Policy
from tests.unit.core.invariants import check_session
from tests.unit.core.scene import ANNA, BERT, CARL, NEWER, PLAIN

CALLERS = (ANNA, BERT, CARL, NEWER, PLAIN, Caller("client-a2", "anna", True, True))
#: Who brings the run to its end: hosts that nothing is wrong with.
HELPERS = tuple(Caller(f"helper-{n}", f"helper-{n}", managed=True, speaks=True) for n in range(2))


def policy_of(**given: Any) -> Policy:
    """For ``builds``: of a named tuple it would make up also what has a default."""
    return Policy(**given)


policies = st.builds(
    policy_of,
    timeout=st.sampled_from([0.0, 20.0]),
    attempts=st.integers(1, 3),
    duplicates=st.integers(1, 3),
    stop_after=st.sampled_from([0, 0, 0, 3]),
    give_up=st.sampled_from([100.0, 1e6]),
    ping=st.sampled_from([0.0, 10.0]),
    patience=st.sampled_from([50.0, 3600.0]),
    unjudged=st.sampled_from([2, 1000]),
    bad_streak=st.integers(1, 2),
    hold=st.sampled_from([30.0, 200.0]),
    demanding=st.sampled_from([False, False, False, True]),
    validates=st.booleans(),
)
callers = st.sampled_from(CALLERS)
#: Which of the tickets or asks so far: counted back from the newest, most often.
places = st.integers(0, 30)


class SessionMachine(RuleBasedStateMachine):
    """A session, its journal, and a world in which every message may come twice, late or never."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0
        self.asks = 0
        self.open_asks: set[int] = set()
        self.tickets: list[int] = []
        self.to_judge: list[int] = []
        self.kept: set[int] = set()
        self.records: list[Record] = []
        self.ends: dict[int, End] = {}
        self.results: dict[int, int] = {}
        self.settled: dict[int, int | None] = {}
        self.finish: Finish | None = None
        self.callers: dict[int, Caller] = {}

    @initialize(
        policy=policies,
        tasks=st.sampled_from([1, 2, 3, 5, 8, 40]),
        may_end=st.sampled_from([True, False, False, False]),
    )
    def begin(self, policy: Policy, tasks: int, may_end: bool) -> None:
        self.may_end = may_end
        self.policy = policy
        self.tasks = tasks
        self.session = Session(policy, tasks, self.at)

    # --- the master's side -----------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        return self.perform(self.session.handle(event))

    def perform(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if isinstance(effect, Record):
                self.records.append(effect)
            self.perform_one(effect)
        return effects

    def perform_one(self, effect: Effect) -> None:
        match effect:
            case TicketGiven(ticket=ticket):
                assert ticket not in self.tickets, "a ticket number was used again"
                assert self.finish is None
                self.tickets.append(ticket)
            case Assign(ask=ask, ticket=ticket, task=task, caller=caller):
                self.answered(ask)
                assert caller == self.callers[ask]
                assert caller.speaks or not self.policy.demanding
                assert task not in self.results, "a task that is done was given out"
                assert self.session.task_of(ticket) == task
            case Refuse(ask=ask):
                self.answered(ask)
            case Supply():
                self.supplied(effect)
            case TicketEnded(ticket=ticket, end=end):
                before = self.ends.get(ticket)
                assert before is None or end in {End.DONE, End.INVALID}
                assert before not in {End.DONE, End.INVALID}, "it had ended for good"
                self.ends[ticket] = end
            case TaskDone(task=task, ticket=ticket):
                assert task not in self.results, "a task has two results"
                assert self.ends[ticket] is End.DONE
                assert ticket in self.kept, "its result was thrown away"
                self.results[task] = ticket
            case TaskFailed(task=task):
                assert task not in self.settled
            case Settle(task=task, ticket=winner):
                assert self.settled.get(task) is None
                assert winner is None or self.results[task] == winner
                self.settled[task] = winner
            case Judge(ticket=ticket):
                assert self.policy.validates
                assert ticket in self.kept
                assert ticket not in self.to_judge
                self.to_judge.append(ticket)
            case Discard(ticket=ticket):
                assert ticket not in self.results.values(), "an accepted result is thrown away"
                self.kept.discard(ticket)
            case Finish():
                assert self.finish is None, "the run ended twice"
                self.finish = effect
            case _:
                pass

    def supplied(self, supply: Supply) -> None:
        assert supply.ask == self.asks
        assert supply.caller == self.callers[supply.ask]
        assert self.tickets[len(self.tickets) - len(supply.given) :] == [t for t, _ in supply.given]
        for ticket, task in supply.given:
            assert task not in self.results, "a task that is done was given out"
            assert self.session.task_of(ticket) == task
            assert len(self.session._ledger.works[task].tickets) == 1 + sum(
                other.doubtful for other in self.session._ledger.works[task].tickets
            ), "a copy"
        assert all(self.session.over(ticket) for ticket in supply.over)
        assert sum((bool(supply.given), supply.none, supply.end)) <= 1
        drained = self.session._ledger.hosts[supply.caller.host].drained
        assert supply.end <= (self.finish is not None or drained)
        assert not (drained and supply.given)

    def answered(self, ask: int) -> None:
        assert ask in self.open_asks, "an ask was answered twice, or after its peer had left"
        self.open_asks.remove(ask)

    def new_ask(self, caller: Caller) -> TaskAsked:
        self.asks += 1
        self.open_asks.add(self.asks)
        self.callers[self.asks] = caller
        return TaskAsked(self.at, self.asks, caller)

    def ticket(self, place: int) -> int:
        """One of the tickets so far, or one that was never given out."""
        if place < len(self.tickets):
            return self.tickets[-1 - place]
        return 9999 if place % 2 else 10000 + len(self.tickets) + place

    # --- what clients do -------------------------------------------------------------------

    @rule(caller=callers)
    def ask(self, caller: Caller) -> None:
        self.handle(self.new_ask(caller))

    @rule(caller=callers, count=st.integers(2, 5))
    def ask_for_all_slots(self, caller: Caller, count: int) -> None:
        for _ in range(count):
            self.handle(self.new_ask(caller))

    @rule(caller=callers, well=st.booleans(), count=st.integers(1, 3))
    def work(self, caller: Caller, well: bool, count: int) -> None:
        """A client does well, or badly, with task after task."""
        for _ in range(count):
            self.work_once(caller, well)

    @rule(count=st.integers(1, 3))
    def break_a_host(self, count: int) -> None:
        """One host fails while another does well: rare, if left to chance."""
        self.handle(self.new_ask(BERT))
        for _ in range(count):
            self.work_once(ANNA, well=False)
            self.work_once(BERT, well=True)
        self.work_once(ANNA, well=False)

    def work_once(self, caller: Caller, well: bool) -> None:
        for effect in self.handle(self.new_ask(caller)):
            if isinstance(effect, Assign):
                if not well:
                    self.handle(TicketFailed(self.at, effect.ticket, Failure("disk full")))
                    continue
                self.store(effect.ticket)
                if effect.ticket in self.to_judge:
                    self.to_judge.remove(effect.ticket)
                    self.handle(ResultJudged(self.at, effect.ticket, True))

    @precondition(lambda self: self.open_asks)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        ask = data.draw(st.sampled_from(sorted(self.open_asks)))
        self.open_asks.remove(ask)
        self.handle(AskWithdrawn(self.at, ask))

    @rule(ask=st.integers(0, 20))
    def withdraw_what_was_answered(self, ask: int) -> None:
        if ask not in self.open_asks:
            assert self.handle(AskWithdrawn(self.at, ask)) == []

    @rule(place=places)
    def lose_an_answer(self, place: int) -> None:
        self.handle(TicketUndelivered(self.at, self.ticket(place)))

    @rule(place=places, demanding=st.booleans())
    def cannot_tell_by_exchange(self, place: int, demanding: bool) -> None:
        self.handle(TaskUntold(self.at, self.ticket(place), "cannot tell", demanding, None))

    @rule(place=places, demanding=st.booleans(), caller=callers)
    def cannot_tell(self, place: int, demanding: bool, caller: Caller) -> None:
        again = self.new_ask(caller)
        self.handle(TaskUntold(self.at, self.ticket(place), "cannot tell", demanding, again))

    @rule(place=places)
    def ping(self, place: int) -> None:
        self.handle(TicketPinged(self.at, self.ticket(place)))

    @rule(caller=callers, returns=st.booleans())
    def drain_a_host(self, caller: Caller, returns: bool) -> None:
        self.handle(HostDrained(self.at, caller.host, returns))

    @rule(caller=callers)
    def be_heard(self, caller: Caller) -> None:
        self.handle(ClientHeard(self.at, caller))

    @rule(place=places)
    def start_a_body(self, place: int) -> None:
        self.handle(BodyStarted(self.at, self.ticket(place)))

    @rule(place=places)
    def break_off_a_body(self, place: int) -> None:
        self.handle(BodyEnded(self.at, self.ticket(place)))

    @rule(place=places, seconds=st.sampled_from([None, 0.5]))
    def complete(self, place: int, seconds: float | None) -> None:
        self.store(self.ticket(place), seconds)

    def store(self, ticket: int, seconds: float | None = None) -> None:
        if self.session.wanted(ticket):
            self.kept.add(ticket)
        self.handle(ResultStored(self.at, ticket, seconds))

    @rule(
        place=places,
        end=st.sampled_from([End.FAILED, End.FAILED, End.TIMED_OUT, End.CANCELLED]),
        count=st.integers(1, 3),
    )
    def fail(self, place: int, end: End, count: int) -> None:
        for nearer in range(count):
            ticket = self.ticket(max(place - nearer, 0))
            self.handle(TicketFailed(self.at, ticket, Failure("exit status 1", end)))

    @rule(data=st.data(), caller=callers, want=st.sampled_from([0, 1, 2, 5, 50]))
    def exchange(self, data: st.DataObject, caller: Caller, want: int) -> None:
        """Newest tickets first, each told of once, in any way; or one of them twice."""
        places = data.draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=5))
        self.swap(caller, want, {self.ticket(place): kind for place, kind in places})

    @rule(caller=callers, want=st.integers(1, 8), count=st.integers(1, 3))
    def work_by_exchange(self, caller: Caller, want: int, count: int) -> None:
        """A client that prefetches: it tells what it has done when it fetches more."""
        kinds: dict[int, int] = {}
        for number in range(count):
            supply = self.swap(caller, want, kinds)
            kinds = {ticket: (ticket + number) % 7 % 5 for ticket, _ in supply.given}
        self.swap(caller, 0, kinds)

    def swap(self, caller: Caller, want: int, kinds: dict[int, int]) -> Supply:
        """An exchange that tells of each ticket: done, failed, running, waiting or back."""
        self.asks += 1
        self.callers[self.asks] = caller
        told: list[list[int]] = [[t for t, its in kinds.items() if its == n] for n in range(5)]
        known = {ticket: self.session.known(ticket) for ticket in kinds}
        for ticket in told[0]:
            if self.session.wanted(ticket):
                self.kept.add(ticket)
        effects = self.handle(
            Exchanged(
                self.at,
                self.asks,
                caller,
                want,
                stored=[(ticket, 0.5) for ticket in told[0]],
                failed=[(ticket, Failure("exit status 1")) for ticket in told[1]],
                running=[(ticket, 1.0 * (ticket % 30)) for ticket in told[2]],
                waiting=told[3],
                back=told[4],
            )
        )
        (supply,) = [effect for effect in effects if isinstance(effect, Supply)]
        assert len(supply.given) <= want
        assert supply.none or supply.end or supply.given or not want
        named = told[2] + told[3]
        assert [t for t in named if self.session.over(t)] == list(supply.over)
        for ticket in told[1] + told[4]:
            assert not known[ticket] or ticket not in self.session._progress.tickets
        return supply

    @rule(caller=callers)
    def die(self, caller: Caller) -> None:
        self.handle(ClientGone(self.at, caller.client))

    # --- what the master's other parts do ----------------------------------------------------

    @precondition(lambda self: self.to_judge)
    @rule(data=st.data(), verdict=st.sampled_from([True, True, False, None]))
    def validate(self, data: st.DataObject, verdict: bool | None) -> None:
        ticket = data.draw(st.sampled_from(self.to_judge))
        self.to_judge.remove(ticket)
        if verdict is None:
            self.handle(JudgeFailed(self.at, ticket, "raised"))
        else:
            self.handle(ResultJudged(self.at, ticket, verdict, "" if verdict else "no number"))

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0, 40.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.at += seconds
        self.handle(TimePassed(self.at))

    @rule()
    def reach_the_deadline(self) -> None:
        due = self.session.next_deadline
        if due is not None and due < self.at + 1e5:
            self.at = max(self.at, due)
            self.handle(TimePassed(self.at))

    @precondition(lambda self: self.may_end)
    @rule()
    def find_no_usable_host(self) -> None:
        self.handle(HostsUnusable(self.at, "no host"))

    @precondition(lambda self: self.may_end)
    @rule()
    def interrupt(self) -> None:
        self.handle(StopAsked(self.at, "Ctrl-C"))

    @rule()
    def restart(self) -> None:
        """The process is killed; another goes on from the journal."""
        before = self.session
        self.session = Session(self.policy, self.tasks, self.at)
        self.session.replay(self.records)
        assert_same_ledger(before, self.session)
        self.open_asks.clear()
        self.to_judge.clear()
        self.finish = None
        doubtful = any(ticket.doubtful for ticket in before._progress.tickets.values())
        self.perform(self.session.resume(self.at, sorted(self.kept)))
        if not doubtful:
            # One that failed and is tried again is not held up by a late result that waits.
            late = {result.work.task for result in before._progress.results.values()}
            assert pending_set(self.session) - late == pending_set(before) - late
        assert self.session._progress.tickets.keys() == before._progress.tickets.keys()
        # Two late results of a task that had failed are judged apart, though one may win.
        left = {t for t in before._progress.results if before.task_of(t) not in self.results}
        assert self.session._progress.results.keys() == left

    @rule()
    def retry_what_failed(self) -> None:
        """The next run tries the failed tasks again; late results of them may still wait."""
        failed = [task for task, ticket in self.settled.items() if ticket is None]
        for task in failed:
            del self.settled[task]
            self.records.append(TaskReopened(task, self.session._ledger.next_ticket))
        self.session = Session(self.policy, self.tasks, self.at)
        self.session.replay(self.records)
        self.open_asks.clear()
        self.to_judge.clear()
        self.finish = None
        self.perform(self.session.resume(self.at, sorted(self.kept)))

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        check_session(self.session)
        assert self.session._asks._open.keys() == self.open_asks
        assert self.session.finished == self.finish
        numbers = self.session.statistics()
        assert numbers.done == len(self.results)
        assert numbers.failed == len(self.settled) - numbers.done
        assert numbers.tickets == len(self.tickets)
        due = self.session.next_deadline
        assert self.finish is not None or due is not None, "it would wait for ever"

    def teardown(self) -> None:
        """Once nothing goes wrong any more, the run comes to its end."""
        if not hasattr(self, "session"):
            return
        for _ in range(40 * (self.tasks + len(self.tickets))):
            if self.finish is not None:
                break
            self.help()
        assert self.finish is not None, "it never ends"
        if self.finish.outcome is Outcome.SUCCEEDED:
            assert self.results.keys() == set(range(1, self.tasks + 1))
        elif "tasks failed" in self.finish.reason:
            assert self.settled.keys() == set(range(1, self.tasks + 1))
        for caller in HELPERS:
            self.handle(self.new_ask(caller))
        self.at += 100
        self.handle(TimePassed(self.at))
        self.all_is_well()
        assert not self.open_asks
        assert self.session.clients_left() == 0

    def help(self) -> None:
        """Good clients on two hosts work whatever they are given; nobody else does anything."""
        for ticket in self.to_judge.copy():
            self.to_judge.remove(ticket)
            self.handle(ResultJudged(self.at, ticket, True))
        for caller in HELPERS:
            ask = self.new_ask(caller)
            for effect in self.handle(ask):
                if isinstance(effect, Assign) and effect.caller in HELPERS:
                    self.store(effect.ticket)
            self.swap(caller, 0, dict.fromkeys((t for t, _ in self.swap(caller, 3, {}).given), 0))
            if self.finish is None and self.session.next_deadline is not None:
                # Other clients that were held do not take anything: they have left.
                for other in sorted(self.open_asks):
                    if other != ask.ask and self.callers[other] not in HELPERS:
                        self.open_asks.remove(other)
                        self.handle(AskWithdrawn(self.at, other))
        if self.finish is None:
            self.reach_the_deadline()
            for number, live in list(self.session._progress.tickets.items()):
                if live.client.name.startswith("helper"):
                    self.store(number)
                elif not live.watched and not self.policy.timeout:
                    # Nothing but its client can end it: it reports a failure.
                    self.handle(TicketFailed(self.at, number, Failure("gave up")))
                elif live.arriving:
                    self.handle(BodyEnded(self.at, number))


def pending_set(session: Session) -> set[int]:
    ledger, dispatch = session._ledger, session._dispatch
    fresh = {task for task in range(1, ledger.tasks + 1) if ledger._phases[task] == 0}
    return fresh | dispatch._retries.keys() | dispatch._demanding.keys()


def assert_same_ledger(one: Session, other: Session) -> None:
    """All that the records say is the same in both."""
    a, b = one._ledger, other._ledger
    assert a._phases == b._phases
    assert (a.fresh, a.done, a.failed, a.given) == (b.fresh, b.done, b.failed, b.given)
    assert (a._task_of, a._end_of, a._seconds_of) == (b._task_of, b._end_of, b._seconds_of)
    for ticket in range(10000, a.next_ticket):
        assert a.host_of(ticket).name == b.host_of(ticket).name
    for name, host in b.hosts.items():
        before = a.hosts[name]
        assert (before.ends, before.running) == (host.ends, host.running)
        assert abs(before.busy - host.busy) < 1e-6
    assert a.works.keys() == b.works.keys()
    for task, work in a.works.items():
        copy = b.works[task]
        assert (work.attempts, work.losses) == (copy.attempts, copy.losses)
        assert work.reason == copy.reason


SessionMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSession = SessionMachine.TestCase

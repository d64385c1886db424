"""The cost of an event does not grow with the number of tasks."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, Self

import pytest

from pexecd.core.dispatch import MOST_RETRIES
from pexecd.core.effects import Supply
from pexecd.core.events import ClientGone, Exchanged, ResultStored, TaskAsked, TicketFailed
from pexecd.core.session import Session
from pexecd.core.values import FIRST_TICKET, Caller, Failure, Outcome, Policy

CALLERS = [Caller(f"client-{n}", f"host-{n}", managed=True, speaks=True) for n in range(8)]


class Steps:
    """Counts the lines of Python that run in the core."""

    def __init__(self) -> None:
        self.count = 0
        self._before = sys.gettrace()

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, _frame: FrameType, _what: str, _value: Any) -> Any:
        self.count += 1
        return self._trace


def half_done(tasks: int, **policy: object) -> tuple[Session, int]:
    """A session in the middle of its work, and its next task's number."""
    session = Session(Policy(timeout=600, stop_after=0, **policy), tasks, 0.0)  # type: ignore[arg-type]
    for number in range(1, tasks // 2 + 1):
        caller = CALLERS[number % 8]
        session.handle(TaskAsked(0.0, number, caller))
        if number > 8:
            session.handle(ResultStored(0.0, FIRST_TICKET + number - 9))
    return session, tasks // 2 + 1


@pytest.mark.parametrize("what", ["done", "failed", "gone"])
def test_an_event_costs_the_same_in_a_small_and_in_a_large_session(what: str) -> None:
    costs = []
    for tasks in (1_000, 20_000):
        session, number = half_done(tasks)
        with Steps() as steps:
            for ask in range(number, number + 100):
                ticket = FIRST_TICKET + ask - 9
                session.handle(TaskAsked(1.0, ask, CALLERS[ask % 8]))
                if what == "done":
                    session.handle(ResultStored(1.0, ticket))
                elif what == "failed":
                    session.handle(TicketFailed(1.0, ticket, Failure("no")))
                else:
                    session.handle(ClientGone(1.0, CALLERS[ask % 8].client))
        costs.append(steps.count)
    small, large = costs
    assert large < 1.2 * small


@pytest.mark.parametrize("what", ["done", "failed", "running", "waiting", "back"])
def test_a_ticket_costs_the_same_in_any_exchange(what: str) -> None:
    """In a small session and in a large one, alone or among many."""
    costs = []
    for tasks, size in ((2_000, 1), (2_000, 32), (20_000, 32)):
        session, ask = half_done(tasks)
        tickets: list[int] = []
        with Steps() as steps:
            for number in range(320 // size):
                told: list[Any] = list(tickets)
                if what == "failed":
                    told = [(ticket, Failure("no")) for ticket in tickets]
                elif what in {"done", "running"}:
                    told = [(ticket, 0.1) for ticket in tickets]
                posted = {"stored" if what == "done" else what: told}
                effects = session.handle(
                    Exchanged(1.0, ask + number, CALLERS[number % 8], size, **posted)
                )
                (supply,) = [effect for effect in effects if isinstance(effect, Supply)]
                tickets = [ticket for ticket, _ in supply.given]
                assert len(tickets) == size
        costs.append(steps.count)
    alone, small, large = costs
    assert small < alone
    assert large < 1.2 * small


def test_waiting_asks_do_not_make_events_dearer() -> None:
    costs = []
    for asks in (10, 2_000):
        session = Session(Policy(), 16, 0.0)
        for number in range(asks):
            session.handle(TaskAsked(0.0, number, CALLERS[0]))
        with Steps() as steps:
            for ticket in range(FIRST_TICKET, FIRST_TICKET + 4):
                session.handle(ResultStored(1.0, ticket))
        costs.append(steps.count)
    small, large = costs
    assert large < 1.2 * small


def test_a_large_session_runs_through_and_keeps_little() -> None:
    tasks = 100_000
    session = Session(Policy(timeout=600), tasks, 0.0)
    for number in range(tasks):
        at = number * 0.001
        session.handle(TaskAsked(at, number, CALLERS[number % 8]))
        if number >= 8:
            session.handle(ResultStored(at, FIRST_TICKET + number - 8, 0.01))
        assert session._deadlines.held < 200
    assert len(session._ledger.works) == 8
    for ticket in range(FIRST_TICKET + tasks - 8, FIRST_TICKET + tasks):
        session.handle(ResultStored(100.0, ticket, 0.01))
    finish = session.finished
    assert finish is not None
    assert finish.outcome is Outcome.SUCCEEDED
    assert not session._ledger.works
    assert not session._progress.tickets
    assert session.statistics().done == tasks


def test_retries_on_one_host_do_not_pile_up() -> None:
    """A failed task is an object, a fresh one a byte: so many do not wait for another host."""
    tasks = 3 * MOST_RETRIES
    session = Session(Policy(stop_after=0, attempts=2), tasks, 0.0)
    for number in range(2 * tasks):
        session.handle(TaskAsked(0.0, number, CALLERS[0]))
        session.handle(TicketFailed(0.0, FIRST_TICKET + number, Failure("no")))
        assert len(session._ledger.works) <= MOST_RETRIES + 1
    assert session.statistics().failed == tasks


def test_totals_cost_the_same_for_few_and_for_many_hosts() -> None:
    costs = []
    for hosts in (10, 1_000):
        session = Session(Policy(), hosts, 0.0)
        for number in range(hosts):
            caller = Caller(f"client-{number}", f"host-{number}", managed=True, speaks=True)
            session.handle(TaskAsked(0.0, number, caller))
        with Steps() as steps:
            assert session.totals().running == hosts
        costs.append(steps.count)
        assert len(session.statistics().hosts) == hosts
    assert costs[0] == costs[1]

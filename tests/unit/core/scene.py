"""A session to play with: a clock, short words for events, and a watch over what must hold."""

from __future__ import annotations

from typing import Any

from pexecd.core.effects import Assign, Effect, Record, Supply, TicketGiven
from pexecd.core.events import (
    Event,
    Exchanged,
    JudgeFailed,
    ResultJudged,
    ResultStored,
    TaskAsked,
    TicketFailed,
    TicketPinged,
    TimePassed,
)
from pexecd.core.session import Session
from pexecd.core.values import Caller, End, Failure, Policy
from tests.unit.core.invariants import check_session

#: Managed clients of three hosts, and foreign ones: one of today, one of 20 years ago.
ANNA = Caller("client-a", "anna", managed=True, speaks=True)
BERT = Caller("client-b", "bert", managed=True, speaks=True)
CARL = Caller("client-c", "carl", managed=True, speaks=True)
NEWER = Caller("192.0.2.1", "192.0.2.1", speaks=True)
PLAIN = Caller("192.0.2.2", "192.0.2.2")


class Scene:
    """A session from second 0 on."""

    def __init__(self, tasks: int = 1, **policy: Any) -> None:
        self.policy = Policy(**policy)
        self.tasks = tasks
        self.at = 0.0
        self.session = Session(self.policy, tasks, self.at)
        #: All records so far.
        self.records: list[Record] = []
        #: The number of the last ask.
        self.last_ask = 0
        #: All that the last exchange yielded.
        self.last_effects: list[Effect] = []

    def handle(self, event: Event) -> list[Effect]:
        return self.note(self.session.handle(event))

    def note(self, effects: list[Effect]) -> list[Effect]:
        self.records += [effect for effect in effects if isinstance(effect, Record)]
        check_session(self.session)
        return effects

    def ask(self, caller: Caller) -> list[Effect]:
        self.last_ask += 1
        return self.handle(TaskAsked(self.at, self.last_ask, caller))

    def give(self, caller: Caller) -> int:
        """Ask, and expect a task; its ticket."""
        effects = self.ask(caller)
        given = [effect for effect in effects if isinstance(effect, Assign)]
        assert [assign.ask for assign in given] == [self.last_ask], effects
        return given[0].ticket

    def hold(self, caller: Caller) -> int:
        """Ask, and expect to be held; the ask."""
        assert self.ask(caller) == []
        return self.last_ask

    def exchange(self, caller: Caller, want: int = 0, **posted: Any) -> Supply:
        """Exchange tickets (the words of ``Exchanged``); the answer.

        ``done`` names tickets whose results are stored, all after half a second.
        """
        self.last_ask += 1
        stored = [(ticket, 0.5) for ticket in posted.pop("done", ())]
        effects = self.handle(
            Exchanged(self.at, self.last_ask, caller, want, stored=stored, **posted)
        )
        self.last_effects = effects
        supply: Supply
        (supply,) = of(Supply, effects)
        assert (supply.ask, supply.caller) == (self.last_ask, caller)
        assert supply is effects[-1], "what it says may follow from what comes before"
        return supply

    def fetch(self, caller: Caller, count: int) -> list[int]:
        """Exchange nothing for so many tasks; their tickets."""
        tickets = [ticket for ticket, _ in self.exchange(caller, count).given]
        assert len(tickets) == count
        return tickets

    def done(self, ticket: int, seconds: float | None = None) -> list[Effect]:
        return self.handle(ResultStored(self.at, ticket, seconds))

    def fail(
        self, ticket: int, reason: str = "exit status 1", end: End = End.FAILED
    ) -> list[Effect]:
        return self.handle(TicketFailed(self.at, ticket, Failure(reason, end)))

    def ping(self, ticket: int) -> list[Effect]:
        return self.handle(TicketPinged(self.at, ticket))

    def judge(self, ticket: int, valid: bool, reason: str = "") -> list[Effect]:
        return self.handle(ResultJudged(self.at, ticket, valid, reason))

    def judge_fails(self, ticket: int, reason: str = "boom") -> list[Effect]:
        return self.handle(JudgeFailed(self.at, ticket, reason))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, with ``TimePassed`` at every deadline; all effects of it."""
        effects: list[Effect] = []
        end = self.at + seconds
        while (due := self.session.next_deadline) is not None and due <= end:
            self.at = max(self.at, due)
            effects += self.handle(TimePassed(self.at))
        self.at = end
        return effects

    def restart(self, kept: tuple[int, ...] = ()) -> list[Effect]:
        """Another process goes on from the records."""
        self.session = Session(self.policy, self.tasks, self.at)
        self.session.replay(self.records)
        return self.note(self.session.resume(self.at, kept))

    def task(self, ticket: int) -> int:
        return self.session.task_of(ticket)


def assigned(effects: list[Effect]) -> list[tuple[int, int]]:
    """Ask and task of the tickets given in these effects."""
    return [(effect.ask, effect.task) for effect in effects if isinstance(effect, Assign)]


def of(kind: type, effects: list[Effect]) -> list[Any]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def given(ticket: int, task: int, caller: Caller) -> TicketGiven:
    return TicketGiven(ticket, task, caller.client, caller.host, caller.managed, caller.speaks)

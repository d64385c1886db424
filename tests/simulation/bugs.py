"""Mistakes that somebody could make in core or master; the simulation must notice each.

Each is planted into one history at a time, in every process of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pexecd.core.effects import (
    Discard,
    Effect,
    Refuse,
    Replayed,
    Supply,
    TicketEnded,
    TicketGiven,
    TicketsPast,
)
from pexecd.core.events import Event, Exchanged, HostDrained
from pexecd.core.ledger import COSTLY
from pexecd.core.session import Session
from pexecd.core.state import Ask, Ticket, Work
from pexecd.core.values import End, Failure
from pexecd.ports import JournalRecord
from tests.simulation.disk import Committed, Writer
from tests.simulation.master import Answer, Master


@dataclass(frozen=True, slots=True)
class Bug:
    """A master, a core, or both, of which one is wrong."""

    master_class: type[Master] = Master
    session_class: type[Session] = Session


# --- in the core -----------------------------------------------------------------------------


class TicketNumberNotRestored(Session):
    """After a restart numbers go on behind the live tickets, not behind all that were given."""

    def replay(self, records: Iterable[Replayed]) -> None:
        known = list(records)
        ended = {record.ticket for record in known if isinstance(record, TicketEnded)}
        super().replay(
            record
            for record in known
            if not isinstance(record, TicketsPast)
            and not (isinstance(record, TicketGiven) and record.ticket in ended)
        )


class LossCountsAsAttempt(Session):
    """A client that dies uses up an attempt of its tasks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

        def charge(work: Work, end: End, count: int) -> None:
            work.attempts += count * (end in COSTLY or end is End.LOST)
            work.losses += count * (end is End.LOST)

        self._ledger._charge = charge  # type: ignore[method-assign]


class LateResultIgnored(Session):
    """A result whose ticket is over is thrown away, though its task has none."""

    def wanted(self, ticket: int) -> bool:
        return super().wanted(ticket) and ticket in self._progress.tickets


class DoneTwice(Session):
    """A task that is done takes another result."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ledger.is_done = lambda task: False  # type: ignore[method-assign]


class DeadlinesLostAtRestart(Session):
    """After a restart nobody looks at tickets that were given before."""

    def resume(self, *args: Any, **keys: Any) -> list[Effect]:
        effects = super().resume(*args, **keys)
        for ticket in self._progress.tickets.values():
            self._deadlines.drop(ticket)
        return effects


class ForgottenWhenUndelivered(Session):
    """A task whose answer did not reach its client is not given to anybody else."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        progress = self._progress

        def give_back(number: int, reason: str) -> None:
            ticket = progress.tickets.get(number)
            if ticket is not None:
                progress._end(ticket, Failure(reason, End.CANCELLED))

        progress.give_back = give_back  # type: ignore[method-assign]


class ForgottenWhenDoubtful(Session):
    """A ticket that is silent for too long is not watched any more, and that is all."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

        def doubt(ticket: Ticket) -> None:
            ticket.heard = self._context.at

        self._progress._doubt = doubt  # type: ignore[method-assign]


class NotJudgedAfterRestart(Session):
    """Results that waited for their verdict when the master died wait for ever."""

    def resume(self, at: float, kept: Iterable[int] = (), **keys: Any) -> list[Effect]:
        return super().resume(at, **keys)


class AttemptsForgottenAtRestart(Session):
    """A restart gives every task all its attempts back."""

    def replay(self, records: Iterable[Replayed]) -> None:
        super().replay(records)
        for work in self._ledger.works.values():
            work.attempts = 0


class AnsweredTwice(Session):
    """A request that was held for long enough still waits for a task."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

        def due(ask: Ask) -> None:
            self._context.effects.append(Refuse(ask.number, 1))

        self._asks.due = due  # type: ignore[method-assign]


class RepeatDiscardsResult(Session):
    """The accepted result is deleted when its client posts it again."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)

        def discard(number: int) -> None:
            if self._ledger.known(number):
                self._context.effects.append(Discard(number))

        self._progress._discard_unwanted = discard  # type: ignore[method-assign]

    def wanted(self, ticket: int) -> bool:
        return self.known(ticket)


class GivenBackForgotten(Session):
    """A ticket that its client gave back goes on as if it were worked on."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._progress.take_back = self._progress.ping  # type: ignore[method-assign]


class DrainedHostGoesOn(Session):
    """Who holds a request open is drained; who asks later gets tasks as ever."""

    def handle(self, event: Event) -> list[Effect]:
        effects = super().handle(event)
        if isinstance(event, HostDrained):
            self._ledger.host(event.host).drained = False
        return effects


# --- in the master -----------------------------------------------------------------------------


class _HastyWriter(Writer):
    def append(self, records: Sequence[JournalRecord], committed: Committed) -> None:
        committed()
        super().append(records, lambda: None)


class DeedsBeforeCommit(Master):
    """Clients hear of a ticket before it is on disk."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._journal = _HastyWriter(self._world, self._disk, self._audit, self._stalled)


class UselessResultConfirmedAtOnce(Master):
    """200 for a result of no use does not wait for what made it so."""

    def unwanted(self, ticket: int, answer: Answer) -> None:
        if not self.closed:
            self._audit.confirms(ticket)
            answer(200, None)


class ResultApartFromItsRecords(Master):
    """A result and what follows from it are two transactions."""

    def _carry_out(
        self,
        effects: Sequence[Effect],
        first: Sequence[JournalRecord] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        if not first:
            super()._carry_out(effects, (), then)
            return
        self._journal.append(first, lambda: None)
        self._world.later(0.5, super()._carry_out, effects, (), then)


class ExchangeAnsweredBeforeCommit(Master):
    """An exchange is answered as soon as it is decided on."""

    def _carry_out(
        self,
        effects: Sequence[Effect],
        first: Sequence[JournalRecord] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        answers = [effect for effect in effects if isinstance(effect, Supply)]
        super()._carry_out([effect for effect in effects if effect not in answers], first, then)
        self._perform(answers)


class ExchangeKeepsWhatItsPeerLeft(Master):
    """Tickets of an exchange whose peer left before the answer are not taken back."""

    def _supply(self, deed: Supply) -> None:
        if deed.ask in self._exchanges:
            super()._supply(deed)


class ExchangeForgetsItsResults(Master):
    """An exchange is confirmed, but its results are not journalled with it."""

    def _submit(
        self, event: Event, *first: JournalRecord, then: Callable[[], None] | None = None
    ) -> None:
        super()._submit(event, *(() if isinstance(event, Exchanged) else first), then=then)


BUGS = {
    **{
        bug.__name__: Bug(session_class=bug)
        for bug in (
            TicketNumberNotRestored,
            LossCountsAsAttempt,
            LateResultIgnored,
            DoneTwice,
            DeadlinesLostAtRestart,
            ForgottenWhenUndelivered,
            ForgottenWhenDoubtful,
            NotJudgedAfterRestart,
            AttemptsForgottenAtRestart,
            AnsweredTwice,
            RepeatDiscardsResult,
            GivenBackForgotten,
            DrainedHostGoesOn,
        )
    },
    **{
        bug.__name__: Bug(master_class=bug)
        for bug in (
            DeedsBeforeCommit,
            UselessResultConfirmedAtOnce,
            ResultApartFromItsRecords,
            ExchangeAnsweredBeforeCommit,
            ExchangeKeepsWhatItsPeerLeft,
            ExchangeForgetsItsResults,
        )
    },
}

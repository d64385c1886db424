"""One session: events in, records and deeds out.

The parts: ``Ledger`` is what the journal knows, ``Progress`` leads tickets and tasks to their
ends, ``Dispatch`` chooses the task for an ask, ``Asks`` holds those that must wait, ``Standings``
and ``Clients`` know who does well and who is there, ``Deadlines`` when to look.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from pexecd.core.asks import Asks
from pexecd.core.context import Context
from pexecd.core.effects import (
    Effect,
    Finish,
    Replayed,
    Supply,
    TaskDone,
    TaskFailed,
    TaskReopened,
    TasksSettled,
    Tell,
    TicketEnded,
    TicketGiven,
    TicketsPast,
    TicketsUsed,
)
from pexecd.core.events import (
    AskWithdrawn,
    BodyEnded,
    BodyStarted,
    ClientGone,
    ClientHeard,
    ClientSupposed,
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
from pexecd.core.progress import Progress
from pexecd.core.state import Alarm, Ask, Client, Host, Ticket, Work
from pexecd.core.values import Caller, Outcome, Policy, Statistics, Totals
from pexecd.errors import spoken
from pexecd.units import Instant

#: So many tasks at most fail in one event for want of a client that speaks.
_BATCH = 1000


class Session:
    """The state of a session, and every decision about it.

    The cost of an event does not depend on the number of tasks, tickets, hosts or open asks.
    The same events give the same effects.

    Args:
        policy: the job's settings.
        tasks: how many the table has; they are numbered from 1.
        at: now.
    """

    def __init__(self, policy: Policy, tasks: int, at: Instant) -> None:
        self._policy = policy
        self._started = at
        self._context = Context(policy, tasks, at)
        self._ledger = self._context.ledger
        self._deadlines = self._context.deadlines
        self._clients = self._context.clients
        self._standings = self._context.standings
        self._dispatch = self._context.dispatch
        self._progress = Progress(self._context)
        self._asks = Asks(self._context, self._progress)
        #: Why no host can be used any more.
        self._unusable: str | None = None
        self._finish: Finish | None = None
        #: Tickets that have not ended, between ``replay`` and ``resume``.
        self._replayed: dict[int, TicketGiven] = {}
        self._deadlines.set(Alarm.GIVE_UP, at + policy.give_up)

    # --- what happens ----------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Apply one event.

        Args:
            event: what happened; its ``at`` must not run backwards. A ticket that was never
                given out is no mistake here: it changes nothing.

        Returns:
            What the master must do, in this order. Empty if nothing.
        """
        context, progress = self._context, self._progress
        context.at = event.at
        context.effects = []
        match event:  # the frequent ones first
            case TaskAsked():
                self._ask(event)
            case ResultStored():
                progress.store(event.ticket, event.seconds)
            case Exchanged():
                return self._exchange(event)
            case TicketPinged():
                progress.ping(event.ticket)
            case ResultJudged():
                progress.judge(event.ticket, event.reason, valid=event.valid)
            case TicketFailed():
                progress.fail(event.ticket, event.failure)
            case TimePassed():
                self._pass_time()
            case AskWithdrawn():
                self._asks.withdraw(event.ask)
            case BodyStarted():
                progress.body_started(event.ticket)
            case BodyEnded():
                progress.body_ended(event.ticket)
            case ClientHeard():
                before = self._clients.current(event.caller)
                client = self._clients.hear(event.caller, event.at)
                if before is not None and before is not client:
                    # A host has one client: where another one begins, the first is dead.
                    self._lose(before)
                if client is not before and client.host.returns:
                    client.host.drained = client.host.returns = False
            case ClientSupposed():
                self._clients.suppose(event.host, event.at)
            case ClientGone():
                gone = self._clients.get(event.client)
                if gone is not None:
                    self._lose(gone)
            case TicketUndelivered():
                progress.give_back(event.ticket, "its client did not get it")
            case TaskUntold():
                again = event.again
                # Who speaks can be told as much as any other: no use to wait for another.
                demanding = event.demanding and again is not None and not again.caller.speaks
                progress.untold(event.ticket, event.reason, demanding=demanding)
                if again is not None:
                    self._ask(again)
            case JudgeFailed():
                progress.leave_unjudged(event.ticket, event.reason)
            case HostDrained():
                host = self._ledger.host(event.host)
                host.drained, host.returns = True, event.returns
                if self._finish is None:
                    self._asks.drain(host)
            case HostsUnusable():
                self._unusable = event.reason or None
                if self._finish is None:
                    self._check_clients()
            case StopAsked():
                self._stop(Outcome.INTERRUPTED, event.reason)
            case _:
                assert_never(event)
        return self._conclude()

    def replay(self, records: Iterable[Replayed]) -> None:
        """Learn what was journalled earlier: before all events, to be followed by ``resume``.

        What became of tasks may come before their tickets: that costs less than to open them.
        """
        ledger = self._ledger
        for record in records:
            match record:
                case TicketsPast():
                    ledger.recall_past(record)
                case TicketGiven():
                    ledger.recall(record)
                    self._replayed[record.ticket] = record
                case TicketEnded():
                    ledger.end(record)
                    self._replayed.pop(record.ticket, None)
                case TasksSettled():
                    ledger.settle(record)
                case TaskDone():
                    ledger.finish(record)
                case TaskFailed():
                    ledger.fail(record)
                case TaskReopened():
                    ledger.reopen(record)
                case TicketsUsed():
                    ledger.use(record.upto)
                case _:
                    assert_never(record)

    def choose(self, tasks: Iterable[int]) -> None:
        """Leave those tasks for a later run that were not begun and are not among these.

        To be called between ``replay`` and ``resume``. The numbers of the session are those of
        the tasks that are not left, from then on.
        """
        self._ledger.choose(tasks)

    def resume(
        self, at: Instant, kept: Iterable[int] = (), *, strangers: bool = False
    ) -> list[Effect]:
        """Go on after ``replay``; all deadlines begin anew.

        Args:
            at: now.
            kept: tickets whose results are stored.
            strangers: the process before did not tell all its clients that the run is over;
                should it be now, they are waited for as if they were just heard.

        Returns:
            As ``handle`` does: ``Judge`` for results without a verdict, ``Discard`` for those
            that are no use, and what else follows from the records.
        """
        self._context.at = self._started = at
        self._context.effects = []
        self._deadlines.set(Alarm.GIVE_UP, at + self._policy.give_up)
        if strangers:
            self._clients.expect_strangers(at)
        for given in self._replayed.values():
            work = self._ledger.works[given.task]
            caller = Caller(given.client, given.host, given.managed, given.speaks)
            self._progress.begin(given.ticket, work, self._clients.hear(caller, at), at)
        self._replayed.clear()
        for ticket in kept:
            self._progress.store(ticket, None)
        self._progress.resume()
        return self._conclude()

    # --- questions -------------------------------------------------------------------------

    @property
    def next_deadline(self) -> Instant | None:
        """When ``TimePassed`` is wanted next."""
        return self._deadlines.next()

    @property
    def finished(self) -> Finish | None:
        """How the run ended, once it has."""
        return self._finish

    def known(self, ticket: int) -> bool:
        """Whether the ticket was ever given out."""
        return self._ledger.known(ticket)

    def over(self, ticket: int) -> bool:
        """Whether a client may stop working on it: it has ended, or was never given out."""
        return ticket not in self._progress.tickets and ticket not in self._progress.results

    def wanted(self, ticket: int) -> bool:
        """Whether a result of it may still be of use."""
        return self._progress.wanted(ticket)

    def task_of(self, ticket: int) -> int:
        """The task of a ticket that is known."""
        return self._ledger.task_of(ticket)

    def clients_left(self) -> int:
        """How many clients still have to hear that the run is over.

        After ``Finish``, those heard within two pings that have not been told yet that no task
        is left, and that each ticket they work on is over. Before it, 0.
        """
        return self._clients.left

    def totals(self) -> Totals:
        """The numbers of this moment, for all hosts together."""
        return Totals(**self._totals())

    def statistics(self) -> Statistics:
        """The numbers of this moment; costs time for each host."""
        return Statistics(**self._totals(), hosts=self._ledger.counts())

    def _totals(self) -> dict[str, int]:
        ledger, pending = self._ledger, self._dispatch.pending
        return {
            "tasks": ledger.chosen,
            "done": ledger.done,
            "failed": ledger.failed,
            "running": ledger.chosen - ledger.done - ledger.failed - pending,
            "pending": pending,
            "tickets": ledger.given,
            "judging": self._progress.awaited,
        }

    # --- the frame of an event -------------------------------------------------------------

    def _conclude(self) -> list[Effect]:
        if self._finish is None:
            self._asks.serve()
            self._check_end()
        if self._finish is None:
            self._set_alarms()
        return self._context.effects

    def _lose(self, client: Client) -> None:
        self._clients.remove(client)
        self._asks.send_away(client)
        self._progress.lose(client)

    def _exchange(self, event: Exchanged) -> list[Effect]:
        """What became of tickets first: it may make room for the new ones, or be the end."""
        progress, over = self._progress, self.over
        for ticket, seconds in event.stored:
            progress.store(ticket, seconds)
        for ticket, failure in event.failed:
            progress.fail(ticket, failure)
        for ticket in event.back:
            progress.take_back(ticket)
        for ticket, since in event.running:
            progress.running(ticket, since)
        for ticket in event.waiting:
            progress.waiting(ticket)
        if self._finish is None:
            self._asks.serve()  # those that waited before this one asked
            self._check_end()
        given: list[tuple[int, int]] = []
        if self._finish is None:
            given = self._asks.supply(event.caller, event.want)
        effects = self._conclude()
        drained = self._ledger.host(event.caller.host).drained
        end = (self._finish is not None or drained) and event.want > 0
        none = not (given or end) and event.want > 0
        if end:
            self._clients.refuse(self._clients.hear(event.caller, event.at))
        told = [ticket for ticket, _ in event.running if over(ticket)]
        told += [ticket for ticket in event.waiting if over(ticket)]
        for ticket in told:
            self._clients.tell(ticket, event.at)  # some may have ended with the run just now
        effects.append(Supply(event.ask, event.caller, tuple(given), tuple(told), none, end))
        return effects

    def _ask(self, event: TaskAsked) -> None:
        if self._finish is None:
            self._asks.add(event.ask, event.caller)
        else:
            self._asks.refuse(event.ask, event.caller)

    # --- deadlines -------------------------------------------------------------------------

    def _pass_time(self) -> None:
        at = self._context.at
        while (key := self._deadlines.pop(at)) is not None:
            match key:
                case Ticket():
                    self._progress.due(key)
                case Ask():
                    self._asks.due(key)
                case Client():
                    revive = self._clients.due(key, at)
                    if revive is not None:
                        self._context.effects.append(revive)
                case Host():
                    self._standings.changed.append(key)
                case Alarm.GIVE_UP:
                    self._check_clients()
                case Alarm.PATIENCE:
                    self._check_demanding()
                case Alarm.ALONE:
                    self._check_aside()
                case Alarm.STRANGERS:
                    self._clients.strangers_due()
                case _:
                    assert_never(key)

    def _set_alarms(self) -> None:
        """Look after what is seldom there only while it is there."""
        deadlines, dispatch, standings = self._deadlines, self._dispatch, self._standings
        if standings.aside and not standings.active and Alarm.ALONE not in deadlines:
            deadlines.set(Alarm.ALONE, standings.idle_since + self._clients.silence)
        if dispatch.demands() and Alarm.PATIENCE not in deadlines:
            deadlines.set(Alarm.PATIENCE, self._context.at + self._policy.patience)

    def _check_clients(self) -> None:
        """Give up if no client was heard of for too long (SPEC section 3, ``give_up``)."""
        at, patience = self._context.at, self._policy.give_up
        reason = self._unusable
        if reason is None:
            reason = f"no client was heard of for {patience:g} s"
        else:
            patience = min(patience, self._clients.silence)
        if self._standings.engaged or self._progress.awaited:
            due = at + max(patience, self._clients.silence)
        elif self._unusable is not None and not len(self._clients):
            due = at
        else:
            due = self._clients.heard + patience
        if due > at:
            self._deadlines.set(Alarm.GIVE_UP, due)
        else:
            self._stop(Outcome.NO_HOST, reason)

    def _check_demanding(self) -> None:
        """Fail tasks that no client came for who could be told them (SPEC section 2)."""
        at, patience = self._context.at, self._policy.patience
        for ticket in self._progress.tickets.values():
            if ticket.client.speaks and not ticket.doubtful:
                return  # it will be back
        reason = (
            f"within {patience:g} s no client came that announces itself, which this task needs: "
            "a result is stderr, or an input holds the line that ends it"
        )
        for _ in range(_BATCH):
            first = self._dispatch.first_demanding(self._started)
            if first is None:
                return
            task, since = first
            due = max(since, self._clients.speaker_heard) + patience
            if due > at:
                self._deadlines.set(Alarm.PATIENCE, due)
                return
            self._progress.fail_task(self._ledger.works.get(task) or Work(task), reason)
        self._deadlines.set(Alarm.PATIENCE, at + 1)  # the others, after whatever waits now

    def _check_aside(self) -> None:
        """Let all hosts back in if the ones that did better are gone."""
        standings = self._standings
        alone = not standings.active
        if alone and standings.idle_since + self._clients.silence <= self._context.at:
            for host in list(standings.aside.values()):
                standings.clear(host)
                self._context.effects.append(
                    Tell(f"{spoken(host.name)}: in use again, as no other is")
                )

    # --- the end ---------------------------------------------------------------------------

    def _check_end(self) -> None:
        ledger, progress, policy = self._ledger, self._progress, self._policy
        if ledger.done + ledger.failed == ledger.chosen and not progress.awaited:
            if ledger.failed:
                self._stop(Outcome.SOME_FAILED, f"{ledger.failed} of {ledger.chosen} tasks failed")
            else:
                self._stop(Outcome.SUCCEEDED, "")
        elif 0 < policy.stop_after <= progress.failures:
            self._stop(
                Outcome.SOME_FAILED,
                f"{progress.failures} attempts failed before the first success; "
                f"the last: {progress.failure_reason}",
            )
        elif progress.unjudged >= policy.unjudged:
            self._stop(
                Outcome.SOME_FAILED,
                f"validation came to no verdict {progress.unjudged} times in a row; "
                f"the last time: {progress.unjudged_reason}",
            )
        elif not (progress.awaited or progress.live or self._dispatch.pending):
            self._stop(
                Outcome.SOME_FAILED,
                f"validation came to no verdict on {len(progress.results)} results; "
                f"the last time: {progress.unjudged_reason}",
            )

    def _stop(self, outcome: Outcome, reason: str) -> None:
        if self._finish is not None:
            return
        self._finish = Finish(outcome, reason)
        self._asks.refuse_all()
        self._progress.cancel_all("the run is over")
        self._deadlines.clear()
        self._clients.part(self._context.at)
        self._context.effects.append(self._finish)

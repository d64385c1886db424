"""Tickets and results: how a task comes to its end (SPEC sections 1 and 2).

A ticket is live from its giving. Silent for too long it is doubtful, until it is heard again
or over. Once its result is stored it waits for the verdict, off all deadlines. A task is
pending whenever no ticket of it is live and no result of it waits: ``_review`` decides that
after each change.
"""

from __future__ import annotations

from math import inf

from pexecd.core.context import Context
from pexecd.core.effects import (
    Discard,
    Judge,
    Settle,
    TaskDone,
    TaskFailed,
    Tell,
    TicketEnded,
    TicketGiven,
)
from pexecd.core.ledger import COSTLY, DONE
from pexecd.core.state import Client, Host, KeptResult, Ticket, Work
from pexecd.core.values import MOST_LOSSES, Caller, End, Failure
from pexecd.errors import spoken
from pexecd.tuples import by_place
from pexecd.units import Instant, Seconds

_given = by_place(TicketGiven)
_ended = by_place(TicketEnded)
_done = by_place(TaskDone)
_settle = by_place(Settle)


class Progress:
    """The tickets that have not ended, and the results without a verdict."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._policy = context.policy
        self._deadlines = context.deadlines
        self._ledger = context.ledger
        self._clients = context.clients
        self._standings = context.standings
        self._dispatch = context.dispatch
        #: So long after its giving a ticket is overdue.
        self._limit = self._policy.timeout + self._policy.grace if self._policy.timeout else inf
        #: Live and doubtful tickets, and results without a verdict, by ticket number.
        self.tickets: dict[int, Ticket] = {}
        self.results: dict[int, KeptResult] = {}
        #: How many tickets are live, and how many verdicts are to come.
        self.live = 0
        self.awaited = 0
        #: Validations in a row that came to no verdict, and why the last one did not.
        self.unjudged = 0
        self.unjudged_reason = ""
        #: Attempts used up before the first success, and why the last one was.
        self.failures = 0
        self.failure_reason = ""

    def wanted(self, number: int) -> bool:
        """Whether a result of this ticket may still be of use."""
        if number in self.tickets:
            return True  # when a task is done all tickets of it are over
        return (
            self._ledger.known(number)
            and not self._ledger.is_done(self._ledger.task_of(number))
            and number not in self.results
            and self._ledger.end_of(number) is not End.INVALID
        )

    # --- a ticket begins -------------------------------------------------------------------

    def give(self, client: Client, caller: Caller, task: int, begun: Instant) -> int:
        """Give a task to a client; the number of its ticket.

        Args:
            client: who gets it.
            caller: the same, as it is recorded.
            task: what it gets.
            begun: when its timeout begins to count.
        """
        client.answered = self._context.at
        number = self._ledger.next_ticket
        record = _given((number, task, caller.client, caller.host, caller.managed, caller.speaks))
        work = self._ledger.give(record)
        ticket = self.begin(number, work, client, begun)
        if client.host.aside is not None:
            client.host.probe = ticket
        self._review(work)
        self._context.effects.append(record)
        return number

    def begin(self, number: int, work: Work, client: Client, begun: Instant) -> Ticket:
        """A client works on this ticket from now on, or will soon."""
        at = self._context.at
        watched = client.managed and self._policy.ping > 0
        ticket = Ticket(number, work, client, client.host, at, begun, at, watched)
        self.tickets[number] = client.tickets[number] = ticket
        work.tickets += (ticket,)
        self.live += 1
        self._standings.engage(client.host)
        self._watch(ticket)
        return ticket

    def resume(self) -> None:
        """Decide on all open tasks, after a replay."""
        for work in list(self._ledger.works.values()):
            self._review(work)

    # --- while it lives --------------------------------------------------------------------

    def ping(self, number: int) -> None:
        """A client asked whether to keep on."""
        ticket = self._hear(number)
        if ticket is not None and not ticket.watched and self._policy.ping > 0:
            ticket.watched = True
            self._watch(ticket)

    def running(self, number: int, since: Seconds) -> None:
        """A ping that says how long the worker has been running."""
        self.ping(number)
        self._begin_at(number, self._context.at - since)

    def waiting(self, number: int) -> None:
        """A ping that says that the worker was not started yet."""
        self.ping(number)
        self._begin_at(number, self._context.at + self._policy.queue)

    def _begin_at(self, number: int, begun: Instant) -> None:
        ticket = self.tickets.get(number)
        if ticket is not None and ticket.begun != begun:
            earlier = begun < ticket.begun
            ticket.begun = begun
            if earlier:
                self._watch(ticket)

    def body_started(self, number: int) -> None:
        """A result begins to arrive."""
        ticket = self._hear(number)
        if ticket is not None:
            ticket.arriving += 1
            ticket.client.open += 1
            self._deadlines.drop(ticket)

    def body_ended(self, number: int) -> None:
        """A result that began to arrive will not be stored."""
        ticket = self.tickets.get(number)
        if ticket is not None and ticket.arriving:
            ticket.arriving -= 1
            ticket.client.open -= 1
            ticket.heard = self._context.at
            if not ticket.arriving:
                self.due(ticket)

    def due(self, ticket: Ticket) -> None:
        """The ticket's deadline may have come."""
        if ticket.begun + self._limit <= self._context.at:
            reason = f"no result within {self._policy.timeout:g} s"
            self._fail(ticket, Failure(reason, End.TIMED_OUT))
            self._clients.owe(ticket)
        elif ticket.watched and ticket.heard + self._clients.silence <= self._context.at:
            self._doubt(ticket)
        else:
            self._watch(ticket)  # it was heard since the deadline was set

    def _watch(self, ticket: Ticket) -> None:
        when = ticket.begun + self._limit
        if ticket.watched and ticket.heard + self._clients.silence < when:
            when = ticket.heard + self._clients.silence
        if when < inf and not ticket.arriving:
            self._deadlines.set(ticket, when)

    def _doubt(self, ticket: Ticket) -> None:
        ticket.doubtful = True
        ticket.client.doubtful += 1
        if ticket.host not in ticket.work.tried:
            ticket.work.tried += (ticket.host,)
        self.live -= 1
        self._standings.disengage(ticket.host, self._context.at)
        self._standings.release(ticket.host, ticket)
        self._review(ticket.work)

    def _hear(self, number: int) -> Ticket | None:
        """A request came for this ticket; None if it is over: the answer says so."""
        ticket = self.tickets.get(number)
        if ticket is None:
            self._clients.tell(number, self._context.at)
            return None
        self._clients.seen(ticket.client, self._context.at)
        ticket.heard = self._context.at
        ticket.welcomed = False
        if ticket.doubtful:
            self._believe(ticket)
        return ticket

    def welcome(self, client: Client) -> None:
        """A client that was silent asks for a task: it will ping or post its tickets soon.

        Until then nobody is to do their tasks again, least of all this client. A ticket that
        it does not mention it has never got.
        """
        for ticket in client.tickets.values():
            if ticket.doubtful and not ticket.welcomed:
                ticket.heard = self._context.at
                ticket.welcomed = True
                self._believe(ticket)

    def _believe(self, ticket: Ticket) -> None:
        ticket.doubtful = False
        ticket.client.doubtful -= 1
        self.live += 1
        self._standings.engage(ticket.host)
        self._watch(ticket)
        self._review(ticket.work)

    # --- it ends without a result ----------------------------------------------------------

    def fail(self, number: int, failure: Failure) -> None:
        """The client reports a failure, or its upload was no use."""
        ticket = self._hear(number)
        if ticket is not None:
            self._fail(ticket, failure)

    def give_back(self, number: int, reason: str) -> None:
        """The worker of the ticket was never started, nor will it be."""
        ticket = self.tickets.get(number)
        if ticket is not None:
            self._end(ticket, Failure(reason, End.CANCELLED))
            self._review(ticket.work)

    def take_back(self, number: int) -> None:
        """The client gives the ticket back."""
        if self._hear(number) is not None:
            self.give_back(number, "its client gave it back")

    def untold(self, number: int, reason: str, *, demanding: bool) -> None:
        """The task could not be put into words for the ticket's client.

        Args:
            number: of the ticket.
            reason: why not.
            demanding: another client can be told.
        """
        ticket = self.tickets.get(number)
        if ticket is None:
            return
        if demanding:
            ticket.work.demanding = True
            self._end(ticket, Failure(reason, End.CANCELLED))
        else:
            self._end(ticket, Failure(reason))
            self._count_failure(reason)
        self._review(ticket.work)

    def lose(self, client: Client) -> None:
        """The client is dead, and so are its tickets."""
        reason = f"the client on {spoken(client.host.name)} is gone"
        for ticket in list(client.tickets.values()):
            if ticket.number in self.tickets:  # not ended with its task meanwhile
                self._end(ticket, Failure(reason, End.LOST))
                self._review(ticket.work)

    def cancel_all(self, reason: str) -> None:
        """End all tickets; results that wait for a verdict go on waiting."""
        for ticket in list(self.tickets.values()):
            if ticket.number in self.tickets:  # not ended with its task meanwhile
                self._cancel(ticket, reason)
                self._review(ticket.work)

    def _fail(self, ticket: Ticket, failure: Failure) -> None:
        costly = failure.end in COSTLY
        if costly:
            self._count_failure(failure.reason)
            self._blame(ticket.host, ticket, failure.reason, managed=ticket.client.managed)
        self._end(ticket, failure)
        self._review(ticket.work)

    def _cancel(self, ticket: Ticket, reason: str) -> None:
        if ticket.doubtful:
            self._end(ticket, Failure("not heard of any more", End.LOST))
        else:
            self._end(ticket, Failure(reason, End.CANCELLED))
        self._clients.owe(ticket)

    def _end(self, ticket: Ticket, failure: Failure) -> None:
        self._withdraw(ticket)
        seconds = failure.seconds
        if seconds is None:
            seconds = self._context.at - ticket.given
        record = TicketEnded(
            ticket.number,
            ticket.work.task,
            failure.end,
            failure.reason,
            failure.exit_status,
            failure.signal,
            seconds,
            failure.stderr,
        )
        self._ledger.end(record)
        self._context.effects.append(record)
        self._standings.release(ticket.host, ticket)

    def _withdraw(self, ticket: Ticket) -> None:
        """The ticket is not live any more."""
        del self.tickets[ticket.number]
        del ticket.client.tickets[ticket.number]
        ticket.client.open -= ticket.arriving
        work = ticket.work
        if len(work.tickets) == 1:
            work.tickets = ()
        else:
            work.tickets = tuple(other for other in work.tickets if other is not ticket)
        self._deadlines.drop(ticket)
        if ticket.doubtful:
            ticket.client.doubtful -= 1
        else:
            self.live -= 1
            self._standings.disengage(ticket.host, self._context.at)

    # --- results ---------------------------------------------------------------------------

    def store(self, number: int, seconds: Seconds | None) -> None:
        """All results of the ticket are on disk."""
        ticket = self.tickets.get(number)
        if ticket is not None:
            self._clients.seen(ticket.client, self._context.at)
            if not self._policy.validates:
                self._withdraw(ticket)
                if seconds is None:
                    seconds = self._context.at - ticket.given
                self._accept(ticket.work, number, ticket.host, seconds)
                return
            result = self._keep(ticket, seconds)
        else:
            self._clients.tell(number, self._context.at)
            if not self.wanted(number):
                self._discard_unwanted(number)
                return
            result = self._keep_late(number, seconds)
        if not self._policy.validates:
            self._accept(result.work, number, result.host, result.seconds)
            return
        self.results[number] = result
        result.work.results += (result,)
        self.awaited += 1
        self._context.effects.append(Judge(number, result.work.task))
        self._review(result.work)

    def judge(self, number: int, reason: str, *, valid: bool) -> None:
        """The verdict on a result has come."""
        result = self.results.get(number)
        if result is None or not result.awaited:
            return  # its task was done in the meantime
        self.unjudged = 0
        self._take(result)
        if valid:
            self._accept(result.work, number, result.host, result.seconds)
            return
        self._count_failure(reason)
        self._blame(result.host, result, reason, managed=result.managed)
        self._end_result(result.work, number, result.seconds, End.INVALID, reason)
        self._context.effects.append(Discard(number))
        self._standings.release(result.host, result)
        self._review(result.work)

    def leave_unjudged(self, number: int, reason: str) -> None:
        """There will be no verdict on a result: the task waits."""
        result = self.results.get(number)
        if result is None or not result.awaited:
            return
        result.awaited = False
        self.awaited -= 1
        self.unjudged += 1
        self.unjudged_reason = reason
        text = f"task {result.work.task}: no verdict on its result, which is kept: {reason}"
        self._context.effects.append(Tell(text, warning=True))
        self._standings.release(result.host, result)

    def _keep(self, ticket: Ticket, seconds: Seconds | None) -> KeptResult:
        self._withdraw(ticket)
        if seconds is None:
            seconds = self._context.at - ticket.given
        host = ticket.host
        result = KeptResult(ticket.number, ticket.work, host, ticket.client.managed, seconds)
        if host.probe is ticket:
            host.probe = result
        return result

    def _keep_late(self, number: int, seconds: Seconds | None) -> KeptResult:
        task = self._ledger.task_of(number)
        # A task that has failed has no work any more; it gets none back unless this is valid.
        work = self._ledger.works.get(task) or Work(task)
        if seconds is None:
            seconds = self._ledger.seconds_of(number)
        return KeptResult(
            number, work, self._ledger.host_of(number), managed=False, seconds=seconds
        )

    def _discard_unwanted(self, number: int) -> None:
        if (
            self._ledger.known(number)
            and number not in self.results
            and self._ledger.end_of(number) is not End.DONE
        ):
            self._context.effects.append(Discard(number))

    def _take(self, result: KeptResult) -> None:
        """The result waits no more."""
        del self.results[result.ticket]
        work = result.work
        work.results = tuple(other for other in work.results if other is not result)
        self.awaited -= result.awaited
        # It may have come before its task, which had failed, was given out again.
        result.work = self._ledger.works.get(work.task, work)

    def _accept(self, work: Work, number: int, host: Host, seconds: Seconds) -> None:
        """This ticket's result is its task's."""
        effects = self._context.effects
        if self._ledger.is_done(work.task):
            effects.append(Discard(number))  # both were late, for a task that had failed
            return
        self._end_result(work, number, seconds, DONE)
        done = _done((work.task, number))
        self._ledger.finish(done)
        effects.append(done)
        for ticket in work.tickets:
            self._cancel(ticket, "another ticket of its task was first")
        for other in work.results:
            self._take(other)
            if self._ledger.end_of(other.ticket) is None:
                reason = "another ticket of its task was first"
                self._end_result(work, other.ticket, other.seconds, End.CANCELLED, reason)
            effects.append(Discard(other.ticket))
            self._standings.release(other.host, other)
        self._dispatch.drop(work)
        effects.append(_settle((work.task, number)))
        if self._standings.succeed(host):
            effects.append(Tell(f"{spoken(host.name)}: does well again"))

    def _end_result(
        self, work: Work, number: int, seconds: Seconds, end: End, reason: str = ""
    ) -> None:
        record = _ended((number, work.task, end, reason, 0, 0, seconds, b""))
        self._ledger.end(record)
        self._context.effects.append(record)

    # --- what becomes of the task ----------------------------------------------------------

    def fail_task(self, work: Work, reason: str) -> None:
        """The task has failed; none of its tickets is live."""
        failed = TaskFailed(work.task, reason)
        self._ledger.fail(failed)
        for ticket in work.tickets:
            self._cancel(ticket, reason)
        self._dispatch.drop(work)
        self._context.effects += (failed, Settle(work.task, None))

    def _review(self, work: Work) -> None:
        """Decide where the task stands after a change of its tickets or results."""
        if not self._ledger.is_open(work.task):
            return
        live = len(work.tickets)
        for ticket in work.tickets:
            live -= ticket.doubtful
        if work.results:
            self._dispatch.run(work, 0, self._context.at)
        elif live:
            self._dispatch.run(work, live, self._context.at)
        elif work.attempts >= self._policy.attempts:
            self.fail_task(work, work.reason)
        elif work.losses + len(work.tickets) >= MOST_LOSSES:
            self.fail_task(work, f"lost {MOST_LOSSES} times: it may kill its hosts")
        else:
            self._dispatch.put(work, self._context.at)

    def _count_failure(self, reason: str) -> None:
        if not self._ledger.done:
            self.failures += 1
            self.failure_reason = reason

    def _blame(self, host: Host, of: Ticket | KeptResult, reason: str, *, managed: bool) -> None:
        """A failure that may be its host's fault; only hosts we manage can be set aside."""
        if not managed or any(other is not host for other in of.work.tried):
            return  # where it failed elsewhere, too, the task is to blame
        probing = host.probe is of
        pause = self._standings.fail(host, self._context.at, reason, probing=probing)
        if pause is not None:
            text = f"{spoken(host.name)}: set aside for {pause:g} s, it {host.aside}"
            self._context.effects.append(Tell(text, warning=True))

"""What ``pexecd/master.py`` does with events and effects, without Twisted, SQLite and HTTP.

The names are the same as there: where that one changes, this one must follow.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from pexecd.core.effects import (
    Assign,
    Deed,
    Discard,
    Effect,
    Finish,
    Judge,
    Record,
    Refuse,
    Revive,
    Supply,
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
from pexecd.core.values import Caller, Failure, Policy
from pexecd.ports import JournalRecord, ResultDropped, ResultKept, StoredResult
from tests.simulation.audit import Audit
from tests.simulation.disk import BAD, GOOD, Disk, Writer
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.clients import Letter
    from tests.simulation.history import Office

#: Answers a request, with a status and (for /task) the task, or (for /exchange) what it brings.
Answer = Callable[[int, object], None]

JUDGED_AT_ONCE = 8


class Master:
    """One process, from its start to its end or crash.

    Args:
        world: its time and its dice.
        disk: what earlier processes left.
        audit: sees what is decided and said.
        office: who started it: hears of its end, and revives clients.
        policy: the job's settings.
        tasks: how many.
        session_class: the core, or one with a bug.
    """

    def __init__(
        self,
        world: World,
        disk: Disk,
        audit: Audit,
        office: Office,
        policy: Policy,
        tasks: int,
        session_class: type[Session] = Session,
    ) -> None:
        self._world = world
        self._disk = disk
        self._audit = audit
        self._office = office
        # A monotonic clock begins anywhere; after a reboot, somewhere else.
        self._offset = world.dice.uniform(-1e4, 1e4) - world.now
        self._core = session_class(policy, tasks, self._now())
        self._core.replay(disk.replay())
        self._audit.begins(self._core)
        self._journal = Writer(world, disk, audit, self._stalled)
        self._ask_numbers = count(1)
        self._asks: dict[int, Answer] = {}
        self._exchanges: dict[int, tuple[Answer, Letter]] = {}
        #: Who waits for 200.
        self._confirming: dict[object, Answer] = {}
        self._to_judge: OrderedDict[int, Judge] = OrderedDict()
        self._judging = 0
        self._writing = 0
        self._timer: float | None = None
        self._closed = False
        self.finish: Finish | None = None

    def _now(self) -> float:
        return self._world.now + self._offset

    def _later(self, seconds: float, function: Callable[..., object], *args: object) -> None:
        """Something that this process does later, if it lives."""

        def due() -> None:
            if not self._closed:
                function(*args)

        self._world.later(seconds, due)

    # --- events in, records, deeds out ---------------------------------------------------------

    def _submit(
        self, event: Event, *first: JournalRecord, then: Callable[[], None] | None = None
    ) -> None:
        self._carry_out(self._core.handle(event), first, then)

    def _carry_out(
        self,
        effects: Sequence[Effect],
        first: Sequence[JournalRecord] = (),
        then: Callable[[], None] | None = None,
    ) -> None:
        records: list[JournalRecord] = list(first)
        deeds: list[Deed] = []
        for effect in effects:
            if isinstance(effect, Record):
                records.append(effect)
            else:
                deeds.append(effect)
        self._audit.decides(records, deeds)
        self._world.step()
        self._arm()
        if not records and not (self._writing and (deeds or then)):
            self._perform(deeds)
            if then is not None:
                then()
            return
        self._writing += 1

        def committed() -> None:
            self._writing -= 1
            self._perform(deeds)
            if then is not None:
                then()

        self._journal.append(records, committed)

    def _perform(self, deeds: Sequence[Deed]) -> None:
        for deed in deeds:
            self._world.step()
            match deed:
                case Assign():
                    # Reading the table and the input files takes a while, sometimes.
                    if self._world.chance(0.3):
                        self._later(self._world.dice.choice((0.001, 0.2)), self._assign, deed)
                    else:
                        self._assign(deed)
                case Supply():
                    if deed.given and self._world.chance(0.3):
                        self._later(self._world.dice.choice((0.001, 0.2)), self._supply, deed)
                    else:
                        self._supply(deed)
                case Refuse():
                    answer = self._asks.pop(deed.ask, None)
                    if answer is not None:
                        answer(503, deed.retry_after)
                case Judge():
                    self._to_judge[deed.ticket] = deed
                    self._judge_more()
                case Discard():
                    self._to_judge.pop(deed.ticket, None)
                    if deed.ticket in self._disk.results:
                        self._journal.append([ResultDropped(deed.ticket)], lambda: None)
                case Revive():
                    self._world.tell(0, "%s is looked after", deed.host)
                    self._office.revive(deed.host)
                case Finish():
                    self._audit.finishes(self._core, deed)
                    self.finish = deed
                    self._later(self._office.linger, self._office.leaves, self)
                case _:
                    pass
        if self.finish is not None:
            self._later(0.0, self._check_left)

    def _check_left(self) -> None:
        if not (self._writing or self._core.clients_left()):
            self._office.leaves(self)

    def _arm(self) -> None:
        deadline = self._core.next_deadline
        if deadline is None or (self._timer is not None and self._timer <= deadline):
            return
        self._timer = deadline
        # A little later, for sums of floats may come out a little too early, again and again.
        self._later(max(0.0, deadline - self._now()) + 1e-6, self._due, deadline)

    def _due(self, deadline: float) -> None:
        if self._timer == deadline:
            self._timer = None
            self._submit(TimePassed(self._now()))

    def jump(self, seconds: float) -> None:
        """The clock jumps forward: the machine slept."""
        self._offset += seconds
        if self._timer is not None:
            self._later(0.0, self._due, self._timer)

    # --- what clients ask ------------------------------------------------------------------------

    def heard(self, caller: Caller) -> None:
        """``GET /config``."""
        self._submit(ClientHeard(self._now(), caller))

    def ask(self, caller: Caller, answer: Answer) -> int:
        """``GET /task``.

        Returns:
            A number by which the peer can leave.
        """
        if self._journal.stalled:
            answer(503, 1)
            return 0
        asked = self._asking(caller, answer)
        self._submit(asked)
        return asked.ask

    def _asking(self, caller: Caller, answer: Answer) -> TaskAsked:
        asked = TaskAsked(self._now(), next(self._ask_numbers), caller)
        self._asks[asked.ask] = answer
        return asked

    def peer_left(self, ask: int) -> None:
        """The connection of a request for a task, or of an exchange, is gone."""
        if not self._closed and self._exchanges.pop(ask, None) is not None:
            self._audit.abandons(ask)
        elif not self._closed and self._asks.pop(ask, None) is not None:
            self._submit(AskWithdrawn(self._now(), ask))
            self._audit.leaves(ask)

    def _assign(self, deed: Assign) -> None:
        answer = self._asks.pop(deed.ask, None)
        if answer is None:
            self.undelivered(deed.ticket)
        elif self._office.can_be_told(deed.task, deed.caller):
            self._audit.speaks(deed.ticket, deed.task, deed.caller)
            answer(200, (deed.ticket, deed.task))
        else:
            self._world.tell(deed.task, "%s cannot be told it", deed.caller.client)
            again = self._asking(deed.caller, answer)
            self._submit(TaskUntold(again.at, deed.ticket, "needs Length=", True, again))

    def exchange(self, caller: Caller, letter: Letter, answer: Answer) -> int:
        """``POST /exchange``.

        Returns:
            A number by which the peer can leave.
        """
        if self._journal.stalled:
            answer(503, 1)
            return 0
        ask = next(self._ask_numbers)
        self._exchanges[ask] = answer, letter
        if letter.complete and self._world.chance(0.1):  # larger results go to the spool first
            self._later(self._world.dice.uniform(0, 2), self._exchange, ask, caller, letter)
        else:
            self._exchange(ask, caller, letter)
        return ask

    def _exchange(self, ask: int, caller: Caller, letter: Letter) -> None:
        self._world.step()
        core = self._core
        kept = []
        for finished in letter.complete:
            if core.wanted(finished.ticket):
                content = GOOD if finished.good else BAD
                result = StoredResult("output", len(content), content, None)
                task = core.task_of(finished.ticket)
                kept.append(ResultKept(finished.ticket, task, (result,)))
        event = Exchanged(
            self._now(),
            ask,
            caller,
            letter.want,
            [(finished.ticket, 1.0) for finished in letter.complete],
            [(finished.ticket, finished.failure) for finished in letter.failed],  # type: ignore[misc]
            letter.running,
            letter.waiting,
            letter.back,
        )

        def refused(status: int, value: object) -> None:
            waiting = self._exchanges.pop(ask, None)
            if waiting is not None:
                waiting[0](status, value)

        confirming = object()
        self._confirming[confirming] = refused

        def confirmed() -> None:
            self._confirming.pop(confirming, None)

        self._submit(event, *kept, then=confirmed)
        if self._journal.stalled and self._confirming.pop(confirming, None) is not None:
            refused(503, 1)

    def _supply(self, deed: Supply) -> None:
        waiting = self._exchanges.pop(deed.ask, None)
        if waiting is None:
            for ticket, _ in deed.given:
                self.undelivered(ticket)
            return
        answer, letter = waiting
        for ticket, task in deed.given:
            self._audit.speaks(ticket, task, deed.caller)
        for finished in letter.complete:
            self._audit.confirms(finished.ticket)
        for finished in letter.failed:
            self._audit.notes_failure(finished.ticket)
        for ticket in letter.back:
            self._audit.notes_failure(ticket)
        answer(200, deed)

    def undelivered(self, ticket: int) -> None:
        """The answer with this ticket did not reach its client."""
        if not self._closed:
            self._submit(TicketUndelivered(self._now(), ticket))

    def ping(self, ticket: int) -> int:
        """``GET /ping``."""
        self._submit(TicketPinged(self._now(), ticket))
        return 205 if self._core.over(ticket) else 204

    def upload(self, ticket: int) -> int:
        """``POST /complete`` begins.

        Returns:
            100: let it come. 200: of no use, it is thrown away. 503: there is no room.
        """
        if not self._core.wanted(ticket):
            return 200
        if self._journal.stalled:
            return 503
        self._submit(BodyStarted(self._now(), ticket))
        return 100

    def complete(self, ticket: int, good: bool, answer: Answer) -> None:
        """All of a body that is wanted is here: store it."""
        if self._closed:
            return
        self._world.step()
        stored = self._confirmed(lambda: self._audit.confirms(ticket), answer)
        if not self._core.wanted(ticket):
            self._submit(BodyEnded(self._now(), ticket))
            self._journal.append([], stored)
            return
        content = GOOD if good else BAD
        result = StoredResult("output", len(content), content, None)
        kept = ResultKept(ticket, self._core.task_of(ticket), (result,))
        self._submit(ResultStored(self._now(), ticket, 1.0), kept, then=stored)

    def unwanted(self, ticket: int, answer: Answer) -> None:
        """All of a body of no use was thrown away."""
        if not self._closed:
            stored = self._confirmed(lambda: self._audit.confirms(ticket), answer)
            self._submit(TicketPinged(self._now(), ticket), then=stored)

    def abandon(self, ticket: int) -> None:
        """A body broke off."""
        if not self._closed:
            self._submit(BodyEnded(self._now(), ticket))

    def fail(self, ticket: int, failure: Failure, answer: Answer) -> None:
        """``POST /failed``."""
        stored = self._confirmed(lambda: self._audit.notes_failure(ticket), answer)
        self._submit(TicketFailed(self._now(), ticket, failure), then=stored)

    # --- a full disk -----------------------------------------------------------------------------

    def _confirmed(self, note: Callable[[], None], answer: Answer) -> Callable[[], None]:
        """What to do at the commit that a client waits for; it hears 503 if there is no room."""
        if self._journal.stalled:
            answer(503, 1)
            return lambda: None
        waiting = object()
        self._confirming[waiting] = answer

        def stored() -> None:
            if self._confirming.pop(waiting, None) is not None:
                note()
                answer(200, None)

        return stored

    def _stalled(self) -> None:
        refused, self._confirming = self._confirming, {}
        for answer in refused.values():
            answer(503, 1)

    # --- hosts, people ---------------------------------------------------------------------------

    def client_ended(self, client: str) -> None:
        """A client that is a child of this process has ended."""
        if not self._closed:
            self._submit(ClientGone(self._now(), client))

    def interrupt(self) -> None:
        """Somebody pressed Ctrl-C."""
        self._submit(StopAsked(self._now(), "interrupted"))

    # --- validation ------------------------------------------------------------------------------

    def _judge_more(self) -> None:
        while self._to_judge and self._judging < JUDGED_AT_ONCE:
            self._judging += 1
            _, deed = self._to_judge.popitem(last=False)
            self._later(self._office.judging_takes(), self._judged, deed)

    def _judged(self, deed: Judge) -> None:
        self._judging -= 1
        valid = self._disk.results.get(deed.ticket)
        if valid is None or self._office.validator_raises():
            self._world.tell(deed.task, "no verdict on ticket %d", deed.ticket)
            self._submit(JudgeFailed(self._now(), deed.ticket, "raised"))
        else:
            self._submit(ResultJudged(self._now(), deed.ticket, valid, "not valid"))
        self._judge_more()

    # --- life and end ----------------------------------------------------------------------------

    def go_on(self) -> None:
        """Begin, or go on where the journal stopped."""
        strangers, self._disk.clients = self._disk.clients, True
        self._carry_out(self._core.resume(self._now(), self._disk.kept(), strangers=strangers))

    def drain(self, host: str) -> None:
        """The host is to have another client than the one that runs there."""
        if self._closed:
            return
        client = self._core._ledger.host(host).client
        if client is not None:  # one that was never heard cannot be told from a new one
            self._audit.drains(client.name)
        self._submit(HostDrained(self._now(), host, returns=True))

    def supposed(self, host: str) -> None:
        """The launcher says that a client runs there."""
        if not self._closed:
            self._submit(ClientSupposed(self._now(), host))

    def close(self) -> None:
        """The process is gone: nothing of it happens any more."""
        self._closed = self._journal.closed = True
        self._asks.clear()
        self._exchanges.clear()

    @property
    def closed(self) -> bool:
        """Whether the process is gone."""
        return self._closed

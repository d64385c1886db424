"""Sees everything, everywhere, and says what must never be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from pexecd.core.effects import (
    Assign,
    Deed,
    Discard,
    Finish,
    Refuse,
    Supply,
    TaskDone,
    TaskFailed,
    TicketEnded,
    TicketGiven,
)
from pexecd.core.session import Session
from pexecd.core.values import MOST_LOSSES, Caller, End, Outcome, Policy
from pexecd.ports import JournalRecord, ResultDropped
from tests.simulation.world import BrokenError, World

if TYPE_CHECKING:
    from tests.simulation.disk import Disk
    from tests.simulation.history import Office

#: Seconds after which a ticket on disk whose exchange nobody waits for must have ended.
_TAKEN_BACK = 5.0

_COSTLY = {End.FAILED, End.INVALID, End.TIMED_OUT}


class Audit:
    """The invariants of a history, over all its crashes and restarts.

    ``decides``, ``commits`` and ``speaks`` are the three moments of every fact: in the core's
    mind, on disk, and known to others.
    """

    def __init__(
        self, world: World, office: Office, disk: Disk, policy: Policy, tasks: int
    ) -> None:
        self._world = world
        self._office = office
        self._disk = disk
        self._policy = policy
        self._tasks = tasks
        #: What each worker that ever ran has made: whether it is valid.
        self.made: dict[int, bool] = {}
        #: The ticket numbers that were told to a client, and for which task.
        self._spoken: dict[int, int] = {}
        #: Tasks that a client was told to be safe: a valid result of them was confirmed.
        self._safe: set[int] = set()
        #: The live core's mind: begins anew as what is on disk.
        self._task_of: dict[int, int] = {}
        self._ends: dict[int, End] = {}
        self._done: dict[int, int] = {}
        self._failed: set[int] = set()
        self._answered: set[int] = set()
        #: The exchange that each ticket came by, in this process, and those whose peer had left
        #: before the answer.
        self._exchange_of: dict[int, int] = {}
        self._abandoned: set[int] = set()
        #: When the record of each ticket's giving came to the disk.
        self._written: dict[int, float] = {}
        self._drained: set[str] = set()

    # --- the core's mind ---------------------------------------------------------------------

    def begins(self, session: Session) -> None:
        """A process has replayed what is on disk."""
        disk = self._disk
        self._task_of = {given.ticket: given.task for given in disk.given.values()}
        self._ends = {ended.ticket: ended.end for ended in disk.ended.values()}
        self._done, self._failed = {}, set()
        for settled in disk.settled.values():
            if isinstance(settled, TaskDone):
                self._done[settled.task] = settled.ticket
            else:
                self._failed.add(settled.task)
        self._answered.clear()
        self._exchange_of.clear()
        self._abandoned.clear()
        self._drained.clear()
        self._adds_up(session, "after a restart")

    def decides(self, records: Sequence[JournalRecord], deeds: Sequence[Deed]) -> None:
        """The core has answered an event."""
        for record in records:
            match record:
                case TicketGiven(ticket, task):
                    self._gives(ticket, task)
                case TicketEnded(ticket, task, end):
                    self._tells_end(ticket, task, end)
                case TaskDone(task, ticket):
                    self._finishes(task, ticket)
                case TaskFailed(task, reason):
                    self._gives_up(task, reason)
                case _:
                    pass
        for deed in deeds:
            match deed:
                case Discard(ticket) if ticket in self._done.values():
                    raise self._broken(ticket, "the accepted result is thrown away")
                case Assign() if deed.caller.client in self._drained:
                    raise self._broken(deed.ticket, "given to a client that is to end")
                case Assign() | Refuse():
                    self.answers(deed.ask)
                case Supply():
                    self.answers(deed.ask)
                    for ticket, _ in deed.given:
                        self._exchange_of[ticket] = deed.ask
                    for ticket in deed.over:
                        if ticket in self._task_of and ticket not in self._ends:
                            raise self._broken(ticket, "its client is told to stop, but it lives")
                case _:
                    pass

    def drains(self, client: str) -> None:
        """The client is to get no more tasks from this process."""
        self._drained.add(client)

    def answers(self, ask: int) -> None:
        """A request for a task has its answer."""
        if ask in self._answered:
            raise BrokenError(f"request {ask} is answered twice, or after its peer has left")
        self._answered.add(ask)

    def leaves(self, ask: int) -> None:
        """The core knows that nobody waits for this answer any more."""
        self._answered.add(ask)

    def abandons(self, ask: int) -> None:
        """The peer of an exchange has left before its answer: it gets no ticket."""
        self._abandoned.add(ask)

    def _gives(self, ticket: int, task: int) -> None:
        self._world.tell(task, "ticket %d is decided on", ticket)
        self._office.ticket_given()
        if ticket in self._task_of:
            raise BrokenError(f"ticket {ticket} is given twice", task)
        if ticket in self._spoken:
            raise BrokenError(
                f"ticket {ticket} is given again: before the restart, a client was told it", task
            )
        if task in self._done:
            raise BrokenError(f"task {task} is given out again, though it is done", task)
        if task in self._safe:
            raise BrokenError(f"task {task} runs again, though a valid result was confirmed", task)
        self._task_of[ticket] = task
        ends = self._ends_of(task)
        costly = sum(ends[end] for end in _COSTLY)
        if costly >= self._policy.attempts:
            raise BrokenError(f"task {task} is tried again after {costly} failed attempts", task)
        if ends[End.LOST] >= MOST_LOSSES:
            raise BrokenError(f"task {task} is tried again after {ends[End.LOST]} losses", task)

    def _tells_end(self, ticket: int, task: int, end: End) -> None:
        before = self._ends.get(ticket)
        self._world.tell(task, "ticket %d ends: %s", ticket, end.value)
        nobodys = self._exchange_of.get(ticket) in self._abandoned and ticket not in self._spoken
        if nobodys and self._world.now > self._written.get(ticket, inf) + _TAKEN_BACK:
            raise BrokenError(
                f"ticket {ticket} ends only now, but the peer of its exchange left long ago", task
            )
        if self._task_of.get(ticket) != task:
            raise BrokenError(f"ticket {ticket} ends, but was never given for task {task}", task)
        if before in {End.DONE, End.INVALID} or (before and end not in {End.DONE, End.INVALID}):
            raise BrokenError(f"ticket {ticket} ends twice: {before.value}, {end.value}", task)
        if end is End.DONE and not self.made.get(ticket, False):
            raise BrokenError(f"ticket {ticket} is done, but has no valid result", task)
        if end is End.INVALID and self.made.get(ticket, True):
            raise BrokenError(f"ticket {ticket} is invalid, but its result is not", task)
        self._ends[ticket] = end

    def _finishes(self, task: int, ticket: int) -> None:
        self._world.tell(task, "it is done, by ticket %d", ticket)
        if task in self._done:
            raise BrokenError(f"task {task} is done twice", task)
        if self._ends.get(ticket) is not End.DONE:
            raise BrokenError(f"task {task} is done by ticket {ticket}, which is not done", task)
        self._done[task] = ticket
        self._failed.discard(task)

    def _gives_up(self, task: int, reason: str) -> None:
        self._world.tell(task, "it has failed: %s", reason)
        if task in self._done or task in self._failed:
            raise BrokenError(f"task {task} fails, but was settled before", task)
        self._failed.add(task)
        if "no client came" in reason:
            return
        ends = self._ends_of(task)
        # Those that are doubtful end with their task, after this.
        open_ones = sum(
            1 for ticket, its in self._task_of.items() if its == task and ticket not in self._ends
        )
        if (
            sum(ends[end] for end in _COSTLY) < self._policy.attempts
            and ends[End.LOST] + open_ones < MOST_LOSSES
        ):
            said = ", ".join(f"{count} {end.value}" for end, count in ends.items())
            raise BrokenError(f"task {task} has failed too early, after: {said}", task)

    def _ends_of(self, task: int) -> Counter[End]:
        ends = Counter[End]()
        for ticket, its in self._task_of.items():
            if its == task and ticket in self._ends:
                ends[self._ends[ticket]] += 1
        return ends

    # --- the disk ------------------------------------------------------------------------------

    def commits(self, records: Sequence[JournalRecord]) -> None:
        """A transaction is about to be on disk."""
        disk = self._disk
        for record in records:
            if isinstance(record, TicketGiven) and record.ticket in disk.given:
                raise BrokenError(f"ticket {record.ticket} is journalled twice", record.task)
            if isinstance(record, TicketGiven):
                self._written[record.ticket] = self._world.now
            if isinstance(record, TaskDone) and disk.is_done(record.task):
                raise BrokenError(f"task {record.task} is journalled done twice", record.task)
            if isinstance(record, ResultDropped):
                task = disk.given[record.ticket].task
                settled = disk.settled.get(task)
                if isinstance(settled, TaskDone) and settled.ticket == record.ticket:
                    raise BrokenError(f"the result of task {task} is deleted", task)
                self._world.tell(task, "the result of ticket %d is deleted", record.ticket)

    # --- what others hear ----------------------------------------------------------------------

    def speaks(self, ticket: int, task: int, caller: Caller) -> None:
        """A client is told a ticket."""
        if ticket in self._spoken:
            raise BrokenError(f"ticket {ticket} is told twice", task)
        if ticket not in self._disk.given:
            raise BrokenError(f"ticket {ticket} is told, but is not on disk", task)
        self._spoken[ticket] = task
        self._world.tell(task, "%s on %s gets ticket %d", caller.client, caller.host, ticket)

    def confirms(self, ticket: int) -> None:
        """A client is told that its result is stored: 200."""
        disk = self._disk
        given = disk.given.get(ticket)
        if given is None:
            if ticket in self._spoken:
                raise self._broken(ticket, "confirmed, but the disk does not know the ticket")
            return
        self._world.tell(given.task, "the result of ticket %d is confirmed", ticket)
        ended = disk.ended.get(ticket)
        safe = disk.is_done(given.task) or ticket in disk.results
        if not safe and (ended is None or ended.end is not End.INVALID):
            raise self._broken(ticket, "its result is confirmed, but is not stored")
        if self.made.get(ticket, False):
            self._safe.add(given.task)

    def notes_failure(self, ticket: int) -> None:
        """A client is told that its failure is known, or what it gave back: 200."""
        given = self._disk.given.get(ticket)
        if given is None:
            return
        self._world.tell(given.task, "the end of ticket %d is confirmed", ticket)
        settled = ticket in self._disk.ended or ticket in self._disk.results
        if not settled and not self._disk.is_done(given.task):
            raise self._broken(ticket, "its end is confirmed, but is not stored")

    # --- sums ------------------------------------------------------------------------------------

    def finishes(self, session: Session, finish: Finish) -> None:
        """The core says that the run is over."""
        self._world.tell(0, "THE RUN IS OVER: %s %s", finish.outcome.name, finish.reason)
        self._adds_up(session, "at the end of a run")
        if finish.outcome not in {Outcome.SUCCEEDED, Outcome.SOME_FAILED}:
            return
        if "in a row" in finish.reason:  # the validator is broken: work is left over
            return
        kept = {self._task_of[ticket] for ticket in self._disk.kept()}
        for task in range(1, self._tasks + 1):
            if task not in self._done and task not in self._failed and task not in kept:
                raise BrokenError(f"task {task} was forgotten: the run ends without it", task)

    def _adds_up(self, session: Session, when: str) -> None:
        numbers = session.statistics()
        ends = Counter[End]()
        for host in numbers.hosts.values():
            ends.update(host.ends)
        running = sum(host.running for host in numbers.hosts.values())
        said = (
            numbers.done,
            numbers.failed,
            numbers.tickets,
            running,
            +ends,
            numbers.done + numbers.failed + numbers.running + numbers.pending,
        )
        seen = (
            len(self._done),
            len(self._failed),
            len(self._task_of),
            len(self._task_of.keys() - self._ends.keys()),
            Counter(self._ends.values()),
            self._tasks,
        )
        if said != seen:
            raise BrokenError(f"the numbers {when} do not add up: {said}, but it was {seen}")

    def closes(self) -> None:
        """Nothing will happen any more."""
        disk = self._disk
        for task in range(1, self._tasks + 1):
            settled = disk.settled.get(task)
            if settled is None:
                raise BrokenError(f"task {task} was forgotten: it is neither done nor failed", task)
            if isinstance(settled, TaskFailed):
                if task in self._safe:
                    raise BrokenError(f"task {task} failed, but its result was confirmed", task)
            elif not disk.results.get(settled.ticket, False):
                raise BrokenError(f"task {task} is done, but has no valid result on disk", task)
        for ticket, given in disk.given.items():
            if ticket not in disk.ended and ticket not in disk.results:
                raise BrokenError(f"ticket {ticket} never ended", given.task)
        done = sum(isinstance(settled, TaskDone) for settled in disk.settled.values())
        if sum(ended.end is End.DONE for ended in disk.ended.values()) != done:
            raise BrokenError("there are not as many tickets done as tasks")

    def _broken(self, ticket: int, text: str) -> BrokenError:
        task = self._task_of.get(ticket) or self._spoken.get(ticket, 0)
        return BrokenError(f"ticket {ticket}: {text}", task)

"""What the journal's records say: of every ticket and task a few bytes, and the counters.

The session changes the ledger by records only, and replaying them gives the same ledger.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable

from pexecd.core.effects import (
    TaskDone,
    TaskFailed,
    TaskReopened,
    TasksSettled,
    TicketEnded,
    TicketGiven,
    TicketsPast,
)
from pexecd.core.state import Host, Work
from pexecd.core.values import FIRST_TICKET, End, HostCounts
from pexecd.errors import InvariantBrokenError

#: Ends that use up an attempt (SPEC section 1).
COSTLY = frozenset({End.FAILED, End.INVALID, End.TIMED_OUT})

#: To ask the enum for it is three calls.
DONE = End.DONE

_ENDS = tuple(End)
#: How an end is stored: its place in ``End``, from 1; 0 is a ticket that has not ended.
_CODES = {end: code for code, end in enumerate(_ENDS, 1)}

_FRESH, _OPEN, _DONE, _FAILED, _LEFT = range(5)
#: The phases for the bytes of ``TasksSettled``.
_SETTLED = bytes.maketrans(b"\0\1\2", bytes((_FRESH, _DONE, _FAILED)))
_ALL_LEFT = bytes.maketrans(bytes((_FRESH,)), bytes((_LEFT,)))


class Ledger:
    """Tickets and their ends, tasks and their phases.

    A task is fresh (never begun, or begun and never given out since), open (begun: it has a
    ``Work``), done, failed, or left for a later run.

    Args:
        tasks: how many; they are numbered from 1.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks
        #: How many tasks are in each phase.
        self._in_phase = [tasks, 0, 0, 0, 0]
        #: Tickets given out.
        self.given = 0
        self.works: dict[int, Work] = {}
        self.hosts: dict[str, Host] = {}
        self._hosts: list[Host] = []
        #: The first ticket that counts of tasks that were reopened.
        self._counts_from: dict[int, int] = {}
        self._phases = bytearray(tasks + 1)
        self._phases[0] = _DONE  # there is no task 0
        # One place for each ticket number from FIRST_TICKET on.
        self._task_of = array("I")
        self._host_of = array("I")
        self._end_of = bytearray()
        self._seconds_of = array("d")

    @property
    def fresh(self) -> int:
        """How many tasks are fresh."""
        return self._in_phase[_FRESH]

    @property
    def done(self) -> int:
        """How many tasks are done."""
        return self._in_phase[_DONE]

    @property
    def failed(self) -> int:
        """How many tasks have failed."""
        return self._in_phase[_FAILED]

    @property
    def chosen(self) -> int:
        """How many tasks this run is about: all but those left for a later one."""
        return self.tasks - self._in_phase[_LEFT]

    @property
    def next_ticket(self) -> int:
        """The number of the next ticket."""
        return FIRST_TICKET + len(self._task_of)

    def host(self, name: str) -> Host:
        """The host of that name, new if it is."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name, len(self._hosts))
            self._hosts.append(host)
        return host

    # --- records -------------------------------------------------------------------------

    def give(self, record: TicketGiven) -> Work:
        """Note a new ticket.

        Returns:
            Its task, which is open from now on.

        Raises:
            InvariantBrokenError: the number was used before.
        """
        self._count(record)
        work = self.works.get(record.task)
        if work is None:
            work = self.works[record.task] = Work(record.task)
            self._enter(record.task, _OPEN)
        return work

    def settle(self, record: TasksSettled) -> None:
        """Note what became of tasks, before anything else is noted."""
        ends = record.ends
        self._phases[1 : len(ends)] = ends[1:].translate(_SETTLED)
        done, failed = ends.count(1), ends.count(2)
        self._in_phase = [self.tasks - done - failed, 0, done, failed, 0]

    def recall(self, record: TicketGiven) -> None:
        """Note a ticket of an earlier run; its task is opened unless it is settled."""
        if self._phases[record.task] in (_DONE, _FAILED):
            self._count(record)
        else:
            self.give(record)

    def recall_past(self, record: TicketsPast) -> None:
        """Note tickets of earlier runs that have ended; their tasks are settled."""
        first, tasks, names, ends, seconds = record
        self._reach(first)
        hosts = {name: self.host(name) for name in dict.fromkeys(names)}
        places = {name: host.index for name, host in hosts.items()}
        self._task_of.extend(tasks)
        self._host_of.extend(map(places.__getitem__, names))
        self._end_of.extend(map(_CODES.__getitem__, ends))
        self._seconds_of.extend(seconds)
        self.given += len(tasks)
        for (name, end), count in Counter(zip(names, ends, strict=True)).items():
            hosts[name].ends[_CODES[end] - 1] += count
        busy = {name: host.busy for name, host in hosts.items()}
        for name, took in zip(names, seconds, strict=True):
            busy[name] += took
        for name, host in hosts.items():
            host.busy = busy[name]

    def _count(self, record: TicketGiven) -> None:
        if record.ticket != self.next_ticket:
            self._reach(record.ticket)
        host = self.hosts.get(record.host) or self.host(record.host)
        self._append(record.task, host.index)
        self.given += 1
        host.running += 1

    def _reach(self, ticket: int) -> None:
        """See to it that this is the next number."""
        ahead = ticket - self.next_ticket
        if ahead < 0:
            raise InvariantBrokenError(f"ticket {ticket} was given out twice")
        if ahead:
            self.use(ticket - 1)  # numbers whose records never reached the disk

    def end(self, record: TicketEnded) -> None:
        """Note a ticket's end, in place of the one it may have had."""
        index = record.ticket - FIRST_TICKET
        if not self.known(record.ticket):
            return  # only in a replay: the record of its giving never reached the disk
        host = self._hosts[self._host_of[index]]
        before = self._end_of[index]
        if before:
            host.ends[before - 1] -= 1
            host.busy -= self._seconds_of[index]
        else:
            host.running -= 1
        code = _CODES[record.end]
        host.ends[code - 1] += 1
        host.busy += record.seconds
        self._end_of[index] = code
        self._seconds_of[index] = record.seconds
        work = self.works.get(record.task)
        if work is not None and record.ticket >= self._counts_from.get(record.task, 0):
            if before:
                self._charge(work, _ENDS[before - 1], -1)
            if record.end is DONE:
                return  # nothing to charge it with
            self._charge(work, record.end, 1)
            if record.end in COSTLY:
                work.reason = record.reason
            if host not in work.tried and record.end is not End.CANCELLED:
                work.tried += (host,)

    def finish(self, record: TaskDone) -> None:
        """Note that a task is done, maybe after it had failed."""
        self._enter(record.task, _DONE)
        self.works.pop(record.task, None)

    def fail(self, record: TaskFailed) -> None:
        """Note that a task has failed."""
        self._enter(record.task, _FAILED)
        self.works.pop(record.task, None)

    def reopen(self, record: TaskReopened) -> None:
        """Note that a task is fresh again; in a replay, before its later tickets."""
        self._counts_from[record.task] = record.ticket
        self._enter(record.task, _FRESH)
        self.works.pop(record.task, None)

    def choose(self, tasks: Iterable[int]) -> None:
        """Leave all fresh tasks but these for a later run; no record tells of it."""
        fresh = [task for task in tasks if self._phases[task] == _FRESH]
        self._phases = self._phases.translate(_ALL_LEFT)
        self._in_phase[_LEFT] += self._in_phase[_FRESH]
        self._in_phase[_FRESH] = 0
        for task in fresh:
            self._enter(task, _FRESH)

    def use(self, upto: int) -> None:
        """Note that all numbers up to this one were used, whatever for."""
        while self.next_ticket <= upto:
            self._append(0, 0)

    def _append(self, task: int, host: int) -> None:
        self._task_of.append(task)
        self._host_of.append(host)
        self._end_of.append(0)
        self._seconds_of.append(0.0)

    def _enter(self, task: int, phase: int) -> None:
        self._in_phase[self._phases[task]] -= 1
        self._in_phase[phase] += 1
        self._phases[task] = phase

    @staticmethod
    def _charge(work: Work, end: End, count: int) -> None:
        if end in COSTLY:
            work.attempts += count
        elif end is End.LOST:
            work.losses += count

    # --- questions -----------------------------------------------------------------------

    def known(self, ticket: int) -> bool:
        """Whether the ticket was ever given out."""
        index = ticket - FIRST_TICKET
        return 0 <= index < len(self._task_of) and self._task_of[index] != 0

    def task_of(self, ticket: int) -> int:
        """The task of a known ticket."""
        return self._task_of[ticket - FIRST_TICKET]

    def host_of(self, ticket: int) -> Host:
        """The host of a known ticket."""
        return self._hosts[self._host_of[ticket - FIRST_TICKET]]

    def seconds_of(self, ticket: int) -> float:
        """How long a known ticket took; 0 while it has not ended."""
        return self._seconds_of[ticket - FIRST_TICKET]

    def end_of(self, ticket: int) -> End | None:
        """How a known ticket ended."""
        code = self._end_of[ticket - FIRST_TICKET]
        return _ENDS[code - 1] if code else None

    def is_done(self, task: int) -> bool:
        """Whether the task has its result."""
        return self._phases[task] == _DONE

    def is_open(self, task: int) -> bool:
        """Whether the task was begun and is not settled."""
        return self._phases[task] == _OPEN

    def next_fresh(self, start: int) -> int | None:
        """The first fresh task from ``start`` on."""
        task = self._phases.find(_FRESH, start)
        return None if task < 0 else task

    def counts(self) -> dict[str, HostCounts]:
        """The counters of every host."""
        return {
            host.name: HostCounts(tuple(host.ends), host.busy, host.running, host.aside)
            for host in self._hosts
        }

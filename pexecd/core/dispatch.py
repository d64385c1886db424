"""Which task goes to which ask (SPEC section 4, points 3 and 4)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from pexecd.core.ledger import Ledger
from pexecd.core.state import Ask, Host, Work
from pexecd.core.values import MOST_LOSSES, Policy
from pexecd.units import Instant

#: So many candidates are looked at for a better match; more would make asks dear.
LOOK_AHEAD = 16
#: So many retries wait for another host while there are fresh tasks: each is an object,
#: a fresh task is a byte.
MOST_RETRIES = 4096


class Dispatch:
    """The tasks that may be given out, and the asks that wait for one.

    Retries go before fresh tasks, so that what is broken shows early; but not to a host
    where they failed already as long as there is something else for it.

    Args:
        policy: for ``attempts``, ``duplicates`` and ``demanding``.
        ledger: knows the fresh tasks.
    """

    def __init__(self, policy: Policy, ledger: Ledger) -> None:
        self._policy = policy
        self._ledger = ledger
        self._cursor = 1
        #: Pending tasks that were begun before, the one that waits longest first ...
        self._retries: OrderedDict[int, Work] = OrderedDict()
        #: ... and those that only callers that speak can be told.
        self._demanding: OrderedDict[int, Work] = OrderedDict()
        #: Tasks that may have a further ticket, the one that runs longest first.
        self._copyable: OrderedDict[int, Work] = OrderedDict()
        #: Those among them that no waiting ask was offered yet.
        self._offers: list[Work] = []
        self._plain: OrderedDict[int, Ask] = OrderedDict()
        self._speaking: OrderedDict[int, Ask] = OrderedDict()

    # --- tasks ---------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """How many tasks wait to be given out."""
        return self._ledger.fresh + len(self._retries) + len(self._demanding)

    def put(self, work: Work, at: Instant) -> None:
        """The task is pending, if it is not already."""
        self._copyable.pop(work.task, None)
        demanding = work.demanding or self._policy.demanding
        queue = self._demanding if demanding else self._retries
        if work.task not in queue:
            work.since = at
            queue[work.task] = work

    def run(self, work: Work, live: int, at: Instant) -> None:
        """The task is worked on by so many live tickets; 0: its result is being judged."""
        if self._retries or self._demanding:
            self._unqueue(work.task)
        spent = work.attempts >= self._policy.attempts or work.losses >= MOST_LOSSES
        if spent or not 0 < live < self._policy.duplicates:
            self._copyable.pop(work.task, None)
        elif work.task not in self._copyable:
            self._copyable[work.task] = work
            if work.tickets[0].given < at:
                # It had a further ticket that is over: it runs longer than most.
                self._copyable.move_to_end(work.task, last=False)
            if self._plain or self._speaking:
                self._offers.append(work)

    def drop(self, work: Work) -> None:
        """The task is settled."""
        if self._retries or self._demanding:
            self._unqueue(work.task)
        self._copyable.pop(work.task, None)

    def demands(self) -> bool:
        """Whether a pending task waits for a caller that speaks."""
        return bool(self._demanding) or (self._policy.demanding and self._ledger.fresh > 0)

    def first_demanding(self, started: Instant) -> tuple[int, Instant] | None:
        """The pending task that waits longest for a caller that speaks, and since when.

        Args:
            started: since when fresh tasks wait.
        """
        if self._policy.demanding and (task := self._fresh()):
            return task, started
        for work in self._demanding.values():
            return work.task, work.since
        return None

    def _unqueue(self, task: int) -> None:
        self._retries.pop(task, None)
        self._demanding.pop(task, None)

    def _fresh(self) -> int | None:
        task = self._ledger.next_fresh(self._cursor)
        # None is fresh any more: the next look is short.
        self._cursor = self._ledger.tasks + 1 if task is None else task
        return task

    # --- asks ----------------------------------------------------------------------------

    def wait(self, ask: Ask) -> None:
        """``pick`` had nothing for this ask: ``match`` may have, later."""
        (self._speaking if ask.caller.speaks else self._plain)[ask.number] = ask

    def forget(self, ask: Ask) -> None:
        """The ask waits no more, or not for now."""
        (self._speaking if ask.caller.speaks else self._plain).pop(ask.number, None)

    def pick(self, host: Host, *, speaks: bool, copies: bool = True) -> int | None:
        """The best task for a client; None if there is none for it at present.

        Args:
            host: where the client is.
            speaks: it announced itself.
            copies: a slot stands idle: it may have a task that runs elsewhere.
        """
        if self._demanding and speaks and (task := self._untried(self._demanding, host)):
            return task
        if self._retries and (task := self._untried(self._retries, host)):
            return task
        if (
            (speaks or not self._policy.demanding)
            and len(self._retries) < MOST_RETRIES
            and (task := self._fresh())
        ):
            return task
        if self._demanding and speaks:
            return next(iter(self._demanding))
        if self._retries:
            return next(iter(self._retries))
        return self._copy(host, speaks=speaks) if copies else None

    def match(self) -> tuple[Ask, int] | None:
        """A waiting ask, and a task for it; None if nothing fits at present.

        A task that failed goes to a host where it has not, if such a one waits.
        """
        if not (self._plain or self._speaking):
            self._offers.clear()
            return None
        for queue in (self._retries, self._demanding):
            if queue:
                work = next(iter(queue.values()))
                ask = self._asker(work)
                if ask is not None:
                    return ask, work.task
        task = self._fresh()
        if task is not None:
            for ask in self._askers(demanding=self._policy.demanding):
                return ask, task
        while self._offers:
            work = self._offers[-1]
            if work.task in self._copyable:
                for ask in self._askers(demanding=work.demanding):
                    if _elsewhere(work, ask.host):
                        return ask, work.task  # and maybe there is another one for it
            self._offers.pop()
        return None

    def _asker(self, work: Work) -> Ask | None:
        first = None
        for ask in self._askers(demanding=work.demanding):
            if ask.host not in work.tried:
                return ask
            if first is None and not _silent_with(work, ask):
                first = ask
        return first

    def _askers(self, *, demanding: bool) -> Iterator[Ask]:
        # Plain ones first: fewer tasks are good enough for them.
        if not (demanding or self._policy.demanding):
            yield from islice(self._plain.values(), LOOK_AHEAD)
        yield from islice(self._speaking.values(), LOOK_AHEAD)

    @staticmethod
    def _untried(queue: OrderedDict[int, Work], host: Host) -> int | None:
        for work in islice(queue.values(), LOOK_AHEAD):
            if host not in work.tried:
                return work.task
        return None

    def _copy(self, host: Host, *, speaks: bool) -> int | None:
        if not speaks and self._policy.demanding:
            return None
        for work in islice(self._copyable.values(), LOOK_AHEAD):
            if (speaks or not work.demanding) and _elsewhere(work, host):
                return work.task
        return None


def _silent_with(work: Work, ask: Ask) -> bool:
    """Whether the ask's client works on the task itself, and fell silent after the ask.

    One that asked and does not ping the ticket has never got it.
    """
    return any(ticket.client is ask.client and ticket.heard > ask.since for ticket in work.tickets)


def _elsewhere(work: Work, host: Host) -> bool:
    """Whether the host has nothing to do with the task so far."""
    return host not in work.tried and all(ticket.host is not host for ticket in work.tickets)

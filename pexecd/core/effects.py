"""What the master must do after an event: records to journal first, then deeds.

``Session.handle`` returns both in one list. The master journals all ``Record``s of
the list in one transaction, and performs the deeds, in order, only after its commit.

What is made for every task is a named tuple: that costs a third of what a frozen dataclass does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from pexecd.core.values import Caller, End, Outcome
from pexecd.units import Seconds

# --- records: facts that go to the journal ------------------------------------------------


class TicketGiven(NamedTuple):
    """A task was assigned to a client."""

    ticket: int
    task: int
    client: str
    host: str
    #: See ``Caller``; needed to go on after a restart.
    managed: bool
    speaks: bool


class TicketEnded(NamedTuple):
    """A ticket's end.

    A second record for a ticket replaces the first (a late valid result turns ``lost``,
    ``timed out`` or ``failed`` into ``done``).
    """

    ticket: int
    task: int
    end: End
    reason: str = ""
    exit_status: int = -1
    signal: int = 0
    #: From giving out to end, or as the client measured the worker.
    seconds: Seconds = 0.0
    stderr: bytes = b""


class TaskDone(NamedTuple):
    """The task's result is that of ``ticket``. May follow ``TaskFailed``."""

    task: int
    ticket: int


class TaskFailed(NamedTuple):
    """The task has failed for good, unless a late result still comes."""

    task: int
    reason: str


class TaskReopened(NamedTuple):
    """A settled task is pending again, as if it had never been tried."""

    task: int
    #: Its tickets below this number no longer count as attempts or losses.
    ticket: int


Record: TypeAlias = TicketGiven | TicketEnded | TaskDone | TaskFailed | TaskReopened


class TasksSettled(NamedTuple):
    """In a replay only, before all else: what became of the tasks of earlier runs."""

    #: A byte for each task by its number, from 0: 0 is not settled, 1 done, 2 failed.
    ends: bytes


class TicketsPast(NamedTuple):
    """In a replay only: tickets that were given and have ended, and their tasks are settled.

    What else there was of them matters no more. A session may have millions of them: column by
    column they are read and noted in a fraction of the time.
    """

    #: The number of the first; the others follow without a gap.
    first: int
    tasks: Sequence[int]
    hosts: Sequence[str]
    ends: Sequence[End]
    seconds: Sequence[Seconds]


class TicketsUsed(NamedTuple):
    """In a replay only: all numbers up to this one were given out.

    The highest may have been the ticket of a task that is no longer in the table, which a
    replay leaves out.
    """

    upto: int


#: What ``Session.replay`` learns from.
Replayed: TypeAlias = Record | TasksSettled | TicketsPast | TicketsUsed

# --- deeds ---------------------------------------------------------------------------------


class Assign(NamedTuple):
    """Answer ``ask`` with this task."""

    ask: int
    ticket: int
    task: int
    caller: Caller


class Refuse(NamedTuple):
    """Answer ``ask`` with 503: come back in ``retry_after`` seconds, or (None) die."""

    ask: int
    retry_after: int | None


class Supply(NamedTuple):
    """Answer the exchange ``ask``."""

    ask: int
    caller: Caller
    #: New tickets and their tasks.
    given: tuple[tuple[int, int], ...]
    #: Tickets whose workers may be stopped.
    over: tuple[int, ...]
    #: Tasks were wanted: there is none at present ...
    none: bool
    #: ... or none is left.
    end: bool


class Judge(NamedTuple):
    """Validate the stored result of ``ticket``; the verdict comes back as an event."""

    ticket: int
    task: int


class Discard(NamedTuple):
    """The stored result of ``ticket`` is no use: it may be deleted."""

    ticket: int


class Settle(NamedTuple):
    """The task was just done or has failed: collection may go on past it."""

    task: int
    #: The ticket whose result it is; None when it has failed.
    ticket: int | None


class Revive(NamedTuple):
    """A client that the master started has been silent too long: look after it."""

    host: str
    client: str


class Tell(NamedTuple):
    """Something a person should read in the log."""

    text: str
    warning: bool = False


class Finish(NamedTuple):
    """The run is over; given once. Requests are still answered (503, 205) until clients left."""

    outcome: Outcome
    #: One line; empty when all went well.
    reason: str = ""


Deed: TypeAlias = Assign | Refuse | Supply | Judge | Discard | Settle | Revive | Tell | Finish
Effect: TypeAlias = Record | Deed

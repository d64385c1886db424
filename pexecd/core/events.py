"""What can happen to a session. ``at`` never runs backwards from event to event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from pexecd.core.values import Caller, Failure
from pexecd.units import Instant, Seconds


class TaskAsked(NamedTuple):
    """A client asks for a task and waits for the answer."""

    at: Instant
    #: Names the waiting request in the effects that answer it; never used again.
    ask: int
    caller: Caller


class AskWithdrawn(NamedTuple):
    """The peer of a waiting request has left: it must get nothing."""

    at: Instant
    ask: int


class TicketUndelivered(NamedTuple):
    """The answer with this ticket did not reach its client: the worker never started."""

    at: Instant
    ticket: int


class TaskUntold(NamedTuple):
    """The task of this ticket could not be put into words for its client.

    The ticket costs nothing; the same client still waits, under a new ``ask``.
    """

    at: Instant
    ticket: int
    reason: str
    #: True: a client that announced itself can be told. False: nobody can (an
    #: input file is gone, say), and an attempt is used up.
    demanding: bool
    #: None: it came by an exchange, where nobody waits any more.
    again: TaskAsked | None


class TicketPinged(NamedTuple):
    """A client says that it still works on a ticket."""

    at: Instant
    ticket: int


class ClientHeard(NamedTuple):
    """A client made any other request: it fetched its config or the worker.

    The tickets of an earlier client of the same host, if the master started both, are lost.
    """

    at: Instant
    caller: Caller


class ClientSupposed(NamedTuple):
    """A client is said to run on a host of the cluster, though it may not have been heard yet.

    It may be an earlier master's, and end before it ever turns to this one.
    """

    at: Instant
    host: str


class ClientGone(NamedTuple):
    """A client is known to be dead (its process ended): its tickets are lost at once."""

    at: Instant
    client: str


class BodyStarted(NamedTuple):
    """A result of this ticket is arriving: no deadline ends it meanwhile."""

    at: Instant
    ticket: int


class BodyEnded(NamedTuple):
    """The result stopped arriving without being stored (the peer left, say)."""

    at: Instant
    ticket: int


class ResultStored(NamedTuple):
    """All results of this ticket are on disk (ends the wait that BodyStarted began).

    The master journals the records that this event yields together with the result.
    """

    at: Instant
    ticket: int
    #: How long the worker ran, where the client said so.
    seconds: Seconds | None = None


class ResultJudged(NamedTuple):
    """Validation came to a verdict."""

    at: Instant
    ticket: int
    valid: bool
    reason: str = ""


class JudgeFailed(NamedTuple):
    """The validator raised or hung: no verdict; the result is kept, the task waits."""

    at: Instant
    ticket: int
    reason: str


class TicketFailed(NamedTuple):
    """The client reports a failure, or the upload was no use."""

    at: Instant
    ticket: int
    failure: Failure


class Exchanged(NamedTuple):
    """A client tells what has become of many tickets, and wants new tasks (SPEC section 2).

    The results of ``stored`` are on disk with the records that this event yields.
    """

    at: Instant
    #: Names the waiting request in the effect that answers it; never used again.
    ask: int
    caller: Caller
    #: How many tasks it takes.
    want: int
    #: Tickets whose results are stored, and how long their workers ran.
    stored: Sequence[tuple[int, Seconds | None]] = ()
    failed: Sequence[tuple[int, Failure]] = ()
    #: Tickets whose workers run, and since how long.
    running: Sequence[tuple[int, Seconds]] = ()
    #: Tickets whose workers were not started yet ...
    waiting: Sequence[int] = ()
    #: ... and will not be.
    back: Sequence[int] = ()


class HostDrained(NamedTuple):
    """A host was taken out of the cluster, or is to have another client.

    The client that it has gets no more tasks and is told that none is left: it ends when its
    workers have.
    """

    at: Instant
    host: str
    #: The next client there is welcome; else none is.
    returns: bool


class HostsUnusable(NamedTuple):
    """No host can be used, now or later (every reason is final): waiting is no use."""

    at: Instant
    #: Empty: another host came, and it is of use after all.
    reason: str


class StopAsked(NamedTuple):
    """Somebody wants the run to stop (Ctrl-C, a supervisor)."""

    at: Instant
    reason: str


class TimePassed(NamedTuple):
    """The instant that ``Session.next_deadline`` named has come (early or late is harmless)."""

    at: Instant


Event: TypeAlias = (
    TaskAsked
    | AskWithdrawn
    | TicketUndelivered
    | TaskUntold
    | TicketPinged
    | ClientHeard
    | ClientSupposed
    | ClientGone
    | BodyStarted
    | BodyEnded
    | ResultStored
    | ResultJudged
    | JudgeFailed
    | TicketFailed
    | Exchanged
    | HostDrained
    | HostsUnusable
    | StopAsked
    | TimePassed
)

"""What a session remembers of hosts, clients, asks, tickets and tasks while they live.

Plain data, compared by identity; the rules are in the modules that use it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from typing import TypeAlias

from pexecd.core.values import Caller, End
from pexecd.units import Instant, Seconds


@dataclass(slots=True, eq=False)
class Host:
    """A computer that tickets were given to."""

    name: str
    #: Its place in ``Ledger``'s list of hosts.
    index: int

    # What the records say, kept by ``Ledger``.
    #: Ended tickets, in the order of ``End``.
    ends: list[int] = field(default_factory=lambda: [0] * len(End))
    busy: Seconds = 0.0
    #: Tickets that have not ended.
    running: int = 0

    # How it does at the moment, kept by ``Standings``.
    #: Live tickets (not the doubtful ones) and open asks.
    engaged: int = 0
    wins: int = 0
    #: Failures since its last success.
    streak: int = 0
    #: How many wins the other hosts had when the streak began.
    mark: int = 0
    #: Why it is set aside, or None.
    aside: str | None = None
    #: When its pause ends.
    until: Instant = 0.0
    #: Pauses since its last success.
    pauses: int = 0

    #: It gets no more tasks; with ``returns`` only until a new client comes.
    drained: bool = False
    returns: bool = False

    #: While it is set aside: the one ask, ticket or result that it is tried with.
    probe: Ask | Ticket | KeptResult | None = None
    #: Its open asks.
    asks: dict[int, Ask] = field(default_factory=dict)
    #: The client that the master started there and heard of last.
    client: Client | None = None


@dataclass(slots=True, eq=False)
class Client:
    """A program that works tasks; several foreign ones at one address count as one."""

    name: str
    host: Host
    managed: bool
    speaks: bool
    #: When it last sent a request.
    heard: Instant
    #: When an ask of its was answered last: it may have waited long, and is there now.
    answered: Instant = -inf
    #: Its live and doubtful tickets.
    tickets: dict[int, Ticket] = field(default_factory=dict)
    #: How many of them are doubtful.
    doubtful: int = 0
    #: Its requests that are open: asks that wait, bodies that arrive.
    open: int = 0
    #: How often it was to be revived since it was heard.
    revivals: int = 0
    #: Tickets that it still works on for all we know, but that are over.
    untold: int = 0
    #: The answer to its last ask was: no task is left.
    refused: bool = False


@dataclass(slots=True, eq=False)
class Ask:
    """A request for a task."""

    number: int
    caller: Caller
    client: Client
    host: Host
    #: When it came.
    since: Instant


@dataclass(slots=True, eq=False)
class Ticket:
    """A ticket that a client works on, as far as we know."""

    number: int
    work: Work
    client: Client
    host: Host
    given: Instant
    #: When its timeout began to count: later than ``given`` where it may wait at its client.
    begun: Instant
    #: When it was given, last pinged, a body of it stopped arriving, or its client was back.
    heard: Instant
    #: Its silence means something: it was pinged before, or its client always pings.
    watched: bool
    #: Silent for too long: its task may be given to another, but it may come back.
    doubtful: bool = False
    #: Its client came back and has not mentioned it since.
    welcomed: bool = False
    #: Bodies of it that arrive just now.
    arriving: int = 0


@dataclass(slots=True, eq=False)
class KeptResult:
    """A stored result that has no verdict yet."""

    ticket: int
    work: Work
    host: Host
    managed: bool
    seconds: Seconds
    #: False: validation failed to come to a verdict.
    awaited: bool = True


@dataclass(slots=True, eq=False)
class Work:
    """A task that was begun and is not settled."""

    task: int
    # Tuples, because most tasks are done with one ticket and there are many of them.
    #: Live and doubtful tickets, in the order of their giving.
    tickets: tuple[Ticket, ...] = ()
    #: Results without a verdict.
    results: tuple[KeptResult, ...] = ()
    #: Used-up attempts, and lost tickets (not the doubtful ones).
    attempts: int = 0
    losses: int = 0
    #: Hosts on which it failed or was lost.
    tried: tuple[Host, ...] = ()
    #: Why the last attempt was used up.
    reason: str = ""
    #: Only for callers that speak (SPEC section 2, "Content").
    demanding: bool = False
    #: Since when it is pending.
    since: Instant = 0.0


class Alarm(Enum):
    """The deadlines of the session itself."""

    #: Has any client been heard of?
    GIVE_UP = auto()
    #: Did a client come that can be told the demanding tasks?
    PATIENCE = auto()
    #: Are hosts that were set aside the only ones left?
    ALONE = auto()
    #: Clients of the process before this one have had time to hear that all is over.
    STRANGERS = auto()


#: Everything that has a deadline, at most one each.
Timed: TypeAlias = Ticket | Ask | Client | Host | Alarm

"""The words that the core, the journal and the statistics share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pexecd.units import Seconds

#: The number of the first ticket of a session (SPEC section 1: five digits at first).
FIRST_TICKET = 10000

#: So many lost tickets make a task fail: it kills its hosts (SPEC section 1).
MOST_LOSSES = 5


class End(Enum):
    """How a ticket ended; each ends in exactly one of these (SPEC section 1).

    The value is the word in statistics, joblog and database.
    """

    # By identity, as they are compared: Enum's own is written in Python, and slow.
    __hash__ = object.__hash__

    #: Its result is its task's.
    DONE = "done"
    #: The worker failed or a result was missing: an attempt is used up.
    FAILED = "failed"
    #: Validation said no: an attempt is used up.
    INVALID = "invalid"
    #: The worker ran past its timeout: an attempt is used up.
    TIMED_OUT = "timed out"
    #: Host or client gone: no attempt is used up, but see ``MOST_LOSSES``.
    LOST = "lost"
    #: Another copy won, the session ended, or it was never started: costs nothing.
    CANCELLED = "cancelled"


class Outcome(Enum):
    """Why a run is over; the value is the exit status (SPEC section 4)."""

    SUCCEEDED = 0
    SOME_FAILED = 1
    NO_HOST = 3
    INTERRUPTED = 130


class Policy(NamedTuple):
    """The settings of a job that the core decides by. Times in seconds."""

    #: How long one run of the worker may take; 0: no limit.
    timeout: Seconds = 0.0
    #: How often a task is tried before it has failed.
    attempts: int = 3
    #: Most tickets a task may have at once when slots would stand idle; 1: no copies.
    duplicates: int = 2
    #: So many failed attempts before the first success stop the run; 0: never.
    stop_after: int = 20
    #: Seconds without any client before the run gives up.
    give_up: Seconds = 600.0
    #: The interval at which clients ping; 0: never.
    ping: Seconds = 10.0
    #: How long a task that only newer clients can be told waits for one.
    patience: Seconds = 3600.0
    #: How long a request for a task is held open while tasks run that may come back.
    hold: Seconds = 30.0
    #: How long a task that came by an exchange may wait for its turn before its timeout counts.
    queue: Seconds = 30.0
    #: How much later than the client the master itself ends a ticket that is overdue.
    grace: Seconds = 30.0
    #: Validators that raised or hung, one after another, before the run stops.
    unjudged: int = 5
    #: Failures of one host in a row, while others do well, before it is set aside.
    bad_streak: int = 4
    #: The first pause of a host that was set aside; doubles each time up to ``pause_most``.
    pause: Seconds = 60.0
    pause_most: Seconds = 3600.0
    #: Every task needs a client that announced itself (a ``stderr`` result, say).
    demanding: bool = False
    #: Results are validated before they count.
    validates: bool = False


class Caller(NamedTuple):
    """Who sent a request."""

    #: The client's ID, or the peer's address for those that have none.
    client: str
    #: The name of its host in the cluster file, or the peer's address.
    host: str
    #: The master started it: it pings, and its host can be set aside.
    managed: bool = False
    #: It announced itself: newer things may be sent to it (SPEC section 2).
    speaks: bool = False


class Failure(NamedTuple):
    """What went wrong in one attempt, for people and for the journal."""

    #: One line.
    reason: str
    end: End = End.FAILED
    #: Exit status of the worker, -1 where none is known.
    exit_status: int = -1
    #: Signal that killed the worker, 0 for none.
    signal: int = 0
    #: How long the worker ran, where the client said so.
    seconds: Seconds | None = None
    #: The tail of its standard error.
    stderr: bytes = b""


class HostCounts(NamedTuple):
    """The tickets of one host by how they ended, and its busy time.

    A tuple: those of ten thousand hosts are copied in one go.
    """

    #: Ended tickets, in the order of ``End``.
    counts: tuple[int, ...]
    #: Sum over its ended tickets of the time from giving out to end.
    busy: Seconds
    running: int
    #: Why it is set aside just now, or None.
    aside: str | None

    @property
    def ends(self) -> dict[End, int]:
        """How many tickets ended in which way."""
        return dict(zip(End, self.counts, strict=True))


@dataclass(frozen=True, slots=True)
class Totals:
    """A session's numbers at one moment. ``done + failed + running + pending == tasks``."""

    tasks: int
    done: int
    failed: int
    #: Tasks with a live ticket or a result that waits for its verdict.
    running: int
    pending: int
    #: Tickets given out so far; the sum of all ends and of the live ones.
    tickets: int
    #: Results that wait for their verdict; their tasks count as running.
    judging: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(Totals):
    """The same, and what is known of each host."""

    hosts: dict[str, HostCounts]

"""Hosts, and the clients that work on them, as ``client/pexec_client.py`` and foreign ones do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pexecd.core.effects import Supply
from pexecd.core.values import Caller, End, Failure
from tests.simulation.network import Call, Network
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.history import Office

#: The longest time between two tries, in seconds.
LONGEST_PAUSE = 10.0


@dataclass(slots=True, eq=False)
class Finished:
    """What a worker left: to be posted until it is confirmed."""

    ticket: int
    task: int
    good: bool
    failure: Failure | None
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """What an exchange tells, and how many tasks it wants."""

    want: int = 0
    complete: tuple[Finished, ...] = ()
    failed: tuple[Finished, ...] = ()
    running: tuple[tuple[int, float], ...] = ()
    waiting: tuple[int, ...] = ()
    back: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Host:
    """A computer.

    ``cut``: the network to it is down; ``down``: it is switched off; ``broken``: every worker
    fails there.
    """

    name: str
    managed: bool
    #: The master sees at once when the client there ends: it is a child.
    local: bool = False
    slots: int = 2
    #: How many tasks its clients fetch ahead by exchanges; None: they use the single requests.
    prefetch: int | None = None
    cut: bool = False
    down: bool = False
    broken: bool = False
    client: Client | None = None
    #: Of dead clients, on disk: for the next one to post.
    left: list[Finished] = field(default_factory=list)


class Client:
    """One run of a client, until it ends or is killed.

    Args:
        world: its time and its dice.
        network: brings its requests to the master.
        office: knows the job.
        host: where it runs.
        caller: what it says of itself.
        pings: the interval; 0: never.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        office: Office,
        host: Host,
        caller: Caller,
        pings: float,
    ) -> None:
        self._world = world
        self._network = network
        self._office = office
        self.host = host
        self.caller = caller
        self._pings = pings
        self._runs: dict[int, int] = {}
        self._over: set[int] = set()
        self._posts: dict[int, Finished] = {}
        self._asking = False
        self._pausing = False
        self._no_more = False
        self._tries = 0
        self._silent_since: float | None = None
        self.alive = True
        self._configured_once = False
        host.client = self

    def _later(self, seconds: float, function: object, *args: object) -> None:
        def due() -> None:
            if self.alive:
                function(*args)  # type: ignore[operator]

        self._world.later(seconds, due)

    def _backoff(self) -> float:
        most = min(LONGEST_PAUSE, 0.2 * 2.0 ** min(self._tries, 10))
        self._tries += 1
        return self._world.dice.uniform(most / 2, most)

    def _call(self, call: Call) -> None:
        done = call.done

        def answered(status: int, value: object) -> None:
            if not self.alive:
                return
            if status:
                self._silent_since = None
            elif self._silent_since is None:
                self._silent_since = self._world.now
            elif self._world.now - self._silent_since > self._office.patience:
                self.die("loses patience")
                return
            done(status, value)

        call.done = answered
        self._network.send(call)

    @property
    def waits_for_the_end(self) -> bool:
        """A good client that goes on asking or working, not knowing that all is over."""
        asks = not self._no_more or bool(self._runs)
        return self.alive and self.host.managed and self._configured_once and asks

    # --- its life --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Fetch the config, then work; post first what dead ones left."""
        if not self.caller.speaks:
            self._ask()
            return
        self._call(Call(self, "/config", self._configured))

    def _configured(self, status: int, value: object) -> None:
        if status != 200:
            self._later(self._backoff(), self.begin)
            return
        self._configured_once = True
        for finished in self.host.left:
            self._post(finished)
        self.host.left.clear()
        self._ask()

    def _ask(self) -> None:
        if self._asking or self._pausing or self._no_more or not self.alive:
            return
        if len(self._runs) >= self.host.slots or len(self._posts) > self.host.slots:
            return
        self._asking = True
        self._call(Call(self, "/task", self._told))

    def _told(self, status: int, value: object) -> None:
        self._asking = False
        if status == 200:
            assert isinstance(value, tuple)
            self._run(*value)
            self._ask()
        elif status == 503 and (value is None or not self.caller.speaks):
            self._no_more = True
            self._maybe_end()
        else:
            self._pausing = True
            self._later(value or self._backoff(), self._ask_again)  # type: ignore[arg-type]

    def _ask_again(self) -> None:
        self._pausing = False
        self._ask()

    # --- workers -------------------------------------------------------------------------------

    def _run(self, ticket: int, task: int) -> None:
        if ticket in self._runs or ticket in self._posts:
            return
        self._tries = 0
        self._runs[ticket] = task
        seconds, failure = self._office.working(task, self.host)
        self._world.tell(task, "ticket %d: the worker starts on %s", ticket, self.host.name)
        self._later(seconds, self._run_ended, ticket, failure)
        if self._pings:
            self._later(self._world.dice.random() * self._pings, self._ping, ticket)

    def _ping(self, ticket: int) -> None:
        if ticket not in self._runs and ticket not in self._posts:
            return

        def answered(status: int, _: object) -> None:
            if status == 205 and ticket in self._runs:
                self._world.tell(self._runs[ticket], "ticket %d: its worker is stopped", ticket)
                self._over.add(ticket)
                self._run_ended(ticket, None)
            else:
                self._later(self._pings, self._ping, ticket)

        self._call(Call(self, "/ping", answered, ticket))

    def _run_ended(self, ticket: int, failure: Failure | None) -> None:
        task = self._runs.pop(ticket, None)
        if task is None:
            return
        if ticket not in self._over:
            if failure is not None and failure.end is End.LOST:
                self.die("is killed by its worker")
                return
            good = self._office.makes(ticket)
            self._post(Finished(ticket, task, good, failure))
        self._ask()
        self._maybe_end()

    def _post(self, finished: Finished) -> None:
        ticket = finished.ticket
        self._posts[ticket] = finished
        finished.tries += 1
        path = "/failed" if finished.failure else "/complete"
        call = Call(self, path, lambda status, _: self._posted(finished, status), ticket)
        call.good, call.failure = finished.good, finished.failure
        self._call(call)

    def _posted(self, finished: Finished, status: int) -> None:
        if status != 200 and (self.caller.speaks or finished.tries < 3):
            self._later(self._backoff(), self._post, finished)
            return
        self._posts.pop(finished.ticket, None)
        self._ask()
        self._maybe_end()

    # --- its end ---------------------------------------------------------------------------------

    def _maybe_end(self) -> None:
        if self.alive and self._no_more and not self._runs and not self._posts:
            self.die("has nothing left to do")

    def die(self, why: str, *, silently: bool = False) -> None:
        """It is dead, and what it could not post stays on disk. Silently: its host is dead."""
        if not self.alive:
            return
        self._world.tell(0, "%s on %s %s", self.caller.client, self.host.name, why)
        self.alive = False
        if self.caller.speaks:
            self.host.left += self._posts.values()
        if self.host.client is self:
            self.host.client = None
        self._network.hang_up(self, silently=silently)
        self._office.client_ended(self)


class Exchanger(Client):
    """A client that fetches tasks ahead, and tells what became of many in one exchange.

    It turns to the single request only where there is no task at the moment: that one waits.
    """

    #: Seconds for which what is done may wait for more; and a task for its turn.
    GAP = 0.5
    TURN = 10.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Tickets whose workers were not started yet: their tasks, and since when.
        self._queue: dict[int, tuple[int, float]] = {}
        self._started: dict[int, float] = {}
        self._back: set[int] = set()
        self._exchanging = False
        self._planned = False
        self._none = False
        if self._pings:
            self._later(self._world.dice.random() * self._pings, self._ping_all)

    @property
    def waits_for_the_end(self) -> bool:
        return super().waits_for_the_end or (self.alive and bool(self._queue))

    # --- exchanges ------------------------------------------------------------------------------

    def _ask(self) -> None:
        if self._none and not self._queue:
            super()._ask()  # it waits for a task that comes back
        else:
            self._exchange()

    def _told(self, status: int, value: object) -> None:
        self._none = False
        super()._told(status, value)

    def _exchange(self, *, ping: bool = False) -> None:
        if self._exchanging or self._pausing or not self.alive or not self._configured_once:
            return
        assert self.host.prefetch is not None
        room = self.host.slots + self.host.prefetch - len(self._runs) - len(self._queue)
        want = 0 if self._no_more or self._none or self._asking else max(0, room)
        posts = tuple(self._posts.values())
        now = self._world.now
        letter = Letter(
            want,
            tuple(finished for finished in posts if finished.failure is None),
            tuple(finished for finished in posts if finished.failure is not None),
            tuple((ticket, now - self._started[ticket]) for ticket in self._runs if ping),
            tuple(self._queue) if ping else (),
            tuple(self._back),
        )
        if letter == Letter():
            return
        self._exchanging = True
        call = Call(self, "/exchange", lambda status, value: self._swapped(letter, status, value))
        call.letter = letter
        self._call(call)

    def _swapped(self, letter: Letter, status: int, value: object) -> None:
        self._exchanging = False
        if status != 200:
            self._pausing = True
            self._later(value or self._backoff(), self._ask_again)  # type: ignore[arg-type]
            return
        assert isinstance(value, Supply)
        self._tries = 0
        for finished in (*letter.complete, *letter.failed):
            self._posts.pop(finished.ticket, None)
        self._back.difference_update(letter.back)
        for ticket in value.over:
            self._queue.pop(ticket, None)
            if ticket in self._runs:
                self._world.tell(self._runs[ticket], "ticket %d: its worker is stopped", ticket)
                self._over.add(ticket)
                self._run_ended(ticket, None)
        for ticket, task in value.given:
            self._queue[ticket] = task, self._world.now
        self._none = value.none
        self._no_more = self._no_more or value.end
        self._start_more()
        self._ask()
        self._maybe_end()

    def _ping_all(self) -> None:
        for ticket, (task, since) in list(self._queue.items()):
            if self._world.now - since > self.TURN and self._world.chance(0.7):
                self._world.tell(task, "ticket %d is given back", ticket)
                del self._queue[ticket]
                self._back.add(ticket)
        self._exchange(ping=True)
        self._later(self._pings, self._ping_all)

    # --- workers -------------------------------------------------------------------------------

    def _start_more(self) -> None:
        while self.alive and self._queue and len(self._runs) < self.host.slots:
            ticket = next(iter(self._queue))
            self._run(ticket, self._queue.pop(ticket)[0])

    def _run(self, ticket: int, task: int) -> None:
        self._started[ticket] = self._world.now
        super()._run(ticket, task)

    def _ping(self, ticket: int) -> None:
        """All of them are pinged together."""

    def _run_ended(self, ticket: int, failure: Failure | None) -> None:
        super()._run_ended(ticket, failure)
        if self.alive:
            self._start_more()

    def _post(self, finished: Finished) -> None:
        """Tell of it in the next exchange, with others that end soon."""
        self._posts[finished.ticket] = finished
        if not self._planned:
            self._planned = True
            self._later(self._world.dice.random() * self.GAP, self._send)

    def _send(self) -> None:
        self._planned = False
        self._exchange()

    def _maybe_end(self) -> None:
        if not (self._queue or self._back):
            super()._maybe_end()

"""One history: a job with its hosts, and at least five faults, until all is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from pexecd.core.session import Session
from pexecd.core.values import Caller, End, Failure, Policy
from tests.simulation.audit import Audit
from tests.simulation.clients import LONGEST_PAUSE, Client, Exchanger, Host
from tests.simulation.disk import Disk
from tests.simulation.master import Master
from tests.simulation.network import USUAL_DELAY, Network
from tests.simulation.world import BrokenError, CrashError, World

#: So many seconds after the last fault all must be over.
_ENOUGH = 20_000.0
#: So long after the last fault no client waits for a lost answer any more, or to ask again.
_QUIET = 120.0
#: A history with more events than this goes round in circles.
_MOST_EVENTS = 60_000


#: Happens, if it can just now; says whether it could.
Fault: TypeAlias = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a history was like."""

    tasks: int
    hosts: int
    faults: int
    restarts: int
    events: int


class Office:
    """Where the master runs; who starts it and the clients, and makes the faults.

    Args:
        seed: of all dice.
        master_class: the master, or one with a bug.
        session_class: the core, or one with a bug.
    """

    def __init__(
        self,
        seed: int,
        master_class: type[Master] = Master,
        session_class: type[Session] = Session,
    ) -> None:
        self.world = world = World(seed)
        dice = world.dice
        self._master_class = master_class
        self._session_class = session_class
        self.tasks = dice.randint(20, 32)
        ping = dice.choice((10.0, 10.0, 10.0, 3.0, 0.0))
        foreign = dice.choice((0, 0, 1, 2))
        # Silence says nothing of who never pings: only a timeout ends such tickets.
        timeout = 40.0 if foreign or not ping else dice.choice((0.0, 40.0))
        self.patience = dice.choice((60.0, 300.0, 3600.0))
        self.policy = Policy(
            timeout=timeout,
            attempts=dice.randint(1, 3),
            duplicates=dice.randint(1, 3),
            stop_after=0,
            give_up=dice.choice((200.0, 600.0)),
            ping=ping,
            patience=dice.choice((100.0, 300.0)),
            validates=dice.random() < 0.6,
        )
        self.linger = 2 * ping + 5
        self.network = Network(world, self)
        self.disk = Disk()
        self.audit = Audit(world, self, self.disk, self.policy, self.tasks)
        self.master: Master | None = None
        self.hosts = [
            Host(f"host-{number}", managed=True, local=number == 1, slots=dice.randint(1, 3))
            for number in range(1, dice.randint(3, 5) + 1)
        ]
        for host in self.hosts:
            host.prefetch = dice.choice((None, 0, 3, 8))
        self.clients: list[Client] = []
        self._foreign = [
            Host(f"10.0.0.{number}", managed=False, slots=1) for number in range(1, foreign + 1)
        ]
        #: One task that kills the client that runs it, sometimes.
        self._killer = dice.randint(1, self.tasks) if world.chance(0.1) else 0
        #: Tasks that only newer clients can be told.
        self._demanding = {
            task for task in range(1, self.tasks + 1) if world.chance(0.05) and foreign
        }
        self._bad_results = dice.choice((0.0, 0.0, 0.1))
        self._failures = dice.choice((0.0, 0.05, 0.2))
        self._longest_run = dice.choice((4.0, 20.0, 35.0))
        #: So many further results the validator raises at.
        self.raises = 0
        self.slow_verdicts = False
        self._restarts = 0
        self._over = False
        #: Clients that a run which ended in order could not reach.
        self._left_behind: set[Client] = set()
        #: When the last fault will be over.
        self._calm = 0.0
        #: Faults by the number of tickets given before.
        self._planned: dict[int, list[Fault]] = {}
        self._tickets = 0
        self._faults = 0

    # --- the whole -------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Let it happen.

        Raises:
            BrokenError: what must hold does not.
        """
        world = self.world
        world.tell(0, "%d tasks, %d hosts, %s", self.tasks, len(self.hosts), self.policy)
        for host in self._foreign:
            world.later(world.dice.uniform(0, 50), self._start_foreign, host)
        self._plan_faults()
        self._start_master()
        while not self._over:
            try:
                world.next()
            except CrashError:
                self._crash()
            except BrokenError:
                raise
            except Exception as error:
                raise BrokenError(f"a part stumbles: {error!r}") from error
            if world.happened > _MOST_EVENTS or world.now > self._calm + _ENOUGH:
                raise self._endless()
        self.audit.closes()
        return Summary(
            self.tasks,
            len(self.hosts) + len(self._foreign),
            self._faults,
            self._restarts,
            world.happened,
        )

    def _endless(self) -> BrokenError:
        for task in range(1, self.tasks + 1):
            if task not in self.disk.settled:
                return BrokenError(f"it never ends: task {task} is not settled", task)
        return BrokenError("it never ends, though all tasks are settled")

    # --- master ----------------------------------------------------------------------------------

    def _start_master(self) -> None:
        world = self.world
        world.tell(0, "THE MASTER STARTS")
        self.master = self._master_class(
            world, self.disk, self.audit, self, self.policy, self.tasks, self._session_class
        )
        self.master.go_on()
        for host in self.hosts:
            world.later(world.dice.random() * 3, self._launch, host)

    def _crash(self) -> None:
        master = self.master
        if master is not None:
            self.world.tell(0, "THE MASTER IS KILLED")
            self._stop(master)
            self._start_again(self.world.dice.choice((0.1, 5.0, 30.0, 100.0)))

    def leaves(self, master: Master) -> None:
        """All clients have heard the end, or two pings have passed."""
        if master is not self.master:
            return
        world = self.world
        world.tell(0, "THE MASTER LEAVES")
        self.disk.clients = False
        self._stop(master)
        if len(self.disk.settled) < self.tasks or self.disk.kept():
            # Interrupted, no host, no verdict: somebody gives the same command again.
            self._left_behind.update(client for client in self.clients if client.alive)
            self._start_again(50.0)
            return
        # Two pings must be longer than any pause of a client.
        quiet = self.policy.ping >= LONGEST_PAUSE and world.now > self._calm + _QUIET
        world.later(5.0, self._end, quiet)

    def _end(self, quiet: bool) -> None:
        self._over = True
        for client in self.clients:
            if client.waits_for_the_end and client not in self._left_behind and quiet:
                raise BrokenError(f"{client.caller.client} was not told that all is over")

    def _stop(self, master: Master) -> None:
        master.close()
        self.master = None
        self.world.fatal_step = None
        self.network.reset(master)

    def _start_again(self, seconds: float) -> None:
        self._restarts += 1
        self.world.later(seconds, self._start_master)

    # --- clients ---------------------------------------------------------------------------------

    def _launch(self, host: Host) -> None:
        """The launcher: starts a client where none answers; tries again while it cannot."""
        master = self.master
        if master is None or master.finish is not None:
            return
        if host.down or host.cut:
            self.world.later(self.world.dice.uniform(5, 15), self._launch, host)
            return
        if host.client is None:
            name = f"client-{len(self.clients) + 1}"
            caller = Caller(name, host.name, managed=True, speaks=True)
            self._start_client(host, caller, self.policy.ping)
        # One that ran already answers, too: that it does is all that is known of it.
        master.supposed(host.name)

    def _start_foreign(self, host: Host) -> None:
        caller = Caller(host.name, host.name)
        self._start_client(host, caller, self.world.dice.choice((0.0, self.policy.ping)))

    def _start_client(self, host: Host, caller: Caller, pings: float) -> None:
        self.world.tell(0, "%s starts on %s", caller.client, host.name)
        kind = Client if host.prefetch is None else Exchanger
        client = kind(self.world, self.network, self, host, caller, pings)
        self.clients.append(client)
        client.begin()

    def revive(self, name: str) -> None:
        """The master has not heard of a client for too long."""
        for host in self.hosts:
            if host.name == name:
                self.world.later(1.0, self._launch, host)

    def client_ended(self, client: Client) -> None:
        """A client is dead; the master knows it only if it was a child."""
        if client.host.local and self.master is not None:
            self.world.later(0.1, self.master.client_ended, client.caller.client)
            self.world.later(5.0, self._launch, client.host)

    # --- the job ---------------------------------------------------------------------------------

    def can_be_told(self, task: int, caller: Caller) -> bool:
        """Whether the task can be put into words for this caller."""
        return caller.speaks or task not in self._demanding

    def working(self, task: int, host: Host) -> tuple[float, Failure | None]:
        """How long a worker takes, and how it fails, if it does."""
        world = self.world
        seconds = world.dice.uniform(0.1, self._longest_run)
        if task == self._killer:
            return seconds, Failure("it kills its host", End.LOST)
        if host.broken:
            return 0.1, Failure("disk full")
        if world.chance(self._failures):
            if self.policy.timeout and host.managed and world.chance(0.3):
                return self.policy.timeout, Failure("ran too long", End.TIMED_OUT)
            return seconds, Failure("exit status 1")
        return seconds, None

    def makes(self, ticket: int) -> bool:
        """A worker is done: whether the validator likes what it made."""
        good = not (self.policy.validates and self.world.chance(self._bad_results))
        self.audit.made[ticket] = good
        return good

    def judging_takes(self) -> float:
        """Seconds until a verdict."""
        return self.world.dice.uniform(10, 60) if self.slow_verdicts else 0.2

    def validator_raises(self) -> bool:
        """Whether it comes to no verdict this time."""
        if not self.raises:
            return False
        self.raises -= 1
        return True

    # --- faults ----------------------------------------------------------------------------------

    def _plan_faults(self) -> None:
        """Say at which ticket each fault comes: so all of them do, however fast the run is."""
        dice = self.world.dice
        for kind in dice.choices(_FAULTS, k=dice.randint(7, 12)):
            seconds = dice.choice((1.0, 20.0, 120.0))
            fault: Fault = partial(kind, self, seconds)
            self._planned.setdefault(dice.randint(1, self.tasks - 8), []).append(fault)

    def ticket_given(self) -> None:
        """A ticket was decided on: maybe it is time for a fault."""
        self._tickets += 1
        for fault in self._planned.pop(self._tickets, ()):
            soon = self.world.dice.uniform(0, self._longest_run / 10)
            self.world.later(soon, self._happens, fault)

    def _happens(self, fault: Fault) -> None:
        if fault():
            self._faults += 1
        else:  # there is nothing to break just now
            self.world.later(0.2, self._happens, fault)

    def _for(self, seconds: float, text: str, what: object, **changes: object) -> bool:
        """Change something for a while.

        Returns:
            Whether it is a change.
        """
        before = {name: getattr(what, name) for name in changes}
        if before == changes:
            return False
        self.world.tell(0, "%s for %g s", text, seconds)
        self._calm = max(self._calm, self.world.now + seconds)

        def well_again() -> None:
            self.world.tell(0, "%s: not any more", text)
            for name in changes:
                setattr(what, name, getattr(_WELL, name))

        for name, value in changes.items():
            setattr(what, name, value)
        self.world.later(seconds, well_again)
        return True

    def _any_host(self) -> Host:
        return self.world.dice.choice(self.hosts + self._foreign)

    def _crash_at_a_step(self, _: float) -> bool:
        if self.world.fatal_step is not None or self.master is None:
            return False
        self.world.fatal_step = self.world.dice.choice((0, 1, 2, 3, 5, 8, 20))
        return True

    def _kill_client(self, _: float) -> bool:
        client = self._any_host().client
        if client is not None:
            client.die("is killed")
        return client is not None

    def _end_client(self, _: float) -> bool:
        client = self._any_host().client
        if client is not None:
            client.die("gives up")
        return client is not None

    def _switch_off_host(self, seconds: float) -> bool:
        host = self._any_host()
        if not self._for(seconds, f"{host.name} is switched off", host, down=True):
            return False
        if host.client is not None:
            host.client.die("dies with its host", silently=True)
        return True

    def _cut_off_host(self, seconds: float) -> bool:
        host = self._any_host()
        return self._for(seconds, f"{host.name} is cut off", host, cut=True)

    def _break_host(self, seconds: float) -> bool:
        host = self._any_host()
        return self._for(seconds, f"on {host.name} every worker fails", host, broken=True)

    def _trouble_network(self, seconds: float) -> bool:
        dice = self.world.dice
        loss, repeats = dice.choice((0.0, 0.1, 0.3)), dice.choice((0.0, 0.3))
        delay = dice.choice((2.0, 20.0))
        text = f"the network: {loss:.0%} lost, {repeats:.0%} repeated, up to {delay:g} s late,"
        return self._for(seconds, text, self.network, loss=loss, repeats=repeats, delay=delay)

    def _trouble_validator(self, _: float) -> bool:
        if self.raises or not self.policy.validates:
            return False
        self.raises = self.world.dice.choice((1, 3, 8))
        self.world.tell(0, "the validator raises at the next %d results", self.raises)
        return True

    def _slow_validator(self, seconds: float) -> bool:
        return self._for(seconds, "the validator is slow", self, slow_verdicts=True)

    def _jump(self, seconds: float) -> bool:
        if self.master is not None:
            self.world.tell(0, "the master's clock jumps by %g s", seconds)
            self.master.jump(seconds)
        return self.master is not None

    def _fill_disk(self, seconds: float) -> bool:
        return self._for(seconds, "the master's disk is full", self.disk, full=True)

    def _change_host(self, _: float) -> bool:
        host = self.world.dice.choice(self.hosts)
        master, client = self.master, host.client
        if master is None or master.finish is not None or client is None:
            return False
        self.world.tell(0, "%s is to have another client", host.name)
        self._replace(client)
        return True

    def _replace(self, client: Client) -> None:
        """The launcher: starts a new client when the old one has ended."""
        if not client.alive:
            self._launch(client.host)
        elif self.master is not None:  # the next one has the new settings from the beginning
            self.master.drain(client.host.name)
            self.world.later(3.0, self._replace, client)

    def _interrupt(self, _: float) -> bool:
        if self.master is not None:
            self.world.tell(0, "somebody presses Ctrl-C")
            self.master.interrupt()
        return self.master is not None


class _WELL:
    """How all that can be troubled is otherwise."""

    down = cut = broken = full = slow_verdicts = False
    loss = repeats = 0.0
    delay = USUAL_DELAY


_FAULTS = (
    *[Office._crash_at_a_step] * 3,
    Office._kill_client,
    Office._end_client,
    Office._switch_off_host,
    Office._cut_off_host,
    Office._break_host,
    Office._trouble_network,
    Office._trouble_validator,
    Office._slow_validator,
    Office._jump,
    Office._fill_disk,
    Office._interrupt,
    Office._change_host,
)

"""Requests and answers on their way: late, twice, never, or in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pexecd.core.effects import Supply
from pexecd.core.values import Failure
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.clients import Client, Letter
    from tests.simulation.history import Office
    from tests.simulation.master import Master

#: A client waits so long for an answer.
_LIMIT = 60.0
#: The longest way, in seconds, when all is well.
USUAL_DELAY = 0.05


@dataclass(slots=True, eq=False)
class Call:
    """A request that has no answer yet."""

    client: Client
    path: str
    done: Callable[[int, object], None]
    ticket: int = 0
    #: Of ``/complete``: whether the result is valid.
    good: bool = False
    #: Of ``/failed``.
    failure: Failure | None = None
    #: Of ``/exchange``.
    letter: Letter | None = None
    #: The process that has got it.
    master: Master | None = None
    #: Of ``/task`` and ``/exchange``: the number that the master knows it by, while it waits.
    ask: int | None = None
    #: The answer is on its way, or lost on it.
    told: bool = False
    #: The client has its answer, or waits no more.
    over: bool = False


class Network:
    """Brings calls to the master and answers back.

    Args:
        world: its time and its dice.
        office: knows which process listens, if any.
    """

    def __init__(self, world: World, office: Office) -> None:
        self._world = world
        self._office = office
        #: How bad it is: probabilities of loss and repetition, and the longest delay.
        self.loss = 0.0
        self.repeats = 0.0
        self.delay = USUAL_DELAY
        self._open: dict[Call, None] = {}

    def send(self, call: Call) -> None:
        """A client makes a request."""
        self._open[call] = None
        if self._lost(call):
            self._world.later(_LIMIT, self._answered, call, 0, None)
            return
        self._world.later(self._delay(), self._arrive, call)
        if self._world.chance(self.repeats):
            twin = Call(call.client, call.path, lambda *_: None, call.ticket, call.good)
            twin.failure, twin.letter = call.failure, call.letter
            self._open[twin] = None
            self._world.later(self._delay(), self._arrive, twin)

    def hang_up(self, client: Client, *, silently: bool) -> None:
        """The client is dead; silently: so is its host, and no connection is closed."""
        for call in [call for call in self._open if call.client is client]:
            del self._open[call]
            call.over = True
            if not silently:
                self._world.later(self._delay(), self._break_off, call)

    def reset(self, master: Master) -> None:
        """The process is gone, and the system closes its connections."""
        for call in [call for call in self._open if call.master is master and not call.told]:
            self._world.later(self._delay(), self._answered, call, 0, None)

    # --- on its way there ------------------------------------------------------------------------

    def _arrive(self, call: Call) -> None:
        master = self._office.master
        if call.over and call.path == "/task":
            return
        if master is None:
            self._world.later(self._delay(), self._answered, call, 0, None)
            return
        call.master = master
        caller = call.client.caller
        match call.path:
            case "/config":
                master.heard(caller)
                self._reply(call, 200)
            case "/task":
                call.ask = master.ask(
                    caller, lambda status, value: self._reply(call, status, value)
                )
            case "/exchange":
                assert call.letter is not None
                call.ask = master.exchange(
                    caller, call.letter, lambda status, value: self._reply(call, status, value)
                )
            case "/ping":
                self._reply(call, master.ping(call.ticket))
            case "/complete":
                status = master.upload(call.ticket)
                if status == 503:
                    self._reply(call, status, 1)
                else:
                    self._world.later(self._delay(), self._arrived, call, status == 200)
            case "/failed":
                assert call.failure is not None
                master.fail(
                    call.ticket,
                    call.failure,
                    lambda status, value: self._reply(call, status, value),
                )

    def _arrived(self, call: Call, useless: bool) -> None:
        master = call.master
        assert master is not None

        def answer(status: int, value: object) -> None:
            self._reply(call, status, value)

        if useless:
            master.unwanted(call.ticket, answer)
        elif call.over or self._lost(call):
            master.abandon(call.ticket)
            self._world.later(self._delay(), self._answered, call, 0, None)
        else:
            master.complete(call.ticket, call.good, answer)

    def _break_off(self, call: Call) -> None:
        master = call.master
        if master is None or master.closed:
            return
        if call.ask is not None:
            master.peer_left(call.ask)

    # --- and back --------------------------------------------------------------------------------

    def _reply(self, call: Call, status: int, value: object = None) -> None:
        call.ask = None
        call.told = True
        if call.over or self._lost(call):
            self._world.later(_LIMIT, self._answered, call, 0, None)
            if status == 200 and call.path in {"/task", "/exchange"} and self._world.chance(0.5):
                assert call.master is not None
                given: Any = value.given if isinstance(value, Supply) else (value,)
                for ticket, _ in given:
                    self._world.later(self._delay(), call.master.undelivered, ticket)
        else:
            self._world.later(self._delay(), self._answered, call, status, value)

    def _answered(self, call: Call, status: int, value: object) -> None:
        if self._open.pop(call, self) is self:
            return
        call.over = True
        if not status and call.master is not None and not call.master.closed:
            # The client hangs up: it has waited long enough.
            self._world.later(self._delay(), self._break_off, call)
        call.done(status, value)

    def _lost(self, call: Call) -> bool:
        return call.client.host.cut or self._world.chance(self.loss)

    def _delay(self) -> float:
        return self._world.dice.random() * self.delay

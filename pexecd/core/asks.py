"""Requests for a task: each is answered or withdrawn exactly once (SPEC section 2, "Waiting")."""

from __future__ import annotations

from math import ceil

from pexecd.core.context import Context
from pexecd.core.effects import Assign, Refuse
from pexecd.core.progress import Progress
from pexecd.core.state import Ask, Client, Host
from pexecd.core.values import Caller

#: Seconds until clients should ask again; they have been held long enough.
_RETRY_AFTER = 1
#: The longest such time, for hosts that are set aside.
_LONGEST_RETRY_AFTER = 10


class Asks:
    """The asks that are open.

    Those of hosts that are set aside are held like the others, but only one at a time of such a
    host may have a task, and only after its pause.
    """

    def __init__(self, context: Context, progress: Progress) -> None:
        self._context = context
        self._progress = progress
        self._deadlines = context.deadlines
        self._clients = context.clients
        self._standings = context.standings
        self._dispatch = context.dispatch
        self._open: dict[int, Ask] = {}

    def add(self, number: int, caller: Caller) -> None:
        """Answer this ask, or hold it."""
        at = self._context.at
        client = self._hear(caller)
        host = client.host
        if host.drained:
            self._context.effects.append(Refuse(number, None))
            self._clients.refuse(client)
            return
        ask = Ask(number, caller, client, host, at)
        admitted = host.aside is None or (host.probe is None and host.until <= at)
        task = self._dispatch.pick(host, speaks=caller.speaks) if admitted else None
        if task is not None:
            self._give(ask, task)
            return
        self._open[number] = host.asks[number] = ask
        client.open += 1
        self._standings.engage(host)
        self._deadlines.set(ask, at + self._context.policy.hold)
        if admitted:
            self._dispatch.wait(ask)
            if host.aside is not None:
                host.probe = ask

    def supply(self, caller: Caller, want: int) -> list[tuple[int, int]]:
        """Tasks for an exchange, at once: tickets and tasks, at most so many.

        Near the end of the table no host gets more than its share.
        """
        at, dispatch, standings = self._context.at, self._dispatch, self._standings
        client = self._hear(caller)
        host = client.host
        if host.drained:
            return []
        if host.aside is not None:
            want = 1 if host.probe is None and host.until <= at and want else 0
        elif want > 1:
            hosts = standings.active + (host.engaged == 0)  # it may just have told all it had
            want = min(want, max(1, -(-dispatch.pending // hosts)))
        begun = at + self._context.policy.queue
        given: list[tuple[int, int]] = []
        while len(given) < want:
            task = dispatch.pick(host, speaks=caller.speaks, copies=False)
            if task is None:
                break
            given.append((self._progress.give(client, caller, task, begun), task))
        return given

    def withdraw(self, number: int) -> None:
        """The peer of this ask has left."""
        ask = self._open.get(number)
        if ask is not None:
            self._close(ask)

    def due(self, ask: Ask) -> None:
        """The ask was held long enough."""
        if not ask.caller.speaks:
            self._answer(ask, None)
        elif ask.host.aside is None:
            self._answer(ask, _RETRY_AFTER)
        else:
            pause = ceil(ask.host.until - self._context.at)
            self._answer(ask, max(_RETRY_AFTER, min(pause, _LONGEST_RETRY_AFTER)))

    def refuse(self, number: int, caller: Caller) -> None:
        """Answer this ask, now that all is over."""
        client = self._clients.hear(caller, self._context.at)
        self._context.effects.append(Refuse(number, None))
        self._clients.refuse(client)

    def send_away(self, client: Client) -> None:
        """The client is dead, though its connections may not have closed yet."""
        for ask in list(client.host.asks.values()):
            if ask.client is client:
                self.due(ask)

    def drain(self, host: Host) -> None:
        """No task is left for those of this host."""
        for ask in list(host.asks.values()):
            self._answer(ask, None)

    def refuse_all(self) -> None:
        """No task is left for any of them."""
        for ask in list(self._open.values()):
            self._answer(ask, None)

    def serve(self) -> None:
        """Give tasks to those that wait, after something has changed."""
        while self._standings.changed:
            self._reconsider(self._standings.changed.pop())
        while (pair := self._dispatch.match()) is not None:
            ask, task = pair
            self._close(ask)
            self._give(ask, task)

    def _reconsider(self, host: Host) -> None:
        """The host was set aside, or let back in, or may be tried again."""
        if host.aside is None:
            self._deadlines.drop(host)
            for ask in list(host.asks.values()):
                self._offer(ask)
        elif host.until > self._context.at:
            self._deadlines.set(host, host.until)
            for ask in host.asks.values():
                self._dispatch.forget(ask)
        elif host.probe is None and host.asks:
            ask = next(iter(host.asks.values()))
            host.probe = ask
            self._offer(ask)

    def _offer(self, ask: Ask) -> None:
        task = self._dispatch.pick(ask.host, speaks=ask.caller.speaks)
        if task is None:
            self._dispatch.wait(ask)
        else:
            self._close(ask)
            self._give(ask, task)

    def _give(self, ask: Ask, task: int) -> None:
        at = self._context.at
        number = self._progress.give(ask.client, ask.caller, task, at)
        self._context.effects.append(Assign(ask.number, number, task, ask.caller))

    def _hear(self, caller: Caller) -> Client:
        """Who asks for a task, and so has not left."""
        client = self._clients.hear(caller, self._context.at)
        client.refused = False
        if client.managed and client.doubtful:
            self._progress.welcome(client)
        return client

    def _answer(self, ask: Ask, retry_after: int | None) -> None:
        self._close(ask)
        self._context.effects.append(Refuse(ask.number, retry_after))
        ask.client.answered = self._context.at
        if retry_after is None:
            self._clients.refuse(ask.client)

    def _close(self, ask: Ask) -> None:
        del self._open[ask.number]
        del ask.host.asks[ask.number]
        ask.client.open -= 1
        self._standings.disengage(ask.host, self._context.at)
        self._standings.release(ask.host, ask)
        self._deadlines.drop(ask)
        self._dispatch.forget(ask)

"""The clients of a session: when each was heard, and whether it knows that all is over."""

from __future__ import annotations

from pexecd.core.deadlines import Deadlines
from pexecd.core.effects import Revive
from pexecd.core.ledger import Ledger
from pexecd.core.state import Alarm, Client, Ticket, Timed
from pexecd.core.values import Caller, Policy
from pexecd.units import Instant, Seconds

#: Once all is over, clients that are silent for two pings are not waited for (SPEC section 4);
#: those that ping often or never may still need so long for their next request.
_LEAST_LINGER: Seconds = 5.0


class Clients:
    """Who was heard, and when.

    Args:
        policy: for ``ping`` and ``pause_most``.
        ledger: knows the hosts.
        deadlines: shared with the session, which passes clients that are due to ``due``.
        at: now.
    """

    def __init__(
        self, policy: Policy, ledger: Ledger, deadlines: Deadlines[Timed], at: Instant
    ) -> None:
        self._ledger = ledger
        self._deadlines = deadlines
        self._pings = policy.ping > 0
        self._longest_pause = policy.pause_most
        #: So long a client or ticket may be silent (SPEC section 2, "Pings").
        self.silence: Seconds = 3 * policy.ping + 5
        self._linger: Seconds = max(2 * policy.ping, _LEAST_LINGER)
        self._clients: dict[str, Client] = {}
        #: Tickets that are over and whose client does not know it.
        self._untold: dict[int, Client] = {}
        #: When all was over: the clients that do not know it. Before: None.
        self._left: dict[str, Client] | None = None
        #: Until when those may turn up that only an earlier process knew, and whether all
        #: is over and they are waited for.
        self._strangers_until = at
        self._strangers = False
        #: When any client was heard last, and one that announced itself.
        self.heard = at
        self.speaker_heard = at

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def left(self) -> int:
        """How many clients still have to hear that all is over."""
        return len(self._left or ()) + self._strangers

    def get(self, name: str) -> Client | None:
        """The client of that name, if it was ever heard."""
        return self._clients.get(name)

    def current(self, caller: Caller) -> Client | None:
        """The client that the caller's host has so far, where the master starts it."""
        return self._ledger.host(caller.host).client if caller.managed else None

    def hear(self, caller: Caller, at: Instant) -> Client:
        """A request came from this caller."""
        client = self._clients.get(caller.client)
        if client is None or client.host.name != caller.host:
            host = self._ledger.host(caller.host)
            client = Client(caller.client, host, caller.managed, caller.speaks, at)
            self._clients[caller.client] = client
        client.managed, client.speaks = caller.managed, caller.speaks
        self.seen(client, at)
        return client

    def suppose(self, host: str, at: Instant) -> None:
        """A client is said to run on this host: should none be heard, it is looked after."""
        where = self._ledger.host(host)
        if where.client is None and self._left is None:
            self._watch(Client(f"a client on {host}", where, managed=True, speaks=True, heard=at))

    def seen(self, client: Client, at: Instant) -> None:
        """A request came that names a ticket of this client."""
        client.heard = self.heard = at
        if client.speaks:
            self.speaker_heard = at
        if self._left is not None:
            self._stay(client)
        elif client.managed and (client.revivals or client.host.client is not client):
            self._watch(client)

    def due(self, client: Client, at: Instant) -> Revive | None:
        """The client's deadline has come."""
        if self._left is not None:
            if self._leaves(client) > at:
                self._deadlines.set(client, self._leaves(client))
            else:
                self._left.pop(client.name, None)
            return None
        if client.host.client is not client or client.host.drained:
            return None  # another one was started in its place, or is to be
        if client.open:
            self._deadlines.set(client, at + self.silence)
            return None
        if not client.revivals and client.heard + self.silence > at:
            self._deadlines.set(client, client.heard + self.silence)
            return None
        client.revivals += 1
        pause = min(self.silence * 2.0 ** min(client.revivals, 32), self._longest_pause)
        self._deadlines.set(client, at + max(pause, self.silence))
        return Revive(client.host.name, client.name)

    def remove(self, client: Client) -> None:
        """The client is dead."""
        self._clients.pop(client.name, None)
        self._deadlines.drop(client)
        if client.host.client is client:
            client.host.client = None
        if self._left is not None:
            self._left.pop(client.name, None)

    # --- when all is over ------------------------------------------------------------------

    def owe(self, ticket: Ticket) -> None:
        """The ticket is over, by a decision of ours: its client must be told."""
        self._untold[ticket.number] = ticket.client
        ticket.client.untold += 1

    def tell(self, ticket: int, at: Instant) -> None:
        """A request that names a ticket that is over: the answer says so."""
        client = self._untold.pop(ticket, None)
        if client is None:
            self.heard = at
            return
        client.untold -= 1
        self.seen(client, at)

    def refuse(self, client: Client) -> None:
        """The client is told that no task is left."""
        client.refused = True
        if self._left is not None:
            self._stay(client)

    def expect_strangers(self, at: Instant) -> None:
        """An earlier process may have left clients behind that wait for an answer."""
        self._strangers_until = at + self._linger

    def strangers_due(self) -> None:
        """Those who did not turn up until now are gone."""
        self._strangers = False

    def part(self, at: Instant) -> None:
        """All is over: from now on, ``left`` counts those that do not know it."""
        self._left = {}
        if self._strangers_until > at:
            self._strangers = True
            self._deadlines.set(Alarm.STRANGERS, self._strangers_until)
        for client in self._clients.values():
            if self._leaves(client) > at:
                self._stay(client)

    def _leaves(self, client: Client) -> Instant:
        """Until when the client is waited for."""
        return max(client.heard, client.answered) + self._linger

    def _stay(self, client: Client) -> None:
        assert self._left is not None
        if client.refused and not client.untold:
            self._left.pop(client.name, None)
        elif client.name not in self._left:
            self._left[client.name] = client
            self._deadlines.set(client, self._leaves(client))

    # --- one client for each host ----------------------------------------------------------

    def _watch(self, client: Client) -> None:
        """This one is its host's client from now on, and it is alive."""
        before, client.host.client = client.host.client, client
        if before is not None and before is not client:
            # Another one was started in its place.
            self._deadlines.drop(before)
            if not before.tickets and not before.open:
                self._clients.pop(before.name, None)
        client.revivals = 0
        if self._pings:
            self._deadlines.set(client, client.heard + self.silence)

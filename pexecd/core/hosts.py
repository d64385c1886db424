"""Which hosts are in use, and which ones are set aside because they fail (SPEC section 7)."""

from __future__ import annotations

from pexecd.core.state import Ask, Host, KeptResult, Ticket
from pexecd.core.values import Policy
from pexecd.units import Instant, Seconds


class Standings:
    """How the hosts do, compared with each other.

    A host that fails ``bad_streak`` times in a row, while another one does well, is set aside:
    for a pause that doubles each time, and then it is tried with one ticket at a time, until a
    success clears it. Failures of tasks that failed on another host before do not count.

    Args:
        policy: for its ``bad_streak`` and pauses.
        at: now.
    """

    def __init__(self, policy: Policy, at: Instant) -> None:
        self._policy = policy
        self._wins = 0
        #: Live tickets and open asks of all hosts.
        self.engaged = 0
        #: Hosts with a live ticket or an open ask that are not set aside.
        self.active = 0
        #: Since when there is none.
        self.idle_since = at
        #: Hosts that are set aside, by name.
        self.aside: dict[str, Host] = {}
        #: Hosts that were set aside, cleared, or lost their probe: their asks need a look.
        self.changed: list[Host] = []

    def engage(self, host: Host) -> None:
        """Count a live ticket or an open ask."""
        self.engaged += 1
        host.engaged += 1
        if host.engaged == 1 and host.aside is None:
            self.active += 1

    def disengage(self, host: Host, at: Instant) -> None:
        """Take back one ``engage``."""
        self.engaged -= 1
        host.engaged -= 1
        if host.engaged == 0 and host.aside is None:
            self._leave(at)

    def succeed(self, host: Host) -> bool:
        """Count a success.

        Returns:
            Whether the host had been set aside until now.
        """
        self._wins += 1
        host.wins += 1
        host.streak = 0
        host.pauses = 0
        return host.aside is not None and self.clear(host)

    def fail(self, host: Host, at: Instant, reason: str, *, probing: bool) -> Seconds | None:
        """Count a failure.

        Args:
            host: where.
            at: now.
            reason: of the failure.
            probing: it was the one ticket that a host set aside was tried with.

        Returns:
            The pause if the host is set aside now, else None.
        """
        if host.aside is None:
            others = self._wins - host.wins
            if host.streak == 0:
                host.mark = others
            host.streak += 1
            alone = self.active == (1 if host.engaged else 0)
            if host.streak < self._policy.bad_streak or others == host.mark or alone:
                return None
            self.aside[host.name] = host
            if host.engaged:
                self._leave(at)
        elif not probing:
            return None
        # The exponent is bounded only to keep the number one that a float can hold.
        pause = min(self._policy.pause * 2.0 ** min(host.pauses, 32), self._policy.pause_most)
        host.aside = f"fails while others do well; the last reason: {reason}"
        host.until = at + pause
        host.pauses += 1
        self.changed.append(host)
        return pause

    def clear(self, host: Host) -> bool:
        """Let a host back in; its pauses go on growing should it fail again.

        Returns:
            Whether it had been set aside until now.
        """
        if host.aside is None:
            return False
        host.aside = None
        host.probe = None
        host.streak = 0
        del self.aside[host.name]
        self.changed.append(host)
        if host.engaged:
            self.active += 1
        return True

    def release(self, host: Host, probe: Ask | Ticket | KeptResult) -> None:
        """This ask, ticket or result is over: if the host was tried with it, another may follow."""
        if host.probe is probe:
            host.probe = None
            self.changed.append(host)

    def _leave(self, at: Instant) -> None:
        self.active -= 1
        self.idle_since = at

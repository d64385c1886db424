"""What the parts of a session share."""

from __future__ import annotations

from pexecd.core.clients import Clients
from pexecd.core.deadlines import Deadlines
from pexecd.core.dispatch import Dispatch
from pexecd.core.effects import Effect
from pexecd.core.hosts import Standings
from pexecd.core.ledger import Ledger
from pexecd.core.state import Timed
from pexecd.core.values import Policy
from pexecd.units import Instant


class Context:
    """The state of a session, and the event that is being handled.

    Args:
        policy: the job's settings.
        tasks: how many the table has.
        at: now.
    """

    def __init__(self, policy: Policy, tasks: int, at: Instant) -> None:
        self.policy = policy
        #: The instant of the event that is being handled, and its effects so far.
        self.at = at
        self.effects: list[Effect] = []
        self.deadlines: Deadlines[Timed] = Deadlines()
        self.ledger = Ledger(tasks)
        self.clients = Clients(policy, self.ledger, self.deadlines, at)
        self.standings = Standings(policy, at)
        self.dispatch = Dispatch(policy, self.ledger)

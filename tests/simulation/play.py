"""Play histories by their seeds; tell the story of one that breaks."""

from __future__ import annotations

from tests.simulation.bugs import Bug
from tests.simulation.history import Office, Summary
from tests.simulation.world import BrokenError


def play(seed: int, bug: Bug | None = None) -> Summary:
    """Play one history.

    Args:
        seed: decides everything in it.
        bug: planted in it.

    Raises:
        BrokenError: what must hold does not; its text tells how it came to that.
    """
    planted = bug or Bug()
    office = Office(seed, planted.master_class, planted.session_class)
    try:
        return office.run()
    except BrokenError as broken:
        raise BrokenError(tell(seed, broken, office), broken.task) from broken.__cause__


def tell(seed: int, broken: BrokenError, office: Office) -> str:
    """For a person: what happened to the task, what broke, and how to see it again."""
    about = f"what concerns task {broken.task}" if broken.task else "everything"
    return (
        f"seed {seed}: {broken}\n\n"
        f"The story of seed {seed}, {about}, in seconds:\n\n"
        f"{office.world.story(broken.task)}\n\n"
        f"{office.world.now:9.3f}  BROKEN: {broken}\n\n"
        f"The same again: python -m tests.simulation --seed {seed}"
        + ("  (--whole: all tasks)" if broken.task else "")
    )

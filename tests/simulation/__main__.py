"""``python -m tests.simulation``: many histories on all cores, or one of them again."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.history import Office
from tests.simulation.play import play, tell
from tests.simulation.world import BrokenError

#: Seeds that a process plays before it says how far it is.
_BLOCK = 250
#: Stories of broken histories that are printed; there may be many of one kind.
_TOLD = 3


@dataclass(slots=True)
class Block:
    """What came of some seeds."""

    histories: int = 0
    faults: int = 0
    restarts: int = 0
    events: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, other: Block) -> None:
        """Sum up."""
        self.histories += other.histories
        self.faults += other.faults
        self.restarts += other.restarts
        self.events += other.events
        self.broken += other.broken


def play_block(first: int, count: int, bug: str | None) -> Block:
    """Play the histories of some seeds."""
    block = Block()
    for seed in range(first, first + count):
        block.histories += 1
        try:
            summary = play(seed, BUGS[bug] if bug else None)
        except BrokenError as broken:
            block.broken.append(str(broken))
        else:
            block.faults += summary.faults
            block.restarts += summary.restarts
            block.events += summary.events
    return block


def play_many(first: int, count: int, bug: str | None) -> int:
    """Play many, in as many processes as there are cores; the exit status."""
    total = Block()
    with ProcessPoolExecutor() as pool:
        blocks = [
            pool.submit(play_block, start, min(_BLOCK, first + count - start), bug)
            for start in range(first, first + count, _BLOCK)
        ]
        for done in as_completed(blocks):
            total.add(done.result())
            if sys.stderr.isatty() or total.histories % (20 * _BLOCK) == 0:
                print(
                    f"{total.histories} of {count} histories, {len(total.broken)} broken",
                    file=sys.stderr,
                )
    for story in total.broken[:_TOLD]:
        print(story, end="\n\n")
    print(
        f"{total.histories} histories (seeds {first} to {first + count - 1}): {total.faults} "
        f"faults, {total.restarts} restarts, {total.events} events, {len(total.broken)} broken"
    )
    return 1 if total.broken else 0


def play_one(seed: int, whole: bool, bug: str | None) -> int:
    """Play one and tell its story; the exit status."""
    planted = BUGS[bug] if bug else Bug()
    office = Office(seed, planted.master_class, planted.session_class)
    try:
        summary = office.run()
    except BrokenError as broken:
        print(tell(seed, BrokenError(str(broken)) if whole else broken, office))
        return 1
    print(office.world.story())
    print(f"seed {seed}: {summary}")
    return 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20_000, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this one alone; tells its story")
    parser.add_argument("--whole", action="store_true", help="with --seed: of all tasks")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant this bug")
    given = parser.parse_args()
    if given.seed is not None:
        return play_one(given.seed, given.whole, given.bug)
    return play_many(given.first, given.seeds, given.bug)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

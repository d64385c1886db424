"""Thousands of histories full of faults: nothing is lost, forgotten, or done twice."""

from __future__ import annotations

from collections import Counter

import pytest

from pexecd.core.values import End
from tests.simulation.bugs import BUGS
from tests.simulation.history import Office
from tests.simulation.play import play
from tests.simulation.world import BrokenError

#: So many histories are played, in blocks that are tests.
HISTORIES = 4000
BLOCK = 500
#: A planted bug must be found in so many histories.
ENOUGH = 2000


@pytest.mark.parametrize("first", range(0, HISTORIES, BLOCK))
def test_what_must_hold_holds_in_every_history(first: int) -> None:
    small = 0
    for seed in range(first, first + BLOCK):
        summary = play(seed)
        assert summary.tasks >= 20
        assert summary.hosts >= 3
        small += summary.faults < 5
    assert small < BLOCK / 100, "hardly any run is over before its fifth fault"


def find(name: str) -> BrokenError:
    """Play until somebody notices the bug."""
    for seed in range(ENOUGH):
        try:
            play(seed, BUGS[name])
        except BrokenError as broken:
            return broken
    pytest.fail(f"{ENOUGH} histories, and nobody notices {name}")


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str) -> None:
    assert "stumbles" not in str(find(name)), "it is seen by what it does, not by its own fall"


def test_a_broken_history_is_told() -> None:
    broken = find("ForgottenWhenDoubtful")
    lines, task = str(broken).splitlines(), broken.task
    seed = lines[0].split()[1].rstrip(":")
    assert lines[0] == f"seed {seed}: it never ends: task {task} is not settled"
    assert any("THE MASTER STARTS" in line for line in lines)
    assert any(f"task {task:2}  ticket " in line and "is decided on" in line for line in lines)
    times = [float(line.split()[0]) for line in lines[4:-2] if line]
    assert times == sorted(times)
    assert f"python -m tests.simulation --seed {seed} " in lines[-1]


def test_the_same_seed_is_the_same_history() -> None:
    one, other = Office(11), Office(11)
    assert one.run() == other.run()
    assert one.world.story() == other.world.story()


def test_the_histories_are_worth_it() -> None:
    """Everything that can become of a ticket, and every fault, is in the first hundred."""
    ends = Counter[End]()
    stories = ""
    for seed in range(100):
        office = Office(seed)
        office.run()
        ends.update(ended.end for ended in office.disk.ended.values())
        stories += office.world.story()
    assert ends.keys() == set(End)
    for words in (
        "THE MASTER IS KILLED",
        "is killed\n",
        "gives up",
        "is switched off",
        "is cut off",
        "every worker fails",
        "the network:",
        "the validator raises",
        "the validator is slow",
        "clock jumps",
        "disk is full",
        "Ctrl-C",
        "cannot be told",
        "is killed by its worker",
        "loses patience",
        "no verdict on",
        "is deleted",
        "its worker is stopped",
        "is given back",
        "SUCCEEDED",
        "SOME_FAILED",
        "INTERRUPTED",
    ):
        assert words in stories, words

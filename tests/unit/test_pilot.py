"""Tasks from all over the table, and what they say of the others."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pexecd.pilot import estimate, spread
from pexecd.summary import expected


@given(st.integers(1, 3000), st.integers(1, 1_000_000))
def test_tasks_of_a_pilot_are_as_many_as_asked_in_equal_distances(count: int, tasks: int) -> None:
    chosen = spread(count, tasks)
    assert len(chosen) == min(count, tasks)
    assert all(1 <= task <= tasks for task in chosen)
    steps = {after - before for before, after in pairwise(chosen)}
    assert all(tasks // len(chosen) <= step <= tasks // len(chosen) + 1 for step in steps)
    assert abs((chosen[0] - 1) - (tasks - chosen[-1])) <= 1, "as far from one end as from the other"


def test_one_of_a_table_is_its_middle() -> None:
    assert spread(1, 9) == [5]
    assert spread(4, 8) == [2, 4, 6, 8]
    assert spread(9, 3) == [1, 2, 3]


def test_the_whole_is_expected_from_the_mean() -> None:
    numbers = estimate([(1.0, 100), (2.0, 200), (6.0, 600)], left=30, slots=4, free=10**6)
    assert numbers["mean_s"] == 3.0
    assert (numbers["shortest_s"], numbers["median_s"], numbers["longest_s"]) == (1.0, 2.0, 6.0)
    assert numbers["work_s"] == 90.0
    assert numbers["wall_s"] == 22.5
    assert numbers["result_bytes"] == 9000
    assert numbers["margin"] == 1.018  # twice sqrt(7) over sqrt(3), of 3
    assert (numbers["ran"], numbers["left"], numbers["slots"]) == (3, 30, 4)
    assert numbers["free_bytes"] == 10**6


def test_no_task_ends_before_the_longest() -> None:
    assert estimate([(1.0, 0), (9.0, 0)], left=2, slots=100, free=0)["wall_s"] == 9.0


def test_what_is_not_known_is_not_made_up() -> None:
    none = estimate([], left=30, slots=4, free=0)
    assert none["work_s"] is none["wall_s"] is none["mean_s"] is none["result_bytes"] is None
    one = estimate([(2.0, 10)], left=3, slots=0, free=0)
    assert one["margin"] is one["wall_s"] is None
    assert one["work_s"] == 6.0
    assert estimate([(0.0, 10), (0.0, 10)], left=3, slots=1, free=0)["margin"] is None


def test_a_person_reads_what_is_expected() -> None:
    numbers = estimate([(90.0, 10**9), (150.0, 2 * 10**9)], left=60, slots=4, free=80 * 10**9)
    pilot, whole, results = expected(numbers)
    assert pilot.endswith(
        "took 2:00 min on average, 1:30 min to 2:30 min, half of them up to 2:00 min"
    )
    assert "60 tasks are left: about 2:00:00 h of work, give or take 50%;" in whole
    assert whole.endswith("; 30:00 min on the 4 slots that were there")
    assert results.endswith("about 90 GB more, but only 80 GB are free in the state folder")
    short = expected(estimate([(0.0042, 1), (0.25, 1)], 1, 1, 0))[0]
    assert "took 0.1 s on average, 4.2 ms to 0.2 s" in short
    assert expected(estimate([], 60, 4, 0)) == [
        "pilot    none of its tasks is done: nothing can be said of the 60 others"
    ]
    assert expected(estimate([(1.0, 1)], 0, 4, 0))[1:] == ["whole    no task is left"]

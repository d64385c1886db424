"""The heap of deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pexecd.core.deadlines import Deadlines


def test_the_earliest_comes_first_and_equal_ones_in_order() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for key, when in (("b", 2.0), ("a", 1.0), ("c", 2.0)):
        deadlines.set(key, when)
    assert deadlines.next() == 1.0
    assert deadlines.pop(0.9) is None
    assert [deadlines.pop(2.0) for _ in range(4)] == ["a", "b", "c", None]
    assert deadlines.next() is None


def test_a_deadline_can_move_both_ways() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 5.0)
    deadlines.set("a", 9.0)
    assert deadlines.next() == 9.0
    deadlines.set("a", 3.0)
    assert deadlines.next() == 3.0
    assert [deadlines.pop(99.0), deadlines.pop(99.0)] == ["a", None]


def test_what_was_dropped_does_not_pile_up() -> None:
    deadlines: Deadlines[int] = Deadlines()
    for key in range(100_000):
        deadlines.set(key, float(key))
        deadlines.drop(key - 10)
        assert deadlines.held < 100


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 5), st.integers(0, 20)),
            st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("pop"), st.just(0), st.integers(0, 20)),
        )
    )
)
def test_it_does_what_a_plain_dictionary_does(steps: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[int] = Deadlines()
    model: dict[int, int] = {}
    for step, key, when in steps:
        if step == "set":
            deadlines.set(key, when)
            model[key] = when
        elif step == "drop":
            deadlines.drop(key)
            model.pop(key, None)
        else:
            popped = deadlines.pop(when)
            due = min(model.values(), default=None)
            if due is None or due > when:
                assert popped is None
            else:
                assert popped is not None
                assert model.pop(popped) == due
        assert len(deadlines) == len(model)
        assert deadlines.next() == min(model.values(), default=None)

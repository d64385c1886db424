from __future__ import annotations

from pexecd.ports import Collected
from pexecd.results.order import ByCompletion, ByParameters, Settled


def settled(*tasks: tuple[int, int | None]) -> Settled:
    known = Settled()
    for task, ticket in tasks:
        known.settle(task, ticket)
    return known


def test_what_was_settled_is_counted_once() -> None:
    known = settled((3, None), (1, 10000), (1, 10000), (3, None))
    assert (known.done, len(known)) == (1, 3)
    assert not known.settle(1, None)  # done stays done
    assert known.settle(3, 10005)
    assert known.done == 2
    assert [known.ticket(task) for task in range(6)] == [None, 10000, None, 10005, None, None]
    assert [known.known(task) for task in range(1, 5)] == [True, False, True, False]


def test_by_parameters_everything_waits_for_its_turn() -> None:
    known = settled((2, 10002), (3, None))
    order = ByParameters(known)
    assert order.take() is None
    known.settle(1, 10007)
    known.settle(5, 10005)
    batch = order.take()
    assert batch is not None
    assert (batch.tasks, batch.upto, batch.noted) == ([(1, 10007), (2, 10002)], 3, (3,))
    assert list(order.tail()) == [[(1, 10007), (2, 10002), (5, 10005)]]
    order.commit(batch)
    assert (order.count, order.gaps, order.upto) == (2, (3,), 3)
    assert order.take() is None
    assert list(order.tail()) == [[(5, 10005)]]


def test_a_batch_is_never_large() -> None:
    order = ByParameters(settled(*((task, 10000 + task) for task in range(1, 20_001))))
    batch = order.take(256)
    assert batch is not None
    assert len(batch.tasks) == batch.upto == 256
    order = ByParameters(settled(*((task, None) for task in range(1, 20_001))))
    batch = order.take(256)
    assert batch is not None
    assert batch.tasks == []
    assert batch.upto == len(batch.noted) < 20_000


def test_a_failed_task_that_is_done_after_all_makes_the_order_stale() -> None:
    known = settled((1, None), (2, 10002))
    order = ByParameters(known)
    batch = order.take()
    assert batch is not None
    order.commit(batch)
    assert not order.stale
    assert order.late() is None
    known.settle(1, 10009)
    order.settled(1)
    assert order.stale
    assert order.late() == (1, 10009)
    order.made_up(1)
    assert order.late() is None
    assert (order.stale, order.count) == (False, 2)


def test_one_that_is_done_between_take_and_commit() -> None:
    known = settled((1, None), (2, 10002))
    order = ByParameters(known)
    batch = order.take()
    assert batch is not None
    known.settle(1, 10009)
    order.settled(1)
    order.commit(batch)
    assert order.stale


def test_by_parameters_goes_on_where_it_was() -> None:
    known = settled((1, 10001), (2, None), (3, 10003), (4, 10004))
    order = ByParameters(known)
    order.restore(Collected("f", 10, 3, (2,)))
    assert (order.count, order.stale) == (2, False)
    batch = order.take()
    assert batch is not None
    assert batch.tasks == [(4, 10004)]
    known.settle(2, 10009)
    order.restore(Collected("f", 10, 3, (2,)))
    assert order.stale


def test_by_completion_it_is_as_they_come() -> None:
    known = settled((5, 10005), (2, 10002), (3, None))
    order = ByCompletion(known)
    order.restore(Collected("f", 10, 0, (2,)))
    assert order.count == 1
    for task, ticket in ((9, 10009), (1, 10001), (4, None), (3, 10010)):
        known.settle(task, ticket)
        order.settled(task)
    batch = order.take(3)
    assert batch is not None
    assert batch.tasks == [(5, 10005), (9, 10009), (1, 10001)]
    assert batch.noted == (5, 9, 1)
    order.commit(batch)
    batch = order.take(3)
    assert batch is not None
    assert batch.tasks == [(3, 10010)]
    order.commit(batch)
    assert order.take() is None
    assert (order.count, order.stale, list(order.tail())) == (5, False, [])

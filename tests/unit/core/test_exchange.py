"""Many tickets in a round trip: what becomes of them, and who gets which tasks."""

from __future__ import annotations

import pytest

from pexecd.core.effects import (
    Assign,
    Discard,
    Finish,
    Judge,
    Refuse,
    TaskDone,
    TaskFailed,
    TicketEnded,
    TicketGiven,
)
from pexecd.core.events import AskWithdrawn, ClientGone, StopAsked, TaskUntold, TicketUndelivered
from pexecd.core.values import Caller, End, Failure, Outcome
from tests.unit.core.scene import ANNA, BERT, CARL, NEWER, Scene, assigned, of

OOPS = Failure("oops", seconds=2.0)


def ends(scene: Scene) -> dict[int, End]:
    """How tickets ended, by the last exchange."""
    return {one.ticket: one.end for one in of(TicketEnded, scene.last_effects)}


# --- what it brings ------------------------------------------------------------------------


def test_it_brings_as_many_tasks_as_are_wanted() -> None:
    scene = Scene(tasks=100)
    supply = scene.exchange(ANNA, 16)
    assert supply.given == tuple((10000 + n, 1 + n) for n in range(16))
    assert (supply.over, supply.none, supply.end) == ((), False, False)
    given = of(TicketGiven, scene.last_effects)
    assert [(one.ticket, one.task, one.client, one.host) for one in given] == [
        (ticket, task, "client-a", "anna") for ticket, task in supply.given
    ]
    assert scene.session.statistics().running == 16


def test_it_brings_nothing_where_nothing_is_wanted() -> None:
    scene = Scene(tasks=10)
    supply = scene.exchange(ANNA)
    assert (supply.given, supply.none, supply.end) == ((), False, False)
    ticket = scene.give(ANNA)
    for _ in range(9):
        scene.done(scene.give(BERT))
    supply = scene.exchange(ANNA, done=[ticket])
    assert (supply.given, supply.none, supply.end) == ((), False, False)
    assert of(Finish, scene.last_effects) == [Finish(Outcome.SUCCEEDED)]


def test_results_make_tasks_done_in_one_event() -> None:
    scene = Scene(tasks=10)
    tickets = scene.fetch(ANNA, 4)
    supply = scene.exchange(ANNA, 2, done=tickets)
    assert [one.task for one in of(TaskDone, scene.last_effects)] == [1, 2, 3, 4]
    assert [one.seconds for one in of(TicketEnded, scene.last_effects)] == [0.5] * 4
    assert [task for _, task in supply.given] == [5, 6]


def test_results_are_judged_where_the_job_validates() -> None:
    scene = Scene(tasks=4, validates=True)
    tickets = scene.fetch(ANNA, 4)
    supply = scene.exchange(ANNA, 1, done=tickets)
    assert of(Judge, scene.last_effects) == [Judge(10000 + n, 1 + n) for n in range(4)]
    assert (supply.given, supply.none, supply.end) == ((), True, False)
    for ticket in tickets:
        assert scene.exchange(ANNA, running=[(ticket, 1.0)]).over == ()
        scene.judge(ticket, valid=True)
        assert scene.exchange(ANNA, running=[(ticket, 1.0)]).over == (ticket,)
    assert scene.exchange(ANNA, 1).end


def test_failures_use_up_attempts_and_come_back_as_tasks() -> None:
    scene = Scene(tasks=3, attempts=2)
    tickets = scene.fetch(ANNA, 3)
    supply = scene.exchange(ANNA, 5, failed=[(tickets[1], OOPS)])
    assert supply.given == ((10003, 2),)
    (ended,) = of(TicketEnded, scene.last_effects)
    assert (ended.end, ended.reason, ended.seconds) == (End.FAILED, "oops", 2.0)
    scene.exchange(ANNA, failed=[(10003, OOPS)])
    assert of(TaskFailed, scene.last_effects) == [TaskFailed(2, "oops")]


def test_a_failed_task_goes_to_another_host_first() -> None:
    scene = Scene(tasks=10)
    tickets = scene.fetch(ANNA, 2)
    supply = scene.exchange(ANNA, 1, failed=[(tickets[0], OOPS)])
    assert [task for _, task in supply.given] == [3]
    assert [task for _, task in scene.exchange(BERT, 1).given] == [1]


def test_all_kinds_at_once() -> None:
    scene = Scene(tasks=20)
    done, failed, running, waiting, back = scene.fetch(ANNA, 5)
    supply = scene.exchange(
        ANNA,
        2,
        done=[done],
        failed=[(failed, OOPS)],
        running=[(running, 1.0), (99999, 1.0)],
        waiting=[waiting],
        back=[back],
    )
    assert ends(scene) == {done: End.DONE, failed: End.FAILED, back: End.CANCELLED}
    assert supply.over == (99999,)
    assert [task for _, task in supply.given] == [5, 6]
    assert scene.session.statistics().running == 4


# --- how many tasks ------------------------------------------------------------------------


def test_near_the_end_every_host_gets_its_share() -> None:
    scene = Scene(tasks=20)
    for caller in (ANNA, BERT):
        scene.give(caller)
    assert len(scene.exchange(ANNA, 100).given) == 9  # of 18
    assert len(scene.exchange(BERT, 100).given) == 5  # of 9, rounded up
    assert len(scene.exchange(ANNA, 100).given) == 2
    assert len(scene.exchange(BERT, 1).given) == 1
    assert len(scene.exchange(ANNA, 100).given) == 1
    assert scene.exchange(ANNA, 100).none


def test_a_host_that_works_on_nothing_just_now_does_not_get_the_share_of_others() -> None:
    """It has just told all that it had."""
    scene = Scene(tasks=24)
    mine = scene.fetch(ANNA, 4)
    scene.fetch(BERT, 4)
    assert len(scene.exchange(ANNA, 100, done=mine).given) == 8  # of 16


def test_hosts_that_are_idle_or_set_aside_have_no_share() -> None:
    scene = Scene(tasks=100, bad_streak=1, attempts=9)
    scene.done(scene.give(BERT))
    scene.give(BERT)
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    scene.fail(scene.give(ANNA))
    assert scene.session.statistics().hosts["anna"].aside
    assert len(scene.exchange(BERT, 50).given) == 50


def test_a_host_set_aside_is_tried_with_one_task_after_its_pause() -> None:
    scene = Scene(tasks=100, bad_streak=1, attempts=9, pause=60)
    scene.done(scene.give(BERT))
    scene.give(BERT)
    first, second, third = scene.fetch(ANNA, 3)
    scene.fail(first)
    scene.done(scene.give(BERT))
    supply = scene.exchange(ANNA, 16, failed=[(second, OOPS)])
    assert (supply.given, supply.none) == ((), True)
    scene.at += 60
    ((probe, _),) = scene.exchange(ANNA, 16).given
    assert scene.exchange(ANNA, 16).none
    assert scene.exchange(ANNA, 16, failed=[(third, OOPS)]).none
    assert scene.exchange(ANNA, 0, failed=[(probe, OOPS)]).given == ()
    scene.at += 60
    assert scene.exchange(ANNA, 16).none  # the pause has doubled
    scene.at += 60
    ((probe, _),) = scene.exchange(ANNA, 16).given
    assert len(scene.exchange(ANNA, 4, done=[probe]).given) == 4


def test_a_probe_that_is_given_back_makes_room_for_another() -> None:
    scene = Scene(tasks=100, bad_streak=1, attempts=9, pause=60)
    scene.done(scene.give(BERT))
    scene.give(BERT)
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    scene.fail(scene.give(ANNA))
    scene.at += 60
    ((probe, _),) = scene.exchange(ANNA, 2).given
    scene.exchange(ANNA, back=[probe])
    ((_, _),) = scene.exchange(ANNA, 2).given


def test_held_asks_are_served_first() -> None:
    scene = Scene(tasks=2, duplicates=1)
    one, two = scene.fetch(ANNA, 2)
    ask = scene.hold(BERT)
    supply = scene.exchange(ANNA, 1, failed=[(one, OOPS)])
    assert assigned(scene.last_effects) == [(ask, 1)]
    assert (supply.given, supply.none) == ((), True)
    ask = scene.hold(BERT)
    supply = scene.exchange(ANNA, 1, back=[two])
    assert assigned(scene.last_effects) == [(ask, 2)]
    assert supply.none


def test_no_copies_are_given() -> None:
    scene = Scene(tasks=1, duplicates=2)
    scene.give(ANNA)
    assert scene.exchange(BERT, 1).none
    assert scene.task(scene.give(BERT)) == 1


def test_a_task_that_came_by_an_exchange_may_get_a_copy() -> None:
    scene = Scene(tasks=1, duplicates=2)
    (ticket,) = scene.fetch(ANNA, 1)
    copy = scene.give(BERT)
    assert scene.exchange(ANNA, waiting=[ticket]).over == ()
    scene.done(copy)
    assert scene.exchange(ANNA, waiting=[ticket], running=[(copy, 1.0)]).over == (copy, ticket)


def test_tasks_for_newer_clients_come_by_exchange() -> None:
    scene = Scene(tasks=4, demanding=True)
    assert len(scene.exchange(ANNA, 4).given) == 4


# --- the end -------------------------------------------------------------------------------


def test_none_is_not_the_end() -> None:
    scene = Scene(tasks=2)
    one, two = scene.fetch(ANNA, 2)
    supply = scene.exchange(BERT, 3)
    assert (supply.given, supply.none, supply.end) == ((), True, False)
    supply = scene.exchange(ANNA, 3, done=[one])
    assert (supply.given, supply.none, supply.end) == ((), True, False)
    supply = scene.exchange(ANNA, 3, done=[two])
    assert (supply.given, supply.none, supply.end) == ((), False, True)
    assert scene.exchange(BERT, 1).end
    assert not scene.exchange(BERT, 0).end


def test_the_last_results_refuse_those_that_wait() -> None:
    scene = Scene(tasks=2, duplicates=1)
    tickets = scene.fetch(ANNA, 2)
    ask = scene.hold(BERT)
    assert scene.exchange(ANNA, 1, done=tickets).end
    assert of(Refuse, scene.last_effects) == [Refuse(ask, None)]
    assert of(Finish, scene.last_effects) == [Finish(Outcome.SUCCEEDED)]


def test_who_is_told_the_end_is_not_waited_for() -> None:
    scene = Scene(tasks=2, ping=10)
    one, two = scene.fetch(ANNA, 1) + scene.fetch(BERT, 1)
    scene.exchange(BERT, done=[two])
    scene.exchange(ANNA, 4, done=[one])
    assert scene.session.clients_left() == 1
    assert scene.exchange(BERT, 4).end
    assert scene.session.clients_left() == 0


def test_who_wanted_nothing_is_waited_for() -> None:
    scene = Scene(tasks=1, ping=10)
    (ticket,) = scene.fetch(ANNA, 1)
    scene.exchange(ANNA, done=[ticket])
    assert scene.session.clients_left() == 1
    assert scene.exchange(ANNA, 1).end
    assert scene.session.clients_left() == 0


def test_a_stop_in_an_exchange_is_told_in_its_answer() -> None:
    """The tickets that it names know it then: nobody waits for their client."""
    scene = Scene(tasks=100, stop_after=1, ping=10)
    failing, running, waiting, back = scene.fetch(ANNA, 4)
    supply = scene.exchange(
        ANNA,
        4,
        failed=[(failing, OOPS)],
        running=[(running, 1.0)],
        waiting=[waiting],
        back=[back],
    )
    assert supply.end
    assert supply.over == (running, waiting)
    assert of(Finish, scene.last_effects)[0].outcome is Outcome.SOME_FAILED
    assert scene.session.clients_left() == 0


def test_after_a_stop_tickets_that_are_not_named_are_owed() -> None:
    scene = Scene(tasks=100, ping=10)
    one, two, three = scene.fetch(ANNA, 3)
    scene.handle(StopAsked(0.0, "Ctrl-C"))
    supply = scene.exchange(ANNA, 1, running=[(one, 1.0)])
    assert (supply.end, supply.over) == (True, (one,))
    assert scene.session.clients_left() == 1
    assert scene.exchange(ANNA, 1, back=[two], done=[three]).end
    assert scene.session.clients_left() == 0


def test_after_a_stop_a_late_result_still_counts() -> None:
    scene = Scene(tasks=2)
    one, two = scene.fetch(ANNA, 2)
    scene.handle(StopAsked(0.0, "Ctrl-C"))
    assert scene.session.wanted(one)
    assert scene.exchange(ANNA, 1, done=[one]).end
    assert of(TaskDone, scene.last_effects) == [TaskDone(1, one)]
    assert scene.exchange(ANNA, 1, failed=[(two, OOPS)]).end


# --- while tickets live --------------------------------------------------------------------


def test_the_timeout_counts_from_the_start_of_the_worker() -> None:
    scene = Scene(tasks=10, timeout=100, grace=30, queue=30, ping=0)
    ticket, other = scene.fetch(ANNA, 2)
    scene.at = 90.0
    scene.exchange(ANNA, waiting=[ticket, other])
    scene.at = 150.0
    scene.exchange(ANNA, running=[(ticket, 20.0)])  # since 130
    assert ends_within(scene, 99.9) == {}
    assert ends_within(scene, 0.1) == {other: End.TIMED_OUT}  # at 90 + 30 + 130
    assert ends_within(scene, 9.9) == {}
    assert ends_within(scene, 0.1) == {ticket: End.TIMED_OUT}  # at 130 + 130


def ends_within(scene: Scene, seconds: float) -> dict[int, End]:
    return {one.ticket: one.end for one in of(TicketEnded, scene.wait(seconds))}


def test_a_ticket_that_is_never_heard_of_waits_for_its_turn_as_long_as_it_may() -> None:
    scene = Scene(tasks=10, timeout=100, grace=30, queue=30, ping=0)
    (ticket,) = scene.fetch(ANNA, 1)
    assert ends_within(scene, 159.9) == {}
    assert ends_within(scene, 0.1) == {ticket: End.TIMED_OUT}


def test_a_worker_that_has_run_for_too_long_is_over_at_once() -> None:
    scene = Scene(tasks=10, timeout=100, grace=30, ping=0)
    (ticket,) = scene.fetch(ANNA, 1)
    scene.at = 10.0
    assert scene.exchange(ANNA, running=[(ticket, 500.0)]).over == ()
    assert ends_within(scene, 0) == {ticket: End.TIMED_OUT}
    assert scene.exchange(ANNA, running=[(ticket, 500.0)]).over == (ticket,)


def test_running_and_waiting_are_pings() -> None:
    scene = Scene(tasks=10, ping=10)
    one, two, silent = scene.fetch(ANNA, 3)
    for _ in range(10):
        scene.wait(30)
        assert scene.exchange(ANNA, running=[(one, scene.at)], waiting=[two]).over == ()
    assert scene.session.statistics().pending == 8  # the silent one is doubtful
    scene.exchange(ANNA, waiting=[silent])
    assert scene.session.statistics().pending == 7


def test_a_foreign_client_that_exchanges_is_watched_from_its_first_ping() -> None:
    scene = Scene(tasks=10, ping=10)
    one, _ = scene.fetch(NEWER, 2)
    scene.exchange(NEWER, waiting=[one])
    scene.wait(1000)
    assert scene.session.statistics().pending == 9


def test_a_client_that_was_silent_and_exchanges_has_its_tickets_still() -> None:
    scene = Scene(tasks=10, ping=10)
    mine = scene.fetch(ANNA, 3)
    scene.wait(40)
    assert scene.session.statistics().pending == 10
    supply = scene.exchange(ANNA, 2, done=[mine[0]])
    assert [task for _, task in supply.given] == [4, 5]
    assert scene.session.statistics().pending == 5


def test_what_is_given_back_costs_nothing() -> None:
    scene = Scene(tasks=10, attempts=1, duplicates=1)
    tickets = scene.fetch(ANNA, 10)
    for _ in range(7):  # more than attempts and losses
        scene.exchange(ANNA, back=tickets[:2])
        assert ends(scene) == dict.fromkeys(tickets[:2], End.CANCELLED)
        supply = scene.exchange(BERT, 1)
        assert len(supply.given) == 1
        tickets = [supply.given[0][0], scene.fetch(BERT, 1)[0]]
    assert scene.session.statistics().failed == 0


def test_what_is_given_back_may_be_given_to_the_same_host() -> None:
    scene = Scene(tasks=1)
    (ticket,) = scene.fetch(ANNA, 1)
    scene.exchange(ANNA, back=[ticket])
    assert scene.exchange(ANNA, 1).given == ((10001, 1),)


def test_a_ticket_given_back_that_is_over_changes_nothing() -> None:
    scene = Scene(tasks=3)
    done, gone, _ = scene.fetch(ANNA, 3)
    scene.done(done)
    scene.handle(TicketUndelivered(0.0, gone))
    scene.exchange(ANNA, back=[done, gone, 99999])
    assert len(scene.last_effects) == 1  # the answer


def test_a_doubtful_ticket_may_be_given_back() -> None:
    scene = Scene(tasks=2, ping=10)
    one, _ = scene.fetch(ANNA, 2)
    scene.wait(40)
    scene.exchange(BERT, 0)
    scene.exchange(ANNA, back=[one])
    assert ends(scene) == {one: End.CANCELLED}


# --- repeats and losses --------------------------------------------------------------------


def test_an_exchange_that_comes_twice_changes_nothing_but_what_it_brings() -> None:
    scene = Scene(tasks=20)
    done, failed, running, waiting, back = scene.fetch(ANNA, 5)
    posted = {
        "done": [done],
        "failed": [(failed, OOPS)],
        "running": [(running, 1.0)],
        "waiting": [waiting],
        "back": [back],
    }
    scene.exchange(ANNA, 2, **posted)
    before = scene.session.statistics()
    supply = scene.exchange(ANNA, 0, **posted)
    assert scene.last_effects == [supply]
    assert scene.session.statistics() == before


def test_an_answer_that_got_lost_costs_nothing() -> None:
    scene = Scene(tasks=4)
    for ticket in scene.fetch(ANNA, 4):
        scene.handle(TicketUndelivered(0.0, ticket))
    assert scene.session.statistics().pending == 4
    assert scene.session.statistics().hosts["anna"].ends[End.CANCELLED] == 4


def test_two_results_of_one_task_in_one_exchange() -> None:
    """Its client may hold both: one was doubtful once."""
    scene = Scene(tasks=2, ping=10)
    (first,) = scene.fetch(ANNA, 1)
    scene.wait(40)
    copy = scene.exchange(BERT, 1).given[0][0]
    assert scene.task(copy) == scene.task(first)
    scene.exchange(ANNA, done=[first, copy])
    assert of(TaskDone, scene.last_effects) == [TaskDone(1, first)]
    assert of(Discard, scene.last_effects) == [Discard(copy)]
    assert ends(scene)[copy] is End.CANCELLED


def test_an_untold_task_of_an_exchange_has_used_up_an_attempt() -> None:
    """It cannot be told to anybody: who exchanges can be told as much as anyone."""
    scene = Scene(tasks=2, attempts=1)
    one, two = scene.fetch(ANNA, 2)
    effects = scene.handle(TaskUntold(0.0, one, "no such file", False, None))
    assert of(TaskFailed, effects) == [TaskFailed(1, "no such file")]
    effects = scene.handle(TaskUntold(0.0, two, "needs Length=", True, None))
    assert of(TaskFailed, effects) == [TaskFailed(2, "needs Length=")]
    assert of(Finish, effects)[0].outcome is Outcome.SOME_FAILED


def test_after_a_restart_tickets_of_exchanges_go_on() -> None:
    scene = Scene(tasks=10, timeout=100, grace=30)
    one, two, three = scene.fetch(ANNA, 3)
    scene.exchange(ANNA, waiting=[three])
    scene.at = 50.0
    scene.restart()
    supply = scene.exchange(ANNA, 1, done=[one], running=[(two, 1.0)], waiting=[three])
    assert supply.over == ()
    assert supply.given == ((10003, 4),)


def test_the_tickets_of_a_client_that_died_are_lost() -> None:
    scene = Scene(tasks=4, duplicates=1)
    scene.fetch(ANNA, 3)
    effects = scene.handle(ClientGone(0.0, ANNA.client))
    assert [one.end for one in of(TicketEnded, effects)] == [End.LOST] * 3
    assert [task for _, task in scene.exchange(BERT, 4).given] == [1, 2, 3, 4]


# --- with other requests -------------------------------------------------------------------


def test_a_client_may_hold_a_request_and_exchange_beside_it() -> None:
    scene = Scene(tasks=3, duplicates=1)
    tickets = scene.fetch(ANNA, 3)
    ask = scene.hold(ANNA)
    supply = scene.exchange(ANNA, 2, back=tickets[:2])
    assert of(Assign, scene.last_effects)[0].ask == ask
    assert len(supply.given) == 1
    assert scene.handle(AskWithdrawn(0.0, ask)) == []


@pytest.mark.parametrize("caller", [ANNA, CARL, NEWER, Caller("10.1.1.1", "10.1.1.1")])
def test_anybody_may_be_heard_for_the_first_time_in_an_exchange(caller: Caller) -> None:
    scene = Scene(tasks=3)
    assert len(scene.exchange(caller, 2).given) == 2
    scene = Scene(tasks=3)
    scene.handle(StopAsked(0.0, "Ctrl-C"))
    assert scene.exchange(caller, 2).end
    assert scene.session.clients_left() == 0

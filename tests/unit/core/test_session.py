"""Tasks, tickets and their ends."""

from __future__ import annotations

import pytest

from pexecd.core.effects import (
    Assign,
    Discard,
    Finish,
    Judge,
    Refuse,
    Settle,
    TaskDone,
    TaskFailed,
    Tell,
    TicketEnded,
)
from pexecd.core.events import (
    BodyEnded,
    BodyStarted,
    ClientGone,
    ClientHeard,
    TaskAsked,
    TaskUntold,
    TicketFailed,
    TicketUndelivered,
)
from pexecd.core.values import MOST_LOSSES, Caller, End, Failure, Outcome, Statistics
from tests.unit.core.scene import ANNA, BERT, CARL, NEWER, PLAIN, Scene, assigned, given, of


def ended(ticket: int, task: int, end: End, reason: str = "", seconds: float = 0.0) -> TicketEnded:
    """The record of a ticket whose worker ended well, or that we ended."""
    status = 0 if end in {End.DONE, End.INVALID} else -1
    return TicketEnded(ticket, task, end, reason, exit_status=status, seconds=seconds)


# --- one task ------------------------------------------------------------------------------


def test_a_task_is_given_in_table_order_with_tickets_from_10000() -> None:
    scene = Scene(tasks=2)
    assert scene.ask(PLAIN) == [given(10000, 1, PLAIN), Assign(1, 10000, 1, PLAIN)]
    assert scene.ask(PLAIN) == [given(10001, 2, PLAIN), Assign(2, 10001, 2, PLAIN)]


def test_a_stored_result_settles_its_task() -> None:
    scene = Scene(tasks=2)
    first = scene.give(PLAIN)
    scene.wait(3)
    assert scene.done(first) == [
        ended(first, 1, End.DONE, seconds=3),
        TaskDone(1, first),
        Settle(1, first),
    ]
    assert scene.session.over(first)
    assert scene.session.finished is None


def test_the_last_result_ends_the_run() -> None:
    scene = Scene(tasks=1)
    ticket = scene.give(PLAIN)
    assert scene.done(ticket, seconds=0.5) == [
        ended(ticket, 1, End.DONE, seconds=0.5),
        TaskDone(1, ticket),
        Settle(1, ticket),
        Finish(Outcome.SUCCEEDED),
    ]
    assert scene.session.finished == Finish(Outcome.SUCCEEDED)
    assert scene.ask(PLAIN) == [Refuse(2, None)]


def test_a_session_without_tasks_is_over_at_once() -> None:
    assert Scene(tasks=0).session.resume(0.0) == [Finish(Outcome.SUCCEEDED)]


def test_repeats_change_nothing() -> None:
    scene = Scene(tasks=2)
    ticket = scene.give(PLAIN)
    scene.done(ticket)
    assert scene.done(ticket) == []
    assert scene.fail(ticket) == []
    assert scene.ping(ticket) == []
    assert scene.handle(TicketUndelivered(0.0, ticket)) == []
    assert not scene.session.wanted(ticket)


def test_tickets_that_were_never_given_out_change_nothing() -> None:
    scene = Scene(tasks=1)
    for ticket in (0, 9999, 10000, 12345):
        assert scene.done(ticket) == []
        assert scene.fail(ticket) == []
        assert scene.ping(ticket) == []
        assert scene.judge(ticket, True) == []
        assert not scene.session.known(ticket)
        assert not scene.session.wanted(ticket)
        assert scene.session.over(ticket)


def test_an_undelivered_ticket_costs_nothing() -> None:
    scene = Scene(tasks=1, attempts=1)
    ticket = scene.give(ANNA)
    assert scene.handle(TicketUndelivered(0.0, ticket)) == [
        ended(ticket, 1, End.CANCELLED, "its client did not get it")
    ]
    assert scene.task(scene.give(ANNA)) == 1


# --- attempts ------------------------------------------------------------------------------


def test_a_failed_attempt_is_recorded_with_all_that_is_known() -> None:
    scene = Scene(tasks=1)
    ticket = scene.give(PLAIN)
    failure = Failure("exit status 3", End.FAILED, 3, 0, 0.52, b"no such model")
    assert scene.handle(TicketFailed(0.0, ticket, failure)) == [
        TicketEnded(ticket, 1, End.FAILED, "exit status 3", 3, 0, 0.52, b"no such model")
    ]


def test_a_task_fails_with_its_last_reason_when_its_attempts_are_used_up() -> None:
    scene = Scene(tasks=1, attempts=2)
    scene.fail(scene.give(PLAIN), "first")
    ticket = scene.give(PLAIN)
    assert scene.fail(ticket, "second") == [
        ended(ticket, 1, End.FAILED, "second"),
        TaskFailed(1, "second"),
        Settle(1, None),
        Finish(Outcome.SOME_FAILED, "1 of 1 tasks failed"),
    ]


def test_a_failed_task_is_tried_on_another_host_first() -> None:
    scene = Scene(tasks=3)
    scene.fail(scene.give(ANNA))
    assert scene.task(scene.give(ANNA)) == 2
    assert scene.task(scene.give(BERT)) == 1


def test_a_failed_task_never_waits_for_another_host() -> None:
    scene = Scene(tasks=1)
    scene.fail(scene.give(ANNA))
    assert scene.task(scene.give(ANNA)) == 1


def test_a_waiting_ask_of_another_host_gets_the_failed_task() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    scene.hold(ANNA)
    other = scene.hold(BERT)
    assert assigned(scene.fail(ticket)) == [(other, 1)]


def test_a_task_with_a_live_copy_does_not_fail_yet() -> None:
    scene = Scene(tasks=1, attempts=1)
    first, copy = scene.give(ANNA), scene.give(BERT)
    assert of(TaskFailed, scene.fail(first)) == []
    assert of(TaskDone, scene.done(copy)) == [TaskDone(1, copy)]


# --- timeouts ------------------------------------------------------------------------------


def test_an_overdue_ticket_uses_up_an_attempt() -> None:
    scene = Scene(tasks=1, timeout=60)
    ticket = scene.give(PLAIN)
    assert scene.wait(89.9) == []
    assert scene.wait(0.1) == [ended(ticket, 1, End.TIMED_OUT, "no result within 60 s", 90)]
    assert scene.session.over(ticket)
    assert scene.task(scene.give(PLAIN)) == 1


def test_without_a_timeout_a_ticket_that_never_pinged_lives_for_ever() -> None:
    scene = Scene(tasks=1, timeout=0)
    ticket = scene.give(PLAIN)
    assert scene.wait(1e6) == []
    assert not scene.session.over(ticket)


def test_no_deadline_ends_a_ticket_whose_body_arrives() -> None:
    scene = Scene(tasks=1, timeout=60)
    ticket = scene.give(ANNA)
    scene.handle(BodyStarted(scene.at, ticket))
    assert scene.wait(5000) == []
    assert of(TaskDone, scene.done(ticket)) == [TaskDone(1, ticket)]


def test_a_deadline_that_passed_while_a_body_arrived_counts_when_it_breaks_off() -> None:
    scene = Scene(tasks=1, timeout=60)
    ticket = scene.give(PLAIN)
    scene.handle(BodyStarted(scene.at, ticket))
    scene.handle(BodyStarted(scene.at, ticket))
    scene.wait(100)
    assert scene.handle(BodyEnded(scene.at, ticket)) == []
    effects = scene.handle(BodyEnded(scene.at, ticket))
    assert effects == [ended(ticket, 1, End.TIMED_OUT, "no result within 60 s", 100)]


def test_a_ticket_is_not_silent_while_its_body_arrives() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(PLAIN)
    scene.handle(BodyStarted(scene.at, ticket))
    scene.ping(ticket)
    scene.wait(100)
    scene.handle(BodyEnded(scene.at, ticket))
    scene.wait(34)
    assert scene.session.statistics().running == 1
    scene.wait(1)
    assert scene.session.statistics().running == 0


def test_a_body_that_breaks_off_in_time_leaves_the_ticket_as_it_was() -> None:
    scene = Scene(tasks=1, timeout=60)
    ticket = scene.give(PLAIN)
    scene.handle(BodyStarted(scene.at, ticket))
    scene.wait(10)
    assert scene.handle(BodyEnded(scene.at, ticket)) == []
    assert [e.end for e in of(TicketEnded, scene.wait(80))] == [End.TIMED_OUT]


# --- doubtful and lost tickets -------------------------------------------------------------


def test_a_silent_ticket_is_doubtful_and_its_task_goes_to_another() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    scene.wait(20)
    waiting = scene.hold(BERT)
    assert assigned(scene.wait(15)) == [(waiting, 1)]
    assert not scene.session.over(ticket)


def test_pings_keep_a_ticket_alive() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    for _ in range(10):
        scene.wait(34)
        scene.ping(ticket)
    assert scene.session.statistics().running == 1


def test_a_foreign_ticket_is_watched_from_its_first_ping_on() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(PLAIN)
    scene.wait(100)
    assert scene.session.statistics().running == 1
    scene.ping(ticket)
    scene.wait(35)
    assert scene.session.statistics().running == 0


def test_a_doubtful_ticket_is_alive_again_at_its_next_ping() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    scene.wait(40)
    assert scene.session.statistics().pending == 1
    scene.ping(ticket)
    assert scene.session.statistics().pending == 0
    assert scene.hold(BERT)
    assert of(TaskDone, scene.done(ticket)) == [TaskDone(1, ticket)]


def test_a_client_that_is_back_is_not_given_what_it_works_on() -> None:
    scene = Scene(tasks=2, duplicates=1)
    ticket = scene.give(ANNA)
    scene.wait(40)
    other = scene.give(ANNA)  # before it has pinged the first
    assert scene.session.task_of(other) == 2
    scene.hold(ANNA)
    scene.ping(ticket)
    assert of(TaskDone, scene.done(ticket)) == [TaskDone(1, ticket)]


def test_a_client_that_vanished_while_it_waited_is_not_given_what_it_works_on() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    scene.hold(ANNA)
    scene.wait(1)
    scene.ping(ticket)
    assert assigned(scene.wait(29)) == []
    scene.hold(PLAIN._replace(client="another"))
    assert [task for _, task in assigned(scene.wait(6))] == [1]


def test_a_client_that_never_got_its_ticket_gets_the_task_again() -> None:
    scene = Scene(tasks=1, duplicates=1)
    scene.give(ANNA)
    scene.wait(40)
    scene.hold(ANNA)
    scene.wait(29)
    scene.wait(1)  # the answer is: ask again
    waiting = scene.hold(ANNA)
    assert assigned(scene.wait(5)) == [(waiting, 1)]


def test_a_doubtful_ticket_is_lost_when_another_wins() -> None:
    scene = Scene(tasks=1, duplicates=1)
    doubtful = scene.give(ANNA)
    scene.wait(40)
    winner = scene.give(BERT)
    assert of(TicketEnded, scene.done(winner)) == [
        ended(winner, 1, End.DONE),
        ended(doubtful, 1, End.LOST, "not heard of any more", 40),
    ]


def test_a_doubtful_ticket_can_still_win() -> None:
    scene = Scene(tasks=1, duplicates=1)
    doubtful = scene.give(ANNA)
    scene.wait(40)
    other = scene.give(BERT)
    assert of(TicketEnded, scene.done(doubtful)) == [
        ended(doubtful, 1, End.DONE, seconds=40),
        ended(other, 1, End.CANCELLED, "another ticket of its task was first"),
    ]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_client_that_begins_on_a_host_shows_that_the_one_before_is_dead(
    restarted: bool,
) -> None:
    scene = Scene(2)
    first = scene.give(ANNA)
    if restarted:
        scene.restart()
    successor = ANNA._replace(client="client-a2")
    assert scene.handle(ClientHeard(0.0, BERT._replace(client="client-b2"))) == []
    assert scene.handle(ClientHeard(0.0, ANNA)) == []
    (lost,) = of(TicketEnded, scene.handle(ClientHeard(0.0, successor)))
    assert (lost.ticket, lost.end) == (first, End.LOST)
    assert scene.task(scene.give(BERT._replace(client="client-b2"))) == 1
    # what the dead one left and the next one posts is taken
    assert of(TaskDone, scene.done(first))


def test_a_dead_client_loses_all_its_tickets_at_once() -> None:
    scene = Scene(tasks=3)
    first, second, other = scene.give(ANNA), scene.give(ANNA), scene.give(BERT)
    assert scene.handle(ClientGone(0.0, ANNA.client)) == [
        ended(first, 1, End.LOST, "the client on anna is gone"),
        ended(second, 2, End.LOST, "the client on anna is gone"),
    ]
    assert not scene.session.over(other)
    assert scene.task(scene.give(BERT)) == 1


def test_a_task_that_kills_its_hosts_fails() -> None:
    scene = Scene(tasks=1, attempts=1)
    for _ in range(4):
        scene.give(ANNA)
        assert of(TaskFailed, scene.handle(ClientGone(0.0, ANNA.client))) == []
    scene.give(ANNA)
    effects = scene.handle(ClientGone(0.0, ANNA.client))
    assert of(TaskFailed, effects) == [TaskFailed(1, "lost 5 times: it may kill its hosts")]


def test_doubtful_tickets_count_as_losses() -> None:
    scene = Scene(tasks=1, give_up=1e6)
    tickets = []
    for host in "abcde":
        tickets.append(scene.give(ANNA._replace(client=f"client-{host}", host=host)))
        effects = scene.wait(35)
    assert [e.ticket for e in of(TicketEnded, effects)] == tickets
    assert {e.end for e in of(TicketEnded, effects)} == {End.LOST}
    assert of(Settle, effects) == [Settle(1, None)]


def test_a_failed_task_is_done_after_all_when_a_result_comes_late() -> None:
    scene = Scene(tasks=2, attempts=1, timeout=10)
    ticket = scene.give(PLAIN)
    assert of(TaskFailed, scene.wait(40)) == [TaskFailed(1, "no result within 10 s")]
    assert scene.session.statistics().failed == 1
    assert scene.session.wanted(ticket)
    assert scene.done(ticket, seconds=9) == [
        ended(ticket, 1, End.DONE, seconds=9),
        TaskDone(1, ticket),
        Settle(1, ticket),
    ]
    assert scene.session.statistics().failed == 0


def test_a_late_result_that_is_invalid_uses_up_no_further_attempt() -> None:
    scene = Scene(tasks=1, attempts=2, timeout=10, validates=True)
    ticket = scene.give(PLAIN)
    scene.wait(40)
    scene.done(ticket)
    assert of(TaskFailed, scene.judge(ticket, False)) == []
    assert of(TaskFailed, scene.fail(scene.give(PLAIN), "again")) == [TaskFailed(1, "again")]


def test_a_late_result_takes_its_time_with_it() -> None:
    scene = Scene(tasks=2)
    ticket = scene.give(ANNA)
    scene.wait(8)
    scene.fail(ticket)
    assert scene.session.statistics().hosts["anna"].busy == 8
    scene.done(ticket, seconds=7)
    assert scene.session.statistics().hosts["anna"].busy == 7


@pytest.mark.parametrize("end", [End.FAILED, End.TIMED_OUT, End.LOST, End.CANCELLED])
def test_a_late_result_is_taken_while_the_task_has_none(end: End) -> None:
    scene = Scene(tasks=1)
    ticket = scene.give(PLAIN)
    scene.fail(ticket, end=end)
    again = scene.give(PLAIN)
    assert of(TicketEnded, scene.done(ticket)) == [
        ended(ticket, 1, End.DONE),
        ended(again, 1, End.CANCELLED, "another ticket of its task was first"),
    ]


def test_a_late_result_is_no_use_when_another_has_won() -> None:
    scene = Scene(tasks=2)
    first, copy = scene.give(ANNA), scene.give(BERT)
    scene.fail(first)
    scene.done(scene.give(BERT))
    assert scene.task(copy) == 2
    assert scene.done(first) == [Discard(first)]


def test_a_task_whose_ticket_is_doubtful_goes_to_another_host_first() -> None:
    scene = Scene(tasks=2)
    scene.give(ANNA)
    scene.wait(35)
    assert scene.task(scene.give(ANNA)) == 2
    assert scene.task(scene.give(BERT)) == 1


def test_a_dead_client_that_had_a_task_twice() -> None:
    scene = Scene(tasks=1, attempts=1)
    first = scene.give(ANNA)
    scene.wait(35)
    scene.hold(ANNA)  # and it does not mention the first
    scene.wait(30)
    scene.hold(ANNA)
    (assign,) = of(Assign, scene.wait(5))
    second = assign.ticket
    scene.ping(first)
    scene.wait(34)
    scene.ping(first)
    scene.wait(1)
    scene.fail(scene.give(BERT), "no")
    effects = scene.handle(ClientGone(scene.at, ANNA.client))
    assert [(e.ticket, e.end) for e in of(TicketEnded, effects)] == [
        (first, End.LOST),
        (second, End.LOST),
    ]
    assert of(TaskFailed, effects) == [TaskFailed(1, "no")]


# --- copies --------------------------------------------------------------------------------


def test_the_task_that_runs_longest_gets_a_copy_on_another_host() -> None:
    scene = Scene(tasks=3)
    scene.give(ANNA)
    scene.wait(1)
    scene.give(BERT)
    scene.wait(1)
    scene.give(ANNA)
    assert scene.task(scene.give(BERT)) == 1
    assert scene.task(scene.give(BERT)) == 3
    assert scene.task(scene.give(CARL)) == 2
    assert scene.hold(CARL), "each task has its two tickets"


def test_a_task_whose_attempts_are_used_up_gets_no_further_copy() -> None:
    scene = Scene(tasks=1, attempts=1)
    first, copy = scene.give(ANNA), scene.give(BERT)
    scene.fail(first)
    scene.hold(CARL)
    assert of(TaskFailed, scene.fail(copy)), "both were tries"


def test_a_task_that_was_lost_too_often_gets_no_further_copy() -> None:
    scene = Scene(tasks=1, duplicates=6)
    callers = [Caller(f"client-{n}", f"host-{n}", managed=True, speaks=True) for n in range(6)]
    for caller in callers:
        scene.give(caller)
    for caller in callers[:MOST_LOSSES]:
        scene.handle(ClientGone(scene.at, caller.client))
    scene.hold(CARL)


def test_there_is_no_copy_on_the_same_host() -> None:
    scene = Scene(tasks=1)
    scene.give(ANNA)
    assert scene.hold(ANNA)


def test_a_waiting_ask_gets_a_copy_when_the_last_one_was_lost() -> None:
    scene = Scene(tasks=1)
    scene.give(ANNA)
    scene.give(BERT)
    waiting = scene.hold(CARL)
    assert assigned(scene.handle(ClientGone(0.0, BERT.client))) == [(waiting, 1)]


def test_all_that_wait_get_a_copy_while_there_may_be_more() -> None:
    scene = Scene(tasks=1, duplicates=3, validates=True)
    ticket = scene.give(PLAIN)
    scene.done(ticket)
    waiting = [scene.hold(caller) for caller in (ANNA, BERT, CARL)]
    scene.hold(NEWER)
    assert assigned(scene.judge(ticket, False)) == [(ask, 1) for ask in waiting]


def test_a_task_whose_copy_was_lost_still_runs_longest() -> None:
    scene = Scene(tasks=2)
    scene.give(ANNA)
    scene.wait(1)
    scene.give(ANNA)
    assert scene.task(scene.give(BERT)) == 1
    scene.handle(ClientGone(scene.at, BERT.client))
    assert scene.task(scene.give(CARL)) == 1


def test_there_is_no_copy_on_a_host_where_the_task_failed() -> None:
    scene = Scene(tasks=1)
    scene.fail(scene.give(BERT))
    scene.give(ANNA)
    assert scene.hold(BERT)
    assert scene.task(scene.give(CARL)) == 1


def test_copies_too_go_only_to_those_that_can_be_told() -> None:
    scene = Scene(tasks=1)
    ticket = scene.give(PLAIN)
    again = TaskAsked(0.0, 77, PLAIN)
    scene.handle(TaskUntold(0.0, ticket, "needs Length", True, again))
    scene.give(ANNA)
    assert scene.hold(PLAIN)
    scene = Scene(tasks=1, demanding=True)
    scene.give(ANNA)
    assert scene.hold(PLAIN)


def test_the_first_result_wins_and_the_other_copy_is_over() -> None:
    scene = Scene(tasks=1)
    first, copy = scene.give(ANNA), scene.give(BERT)
    effects = scene.done(copy)
    assert effects == [
        ended(copy, 1, End.DONE),
        TaskDone(1, copy),
        ended(first, 1, End.CANCELLED, "another ticket of its task was first"),
        Settle(1, copy),
        Finish(Outcome.SUCCEEDED),
    ]
    assert scene.session.over(first)


# --- validation ----------------------------------------------------------------------------


def test_a_result_waits_for_its_verdict_off_all_deadlines() -> None:
    scene = Scene(tasks=1, validates=True, timeout=10)
    ticket = scene.give(ANNA)
    assert scene.done(ticket) == [Judge(ticket, 1)]
    assert not scene.session.wanted(ticket)
    assert scene.done(ticket) == []
    assert of(TicketEnded, scene.wait(1e5)) == []
    assert of(TaskDone, scene.judge(ticket, True)) == [TaskDone(1, ticket)]


def test_an_invalid_result_uses_up_an_attempt() -> None:
    scene = Scene(tasks=1, validates=True, attempts=2)
    ticket = scene.give(ANNA)
    scene.done(ticket)
    assert scene.judge(ticket, False, "not a number") == [
        ended(ticket, 1, End.INVALID, "not a number"),
        Discard(ticket),
    ]
    assert scene.done(ticket) == [Discard(ticket)], "the same result again is no use either"
    again = scene.give(ANNA)
    scene.done(again)
    effects = scene.judge(again, False, "still none")
    assert of(TaskFailed, effects) == [TaskFailed(1, "still none")]
    assert scene.session.statistics().hosts["anna"].ends[End.INVALID] == 2


def test_of_two_results_the_first_valid_one_wins() -> None:
    scene = Scene(tasks=1, validates=True)
    first, copy = scene.give(ANNA), scene.give(BERT)
    scene.done(first)
    scene.done(copy)
    assert scene.judge(copy, True) == [
        ended(copy, 1, End.DONE),
        TaskDone(1, copy),
        TicketEnded(first, 1, End.CANCELLED, "another ticket of its task was first", 0),
        Discard(first),
        Settle(1, copy),
        Finish(Outcome.SUCCEEDED),
    ]
    assert scene.judge(first, True) == []


def test_a_late_result_of_a_failed_task_is_judged_before_the_run_ends() -> None:
    scene = Scene(tasks=2, attempts=1, validates=True, timeout=10)
    late, other = scene.give(ANNA), scene.give(BERT)
    scene.fail(late)
    assert scene.done(late) == [Judge(late, 1)]
    scene.done(other)
    assert of(Finish, scene.judge(other, True)) == []
    effects = scene.judge(late, True)
    assert of(TaskDone, effects) == [TaskDone(1, late)]
    assert of(Finish, effects) == [Finish(Outcome.SUCCEEDED)]


def test_two_late_results_of_a_failed_task_give_one_done() -> None:
    scene = Scene(tasks=2, attempts=2, validates=True)
    first = scene.give(ANNA)
    scene.fail(first)
    second = scene.give(BERT)
    scene.fail(second)
    scene.done(first)
    scene.done(second)
    assert of(TaskDone, scene.judge(second, True)) == [TaskDone(1, second)]
    assert scene.judge(first, True) == [Discard(first)]


def test_a_late_result_that_is_not_needed_leaves_its_ticket_s_end() -> None:
    scene = Scene(tasks=1, validates=True)
    first, copy = scene.give(ANNA), scene.give(BERT)
    scene.fail(first)
    scene.done(first)
    scene.done(copy)
    effects = scene.judge(copy, True)
    assert of(TicketEnded, effects) == [ended(copy, 1, End.DONE)]
    assert of(Discard, effects) == [Discard(first)]


def test_a_result_without_a_verdict_is_kept_and_its_task_waits() -> None:
    scene = Scene(tasks=2, validates=True)
    ticket = scene.give(ANNA)
    scene.done(ticket)
    assert scene.judge_fails(ticket, "ZeroDivisionError") == [
        Tell("task 1: no verdict on its result, which is kept: ZeroDivisionError", warning=True)
    ]
    assert scene.task(scene.give(BERT)) == 2
    assert scene.hold(BERT), "no copies either"


def test_the_run_stops_after_so_many_validations_without_a_verdict() -> None:
    scene = Scene(tasks=9, validates=True, unjudged=2)
    first, second, third = (scene.give(ANNA) for _ in range(3))
    for ticket in (first, second, third):
        scene.done(ticket)
    scene.judge_fails(first)
    scene.judge(second, True)
    assert of(Finish, scene.judge_fails(third)) == [], "the verdict in between counts"
    fourth = scene.give(ANNA)
    scene.done(fourth)
    reason = "validation came to no verdict 2 times in a row; the last time: timed out"
    assert of(Finish, scene.judge_fails(fourth, "timed out")) == [
        Finish(Outcome.SOME_FAILED, reason)
    ]


def test_the_run_ends_when_only_results_without_a_verdict_are_left() -> None:
    scene = Scene(tasks=1, validates=True)
    ticket = scene.give(ANNA)
    scene.done(ticket)
    reason = "validation came to no verdict on 1 results; the last time: boom"
    assert of(Finish, scene.judge_fails(ticket)) == [Finish(Outcome.SOME_FAILED, reason)]


# --- tasks that only newer clients can be told ----------------------------------------------


def test_an_untold_task_costs_nothing_and_waits_for_a_client_that_speaks() -> None:
    scene = Scene(tasks=2, attempts=1)
    ticket = scene.give(PLAIN)
    effects = scene.handle(TaskUntold(0.0, ticket, "needs Length", True, TaskAsked(0.0, 77, PLAIN)))
    assert effects[0] == ended(ticket, 1, End.CANCELLED, "needs Length")
    assert assigned(effects) == [(77, 2)]
    assert scene.hold(PLAIN)
    assert scene.task(scene.give(NEWER)) == 1


def test_a_task_that_nobody_can_be_told_uses_up_its_attempts() -> None:
    scene = Scene(tasks=1, attempts=2)
    ticket = scene.give(PLAIN)
    effects = scene.handle(TaskUntold(0.0, ticket, "no file", False, TaskAsked(0.0, 77, PLAIN)))
    assert effects[0] == ended(ticket, 1, End.FAILED, "no file")
    assert assigned(effects) == [(77, 1)]
    again = TaskUntold(0.0, ticket + 1, "no file", False, TaskAsked(0.0, 78, PLAIN))
    assert of(TaskFailed, scene.handle(again)) == [TaskFailed(1, "no file")]


def test_a_client_that_speaks_is_not_asked_twice() -> None:
    scene = Scene(tasks=1, attempts=1)
    ticket = scene.give(NEWER)
    effects = scene.handle(TaskUntold(0.0, ticket, "odd", True, TaskAsked(0.0, 77, NEWER)))
    assert of(TaskFailed, effects) == [TaskFailed(1, "odd")]


def test_a_demanding_task_fails_when_no_client_that_speaks_came() -> None:
    scene = Scene(tasks=1, patience=100, give_up=1e6)
    ticket = scene.give(PLAIN)
    scene.wait(50)
    scene.handle(TaskUntold(scene.at, ticket, "needs Length", True, TaskAsked(scene.at, 77, PLAIN)))
    assert of(TaskFailed, scene.wait(99)) == []
    (failed,) = of(TaskFailed, scene.wait(1))
    assert failed.task == 1
    assert failed.reason.startswith("within 100 s no client came that announces itself")


def test_the_patience_counts_from_the_last_client_that_speaks() -> None:
    scene = Scene(tasks=1, demanding=True, patience=100, give_up=1e6)
    scene.handle(ClientHeard(scene.at, PLAIN))
    scene.wait(90)
    scene.handle(ClientHeard(scene.at, NEWER))
    assert scene.wait(99) == []
    assert len(of(TaskFailed, scene.wait(1))) == 1


def test_in_a_demanding_session_plain_clients_get_nothing() -> None:
    scene = Scene(tasks=2500, demanding=True, patience=100, give_up=1e6)
    scene.hold(PLAIN)
    assert scene.task(scene.give(NEWER)) == 1
    scene.fail(10000)
    assert scene.task(scene.give(NEWER)) == 2
    scene.handle(ClientGone(scene.at, NEWER.client))
    assert of(TaskFailed, scene.wait(99.9)) == []
    effects = scene.wait(5)
    assert len(of(TaskFailed, effects)) == 2500, "all of them, some at a time"
    assert of(Finish, effects) == [Finish(Outcome.SOME_FAILED, "2500 of 2500 tasks failed")]


def test_demanding_tasks_do_not_wait_for_a_client_that_is_doubtful() -> None:
    scene = Scene(tasks=2, demanding=True, patience=100, give_up=1e6)
    scene.give(ANNA)
    assert len(of(TaskFailed, scene.wait(200))) == 2


def test_demanding_tasks_wait_for_a_client_that_speaks_and_is_busy() -> None:
    scene = Scene(tasks=2, demanding=True, patience=100, ping=0)
    ticket = scene.give(NEWER)
    assert scene.wait(1000) == []
    scene.done(ticket)
    assert scene.task(scene.give(NEWER)) == 2


# --- statistics ----------------------------------------------------------------------------


def test_the_statistics_tell_who_did_what() -> None:
    scene = Scene(tasks=4)
    scene.done(scene.give(ANNA), seconds=2.0)
    scene.fail(scene.give(ANNA))
    scene.wait(1.5)
    scene.done(scene.give(BERT))
    running = scene.give(BERT)
    scene.wait(1.5)
    numbers = scene.session.statistics()
    assert isinstance(numbers, Statistics)
    assert (numbers.tasks, numbers.done, numbers.failed) == (4, 2, 0)
    assert (numbers.running, numbers.pending, numbers.tickets) == (1, 1, 4)
    anna, bert = numbers.hosts["anna"], numbers.hosts["bert"]
    assert {end: count for end, count in anna.ends.items() if count} == {
        End.DONE: 1,
        End.FAILED: 1,
    }
    assert (anna.busy, anna.running, anna.aside) == (2.0, 0, None)
    assert (bert.busy, bert.running) == (0.0, 1)
    scene.done(running)
    assert scene.session.statistics().hosts["bert"].busy == 1.5

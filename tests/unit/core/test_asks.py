"""Requests for a task that must wait, and what ends a run."""

from __future__ import annotations

import pytest

from pexecd.core.effects import Finish, Refuse, Revive, TaskFailed, TicketEnded
from pexecd.core.events import (
    AskWithdrawn,
    ClientGone,
    ClientHeard,
    ClientSupposed,
    HostsUnusable,
    StopAsked,
    TicketUndelivered,
    TimePassed,
)
from pexecd.core.session import Session
from pexecd.core.values import Caller, End, Outcome
from tests.unit.core.scene import ANNA, BERT, NEWER, PLAIN, Scene, assigned, of

# --- holding -------------------------------------------------------------------------------


def test_a_client_that_speaks_is_held_and_then_told_to_come_back() -> None:
    scene = Scene(tasks=1, hold=30, duplicates=1)
    scene.give(PLAIN)
    ask = scene.hold(NEWER)
    assert scene.wait(29.9) == []
    assert scene.wait(0.1) == [Refuse(ask, 1)]
    assert scene.handle(AskWithdrawn(scene.at, ask)) == []


def test_a_plain_client_is_held_and_then_dies() -> None:
    scene = Scene(tasks=1, hold=30)
    scene.give(PLAIN)
    ask = scene.hold(PLAIN)
    assert scene.wait(30) == [Refuse(ask, None)]


def test_a_withdrawn_ask_gets_nothing() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    gone, stays = scene.hold(BERT), scene.hold(BERT)
    assert scene.handle(AskWithdrawn(0.0, gone)) == []
    assert scene.handle(AskWithdrawn(0.0, gone)) == []
    assert assigned(scene.fail(ticket)) == [(stays, 1)]


def test_a_dead_client_gets_nothing() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    waiting, other = scene.hold(BERT), scene.hold(NEWER)
    assert scene.handle(ClientGone(0.0, BERT.client)) == [Refuse(waiting, 1)]
    assert assigned(scene.fail(ticket)) == [(other, 1)]


def test_a_cancelled_ticket_goes_to_the_ask_that_waits_longest() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    first = scene.hold(BERT)
    scene.hold(ANNA)
    assert assigned(scene.handle(TicketUndelivered(0.0, ticket))) == [(first, 1)]


def test_all_that_wait_are_refused_when_the_last_task_is_done() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    waiting = [scene.hold(caller) for caller in (ANNA, BERT, NEWER, PLAIN)]
    assert {e.ask: e.retry_after for e in of(Refuse, scene.done(ticket))} == dict.fromkeys(waiting)


# --- the end -------------------------------------------------------------------------------


def test_a_typo_does_not_cost_a_night() -> None:
    scene = Scene(tasks=1000, stop_after=3)
    scene.fail(scene.give(ANNA))
    live = scene.give(BERT)
    scene.fail(scene.give(ANNA))
    effects = scene.fail(scene.give(ANNA), "no such file")
    assert [(e.ticket, e.end) for e in of(TicketEnded, effects)][1:] == [(live, End.CANCELLED)]
    reason = "3 attempts failed before the first success; the last: no such file"
    assert effects[-1] == Finish(Outcome.SOME_FAILED, reason)


def test_after_a_success_failures_do_not_stop_the_run() -> None:
    scene = Scene(tasks=1000, stop_after=3)
    scene.done(scene.give(ANNA))
    for _ in range(10):
        assert of(Finish, scene.fail(scene.give(ANNA))) == []


def test_a_run_without_any_client_is_given_up() -> None:
    scene = Scene(tasks=1, give_up=600)
    assert scene.wait(599) == []
    assert scene.wait(1) == [Finish(Outcome.NO_HOST, "no client was heard of for 600 s")]


def test_a_run_is_not_given_up_while_a_ticket_lives_or_an_ask_waits() -> None:
    scene = Scene(tasks=1, give_up=600, hold=1e5)
    scene.give(PLAIN)
    assert scene.wait(5000) == []
    scene = Scene(tasks=1, give_up=0)
    scene.give(PLAIN)
    assert scene.wait(5000) == []


def test_a_run_is_given_up_after_its_last_client_was_heard() -> None:
    scene = Scene(tasks=1, give_up=600)
    scene.wait(500)
    scene.handle(ClientHeard(scene.at, PLAIN))
    assert scene.wait(599) == []
    assert of(Finish, scene.wait(1)) == [
        Finish(Outcome.NO_HOST, "no client was heard of for 600 s")
    ]


def test_no_usable_host_ends_the_run_at_once() -> None:
    scene = Scene(tasks=1)
    assert scene.handle(HostsUnusable(0.0, "every host failed")) == [
        Finish(Outcome.NO_HOST, "every host failed")
    ]


def test_no_usable_host_does_not_end_a_run_that_waits_for_a_verdict() -> None:
    scene = Scene(tasks=1, validates=True)
    ticket = scene.give(ANNA)
    scene.done(ticket)
    scene.restart(kept=(ticket,))
    scene.handle(ClientGone(0.0, ANNA.client))
    assert scene.handle(HostsUnusable(0.0, "every host failed")) == []
    assert scene.judge(ticket, True)[-1] == Finish(Outcome.SUCCEEDED)


def test_no_usable_host_does_not_end_a_run_that_a_client_works() -> None:
    scene = Scene(tasks=2)
    ticket = scene.give(NEWER)
    assert scene.handle(HostsUnusable(0.0, "every host failed")) == []
    scene.wait(1000)
    scene.done(ticket)
    scene.wait(30)
    assert scene.session.finished is None
    scene.wait(40)
    assert scene.session.finished == Finish(Outcome.NO_HOST, "every host failed")


def test_an_interrupted_run_ends_all_tickets() -> None:
    scene = Scene(tasks=3, duplicates=1)
    live = scene.give(PLAIN)
    scene.wait(1)
    doubtful = scene.give(ANNA)
    scene.wait(40)
    other = scene.give(BERT)
    scene.give(BERT)
    waiting = scene.hold(NEWER)
    effects = scene.handle(StopAsked(scene.at, "Ctrl-C"))
    assert of(Refuse, effects) == [Refuse(waiting, None)]
    ends = {e.ticket: e.end for e in of(TicketEnded, effects)}
    assert ends[live] is End.CANCELLED
    assert ends[doubtful] is End.LOST
    assert ends[other] is End.CANCELLED
    assert effects[-1] == Finish(Outcome.INTERRUPTED, "Ctrl-C")
    assert all(scene.session.over(ticket) for ticket in ends)
    assert scene.handle(StopAsked(scene.at, "again")) == []


def test_an_interrupt_may_use_up_the_last_hope_of_a_task() -> None:
    scene = Scene(tasks=1, attempts=1)
    live, doubtful = scene.give(PLAIN), scene.give(ANNA)
    scene.wait(35)
    failed = scene.give(BERT)
    scene.fail(failed, "no")
    effects = scene.handle(StopAsked(scene.at, "Ctrl-C"))
    assert [(e.ticket, e.end) for e in of(TicketEnded, effects)] == [
        (live, End.CANCELLED),
        (doubtful, End.LOST),
    ]
    assert of(TaskFailed, effects) == [TaskFailed(1, "no")]


def test_a_result_that_arrives_after_the_interrupt_is_not_lost() -> None:
    scene = Scene(tasks=2, validates=True)
    ticket = scene.give(ANNA)
    scene.handle(StopAsked(0.0, "Ctrl-C"))
    assert scene.session.wanted(ticket)
    scene.done(ticket)
    scene.judge(ticket, True)
    assert scene.session.statistics().done == 1
    assert scene.session.finished == Finish(Outcome.INTERRUPTED, "Ctrl-C")


# --- clients that must still hear that it is over ------------------------------------------


def test_a_client_has_heard_when_it_was_refused() -> None:
    scene = Scene(tasks=1, duplicates=1)
    ticket = scene.give(ANNA)
    scene.hold(BERT)
    scene.done(ticket)
    assert scene.session.clients_left() == 1, "bert's ask was refused, anna has not asked yet"
    scene.ask(ANNA)
    assert scene.session.clients_left() == 0


def test_a_client_with_a_ticket_that_is_over_has_heard_at_its_ping() -> None:
    scene = Scene(tasks=1)
    ticket, copy = scene.give(ANNA), scene.give(BERT)
    scene.done(copy)
    scene.ask(BERT)
    scene.ask(ANNA)
    assert scene.session.clients_left() == 1, "anna still works on its ticket"
    scene.ping(ticket)
    assert scene.session.clients_left() == 0


def test_a_client_that_was_refused_before_and_came_back_is_waited_for() -> None:
    scene = Scene(tasks=2, duplicates=1)
    ticket = scene.give(ANNA)
    other = scene.give(ANNA)
    ask = scene.hold(PLAIN)
    assert scene.wait(30) == [Refuse(ask, None)]
    scene.fail(ticket)
    again = scene.give(PLAIN)
    scene.done(other)
    scene.ask(ANNA)
    scene.done(again)
    assert scene.session.clients_left() == 1
    scene.ask(PLAIN)
    assert scene.session.clients_left() == 0


def test_clients_that_are_silent_for_two_pings_are_not_waited_for() -> None:
    scene = Scene(tasks=1, ping=10)
    scene.done(scene.give(ANNA))
    assert scene.session.clients_left() == 1
    scene.wait(19.9)
    assert scene.session.clients_left() == 1
    assert scene.handle(HostsUnusable(scene.at, "no host")) == []
    scene.wait(0.1)
    assert scene.session.clients_left() == 0
    assert scene.session.next_deadline is None


def test_a_client_that_was_told_to_ask_again_is_waited_for() -> None:
    scene = Scene(tasks=1, ping=10, duplicates=1)
    ticket = scene.give(PLAIN)
    ask = scene.hold(ANNA)
    assert scene.wait(30) == [Refuse(ask, 1)]
    scene.done(ticket)
    scene.ask(PLAIN)
    assert scene.session.clients_left() == 1, "anna was held for 30 s and is about to ask again"
    scene.ask(ANNA)
    assert scene.session.clients_left() == 0


def test_a_client_that_was_held_until_it_got_a_task_is_waited_for() -> None:
    scene = Scene(tasks=2, ping=10, duplicates=1)
    lost, ticket = scene.give(PLAIN), scene.give(PLAIN)
    scene.hold(ANNA)
    scene.wait(25)
    scene.fail(ticket)
    scene.done(ticket)
    scene.done(lost)
    scene.ask(PLAIN)
    assert scene.session.clients_left() == 1, "anna works on a copy that nobody wants any more"


def test_a_client_of_an_earlier_process_has_time_to_hear_the_end() -> None:
    scene = Scene(tasks=1, ping=10)
    scene.done(scene.give(ANNA))
    session = Session(scene.policy, 1, 0.0)
    session.replay(scene.records)
    assert session.resume(0.0, strangers=True) == [Finish(Outcome.SUCCEEDED)]
    assert session.clients_left() == 1
    assert session.next_deadline == 20
    assert session.handle(TimePassed(20.0)) == []
    assert session.clients_left() == 0


def test_a_client_whose_ticket_was_overdue_hears_so_before_the_end() -> None:
    scene = Scene(tasks=1, timeout=60, ping=10, attempts=1)
    ticket = scene.give(ANNA)
    scene.wait(89)
    scene.ping(ticket)
    assert of(Finish, scene.wait(1))
    scene.ask(ANNA)
    assert scene.session.clients_left() == 1
    scene.ping(ticket)
    assert scene.session.clients_left() == 0


def test_dead_clients_are_not_waited_for() -> None:
    scene = Scene(tasks=1)
    scene.done(scene.give(ANNA))
    scene.handle(ClientGone(scene.at, ANNA.client))
    assert scene.session.clients_left() == 0


def test_a_client_that_comes_after_the_end_is_waited_for() -> None:
    scene = Scene(tasks=1)
    scene.done(scene.give(ANNA))
    scene.ask(ANNA)
    scene.handle(ClientHeard(scene.at, BERT))
    assert scene.session.clients_left() == 1
    assert scene.ask(BERT) == [Refuse(scene.last_ask, None)]
    assert scene.session.clients_left() == 0


# --- clients that the master started -------------------------------------------------------


def test_a_silent_managed_client_is_revived_with_growing_pauses() -> None:
    scene = Scene(tasks=1, give_up=1e9, pause_most=200)
    scene.handle(ClientHeard(0.0, ANNA))
    for pause in (35, 70, 140, 200, 200):
        assert scene.wait(pause - 1) == []
        assert scene.wait(1) == [Revive("anna", "client-a")]
    scene.wait(1)
    scene.handle(ClientHeard(scene.at, ANNA))
    for pause in (35, 70):
        assert scene.wait(pause - 1) == []
        assert scene.wait(1) == [Revive("anna", "client-a")]


def test_a_client_that_is_said_to_run_and_never_heard_is_revived() -> None:
    scene = Scene(tasks=1, give_up=1e9)
    scene.handle(ClientSupposed(scene.at, "anna"))
    assert scene.wait(34) == []
    scene.handle(ClientSupposed(scene.at, "anna"))
    (revive,) = scene.wait(1)
    assert isinstance(revive, Revive)
    assert revive.host == "anna"


def test_a_client_that_was_heard_is_supposed_by_nobody() -> None:
    scene = Scene(tasks=1, give_up=1e9)
    scene.handle(ClientSupposed(scene.at, "anna"))
    scene.handle(ClientHeard(scene.at, ANNA))
    scene.handle(ClientSupposed(scene.at, "anna"))
    assert scene.wait(35) == [Revive("anna", "client-a")]


def test_nobody_waits_at_the_end_for_a_client_that_was_never_heard() -> None:
    scene = Scene(tasks=1)
    scene.handle(ClientSupposed(scene.at, "anna"))
    scene.handle(StopAsked(scene.at, "enough"))
    scene.handle(ClientSupposed(scene.at, "anna"))
    assert scene.session.clients_left() == 0
    assert scene.session.next_deadline is None


def test_a_client_that_waits_for_a_task_is_not_silent() -> None:
    scene = Scene(tasks=1, duplicates=1, hold=1e5)
    scene.give(PLAIN)
    scene.hold(ANNA)
    assert scene.wait(1000) == []


@pytest.mark.parametrize("caller", [NEWER, PLAIN])
def test_foreign_clients_are_not_revived(caller: Caller) -> None:
    scene = Scene(tasks=1)
    scene.handle(ClientHeard(0.0, caller))
    assert of(Revive, scene.wait(500)) == []


def test_without_pings_silence_says_nothing() -> None:
    scene = Scene(tasks=1, ping=0)
    scene.give(ANNA)
    assert scene.wait(1e6) == []


def test_only_the_newest_client_of_a_host_is_revived() -> None:
    scene = Scene(tasks=1, give_up=1e9)
    scene.handle(ClientHeard(0.0, ANNA))
    newer = Caller("client-a2", "anna", managed=True, speaks=True)
    scene.handle(ClientHeard(1.0, newer))
    assert of(Revive, scene.wait(50)) == [Revive("anna", "client-a2")]


def test_clients_that_take_turns_on_a_host_leave_nothing_behind() -> None:
    scene = Scene(tasks=1)
    other = Caller("client-a2", "anna", managed=True, speaks=True)
    for _ in range(50):
        scene.handle(ClientHeard(scene.at, ANNA))
        scene.handle(ClientHeard(scene.at, other))

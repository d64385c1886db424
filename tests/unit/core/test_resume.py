"""Going on from the records after a restart."""

from __future__ import annotations

import pytest

from pexecd.core.effects import (
    Discard,
    Finish,
    Judge,
    Replayed,
    TaskDone,
    TaskFailed,
    TaskReopened,
    TicketEnded,
    TicketGiven,
    TicketsPast,
    TicketsUsed,
)
from pexecd.core.events import ClientGone, ResultStored, TaskAsked
from pexecd.core.session import Session
from pexecd.core.values import FIRST_TICKET, MOST_LOSSES, End, Outcome, Policy
from pexecd.errors import InvariantBrokenError
from tests.unit.core.scene import ANNA, BERT, CARL, PLAIN, Scene, given, of


def test_a_new_process_goes_on_where_the_old_one_stopped() -> None:
    scene = Scene(tasks=5, attempts=2)
    scene.done(scene.give(ANNA), seconds=1.5)
    scene.fail(scene.give(ANNA), "oops")
    scene.give(BERT)
    scene.handle(ClientGone(0.0, BERT.client))
    live = scene.give(PLAIN)
    before = scene.session.statistics()
    assert scene.restart() == []
    assert scene.session.statistics() == before
    assert not scene.session.over(live)
    effects = scene.ask(ANNA)
    assert isinstance(effects[0], type(given(0, 0, ANNA)))
    assert effects[0].ticket == live + 1, "a ticket number is never used again"


def test_attempts_and_losses_are_remembered() -> None:
    scene = Scene(tasks=1, attempts=2)
    for _ in range(4):
        scene.give(ANNA)
        scene.handle(ClientGone(0.0, ANNA.client))
    scene.fail(scene.give(ANNA))
    scene.restart()
    effects = scene.fail(scene.give(ANNA), "again")
    assert of(TaskFailed, effects) == [TaskFailed(1, "again")]


def test_a_failed_task_still_prefers_another_host() -> None:
    scene = Scene(tasks=2)
    scene.fail(scene.give(ANNA))
    scene.restart()
    assert scene.task(scene.give(ANNA)) == 2
    assert scene.task(scene.give(BERT)) == 1


def test_all_deadlines_begin_anew() -> None:
    scene = Scene(tasks=1, timeout=60, ping=0)
    ticket = scene.give(ANNA)
    scene.wait(80)
    scene.restart()
    assert scene.wait(89) == []
    assert [e.ticket for e in of(TicketEnded, scene.wait(1))] == [ticket]


def test_tickets_of_clients_that_are_gone_become_doubtful() -> None:
    scene = Scene(tasks=1, duplicates=1)
    scene.give(ANNA)
    scene.restart()
    assert scene.session.statistics().running == 1
    scene.wait(35)
    assert scene.session.statistics().pending == 1


def test_kept_results_without_a_verdict_are_judged() -> None:
    scene = Scene(tasks=3, validates=True)
    judged, unjudged, invalid = scene.give(ANNA), scene.give(ANNA), scene.give(ANNA)
    for ticket in (judged, unjudged, invalid):
        scene.done(ticket, seconds=1.0)
    scene.judge(judged, True)
    scene.judge_fails(unjudged)
    scene.judge(invalid, False)
    # That of the invalid one was to be deleted, but the process ended before it was.
    assert scene.restart(kept=(judged, unjudged, invalid)) == [
        Judge(unjudged, 2),
        Discard(invalid),
    ]
    assert of(TaskDone, scene.judge(unjudged, True)) == [TaskDone(2, unjudged)]


def test_a_late_result_that_was_kept_is_judged_too() -> None:
    scene = Scene(tasks=2, validates=True, attempts=1)
    ticket = scene.give(ANNA)
    scene.fail(ticket)
    scene.done(ticket)
    assert scene.restart(kept=(ticket,)) == [Judge(ticket, 1)]


def test_what_was_all_done_is_over_at_once() -> None:
    scene = Scene(tasks=1)
    scene.done(scene.give(ANNA))
    assert scene.restart() == [Finish(Outcome.SUCCEEDED)]


def test_a_late_result_replaces_the_ticket_s_end() -> None:
    scene = Scene(tasks=2, attempts=1)
    ticket = scene.give(ANNA)
    scene.fail(ticket)
    scene.done(ticket)
    scene.restart()
    numbers = scene.session.statistics()
    assert (numbers.done, numbers.failed) == (1, 0)
    ends = numbers.hosts["anna"].ends
    assert (ends[End.DONE], ends[End.FAILED]) == (1, 0)


def test_failures_before_the_restart_do_not_stop_the_run() -> None:
    scene = Scene(tasks=9, stop_after=2)
    scene.fail(scene.give(ANNA))
    scene.restart()
    assert of(Finish, scene.fail(scene.give(ANNA))) == []
    assert of(Finish, scene.fail(scene.give(ANNA)))


def test_ticket_numbers_may_be_missing_in_the_journal() -> None:
    session = Session(Scene().policy, 3, 0.0)
    session.replay([given(10002, 1, ANNA), TicketEnded(10001, 2, End.LOST)])
    session.resume(0.0)
    assert session.known(10002)
    assert not session.known(10001)
    assert session.statistics().tickets == 1
    assert session.handle(TaskAsked(0.0, 1, ANNA))[0] == given(10003, 2, ANNA)


def test_what_became_of_tasks_may_be_told_before_their_tickets() -> None:
    scene = Scene(tasks=6, attempts=1)
    scene.fail(scene.give(ANNA))
    scene.fail(scene.give(ANNA))
    scene.handle(ResultStored(scene.at, scene.give(ANNA), 2.0))
    scene.fail(scene.give(ANNA))
    scene.give(BERT)
    settled = [record for record in scene.records if isinstance(record, TaskDone | TaskFailed)]
    assert len(settled) == 4
    session = Session(scene.policy, scene.tasks, scene.at)
    tickets = [one for one in scene.records if one not in settled]
    session.replay([*settled, *tickets])
    assert session.statistics() == scene.session.statistics()
    session.resume(scene.at)
    assert session.statistics() == scene.session.statistics()

    ended = {one.ticket: one for one in tickets if isinstance(one, TicketEnded)}
    shorter: list[Replayed] = [*settled]
    for one in tickets:
        if isinstance(one, TicketGiven):
            end = ended.get(one.ticket)
            shorter.append(
                TicketsPast(one.ticket, [one.task], [one.host], [end.end], [end.seconds])
                if end
                else one
            )
    assert sum(isinstance(one, TicketsPast) for one in shorter) == 4
    session = Session(scene.policy, scene.tasks, scene.at)
    session.replay(shorter)
    session.resume(scene.at)
    assert session.statistics() == scene.session.statistics()
    assert session.handle(TaskAsked(scene.at, 1, CARL))[0] == given(10005, 6, CARL)


def test_a_ticket_number_that_was_used_twice_is_a_bug() -> None:
    session = Session(Scene().policy, 3, 0.0)
    with pytest.raises(InvariantBrokenError, match="10000"):
        session.replay([given(10000, 1, ANNA), given(10000, 2, ANNA)])


def test_the_same_events_give_the_same_effects() -> None:
    def play() -> list[object]:
        scene = Scene(tasks=20, attempts=2, timeout=50)
        out: list[object] = []
        for step in range(60):
            out += scene.ask((ANNA, BERT, PLAIN)[step % 3])
            if step % 4 == 0:
                out += scene.fail(10000 + step // 2)
            elif step % 4 == 1:
                out += scene.done(10000 + step // 3)
            out += scene.wait(step % 7)
        return out

    assert play() == play()


# --- tasks that were reopened -------------------------------------------------------------------


def reopened(scene: Scene, task: int) -> None:
    """Restart with this task pending again, as the journal tells it."""
    last = max(record.ticket for record in scene.records if isinstance(record, TicketGiven))
    ended = [
        record
        for record in scene.records
        if isinstance(record, TicketEnded) and record.end is End.DONE
    ]
    scene.records = [
        record
        for record in scene.records
        if not (isinstance(record, TaskDone | TaskFailed) and record.task == task)
    ]
    for done in ended:
        scene.records.append(TicketEnded(done.ticket, done.task, End.LOST, "its result is gone"))
    scene.records.append(TaskReopened(task, last + 1))
    scene.restart()


def test_a_failed_task_that_is_reopened_has_all_its_attempts_again() -> None:
    scene = Scene(tasks=1, attempts=2)
    for _ in range(2):
        scene.fail(scene.give(PLAIN))
    assert scene.session.statistics().failed == 1
    reopened(scene, 1)
    numbers = scene.session.statistics()
    assert (numbers.failed, numbers.pending) == (0, 1)
    again = scene.give(PLAIN)
    assert again == FIRST_TICKET + 2
    assert of(TaskFailed, scene.fail(again)) == []
    scene.restart()
    second = scene.give(PLAIN)
    assert of(TaskFailed, scene.fail(second, "no")) == [TaskFailed(1, "no")]
    scene.restart()
    assert scene.session.statistics().failed == 1


def test_losses_before_it_was_reopened_do_not_count() -> None:
    scene = Scene(tasks=1)
    for _ in range(MOST_LOSSES):
        scene.give(ANNA)
        scene.handle(ClientGone(0.0, ANNA.client))
    assert scene.session.statistics().failed == 1
    reopened(scene, 1)
    scene.give(ANNA)
    assert of(TaskFailed, scene.handle(ClientGone(0.0, ANNA.client))) == []


def test_a_done_task_that_is_reopened_runs_again() -> None:
    scene = Scene(tasks=1)
    scene.done(scene.give(ANNA))
    reopened(scene, 1)
    numbers = scene.session.statistics()
    assert (numbers.done, numbers.pending) == (0, 1)
    scene.done(scene.give(ANNA))
    assert scene.session.statistics().done == 1
    scene.restart()
    assert scene.session.statistics().done == 1


def test_a_late_result_of_a_reopened_task_still_counts() -> None:
    scene = Scene(tasks=1, attempts=1)
    old = scene.give(ANNA)
    scene.fail(old)
    reopened(scene, 1)
    scene.done(old)
    assert scene.session.statistics().done == 1


def test_a_late_invalid_result_of_a_reopened_task_uses_up_nothing() -> None:
    scene = Scene(tasks=1, attempts=1, validates=True)
    old = scene.give(ANNA)
    scene.fail(old)
    reopened(scene, 1)
    new = scene.give(ANNA)
    scene.done(old)
    assert of(TaskFailed, scene.judge(old, valid=False)) == []
    assert not scene.session.over(new)


def test_a_late_valid_result_ends_what_a_reopened_task_was_given_meanwhile() -> None:
    scene = Scene(tasks=2, attempts=1, validates=True)
    old = scene.give(ANNA)
    scene.fail(old)
    reopened(scene, 1)
    scene.done(old)
    new = scene.give(ANNA)
    assert scene.task(new) == 1
    effects = scene.judge(old, valid=True)
    assert [(one.ticket, one.end) for one in of(TicketEnded, effects)] == [
        (old, End.DONE),
        (new, End.CANCELLED),
    ]
    assert scene.session.over(new)
    scene.restart()
    assert scene.session.statistics().done == 1


def test_a_late_invalid_result_leaves_what_a_reopened_task_was_given_meanwhile_alone() -> None:
    scene = Scene(tasks=1, attempts=1, validates=True, duplicates=1)
    old = scene.give(ANNA)
    scene.fail(old)
    reopened(scene, 1)
    scene.done(old)
    new = scene.give(ANNA)
    scene.judge(old, valid=False)
    assert not scene.session.over(new)
    scene.hold(BERT)


def test_numbers_of_tickets_that_are_left_out_are_not_used_again() -> None:
    session = Session(Policy(), 1, 0.0)
    session.replay([given(FIRST_TICKET, 1, ANNA), TicketsUsed(FIRST_TICKET + 5)])
    session.resume(0.0)
    assert not session.known(FIRST_TICKET + 5)
    (effect,) = of(TicketGiven, session.handle(TaskAsked(0.0, 1, BERT)))
    assert effect.ticket == FIRST_TICKET + 6


def test_only_what_was_chosen_runs_and_counts() -> None:
    before = Scene(tasks=9, attempts=1)
    before.done(before.give(ANNA))  # task 1
    before.fail(before.give(ANNA), "oops")  # task 2
    begun = before.give(BERT)  # task 3
    session = Session(Policy(attempts=1, duplicates=1), 9, 0.0)
    session.replay(record for record in before.records if isinstance(record, Replayed))
    session.choose([1, 5, 8])
    assert session.resume(0.0) == []
    totals = session.totals()
    assert (totals.tasks, totals.done, totals.failed) == (5, 1, 1)
    assert (totals.running, totals.pending) == (1, 2)

    tasks = []
    for number in range(2):
        (effect,) = of(TicketGiven, session.handle(TaskAsked(0.0, number, ANNA)))
        tasks.append(effect.task)
        session.handle(ResultStored(0.0, effect.ticket))
    assert tasks == [5, 8]
    assert session.finished is None, "what was begun is ended, too"
    session.handle(ResultStored(0.0, begun))
    assert session.finished == Finish(Outcome.SOME_FAILED, "1 of 5 tasks failed")

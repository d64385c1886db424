"""Hosts that fail are set aside, and come back."""

from __future__ import annotations

from pexecd.core.effects import Refuse, Tell
from pexecd.core.events import AskWithdrawn, ClientGone
from pexecd.core.values import End
from tests.unit.core.scene import ANNA, BERT, CARL, NEWER, Scene, assigned, of


def bad_anna(**policy: object) -> Scene:
    """Bert has a live ticket (10000) and a success, anna is set aside at second 0."""
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0, **policy)
    scene.give(BERT)
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    effects = scene.fail(scene.give(ANNA), "disk full")
    assert of(Tell, effects) == [
        Tell(
            "anna: set aside for 60 s, it fails while others do well; the last reason: disk full",
            warning=True,
        )
    ]
    return scene


def aside(scene: Scene, host: str = "anna") -> bool:
    return scene.session.statistics().hosts[host].aside is not None


def test_a_host_that_fails_while_others_do_well_gets_no_more_tasks() -> None:
    scene = bad_anna()
    assert aside(scene)
    ask = scene.hold(ANNA)
    assert scene.wait(30) == [Refuse(ask, 10)]
    assert scene.give(BERT)


def test_a_host_is_not_set_aside_while_the_others_have_no_success_either() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0)
    scene.done(scene.give(BERT))
    scene.give(BERT)
    for _ in range(10):
        assert of(Tell, scene.fail(scene.give(ANNA))) == []


def test_a_task_that_fails_everywhere_is_no_fault_of_the_host() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0)
    scene.give(BERT)
    for _ in range(10):
        first = scene.give(BERT)
        scene.fail(first)
        again = scene.give(ANNA)
        assert scene.task(again) == scene.task(first)
        scene.fail(again)
        scene.done(scene.give(BERT))
        assert not aside(scene)


def test_a_success_ends_a_streak() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0)
    for _ in range(10):
        scene.fail(scene.give(ANNA))
        scene.done(scene.give(BERT))
        scene.done(scene.give(ANNA))
        assert not aside(scene)


def test_the_only_host_in_use_is_not_set_aside() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0)
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    for _ in range(10):
        assert of(Tell, scene.fail(scene.give(ANNA))) == []


def test_foreign_hosts_are_never_set_aside() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0)
    scene.give(BERT)
    scene.done(scene.give(BERT))
    for _ in range(10):
        assert of(Tell, scene.fail(scene.give(NEWER))) == []
        scene.done(scene.give(BERT))


def test_lost_tickets_are_no_failures_of_the_host() -> None:
    scene = Scene(tasks=1000, bad_streak=2)
    scene.give(BERT)
    for _ in range(10):
        scene.done(scene.give(BERT))
        scene.give(ANNA)
        scene.handle(ClientGone(0.0, ANNA.client))
    assert not aside(scene)


def test_asks_that_wait_are_parked_with_their_host() -> None:
    scene = Scene(tasks=4, bad_streak=2, stop_after=0, duplicates=1)
    bert, first, second = scene.give(BERT), scene.give(ANNA), scene.give(ANNA)
    other = scene.give(BERT)
    scene.hold(ANNA)
    retry = scene.fail(first)
    assert assigned(retry), "anna takes its own failed task, nobody else asks"
    waiting = scene.hold(ANNA)
    scene.done(bert)
    effects = scene.fail(second)
    assert aside(scene)
    assert assigned(effects) == []
    assert scene.task(scene.give(BERT)) == 3
    assert not scene.session.over(other)
    assert of(Refuse, scene.wait(30)) == [Refuse(waiting, 10)]


def test_after_its_pause_a_host_is_tried_with_one_ticket_at_a_time() -> None:
    scene = bad_anna(hold=1000.0)
    asks = [scene.hold(ANNA) for _ in range(3)]
    effects = scene.wait(60)
    assert [ask for ask, _ in assigned(effects)] == asks[:1]
    assert aside(scene)
    assert scene.hold(ANNA)
    probe = scene.session._ledger.next_ticket - 1
    effects = scene.done(probe)
    assert of(Tell, effects) == [Tell("anna: does well again")]
    assert [ask for ask, _ in assigned(effects)] == [*asks[1:], asks[-1] + 1]
    assert not aside(scene)


def test_a_failed_trial_doubles_the_pause() -> None:
    scene = bad_anna(pause_most=200.0, ping=0)
    pause = 60.0
    for expected in (120, 200, 200):
        scene.wait(pause)
        effects = scene.fail(scene.give(ANNA))
        assert f"set aside for {expected} s" in of(Tell, effects)[0].text
        assert scene.hold(ANNA)
        pause = expected


def test_a_trial_that_is_lost_is_followed_by_another() -> None:
    scene = bad_anna()
    scene.wait(60)
    probe = scene.give(ANNA)
    waiting = scene.hold(ANNA)
    assert assigned(scene.fail(probe, end=End.CANCELLED)) == [(waiting, scene.task(probe))]


def test_of_the_asks_that_wait_for_a_trial_only_one_gets_it() -> None:
    scene = Scene(tasks=5, bad_streak=2, stop_after=0, duplicates=1, ping=0, hold=1000)
    first, second = scene.give(ANNA), scene.give(ANNA)
    scene.fail(first)
    live = [scene.give(BERT) for _ in range(4)]
    scene.done(live.pop())
    scene.fail(second)
    assert aside(scene)
    live.append(scene.give(BERT))
    scene.wait(60)
    scene.hold(ANNA), scene.hold(ANNA)
    assert len(assigned(scene.fail(live[0]))) == 1
    assert assigned(scene.fail(live[1])) == []


def test_old_failures_of_a_host_set_aside_do_not_lengthen_its_pause() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0, ping=0)
    scene.give(BERT)
    scene.fail(scene.give(ANNA))
    old = scene.give(ANNA)
    scene.done(scene.give(BERT))
    scene.fail(scene.give(ANNA))
    assert of(Tell, scene.fail(old)) == []
    scene.wait(60)
    assert scene.give(ANNA)


def test_after_a_success_the_pauses_are_short_again() -> None:
    scene = bad_anna(ping=0)
    scene.wait(60)
    scene.done(scene.give(ANNA))
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    assert "set aside for 60 s" in of(Tell, scene.fail(scene.give(ANNA)))[0].text


def test_a_trial_waits_for_its_verdict() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0, validates=True)
    scene.give(BERT)
    for valid, caller in ((False, ANNA), (True, BERT), (False, ANNA)):
        ticket = scene.give(caller)
        scene.done(ticket)
        scene.judge(ticket, valid)
    assert aside(scene)
    scene.wait(60)
    probe = scene.give(ANNA)
    scene.done(probe)
    scene.hold(ANNA)
    scene.judge(probe, False)
    assert aside(scene)
    assert scene.hold(ANNA)


def test_a_trial_that_is_silent_is_followed_by_another() -> None:
    scene = bad_anna()
    for _ in range(3):
        scene.wait(20)
        scene.ping(10000)
    scene.give(ANNA)
    for _ in range(2):
        assert scene.hold(ANNA)
        scene.wait(20)
        scene.ping(10000)
    assert aside(scene)
    assert scene.session.statistics().hosts["anna"].running == 2


def test_a_trial_whose_task_another_did_is_followed_by_another() -> None:
    scene = Scene(tasks=3, bad_streak=2, stop_after=0, validates=True, ping=0)
    scene.give(BERT)
    scene.fail(scene.give(ANNA))
    good = scene.give(BERT)
    scene.done(good)
    scene.judge(good, True)
    scene.fail(scene.give(ANNA))
    assert aside(scene)
    scene.wait(60)
    probe, copy = scene.give(ANNA), scene.give(BERT)
    scene.done(probe)
    scene.done(copy)
    waiting = scene.hold(ANNA)
    assert assigned(scene.judge(copy, True)) == [(waiting, 1)]


def test_a_waiting_trial_that_is_withdrawn_passes_to_the_next_ask() -> None:
    scene = Scene(tasks=4, bad_streak=2, stop_after=0, duplicates=1, attempts=2, hold=1000)
    live = scene.give(BERT)
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    scene.fail(scene.give(ANNA))
    assert aside(scene)
    last = [scene.give(BERT) for _ in range(2)]
    scene.wait(20)
    for ticket in (live, *last):
        scene.ping(ticket)
    first, second = scene.hold(ANNA), scene.hold(ANNA)
    scene.wait(20)
    for ticket in (live, *last):
        scene.ping(ticket)
    scene.wait(25)
    scene.handle(AskWithdrawn(scene.at, first))
    assert assigned(scene.fail(live)) == [(second, 1)]


def test_a_late_success_clears_a_host() -> None:
    scene = Scene(tasks=1000, bad_streak=2, stop_after=0)
    scene.give(BERT)
    old = scene.give(ANNA)
    scene.fail(scene.give(ANNA))
    scene.done(scene.give(BERT))
    scene.fail(scene.give(ANNA))
    assert aside(scene)
    scene.done(old)
    assert not aside(scene)


def test_a_host_is_let_back_in_when_no_other_is_left() -> None:
    scene = bad_anna(hold=50.0)
    waiting = scene.hold(ANNA)
    scene.handle(ClientGone(scene.at, BERT.client))
    assert scene.wait(34) == []
    effects = scene.wait(1)
    assert of(Tell, effects) == [Tell("anna: in use again, as no other is")]
    assert assigned(effects) == [(waiting, 1)]


def test_a_host_between_two_tickets_is_in_use() -> None:
    scene = bad_anna()
    scene.hold(ANNA)
    scene.done(10000)
    scene.wait(20)
    ticket = scene.give(BERT)
    scene.wait(20)
    assert aside(scene), "one that works is there again"
    scene.done(ticket)
    scene.wait(15)
    assert aside(scene)
    assert scene.give(CARL)

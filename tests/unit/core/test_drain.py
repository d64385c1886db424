"""Hosts that leave the cluster while the job runs, or are to have another client."""

from __future__ import annotations

from pexecd.core.effects import Finish, Refuse, Revive, Supply
from pexecd.core.events import ClientHeard, Exchanged, HostDrained, HostsUnusable
from pexecd.core.values import Caller
from tests.unit.core.scene import ANNA, BERT, Scene, of

ANNAS_NEXT = ANNA._replace(client="client-a2")


def drain(scene: Scene, host: str = "anna", *, returns: bool = False) -> list[object]:
    return list(scene.handle(HostDrained(scene.at, host, returns)))


def test_what_runs_there_ends_in_order_and_nothing_new_begins() -> None:
    scene = Scene(5, duplicates=1)
    ticket = scene.give(ANNA)
    assert drain(scene) == []
    assert scene.ask(ANNA) == [Refuse(scene.last_ask, None)]
    assert scene.give(BERT)
    assert not scene.session.over(ticket)
    scene.done(ticket)
    assert scene.ask(ANNA) == [Refuse(scene.last_ask, None)]
    assert scene.session.statistics().done == 1


def test_who_waits_is_told_at_once() -> None:
    scene = Scene(1, duplicates=1)
    scene.give(BERT)
    ask = scene.hold(ANNA)
    assert drain(scene) == [Refuse(ask, None)]
    assert drain(scene) == []


def test_an_exchange_brings_nothing_but_the_end() -> None:
    scene = Scene(5)
    ticket = scene.give(ANNA)
    drain(scene)
    exchange = Exchanged(scene.at, 77, ANNA, 3, stored=[(ticket, 1.0)])
    (supply,) = of(Supply, scene.handle(exchange))
    assert (supply.given, supply.end, supply.none) == ((), True, False)
    assert scene.session.statistics().done == 1


def test_the_next_client_is_welcome_only_where_the_host_returns() -> None:
    for returns in (True, False):
        scene = Scene(5)
        ticket = scene.give(ANNA)
        drain(scene, returns=returns)
        scene.done(ticket)
        scene.handle(ClientHeard(scene.at, ANNA))  # it is known: no new one
        assert scene.ask(ANNA) == [Refuse(scene.last_ask, None)]
        scene.handle(ClientHeard(scene.at, ANNAS_NEXT))
        if returns:
            assert scene.give(ANNAS_NEXT)
        else:
            assert scene.ask(ANNAS_NEXT) == [Refuse(scene.last_ask, None)]


def test_a_removed_host_that_is_there_again() -> None:
    scene = Scene(5)
    scene.give(ANNA)
    drain(scene)
    drain(scene, returns=True)
    assert scene.ask(ANNA) == [Refuse(scene.last_ask, None)]
    scene.handle(ClientHeard(scene.at, ANNAS_NEXT))
    assert scene.give(ANNAS_NEXT)


def test_a_host_that_was_never_heard_of() -> None:
    scene = Scene(5)
    drain(scene, "carl")
    carl = Caller("client-c", "carl", managed=True, speaks=True)
    scene.handle(ClientHeard(scene.at, carl))
    assert scene.ask(carl) == [Refuse(scene.last_ask, None)]


def test_nobody_looks_after_a_client_that_is_to_end() -> None:
    scene = Scene(5)
    scene.give(ANNA)
    drain(scene)
    assert of(Revive, scene.wait(500)) == []


def test_its_tickets_are_lost_as_any_when_it_falls_silent() -> None:
    scene = Scene(1)
    ticket = scene.give(ANNA)
    drain(scene)
    scene.wait(40)
    assert scene.give(BERT) != ticket


def test_a_host_that_comes_after_all_others_were_unusable() -> None:
    scene = Scene(1, give_up=600.0)
    scene.give(ANNA)
    scene.handle(HostsUnusable(scene.at, "no key"))
    scene.handle(HostsUnusable(scene.at, ""))
    assert of(Finish, scene.wait(500)) == []

"""What holds after every event, whatever has happened."""

from __future__ import annotations

from pexecd.core.dispatch import _silent_with
from pexecd.core.session import Session
from pexecd.core.state import Alarm, Ask, KeptResult, Ticket
from pexecd.core.values import MOST_LOSSES, End


def check_session(session: Session) -> None:
    """Walk through the whole state."""
    _check_statistics(session)
    _check_tasks(session)
    _check_tickets(session)
    _check_asks_and_hosts(session)


def _check_statistics(session: Session) -> None:
    numbers = session.statistics()
    assert numbers.done + numbers.failed + numbers.running + numbers.pending == numbers.tasks
    assert min(numbers.done, numbers.failed, numbers.running, numbers.pending) >= 0
    ends = [count for host in numbers.hosts.values() for count in host.ends.values()]
    assert min(ends, default=0) >= 0
    running = sum(host.running for host in numbers.hosts.values())
    assert sum(ends) + running == numbers.tickets
    assert sum(host.ends[End.DONE] for host in numbers.hosts.values()) == numbers.done


def _check_tasks(session: Session) -> None:
    ledger, dispatch = session._ledger, session._dispatch
    phases = [ledger._phases[task] for task in range(1, ledger.tasks + 1)]
    assert phases.count(0) == ledger.fresh
    assert phases.count(2) == ledger.done
    assert phases.count(3) == ledger.failed
    assert {task for task, phase in enumerate(phases, 1) if phase == 1} == ledger.works.keys()
    if 0 in phases:
        assert dispatch._cursor <= phases.index(0) + 1, "a fresh task lies behind the cursor"
    queued = dispatch._retries.keys() | dispatch._demanding.keys()
    assert not dispatch._retries.keys() & dispatch._demanding.keys()
    assert queued <= ledger.works.keys()
    for work in ledger.works.values():
        live = sum(not ticket.doubtful for ticket in work.tickets)
        # No task is forgotten: it waits, or something of it lives.
        assert (work.task in queued) == (not live and not work.results)
        assert work.attempts < session._policy.attempts or live or work.results
        spent = work.attempts >= session._policy.attempts or work.losses >= MOST_LOSSES
        copyable = 0 < live < session._policy.duplicates and not (spent or work.results)
        assert (work.task in dispatch._copyable) == copyable
    assert dispatch._copyable.keys() <= ledger.works.keys()


def _check_tickets(session: Session) -> None:
    ledger, progress = session._ledger, session._progress
    live = [ticket for ticket in progress.tickets.values() if not ticket.doubtful]
    assert len(live) == progress.live
    assert sum(result.awaited for result in progress.results.values()) == progress.awaited
    not_ended = {
        number
        for number in range(10000, ledger.next_ticket)
        if ledger.known(number) and ledger.end_of(number) is None
    }
    assert not_ended <= progress.tickets.keys() | progress.results.keys()
    assert progress.tickets.keys() <= not_ended
    assert not progress.tickets.keys() & progress.results.keys()
    for ticket in progress.tickets.values():
        assert ledger.works[ticket.work.task] is ticket.work
        assert ticket in ticket.work.tickets
        assert ticket.client.tickets[ticket.number] is ticket
        looked_after = session._policy.timeout or ticket.watched
        if ticket.doubtful or ticket.arriving:
            assert ticket not in session._deadlines
        elif looked_after:
            assert ticket in session._deadlines
    for result in progress.results.values():
        assert result in result.work.results
    assert session.finished is None or not progress.tickets
    deadlines = session._deadlines
    if session.finished is not None:
        assert not any(alarm in deadlines for alarm in Alarm)
    else:
        assert len(deadlines) <= len(progress.tickets) + len(session._asks._open) + 3 + sum(
            2 for _ in ledger.hosts
        )


def _check_asks_and_hosts(session: Session) -> None:
    standings, dispatch, asks = session._standings, session._dispatch, session._asks._open
    waiting = dispatch._plain | dispatch._speaking
    assert waiting.items() <= asks.items()
    assert standings.engaged == session._progress.live + len(asks)
    hosts = session._ledger.hosts
    assert sum(host.engaged for host in hosts.values()) == standings.engaged
    free = [host for host in hosts.values() if host.aside is None]
    assert standings.active == sum(host.engaged > 0 for host in free)
    assert standings.aside == {host.name: host for host in hosts.values() if host.aside is not None}
    for number, ask in asks.items():
        assert ask.host.asks[number] is ask
        assert ask in session._deadlines
        if ask.host.aside is None:
            assert number in waiting
        else:
            assert (number in waiting) == (ask.host.probe is ask)
    for host in standings.aside.values():
        match host.probe:
            case Ask():
                assert host.probe.number in waiting
            case Ticket():
                assert host.probe.number in session._progress.tickets
                assert not host.probe.doubtful
            case KeptResult():
                results = session._progress.results.values()
                assert host.probe in [result for result in results if result.awaited]
            case None:
                assert session.finished or not host.asks or host in session._deadlines
    for client in session._clients._clients.values():
        waits = sum(ask.client is client for ask in asks.values())
        assert client.open == waits + sum(t.arriving for t in client.tickets.values())
    put = [*dispatch._retries.values(), *dispatch._demanding.values()]
    # of no use to the task that its own client fell silent with
    silent = {
        number for number, ask in waiting.items() if any(_silent_with(work, ask) for work in put)
    }
    if waiting and not session._policy.demanding:
        assert not session._ledger.fresh
    if waiting.keys() - silent and not session._policy.demanding:
        assert not dispatch._retries, "a task and an ask wait for each other"
    if dispatch._speaking.keys() - silent:
        assert not dispatch.pending
    if session.finished is not None:
        assert not asks

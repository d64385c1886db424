"""A session's numbers for people and scripts: one dictionary, and the lines made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pexecd.core.effects import Finish
from pexecd.core.values import End, Statistics
from pexecd.errors import spoken
from pexecd.master import HostReport, RunningSession
from pexecd.ports import CollectReport
from pexecd.store.thread import Each
from pexecd.units import Seconds, Stamp

#: So many failed tasks and warnings are listed on a screen; statistics.json has more.
LISTED = 10

#: How tickets may end, in words, in the order of ``HostCounts.counts``.
_WORDS = tuple(end.value for end in End)


class Snapshot(NamedTuple):
    """A session at one moment: quickly taken, so that it may be put into words elsewhere."""

    name: str
    session: str
    paused: str
    numbers: Statistics
    hosts: Mapping[str, HostReport]
    failures: Mapping[int, str]
    #: When this run began.
    started: Stamp
    #: How long it has run.
    elapsed: Seconds

    @classmethod
    def of(cls, session: RunningSession, started: Stamp, elapsed: Seconds) -> Snapshot:
        """Take it; a microsecond or two for each host."""
        return cls(
            session.job.name,
            session.public,
            session.disk.full,
            session.statistics(),
            dict(session.hosts),
            dict(session.failures),
            started,
            elapsed,
        )


def summary(
    at: Snapshot,
    finish: Finish | None = None,
    collected: CollectReport | None = None,
    each: Each = iter,
) -> dict[str, Any]:
    """What ``statistics.json`` holds. Times in seconds; see docs/state.md.

    Takes some microseconds for each host.

    Args:
        at: the session.
        finish: how the run ended; None while it runs.
        collected: what collection reported at the end.
        each: goes through all hosts; see ``StatisticsFile.write``.
    """
    numbers = at.numbers
    none = dict.fromkeys(_WORDS, 0)
    hosts: dict[str, dict[str, Any]] = {
        name: {
            "status": report.status,
            "reason": report.reason,
            "running": 0,
            "busy_s": 0.0,
            "set_aside": None,
            **none,
        }
        for name, report in each(at.hosts.items())
    }
    for name, (counts, busy, running, aside) in each(numbers.hosts.items()):
        host = hosts.setdefault(name, {"status": "", "reason": ""})
        host["running"] = running
        host["busy_s"] = round(busy, 3)
        host["set_aside"] = aside
        host.update(zip(_WORDS, counts, strict=True))
    by_end = zip(*[host.counts for host in numbers.hosts.values()], strict=True)
    ends = none | dict(zip(_WORDS, map(sum, by_end), strict=False))
    return {
        "name": at.name,
        "session": at.session,
        "outcome": finish.outcome.name.lower().replace("_", " ") if finish else "running",
        "reason": finish.reason if finish else "",
        "paused": at.paused,
        "tasks": numbers.tasks,
        "done": numbers.done,
        "failed": numbers.failed,
        "running": numbers.running,
        "pending": numbers.pending,
        "tickets": numbers.tickets,
        "ends": ends,
        "hosts": hosts,
        "failed_tasks": [
            {"task": task, "reason": reason} for task, reason in sorted(at.failures.items())
        ],
        "collected": collected.collected if collected else None,
        "not_collected": [
            {"task": task, "reason": reason}
            for task, reason in (collected.not_collected if collected else ())
        ],
        "warnings": [*collected.errors, *collected.warnings] if collected else [],
        "pilot": None,
        "started": at.started,
        "elapsed_s": round(at.elapsed, 3),
    }


def lines(numbers: dict[str, Any]) -> list[str]:
    """The statistics as lines for a person, from what ``summary`` gave."""
    text = [
        f"{numbers['name']}: {numbers['outcome']}"
        + (f" ({numbers['reason']})" if numbers["reason"] else ""),
        f"tasks    {numbers['tasks']}: {numbers['done']} done, {numbers['failed']} failed"
        + (
            f", {numbers['running'] + numbers['pending']} not finished"
            if numbers["running"] + numbers["pending"]
            else ""
        )
        + f", in {duration(numbers['elapsed_s'])}",
        f"tickets  {numbers['tickets']}: " + _counts(numbers["ends"], numbers["tickets"]),
    ]
    width = max((len(spoken(name)) for name in numbers["hosts"]), default=0)
    for name, host in numbers["hosts"].items():
        counts = {end.value: host[end.value] for end in End}
        given = sum(counts.values()) + host["running"]
        parts = [_counts(counts, given)] if given else ["no ticket"]
        if host["busy_s"]:
            parts.append(f"busy {duration(host['busy_s'])}")
        if host["status"] in ("waiting", "unusable", "changing"):
            parts.append(f"{host['status']}: {host['reason']}")
        if host["status"] == "removed":
            parts.append(host["reason"])
        if host["set_aside"]:
            parts.append(f"set aside: {host['set_aside']}")
        text.append(f"host     {spoken(name):<{width}}  " + "; ".join(parts))
    text += _listed(
        "failed", [f"task {one['task']}: {one['reason']}" for one in numbers["failed_tasks"]]
    )
    text += _listed(
        "not collected",
        [f"task {one['task']}: {one['reason']}" for one in numbers["not_collected"]],
    )
    text += [f"warning  {warning}" for warning in numbers["warnings"]]
    if numbers["pilot"] is not None:
        text += expected(numbers["pilot"])
    return text


def expected(pilot: dict[str, Any]) -> list[str]:
    """What the tasks of a pilot say of the others, as lines for a person.

    Args:
        pilot: from ``pilot.estimate``.
    """
    left = pilot["left"]
    if not pilot["ran"]:
        return [f"pilot    none of its tasks is done: nothing can be said of the {left} others"]
    mean, shortest, longest, median = (
        duration(took) if (took := pilot[f"{which}_s"]) >= 0.1 else f"{took * 1000:.1f} ms"
        for which in ("mean", "shortest", "longest", "median")
    )
    times = f"{mean} on average, {shortest} to {longest}, half of them up to {median}"
    text = [f"pilot    {pilot['ran']} tasks took {times}"]
    if not left:
        return [*text, "whole    no task is left"]
    whole = f"whole    {left} tasks are left: about {duration(pilot['work_s'])} of work"
    if pilot["margin"] is not None:
        whole += f", give or take {pilot['margin']:.0%}"
    if pilot["wall_s"] is not None:
        whole += f"; {duration(pilot['wall_s'])} on the {pilot['slots']} slots that were there"
    results = f"results  about {size(pilot['result_bytes'])} more"
    free = f"{size(pilot['free_bytes'])} are free in the state folder"
    enough = pilot["result_bytes"] < pilot["free_bytes"]
    return [*text, whole, f"{results}; {free}" if enough else f"{results}, but only {free}"]


def _counts(ends: dict[str, int], tickets: int) -> str:
    parts = [f"{number} {end}" for end, number in ends.items() if number]
    if tickets > sum(ends.values()):
        parts.append(f"{tickets - sum(ends.values())} without an end yet")
    return ", ".join(parts) or "none"


def _listed(title: str, entries: list[str]) -> list[str]:
    text = [f"{title}   {entry}" for entry in entries[:LISTED]]
    if len(entries) > LISTED:
        text.append(f"{title}   ... and {len(entries) - LISTED} more")
    return text


def duration(seconds: Seconds) -> str:
    """A length of time for people: ``0.4 s``, ``12 s``, ``3:04 min``, ``2:03:04 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def size(number: int) -> str:
    """Bytes for people: ``512 bytes``, ``1.5 GB``."""
    if number < 1000:
        return f"{number} bytes"
    amount, units = float(number), ["kB", "MB", "GB", "TB"]
    amount /= 1000
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        del units[0]
    return f"{amount:.1f} {units[0]}" if amount < 9.95 else f"{amount:.0f} {units[0]}"

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
    return text


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

"""``pexecd check --hosts``: a line for each host, ready or why not."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from zope.interface import implementer

from pexecd.core.values import Outcome
from pexecd.errors import spoken
from pexecd.jobs.values import Job
from pexecd.launch.probe import Finding, Probe
from pexecd.ssh import Connector
from pexecd.summary import size
from pexecd.units import Seconds

#: So many hosts that share a folder are named in a line.
LISTED = 5

#: How often a terminal is told how many hosts have not answered yet.
RENEWED: Seconds = 0.5


def try_hosts(job: Job) -> list[Finding]:
    """Try every host of a job, at once; shows on a terminal how many are left.

    Runs the reactor, which can be done once in a process.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; nothing is left on the hosts.
    """
    from twisted.internet import reactor as installed  # noqa: PLC0415

    reactor: Any = installed
    reactor.seconds = time.monotonic
    _log_warnings(sys.stderr)
    probe = Probe(
        reactor, job.hosts, list(job.worker.executables), Connector(reactor, job.ssh_config)
    )
    findings: list[Finding] = []
    problems: list[Any] = []
    interrupted: list[int] = []

    def caught(number: int, _frame: FrameType | None) -> None:
        interrupted.append(number)
        signal.signal(number, signal.SIG_DFL)  # once more leaves at once
        reactor.callFromThread(probe.stop)

    def begin() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, caught)
        running = Deferred.fromCoroutine(probe.run())
        running.addCallbacks(findings.extend, problems.append)
        running.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        waiting = LoopingCall(lambda: live.update(_waiting(probe.left), refresh=True))
        if live.console.is_terminal:
            reactor.callWhenRunning(waiting.start, RENEWED)
        reactor.run()
    for problem in problems:
        problem.raiseException()
    if interrupted:
        raise KeyboardInterrupt
    return findings


def print_findings(findings: Sequence[Finding], stream: TextIO) -> None:
    """A line for each host, then how many there are of use."""
    console = Console(file=stream, highlight=False, soft_wrap=True, emoji=False, markup=False)
    width = max(len(spoken(finding.host)) for finding in findings)
    for finding in findings:
        style = {"ready": "green", "unusable": "red"}.get(finding.status, "")
        head = Text(f"  {spoken(finding.host):<{width}}  ")
        head.append(finding.status, style)
        text = _about(finding)
        console.print(head.append(f": {text}" if text else ""))
        for warning in finding.warnings:
            console.print(Text(f"  {'':<{width}}  but ").append(warning, "yellow"))
    ready = [finding for finding in findings if finding.status == "ready"]
    tried = sum(finding.status != "by hand" for finding in findings)
    slots = sum(finding.slots for finding in ready)
    if tried:
        console.print(f"{len(ready)} of {tried} hosts can be used, with {slots} slots.")


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The same for scripts."""
    return [
        {
            "host": finding.host,
            "status": finding.status,
            "reason": finding.reason,
            "warnings": list(finding.warnings),
            "platform": finding.platform,
            "python": finding.python,
            "cores": finding.cores,
            "slots": finding.slots,
            "free_bytes": finding.free,
            "shares_with": list(finding.shares),
        }
        for finding in findings
    ]


def status_of(findings: Sequence[Finding]) -> int:
    """The exit status: 3 when all that were tried are unusable."""
    usable = any(finding.status != "unusable" for finding in findings)
    return 0 if usable else Outcome.NO_HOST.value


def _about(finding: Finding) -> str:
    if finding.status == "by hand":
        return "you start its client (start=no)"
    if finding.status == "unusable":
        return finding.reason
    parts = [finding.platform, f"Python {finding.python}", _count(finding.cores, "core")]
    if finding.slots != finding.cores:
        parts.append(_count(finding.slots, "slot"))
    parts.append(f"{size(finding.free)} free")
    if finding.shares:
        names = list(map(spoken, finding.shares[:LISTED]))
        if len(finding.shares) > LISTED:
            names.append(f"{len(finding.shares) - LISTED} more")
        parts.append(f"the same folder as {', '.join(names)}")
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _waiting(left: int) -> Text:
    return Text(f"waiting for {_count(left, 'host')}" if left else "")


def _log_warnings(stream: TextIO) -> None:
    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        level = event.get("log_level")
        if level is not None and level >= LogLevel.warn:
            print(f"pexecd: {formatEvent(event)}", file=stream)

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False)

"""``pexecd run``: a whole job in the foreground."""

from __future__ import annotations

import json
import signal
import sys
from types import FrameType
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from zope.interface import implementer

from pexecd.cli.early import Early
from pexecd.cli.progress import Progress, unheard
from pexecd.core.ledger import COSTLY
from pexecd.jobs.values import Job
from pexecd.service import JobService
from pexecd.state import Start
from pexecd.summary import lines
from pexecd.units import Seconds

#: How often the progress is looked at; a terminal sees every look.
RENEWED: Seconds = 0.5


def run_job(early: Early, start: Start, *, as_json: bool, verbose: bool) -> int:
    """Work on a job in this process until it is over.

    Args:
        early: the job, and what was begun already.
        start: how to begin where earlier runs left results.
        as_json: print the statistics as JSON on standard output.
        verbose: show the whole log, not only its warnings.

    Returns:
        The exit status (SPEC section 4).
    """
    job, reactor = early.job, early.reactor
    progress = Progress(sys.stderr)
    _log_to(progress, verbose)
    service = JobService(reactor, job, start, early.spare)
    renewal = LoopingCall(lambda: progress.show(service.totals(), service.doing))

    def begin() -> None:
        _catch_signals(reactor, service, progress)
        renewal.start(RENEWED, now=False)
        service.startService()

    def over(_: None) -> None:
        renewal.stop()
        reactor.stop()

    service.ended.addCallback(over)
    reactor.callWhenRunning(begin)
    try:
        reactor.run()
    finally:
        progress.close()
    if service.problem:
        progress.say(f"pexecd: {service.problem}")
    _print_end(service, job, as_json)
    return service.status


def _catch_signals(reactor: Any, service: JobService, progress: Progress) -> None:
    """The first Ctrl-C ends the run in order, the second leaves at once."""

    def caught(number: int, _frame: FrameType | None) -> None:
        if service.interrupted:
            service.terminate()
            progress.close()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        reactor.callFromThread(
            progress.say, "pexecd: stopping workers and clients; once more leaves at once"
        )
        reactor.callFromThread(service.interrupt, signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, caught)


def _log_to(progress: Progress, verbose: bool) -> None:
    """Show the log's warnings, and how to start clients by hand (or all of it)."""

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        level = event.get("log_level")
        by_hand = str(event.get("log_namespace")).startswith("pexecd.launch.launcher")
        if verbose or by_hand or (level is not None and level >= LogLevel.warn):
            text = formatEvent(event)
            if "log_failure" in event:
                text = f"{text}: {event['log_failure'].getErrorMessage()}"
            progress.say(f"pexecd: {text}")

    globalLogBeginner.beginLoggingTo([observe], redirectStandardIO=False)


def _print_end(service: JobService, job: Job, as_json: bool) -> None:
    numbers = service.numbers()
    if numbers is None:
        return
    if as_json:
        text = [json.dumps(numbers, indent=1)]
    else:
        text = lines(numbers)
        if any(numbers["ends"][end.value] for end in COSTLY):
            # What the worker said is what people want to see next.
            text.append(f"see      {job.state / 'log' / 'failures.log'}")
        if numbers["outcome"] == "interrupted":
            text.append("again    the same command goes on from here")
        if numbers["failed"]:
            text.append("again    with --retry-failed the failed tasks are tried again")
        if numbers["pilot"] and numbers["pilot"]["left"]:
            text.append("again    without --pilot the tasks that are left run")
        if numbers["not_collected"]:
            text.append("again    with --recollect the collect function is called again for those")
    try:
        print("\n".join(text), flush=True)
    except OSError:  # nobody reads it, or the disk is full: statistics.json has it
        unheard(sys.stdout)

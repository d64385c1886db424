"""``twistd pexecd``: its options, and the service that it runs."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from twisted.logger import Logger
from twisted.python import usage

from pexecd.errors import BAD_INPUT, BadInputError
from pexecd.jobs import read_job
from pexecd.service import JobService
from pexecd.state import Start
from pexecd.summary import lines


class Options(usage.Options):
    """The command line of ``twistd pexecd``."""

    synopsis = "--job JOB [options]"
    optParameters = [
        ["job", "j", None, "The job file to work on."],
        ["pilot", None, 0, "Run so many tasks spread over the table; estimate the whole.", int],
    ]
    optFlags = [
        ["fresh", None, "Throw away what an earlier run has stored."],
        ["keep-old", None, "Keep earlier results though worker, results or validation changed."],
        ["retry-failed", None, "Try the tasks again that have failed."],
        ["recollect", None, "Call the collect function again where it raised."],
    ]
    longdesc = (
        "Works on a job until every task has its result, then ends. Exit status with -n: 0 every "
        "task succeeded, 1 some failed, 2 bad files or usage, 3 no host could be used, "
        "130 interrupted."
    )

    def parseOptions(self, options: Any = None) -> None:
        """As ever, but for the exit status: twistd's own for bad usage means that tasks failed."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _leave(f"{self}\npexecd: {error}")

    def postOptions(self) -> None:
        """Read the job now, so that its mistakes are told before twistd goes to the background."""
        if self["job"] is None:
            _leave("pexecd: name a job file with --job")
        if self["pilot"] < 0:
            _leave(f"pexecd: --pilot {self['pilot']}: expected how many tasks, at least 1")
        try:
            self.job = read_job(Path(self["job"]))
        except BadInputError as error:
            _leave(str(error))


def _leave(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(BAD_INPUT)


def makeService(options: Options) -> JobService:
    """One job as a service that stops the reactor, and sets the exit status, when it is over.

    SIGINT ends the run, with all workers and clients. SIGTERM, as from a supervisor, ends only
    the master: twistd lets it stop the service. SIGHUP reads the cluster file again.
    """
    from twisted.internet import reactor  # noqa: PLC0415

    log = Logger()
    start = Start(**{name: options[name.replace("_", "-")] for name in Start._fields})
    service = JobService(reactor, options.job, start)

    def ended(_: None) -> None:
        numbers = service.numbers()
        for line in lines(numbers) if numbers else []:
            log.info("{line}", line=line)
        if service.problem:
            log.error("{problem}", problem=service.problem)
        if service.running:  # not when it ended because the reactor stops
            reactor.stop()

    service.ended.addCallback(ended)
    # when it runs, for twistd sets its own handler as it begins to
    reactor.callWhenRunning(_catch_signals, reactor, service)
    # twistd cannot be told an exit status; this runs last, when its pid file is gone.
    atexit.register(lambda: _exit(service.status))
    return service


def _catch_signals(reactor: Any, service: JobService) -> None:
    def caught(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # once more leaves at once
        reactor.callFromThread(service.interrupt, signal.Signals(number).name)

    signal.signal(signal.SIGINT, caught)
    if sys.stdin is None or not sys.stdin.isatty():  # else it means that the terminal is closed
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(service.reread))


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

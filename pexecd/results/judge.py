"""Validates results: the ready-made tests, then the user's function."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pexecd.jobs.values import Job
from pexecd.ports import IJudge, StoredResult, Verdict
from pexecd.results.processes import IReactor, Runners, request
from pexecd.results.runner import QUICK, check
from pexecd.units import Seconds

#: So many results are validated at once.
PROCESSES = 2
#: For each call of a user's function (SPEC section 3).
LIMIT: Seconds = 60.0


@implementer(IJudge)
class Judge:
    """The validation of one job.

    Quick tests of small results are done at once. Whatever depends on what a user wrote
    (a function, a regular expression) or on a file is done in a process of its own.

    Args:
        job: its tests and function.
        state: the state folder.
        reactor: starts the processes and keeps their time.
        processes: how many at most.
        limit: seconds for one result.
    """

    _log = Logger()

    def __init__(
        self,
        job: Job,
        state: Path,
        reactor: IReactor,
        processes: int = PROCESSES,
        limit: Seconds = LIMIT,
    ) -> None:
        self._job = job
        self._state = state
        self._runners = Runners(
            reactor, job.folder, state / "scratch" / "validate", processes, limit
        )

    def judge(
        self, task: int, parameters: Mapping[str, str], results: Sequence[StoredResult]
    ) -> Deferred[Verdict]:
        """See ``IJudge.judge``."""
        inline = {result.name: result.data for result in results if result.data is not None}
        later = []
        for test in self._job.tests:
            data = inline.get(test.result)
            if data is None or test.kind.value not in QUICK:
                later.append(test)
            elif reason := check(test.kind.value, test.regex, io.BytesIO(data)):
                return succeed(Verdict(False, f"{test.result} {reason}"))
        function = self._job.validate
        if not later and function is None:
            return succeed(Verdict(True))
        asked = request(parameters, results, self._state, later, function)
        return self._runners.call(asked).addCallbacks(_verdict, self._none, errbackArgs=(task,))

    def close(self) -> Deferred[None]:
        """See ``IJudge.close``."""
        return self._runners.close()

    def _none(self, why: Failure, task: int) -> Verdict:
        if not why.check(CancelledError):
            self._log.failure("validating task {task}", why, task=task)
        return Verdict(None, f"not validated: {why.getErrorMessage()}")


def _verdict(answer: Mapping[str, Any]) -> Verdict:
    if "error" in answer:
        return Verdict(None, answer["error"])
    return Verdict(answer["valid"], answer["reason"])

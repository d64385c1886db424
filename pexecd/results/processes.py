"""Processes for users' functions: long-lived, few, each with one call at a time and a limit."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorProcess,
    IReactorThreads,
    IReactorTime,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.jobs.values import FunctionRef, Test
from pexecd.openfiles import with_limit_before
from pexecd.ports import StoredResult
from pexecd.results import runner
from pexecd.units import Seconds

#: An answer is never longer; a process that sends more is broken.
_MOST_ANSWER = 1 << 20
#: What a function prints in one call beyond this is not logged.
_MOST_PRINTED = 64 * 1024


class IReactor(IReactorProcess, IReactorThreads, IReactorTime):
    """What is needed of the reactor in this package."""


def request(
    parameters: Mapping[str, str],
    results: Sequence[StoredResult],
    state: Path,
    tests: Sequence[Test] = (),
    function: FunctionRef | None = None,
    kind: str = "validate",
) -> dict[str, Any]:
    """What a process is asked; see ``runner``.

    Args:
        parameters: of the task.
        results: of the ticket.
        state: the state folder, where the files of larger results are.
        tests: ready-made tests, done before the function.
        function: the user's.
        kind: ``validate`` or ``collect``.
    """
    return {
        "parameters": dict(parameters),
        "results": {result.name: _source(result, state) for result in results},
        "tests": [[test.result, test.kind.value, test.regex] for test in tests],
        "function": function and [str(function.path), function.name, kind],
    }


def _source(result: StoredResult, state: Path) -> dict[str, str]:
    if result.spool is not None:
        return {"path": str(state / result.spool)}
    return {"data": base64.b64encode(result.data or b"").decode()}


@dataclass(slots=True)
class _Call:
    request: Mapping[str, Any]
    done: Deferred[dict[str, Any]]

    def __str__(self) -> str:
        """Whom to blame, for messages."""
        function = self.request["function"]
        return f"{Path(function[0]).name}:{function[1]}" if function else "a ready-made test"


class Runners:
    """A small pool of processes, started when they are needed.

    A process that ends, or works on one call longer than the limit (then it is killed,
    with all that it started), is replaced when the next call comes.

    Args:
        reactor: starts the processes.
        folder: the current folder of the functions.
        scratch: a folder of their own for files that live as long as a call; emptied here.
        size: how many processes at most.
        limit: seconds for each call, its import included.
    """

    log = Logger()

    def __init__(
        self, reactor: IReactor, folder: Path, scratch: Path, size: int, limit: Seconds
    ) -> None:
        self.reactor = reactor
        self.folder = folder
        self.scratch = scratch
        self.limit = limit
        self._size = size
        self._waiting: deque[_Call] = deque()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def call(self, request: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        """Have a request answered.

        Returns:
            Fires with the answer (see ``runner``); a process that hangs or ends is an
            ``error`` like any other. Fails only with ``CancelledError``: closed.
        """
        if self._closed:
            return fail(CancelledError("closed"))
        call = _Call(request, Deferred())
        self._waiting.append(call)
        self._go_on()
        return call.done

    def close(self) -> Deferred[None]:
        """End the processes; fires when they are gone. Open calls fail."""
        self._closed = True
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.done.errback(CancelledError("closed"))
        for process in self._all:
            process.kill()
        return gatherResults([process.gone for process in self._all]).addCallback(lambda _: None)

    def _go_on(self) -> None:
        while self._waiting and not self._closed:
            if not self._idle:
                if len(self._all) >= self._size or not self._start():
                    return
                continue
            self._idle.pop().work_on(self._waiting.popleft())

    def _start(self) -> bool:
        if not self._all:
            shutil.rmtree(self.scratch, ignore_errors=True)  # some KiB, if anything
        process = _Process(self)
        # By its path, not its name: that would import this package, and all that it needs.
        # -P: what is beside it must not take the place of the user's modules.
        command = with_limit_before(
            [sys.executable, "-P", runner.__file__, str(self.folder), str(self.scratch)]
        )
        try:
            self.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.reactor.spawnProcess(process, command[0], command, dict(os.environ))
        except OSError as error:
            if self._all:
                return False  # one that is busy will do it
            call = self._waiting.popleft()
            problem = f"no process can be started for {call}: {error.strerror}"
            call.done.callback({"error": problem, "traceback": ""})
            return bool(self._waiting)
        self._all.add(process)
        self._idle.append(process)
        return True

    def free(self, process: _Process) -> None:
        """It has answered."""
        self._idle.append(process)
        self._go_on()

    def lost(self, process: _Process) -> None:
        """It has ended."""
        self._all.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        self._go_on()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed


class _Process(ProcessProtocol):
    """One process of the pool."""

    def __init__(self, runners: Runners) -> None:
        self._runners = runners
        self._call: _Call | None = None
        self._deadline: IDelayedCall | None = None
        self._pid = 0
        self._late = False
        self._dying = False
        self._answer = b""
        #: Whose prints these are: they may come a little later than the answer.
        self._name = ""
        self._line = b""
        self._printed = 0
        self.gone: Deferred[None] = Deferred()

    def work_on(self, call: _Call) -> None:
        self._call = call
        self._name = str(call)
        self._printed = 0
        self._deadline = self._runners.reactor.callLater(self._runners.limit, self._too_long)
        assert self.transport is not None
        self.transport.write(json.dumps(call.request).encode() + b"\n")

    def connectionMade(self) -> None:
        assert self.transport is not None
        self._pid = self.transport.pid

    def kill(self) -> None:
        """End it, and all that it started and that did not leave its group."""
        self._dying = True
        self._kill_group()
        assert self.transport is not None
        if self.transport.pid is not None:
            self.transport.signalProcess("KILL")  # it was too young for a group of its own

    def _kill_group(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)

    def _too_long(self) -> None:
        self._deadline = None
        self._late = True
        self.kill()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 2:
            self._print(data)
            return
        if self._dying:
            return  # too late: it takes no further call
        self._answer += data
        if len(self._answer) > _MOST_ANSWER:
            self.kill()
        elif self._answer.endswith(b"\n"):
            answer, self._answer = json.loads(self._answer), b""
            self._flush()
            self._end(answer)
            self._runners.free(self)

    def _print(self, data: bytes) -> None:
        room = max(0, _MOST_PRINTED - self._printed)
        self._printed += len(data)
        *lines, self._line = (self._line + data[:room]).split(b"\n")
        for line in lines:
            self._tell(line)
        if 0 < room <= len(data):
            self._flush()
            self._tell(b"(what else it prints in this call is not logged)")

    def _flush(self) -> None:
        """The end of what it printed, should no line feed follow."""
        line, self._line = self._line, b""
        if line:
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace")
        self._runners.log.info("{call} printed: {line}", call=self._name, line=text)

    def _end(self, answer: dict[str, Any]) -> None:
        call, self._call = self._call, None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if call is None:
            return
        if self._runners.closed:
            call.done.errback(CancelledError("closed"))
            return
        if answer.get("traceback"):
            self._runners.log.error("{error}\n{traceback}", **answer)
        call.done.callback(answer)

    def processExited(self, reason: Failure) -> None:
        self._flush()
        self._kill_group()  # what it started ends with it
        if self._late:
            problem = f"{self._name} took longer than {self._runners.limit:g} s and was stopped"
        else:
            problem = f"the process of {self._name} ended: {_how(reason)}"
        self._end({"error": problem, "traceback": ""})
        assert self.transport is not None
        self.transport.loseConnection()  # what left its group may still hold our pipes
        self._runners.lost(self)

    def processEnded(self, reason: Failure) -> None:
        self.gone.callback(None)


def _how(reason: Failure) -> str:
    """How a process ended, in words."""
    assert isinstance(reason.value, ProcessDone | ProcessTerminated)
    if reason.value.signal is not None:
        return f"killed by signal {reason.value.signal}"
    return f"exit status {reason.value.exitCode}"

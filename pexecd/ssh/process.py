"""Running a program of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from pexecd.openfiles import with_limit_before


class Program(ProcessProtocol):
    """One run of a program, without any input.

    Attributes:
        ended: fires with exit status (None: killed), stdout and stderr when it has ended.
            Cancelling it kills the program.
        gone: fires when it has ended, however that came.
    """

    def __init__(
        self, reactor: IReactorProcess, command: Sequence[str], environ: Mapping[str, str]
    ) -> None:
        """Start it.

        Args:
            reactor: spawns it.
            command: its absolute path, and its arguments.
            environ: its environment.
        """
        self.ended: Deferred[tuple[int | None, bytes, bytes]] = Deferred(self._kill)
        self.gone: Deferred[None] = Deferred()
        self._outputs: dict[int, list[bytes]] = {1: [], 2: []}
        command = with_limit_before(command)
        self._process = reactor.spawnProcess(self, command[0], command, environ)
        self._process.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._outputs[childFD].append(data)

    def processEnded(self, reason: Failure) -> None:
        end: Any = reason.value
        if not self.ended.called:
            out, err = (b"".join(self._outputs[fd]) for fd in (1, 2))
            self.ended.callback((end.exitCode, out, err))
        self.gone.callback(None)

    def _kill(self, _: Deferred[Any]) -> None:
        try:
            self._process.signalProcess("KILL")
        except ProcessExitedAlready:
            return

"""A client on this computer: a child process in the foreground."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from pexecd.openfiles import with_limit_before
from pexecd.units import Seconds

#: From SIGTERM to SIGKILL.
STOP_LIMIT: Seconds = 5.0
#: How long the output of a client that has ended is waited for.
OUTPUT_LIMIT: Seconds = 2.0
#: So much of the end of its standard error is kept.
MOST_STDERR = 4096

#: A session of its own: Ctrl-C and a closed terminal are the master's affair (SPEC section 8).
#: It is loaded as modules are: Python would compile a script anew each time.
_IN_OWN_SESSION = """
import os, sys
from importlib.machinery import SourceFileLoader
os.setsid()
del sys.argv[0]
code = SourceFileLoader("__main__", sys.argv[0]).get_code("__main__")
exec(code, {"__name__": "__main__", "__file__": sys.argv[0]})
"""


def find_python(python: str) -> str:
    """Its path.

    Args:
        python: as in the cluster file.

    Raises:
        OSError: there is none.
    """
    path = shutil.which(os.path.expanduser(python))
    if path is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), python)
    return path


class LocalClient(ProcessProtocol):
    """One client process.

    Attributes:
        status: its exit status, None while it runs and if a signal ended it.
        signal: the number of that signal.
        stderr: the end of what it said.
    """

    def __init__(self, reactor: Any, python: str, client: Path) -> None:
        """Start it; it waits to be told.

        Args:
            reactor: spawns it.
            python: what to run it with.
            client: the client's file.

        Raises:
            OSError: it cannot be run.
        """
        self.status: int | None = None
        self.signal: int | None = None
        self.stderr = b""
        self._reactor = reactor
        self._over = False
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        python = find_python(python)  # the shell that sets the limit would just exit
        command = with_limit_before([python, "-c", _IN_OWN_SESSION, str(client), "--from", "-"])
        reactor.spawnProcess(self, command[0], command, dict(os.environ))

    def tell(self, lines: bytes) -> None:
        """Let it begin.

        Args:
            lines: its orders, for its standard input.
        """
        self._process.write(lines)
        self._process.closeStdin()

    def makeConnection(self, transport: Any) -> None:
        """It runs, and may even have ended before ``spawnProcess`` returns."""
        self._process = transport
        super().makeConnection(transport)

    @property
    def waits(self) -> bool:
        """Whether it has not ended."""
        return self.status is None and self.signal is None

    @property
    def how(self) -> str:
        """How it ended, in words."""
        return f"signal {self.signal}" if self.signal else f"exit status {self.status}"

    def wait(self) -> Deferred[None]:
        """Fires when it has ended; cancelling that does nothing to it."""
        if self._over:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def stop(self) -> Deferred[None]:
        """End it, at last by SIGKILL; fires when it has ended."""
        self.terminate()
        if not self._over and self._timer is None:
            self._timer = self._reactor.callLater(STOP_LIMIT, self._kill, "KILL")
        return self.wait()

    def terminate(self) -> None:
        """Tell it to end."""
        self._kill("TERM")

    def leave(self) -> None:
        """Let it carry on without us: it may lose whom it talks to, and is no longer ours."""
        self._process.loseConnection()

    def _kill(self, signal: str) -> None:
        try:
            self._process.signalProcess(signal)
        except ProcessExitedAlready:
            return

    def errReceived(self, data: bytes) -> None:
        self.stderr = (self.stderr + data)[-MOST_STDERR:]

    def processExited(self, reason: Failure) -> None:
        end: Any = reason.value
        self.status, self.signal = end.exitCode, end.signal
        self._stop_timer()
        # a worker that got away might hold the pipes
        self._timer = self._reactor.callLater(OUTPUT_LIMIT, self._process.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        self._stop_timer()
        self._over = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class Spare:
    """A client on this computer that is started before it is known what it is to be told.

    It loads while the master does; the first host here takes it.
    """

    def __init__(self, reactor: Any, python: str, client: Path) -> None:
        """Start it; see ``LocalClient``."""
        self._python = python
        self._client: LocalClient | None = LocalClient(reactor, python, client)

    def take(self, python: str) -> LocalClient | None:
        """The client, once; None if there is none any more, or it is another Python's."""
        if python != self._python:
            return None
        client, self._client = self._client, None
        return client if client is not None and client.waits else None

    def stop(self) -> Deferred[None]:
        """End it unless it was taken; fires when it has ended."""
        client, self._client = self._client, None
        return succeed(None) if client is None else client.stop()

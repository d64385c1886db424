"""A command on a host, in a channel of its own."""

from __future__ import annotations

import struct
from typing import Any

from twisted.conch.error import ConchError
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS, getNS
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from pexecd.errors import HostError
from pexecd.ports import CommandResult
from pexecd.ssh.errors import ChannelRefusedError, CommandFailedError, TimedOutError
from pexecd.ssh.quiet import QUIET
from pexecd.units import Seconds

#: What the host may send before it must wait for us.
WINDOW = 1024 * 1024
PACKET = 32 * 1024
#: So much of a command's standard output is kept; the rest is thrown away.
MOST_STDOUT = 1024 * 1024
#: So much is kept of the beginning, and of the end, of its standard error.
HALF_STDERR = 4096


class Session(SSHChannel):
    """A channel that runs one command.

    Attributes:
        done: fires with the ``CommandResult`` when the command has ended and the channel is
            closed; fails with a ``HostError``. Cancelling it closes the channel.
    """

    name = b"session"
    #: The ``Connection`` that it is opened on.
    conn: Any
    _log = QUIET

    def __init__(
        self, command: str, host: str, stage: str, clock: IReactorTime, limit: Seconds
    ) -> None:
        """Prepare; the connection's ``openChannel`` begins.

        Args:
            command: for the user's login shell.
            host: its name in messages.
            stage: what this is for, in messages.
            clock: for ``limit``.
            limit: how long the server may take to accept the command (seconds).
        """
        super().__init__(localWindow=WINDOW, localMaxPacket=PACKET)
        self.done: Deferred[CommandResult] = Deferred(lambda _: self.abandon())
        self.host = host
        self.stage = stage
        self._command = command.encode("utf-8", "surrogateescape")
        self._status: int | None = None
        self._signal: str | None = None
        self._stdout = bytearray()
        self._stderr_head = b""
        self._stderr_tail = b""
        self._end_of_input = False
        self._abandoned = False
        self._timer: IDelayedCall | None = clock.callLater(limit, self._late)

    # --- beginning ---------------------------------------------------------------------------

    def channelOpen(self, specificData: bytes) -> None:
        if self._abandoned:
            self.conn.sendClose(self)
            return
        accepted = self.conn.sendRequest(self, b"exec", NS(self._command), wantReply=True)
        accepted.addCallbacks(self._accepted, self._not_accepted)

    def _accepted(self, _: object) -> None:
        self._stop_timer()
        if not self._abandoned:
            self.started()

    def _not_accepted(self, _: Failure) -> None:
        if not self.localClosed:  # else the channel or the connection is gone, which says more
            self.fail(
                ChannelRefusedError(self.host, self.stage, "the SSH server runs no command for us")
            )
            self.conn.sendClose(self)

    def openFailed(self, reason: Exception) -> None:
        if self.conn.error is not None:
            self.fail(self.conn.error)
            return
        said = ""
        if isinstance(reason, ConchError) and isinstance(reason.value, bytes):
            said = reason.value.decode("utf-8", "replace")
        self.fail(
            ChannelRefusedError(self.host, self.stage, "the SSH server opens no session", said)
        )

    def started(self) -> None:
        """The command runs."""
        raise NotImplementedError

    # --- input -------------------------------------------------------------------------------

    def end_input(self) -> None:
        """Close the command's standard input when all that was written has been sent."""
        self._end_of_input = True
        if not self.buf:
            self.conn.sendEOF(self)

    def addWindowBytes(self, data: int) -> None:
        was_full = bool(self.buf)
        super().addWindowBytes(data)
        if was_full and not self.buf and self._end_of_input:
            self.conn.sendEOF(self)

    # --- output ------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        self._stdout += data[: MOST_STDOUT - len(self._stdout)]

    def extReceived(self, dataType: int, data: bytes) -> None:
        room = HALF_STDERR - len(self._stderr_head)
        self._stderr_head += data[:room]
        self._stderr_tail = (self._stderr_tail + data[room:])[-HALF_STDERR:]

    @property
    def stderr(self) -> bytes:
        """Its beginning and end."""
        return self._stderr_head + self._stderr_tail

    def eofReceived(self) -> None:
        """The command has closed its output; what counts is its end."""

    def request_exit_status(self, data: bytes) -> bool:
        (self._status,) = struct.unpack(">L", data)
        return True

    def request_exit_signal(self, data: bytes) -> bool:
        self._signal = getNS(data)[0].decode("ascii", "replace")
        return True

    # --- end ---------------------------------------------------------------------------------

    def closeReceived(self) -> None:
        # Conch would wait until all input is sent, which nobody reads any more
        self.buf = b""
        self.conn.sendClose(self)

    def closed(self) -> None:
        self._stop_timer()
        if self.conn.error is not None:
            self.fail(self.conn.error)
        elif self._status is None and self._signal is None:
            self.fail(
                CommandFailedError(
                    self.host,
                    self.stage,
                    "the command ended without an exit status",
                    self.stderr.decode("utf-8", "replace"),
                )
            )
        elif not self.done.called:
            self.done.callback(
                CommandResult(self._status, self._signal, bytes(self._stdout), self.stderr)
            )

    def fail(self, error: HostError | CancelledError) -> None:
        """Give up; only the first reason counts."""
        self._stop_timer()
        if not self.done.called:
            self.done.errback(error)

    def abandon(self) -> None:
        """Nobody waits for the end any more."""
        self._abandoned = True
        self._stop_timer()
        self.buf = b""
        if self.conn is not None and self in self.conn.channelsToRemoteChannel:
            self.conn.sendClose(self)

    def _late(self) -> None:
        self.fail(TimedOutError(self.host, self.stage, "the SSH server does not start the command"))
        self.abandon()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


class Command(Session):
    """Runs a command with all of its standard input given."""

    def __init__(self, stdin: bytes, *args: Any) -> None:
        super().__init__(*args)
        self._stdin = stdin

    def started(self) -> None:
        if self._stdin:
            self.write(self._stdin)
        self.end_input()

"""SCP, the copying side: the protocol of ``scp -t``."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, BinaryIO

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from pexecd.errors import HostError
from pexecd.shell import RUN_SCRIPT, expand_tilde, script_input
from pexecd.ssh.errors import CopyFailedError
from pexecd.ssh.session import Session

CHUNK = 128 * 1024
#: More than any shell start-up file should print.
MOST_NOISE = 64 * 1024
#: More than a line of scp, which says why it does not go on.
LONGEST_ANSWER = 2048

# The marker tells the answers of scp from what a shell start-up file printed before. The file
# comes under a temporary name, so that one that runs can be replaced, and half of one is never
# taken for it; its name is new also where hosts share a folder.
RECEIVE = f"""
{expand_tilde("target")}
part="$target.$marker.part";
echo "$marker";
scp -t -- "$part" && mv -f -- "$part" "$target";
status=$?;
[ "$status" = 0 ] || rm -f -- "$part";
exit "$status";
"""


class Upload(Session):
    """Copies one regular file."""

    def __init__(self, reactor: Any, source: Path, target: str, mode: int, *args: Any) -> None:
        """Prepare.

        Args:
            reactor: its threads read the file.
            source: a file here.
            target: its path there; ``~/`` at the start is the home.
            mode: its permissions there.
            args: see ``Session``.

        Raises:
            ValueError: a line feed or NUL in ``target``.
        """
        self._marker = f"pexecd-{secrets.token_hex(8)}"
        self._script = script_input(RECEIVE, {"target": target, "marker": self._marker})
        super().__init__(RUN_SCRIPT, *args)
        self._reactor = reactor
        self._source = source
        self._target = target
        self._mode = mode
        self._answers = b""
        self._marked = False
        self._received = False
        self._answer: Deferred[None] | None = None
        self._room: Deferred[None] | None = None
        self._sending: Deferred[Any] | None = None

    def started(self) -> None:
        self._sending = Deferred.fromCoroutine(self._send())
        self._sending.addErrback(self._could_not_send)

    def _could_not_send(self, reason: Failure) -> None:
        error = reason.value
        if isinstance(error, CancelledError):
            return  # by ourselves, who said why
        if not isinstance(error, HostError):
            words = error.strerror if isinstance(error, OSError) else repr(error)
            error = self._failed(f"{self._source} cannot be read", words or "")
        self._give_up(error)

    def _give_up(self, error: HostError) -> None:
        self.fail(error)
        self.abandon()

    async def _send(self) -> None:
        self.write(self._script)
        await self._acknowledged()
        with await self._in_thread(self._source.open, "rb") as file:
            size = (await self._in_thread(self._source.stat)).st_size
            self.write(b"C%04o %d file\n" % (self._mode, size))
            await self._acknowledged()
            await self._send_content(file, size)
        self.write(b"\0")
        await self._acknowledged()
        self._received = True
        self.end_input()

    async def _send_content(self, file: BinaryIO, size: int) -> None:
        while size:
            chunk = await self._in_thread(file.read, min(CHUNK, size))
            if not chunk:
                raise self._failed(f"{self._source} became shorter meanwhile")
            size -= len(chunk)
            self.write(chunk)
            if self.buf:
                self._room = Deferred()
                await self._room

    def addWindowBytes(self, data: int) -> None:
        super().addWindowBytes(data)
        if self._room is not None and not self.buf:
            room, self._room = self._room, None
            room.callback(None)

    def _in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *args)

    # --- answers -----------------------------------------------------------------------------

    def _acknowledged(self) -> Deferred[None]:
        """Fires at the next zero byte; fails when scp says why not."""
        answer = self._answer = Deferred()
        self._read_answers()
        return answer

    def dataReceived(self, data: bytes) -> None:
        self._answers += data
        if not self._marked:
            noise, marker, rest = self._answers.partition(f"{self._marker}\n".encode())
            if marker:
                self._marked, self._answers = True, rest
            elif len(noise) > MOST_NOISE:
                self._give_up(self._failed("the login shell prints without end"))
        self._read_answers()

    def _read_answers(self) -> None:
        if self._answer is None or not self._marked or not self._answers:
            return
        kind = self._answers[:1]
        if kind == b"\0":
            self._answers = self._answers[1:]
            answer, self._answer = self._answer, None
            answer.callback(None)
        elif b"\n" in self._answers or len(self._answers) > LONGEST_ANSWER:
            said = self._answers.lstrip(b"\1\2").partition(b"\n")[0].decode("utf-8", "replace")
            self._give_up(self._failed(f"scp cannot write {self._target}", said))

    # --- end ---------------------------------------------------------------------------------

    def closed(self) -> None:
        error = self.conn.error
        if error is None and self._status == 127:
            error = self._failed("there is no scp on the host: install OpenSSH's client there")
        elif error is None and self._status != 0:
            how = f"signal {self._signal}" if self._signal else f"exit status {self._status}"
            said = (self._answers.lstrip(b"\1\2") + self.stderr).decode("utf-8", "replace")
            error = self._failed(f"scp ended with {how}", said)
        elif error is None and not self._received:  # a start-up file that exits, say
            error = self._failed("the login shell did not run scp")
        if error is not None:
            self.fail(error)
        self._stop_sending()
        super().closed()

    def abandon(self) -> None:
        super().abandon()
        self._stop_sending()

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()

    def _failed(self, what: str, said: str = "") -> CopyFailedError:
        return CopyFailedError(self.host, self.stage, what, said)

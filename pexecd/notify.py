"""What a supervisor is told: systemd's ``sd_notify`` protocol, which others speak too."""

from __future__ import annotations

import socket
from collections.abc import MutableMapping

_VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """Sends datagrams to the supervisor's socket; does nothing where there is none.

    Sending never waits and never fails: a supervisor that is busy or gone misses something.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Learn where the socket is.

        Args:
            environment: of the process. The variable is taken out of it: the supervisor
                listens to us, not to clients and workers.
        """
        address = environment.pop(_VARIABLE, "")
        # "@" stands for the zero byte of a name that is in no file system
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._status = ""
        if address:
            kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_UNIX, kind)

    def ready(self) -> None:
        """Say that the start is over and clients are heard."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show a line to people, unless it is the one that they see already."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """Say that the end has begun; nothing can be sent afterwards."""
        self._send("STOPPING=1")
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, line: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(line.encode("utf-8", "surrogateescape"), self._address)
        except OSError:
            return

"""A daemon in the foreground, which says on standard error that it is ready."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence

from tests.waiting import LONG


class Daemon:
    """One process of it, in a session of its own.

    Args:
        command: the path of the program, and its arguments.
        ready: a part of the line by which it says that it is.
        log: gets every line that it says.
        environ: instead of this process's environment.

    Attributes:
        process: the daemon.

    Raises:
        AssertionError: it ended, or took too long.
    """

    def __init__(
        self,
        command: Sequence[str],
        ready: str,
        log: list[str],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._log = log
        self._ready = ready
        self._is_ready = False
        self._heard = threading.Event()
        self.process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._heard.wait(LONG)
        if not self._is_ready:
            self.kill()
            self.join()
            raise AssertionError(f"{command[0]} did not start: " + "\n".join(log))

    def _read(self) -> None:
        stderr = self.process.stderr
        assert stderr is not None
        with stderr:
            for line in stderr:
                self._log.append(line.rstrip())
                if self._ready in line:
                    self._is_ready = True
                    self._heard.set()
        self._heard.set()

    def kill(self) -> None:
        """End it by SIGKILL; what it has started stays."""
        self.process.kill()
        self.process.wait(LONG)

    def join(self) -> None:
        """Wait until all was read that it, and what it has started, had to say."""
        self._reader.join(LONG)

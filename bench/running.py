"""A master as a process: started, watched from outside, and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PEXECD = [sys.executable, "-m", "pexecd.cli.main"]
TICKS = os.sysconf("SC_CLK_TCK")
#: Processes of a bench need the modules of this folder, wherever they run.
ROOT = Path(__file__).resolve().parent.parent

#: Its clients are simulated: nobody is started.
NOBODY = "127.0.0.1 start=no\n"


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a process that uses modules of this folder, compiled as an installed pexecd is."""
    usual = {**os.environ, "PYTHONPATH": str(ROOT), **(more or {})}
    usual.pop("PYTHONDONTWRITEBYTECODE", None)
    return usual


def write_job(folder: Path, job: str, cluster: str, tasks: int) -> None:
    """``job.ini``, its cluster file ``hosts`` and a table of so many numbers."""
    (folder / "job.ini").write_text(job)
    (folder / "hosts").write_text(cluster)
    with (folder / "table.txt").open("w") as table:
        table.write("n\n")
        table.writelines(f"{n}\n" for n in range(1, tasks + 1))


def end_in_order() -> None:
    """On SIGTERM, too, end what was started: call it first in a program."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


class MasterProcess:
    """``pexecd run`` in a folder with a job.

    Args:
        folder: holds ``job.ini``; ``err`` in it gets what the master says.
        arguments: for ``pexecd``.
        command: what runs in the place of ``pexecd``.

    Attributes:
        began: when it was started, by ``time.monotonic()``.
    """

    def __init__(
        self, folder: Path, *arguments: str, command: Sequence[str] = PEXECD, **more: str
    ) -> None:
        self.folder = folder
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = folder / "notify"
        address.unlink(missing_ok=True)
        self._notify.bind(str(address))
        self.began = time.monotonic()
        with (folder / "err").open("ab") as err:
            self._process = subprocess.Popen(
                [*command, *arguments],
                cwd=folder,
                env=environment({"NOTIFY_SOCKET": str(address), **more}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._usage: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._notify.close()

    def ready(self, limit: float = 600) -> float:
        """Wait until it is ready; seconds since it was started."""
        end = time.monotonic() + limit
        self._notify.settimeout(0.5)
        while True:
            with suppress(TimeoutError):
                if b"READY=1" in self._notify.recv(4096):
                    return time.monotonic() - self.began
            if self.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the master did not get ready:\n{self.said()}")

    def said(self) -> str:
        return (self.folder / "err").read_text(errors="replace")[-3000:]

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        if self._usage is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._ended(status, usage.ru_utime + usage.ru_stime)
        return None if self._usage is None else self._usage[0]

    def wait(self, expect: int = 0) -> float:
        """Wait for its end; CPU seconds of it and of all children that it had."""
        if self._usage is None:
            _, status, usage = os.wait4(self.pid, 0)
            self._ended(status, usage.ru_utime + usage.ru_stime)
        assert self._usage is not None
        status, seconds = self._usage
        if status != expect:
            raise SystemExit(f"the master's exit status is {status}:\n{self.said()}")
        return seconds

    def _ended(self, status: int, seconds: float) -> None:
        self._usage = (os.waitstatus_to_exitcode(status), seconds)
        self._process.returncode = self._usage[0]

    def kill(self) -> None:
        """As a crash would."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
            self._ended(status, usage.ru_utime + usage.ru_stime)

    # --- seen from outside -------------------------------------------------------------------

    def cpu(self) -> float:
        """CPU seconds so far, of itself and of children that have ended."""
        text = Path(f"/proc/{self.pid}/stat").read_text()
        return sum(map(int, text.rpartition(")")[2].split()[11:15])) / TICKS

    def threads(self) -> dict[int, float]:
        """CPU seconds so far of each living thread, by its ID."""
        return thread_seconds(self.pid)

    def waited(self) -> float:
        """Seconds so far in which its reactor's thread could have run, but others did."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9

    def memory(self, field: str = "VmHWM") -> int:
        """Its peak of resident memory (or ``VmRSS``, as it is) in MB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) // 1024
        return 0


def thread_seconds(pid: int | str) -> dict[int, float]:
    """CPU seconds of each living thread of a process, to the nanosecond."""
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found[int(entry.name)] = int((entry / "schedstat").read_text().split()[0]) / 1e9
    return found

"""Real jobs through the real command, and a look at what they leave behind."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.waiting import LONG, processes_with, wait_until

PEXECD = [sys.executable, "-m", "pexecd.cli.main"]


class JobFolder:
    """A folder with a job, and the runs of it.

    Args:
        path: an empty folder.
        job: the text of ``job.ini``.
        table: the lines of the parameter table.
        files: further files by name; one that begins with ``#!`` is made executable.
    """

    def __init__(
        self, path: Path, job: str, table: Iterable[str], files: dict[str, str] | None = None
    ) -> None:
        self.path = path
        #: In the environment of all that descends from a run of this job.
        self.mark = secrets.token_hex(12)
        path.mkdir(parents=True, exist_ok=True)
        (path / "job.ini").write_text(job)
        (path / "table.txt").write_text("\n".join(table) + "\n")
        for name, text in (files or {}).items():
            (path / name).write_text(text)
            if text.startswith("#!"):
                (path / name).chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        home = self.path / "home"
        home.mkdir(exist_ok=True)
        # Users have no PYTHONUNBUFFERED and the like.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {**kept, "HOME": str(home), "PEXEC_TEST_MARK": self.mark}

    def start(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        """Start ``pexecd run job.ini`` (or another command) in a group of its own."""
        return subprocess.Popen(
            command or [*PEXECD, "run", "job.ini"],
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **more,
        )

    def run(self, *arguments: str, expect: int = 0) -> str:
        """Run ``pexecd run job.ini ARGUMENTS`` to its end; returns what it printed."""
        return self.finish(self.start(*PEXECD, "run", "job.ini", *arguments), expect)

    def finish(self, process: subprocess.Popen[str], expect: int = 0) -> str:
        try:
            output, _ = process.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"it hangs:\n{output}\n{self.log()}") from None
        assert process.returncode == expect, f"{process.returncode}:\n{output}\n{self.log()}"
        return output

    def statistics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "statistics.json").read_text())
        return found

    @property
    def state(self) -> Path:
        return self.path / "job.pexecd"

    def log(self) -> str:
        log = self.state / "log" / "master.log"
        return log.read_text()[-5000:] if log.exists() else "(no log)"

    def lines(self, name: str) -> list[str]:
        return (self.path / name).read_text().splitlines()

    # --- what is left --------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Living processes that descend from a run of this job, with their command lines."""
        return processes_with(f"PEXEC_TEST_MARK={self.mark}")

    def assert_nothing_left(self) -> None:
        """No process of the run lives, and its home is empty but for what was there."""
        wait_until(lambda: not self.processes(), lambda: f"still there: {self.processes()}")
        left = [str(path) for path in (self.path / "home").rglob("*")]
        assert left == []
        assert not [name for name in os.listdir(self.path) if name.endswith((".part", ".tmp"))]


def adds_up(numbers: dict[str, Any]) -> None:
    """The ends of all tickets are the tickets; hosts and totals agree."""
    assert sum(numbers["ends"].values()) == numbers["tickets"]
    for end, total in numbers["ends"].items():
        assert sum(host.get(end, 0) for host in numbers["hosts"].values()) == total
    assert numbers["ends"]["done"] == numbers["done"]
    assert (
        numbers["done"] + numbers["failed"] + numbers["running"] + numbers["pending"]
        == numbers["tasks"]
    )


def interrupt(process: subprocess.Popen[str]) -> None:
    """Ctrl-C: the signal goes to the whole group in the foreground."""
    os.killpg(process.pid, signal.SIGINT)

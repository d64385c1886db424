"""Waiting for what other processes do, and finding those that are left.

A limit here is for what hangs: it decides no test that runs on a slow or busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

#: After so many seconds something hangs.
LONG = 120.0
#: Between two looks at something, seconds.
PAUSE = 0.02


def wait_until(
    true: Callable[[], object], otherwise: Callable[[], str] = lambda: "it never came"
) -> None:
    """Look again and again until something is so; only a hang makes it fail.

    Looks are counted, not seconds: a whole machine may have stood still for a while.
    """
    for _ in range(int(LONG / PAUSE)):
        if true():
            return
        time.sleep(PAUSE)
    assert true(), otherwise()


def processes_with(mark: str) -> dict[int, str]:
    """Living processes with these characters in their environment, and their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if command:  # a zombie has none
                    found[int(entry.name)] = command
        except OSError:
            continue  # it ended while we looked, or is none of ours
    return found


def describe(processes: Iterable[int]) -> str:
    """What these processes are doing, a line each, for the message of a test that fails."""
    lines = []
    for pid in processes:
        words = [str(pid)]
        for name in ("cmdline", "stat", "wchan", "stack"):
            try:
                words.append(Path(f"/proc/{pid}/{name}").read_text().replace("\0", " "))
            except OSError as error:
                words.append(f"no {name}: {error.strerror}")
        lines.append(" | ".join(words))
    return "\n".join(lines)

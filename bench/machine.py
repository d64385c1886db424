"""What the figures depend on: the machine, its disk, the versions; and limits of processes."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path


def raise_open_files(needed: int) -> str:
    """Let this process, and those it starts, have so many files open.

    Returns:
        Why that cannot be; else empty.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return ""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))
    except (OSError, ValueError):
        return (
            f"{needed} open files are needed, {hard} are allowed here: be root, raise the limit "
            "(ulimit -Hn, LimitNOFILE=), or take fewer --clients"
        )
    return ""


def fsync_latency(folder: Path, times: int = 100) -> float:
    """Median seconds that fdatasync of four new KiB takes in this folder."""
    path = folder / "fsync-latency"
    took = []
    with path.open("wb", buffering=0) as file:
        for _ in range(times):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(took)


def processor() -> str:
    """Its model, as the kernel has it, and how many cores this process may use."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{len(os.sched_getaffinity(0))} cores, {model}"


def file_system(folder: Path) -> str:
    """Of which kind the folder is."""
    command = ["df", "--output=fstype", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def version(program: str, *arguments: str) -> str:
    """The first line that a program says of itself; empty when it is not installed."""
    if shutil.which(program) is None:
        return ""
    command = [program, *(arguments or ("--version",))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


def package(name: str) -> str:
    """The version of a Python package; empty when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def yardstick() -> float:
    """CPU microseconds of a thousand turns of a small loop in Python, the median of many.

    CPU time grows on a machine that others use as well, though less than wall time: figures of
    two runs compare only when this is the same.
    """
    numbers = range(1000)
    took = []
    for _ in range(200):
        began = time.process_time()
        sum(number * number for number in numbers)
        took.append(time.process_time() - began)
    return statistics.median(took) * 1e6


def about(folder: Path) -> dict[str, str]:
    """The machine in a few words, for the head of a table.

    Args:
        folder: where the work is done.
    """
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": processor(),
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "Twisted": package("twisted"),
        "SQLite": sqlite3.sqlite_version,
        "load": f"{os.getloadavg()[0]:.1f}",
        "yardstick": f"{yardstick():.0f} us",
        "disk": f"{file_system(folder)}, fdatasync {fsync_latency(folder) * 1000:.2f} ms",
    }


def print_about(about: dict[str, str]) -> None:
    print("; ".join(f"{name} {value}" for name, value in about.items()))

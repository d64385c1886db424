"""What a kill -9 of the coordinator costs, half-way through: W6 of the peers' table.

    python -m bench.crash [--tasks 2000]

N tasks of 0.02 s on two slots; each appends its number to a file when it begins, so runs can be
counted. The coordinator is killed when half of them have begun, then the same command goes on.
Printed for pexecd and for GNU parallel's ways of resuming: results missing, results that are
there twice, tasks that ran twice, and the exit status of the second run.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

#: Appends with O_APPEND, which is one step; the result is the number.
WORKER = """\
#!/bin/sh
echo "$1" >> {begun}
sleep 0.02
echo "$1"
"""

JOB = """\
[job]
cluster = here
parameters = table.txt
duplicates = 1
[worker]
command = {worker} $n
[collect]
output = concat results.txt
"""


@dataclass(frozen=True)
class Way:
    """One way of running all tasks, and of going on."""

    name: str
    command: str
    #: Numbers of the tasks whose results are there at the end.
    results: Callable[[Path], list[str]]
    #: The tasks die with the coordinator, as in a reboot.
    kill_tasks: bool = False


def lines(name: str) -> Callable[[Path], list[str]]:
    return lambda folder: (folder / name).read_text().split()


def csv_results(folder: Path) -> list[str]:
    with (folder / "x.csv").open(newline="") as file:
        return [row["Stdout"].strip() for row in csv.DictReader(file)]


def folder_results(folder: Path) -> list[str]:
    return [path.read_text().strip() for path in (folder / "dir").rglob("stdout")]


def ways(worker: Path, tasks: int) -> list[Way]:
    parallel = f"seq {tasks} | parallel -j2 --joblog jl --resume"
    pexecd = f"{sys.executable} -m pexecd.cli.main run job.ini"
    return [
        Way("pexecd run", pexecd, lines("results.txt")),
        Way("pexecd run, tasks killed too", pexecd, lines("results.txt"), kill_tasks=True),
        Way("parallel --joblog --resume >> out", f"{parallel} {worker} >> out", lines("out")),
        Way("parallel --results x.csv", f"{parallel} --results x.csv {worker}", csv_results),
        Way(
            "parallel --results dir, tasks killed too",
            f"{parallel} --results dir {worker} > /dev/null",
            folder_results,
            kill_tasks=True,
        ),
    ]


def run(way: Way, folder: Path, tasks: int) -> None:
    begun = folder / "begun"
    begun.touch()
    (folder / "job.ini").write_text(JOB.format(worker=folder / "work.sh"))
    (folder / "here").write_text("2/:\n")
    (folder / "table.txt").write_text("n\n" + "".join(f"{n}\n" for n in range(1, tasks + 1)))
    environment = {**os.environ, "PEXEC_BENCH": str(folder)}

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["sh", "-c", f"{way.command} 2> err"],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    first = start()
    while begun.read_text().count("\n") < tasks // 2:
        time.sleep(0.01)
    for pid, command in processes(folder):
        coordinator = "pexecd.cli" in command or "/parallel" in command
        if coordinator or (way.kill_tasks and pid != os.getpid()):
            kill(pid)
    first.wait()
    again = start()
    status = again.wait(timeout=600)
    found = Counter(way.results(folder))
    runs = Counter(begun.read_text().split())
    missing = sum(1 for n in range(1, tasks + 1) if not found[str(n)])
    twice = sum(1 for number in found.values() if number > 1)
    rerun = sum(1 for number in runs.values() if number > 1)
    print(
        f"{way.name:42} missing {missing:5}  twice {twice:4}  run again {rerun:4}  "
        f"exit status {status}",
        flush=True,
    )
    for pid, _ in processes(folder):
        kill(pid)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # a short task has ended meanwhile
        os.kill(pid, signal.SIGKILL)


def processes(folder: Path) -> list[tuple[int, str]]:
    """Processes of this run, with their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if f"PEXEC_BENCH={folder}".encode() in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append((int(entry.name), command))
            except OSError:
                continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2000)
    options = parser.parse_args()
    if shutil.which("parallel") is None:
        sys.exit("GNU parallel is needed to compare with: apt-get install parallel")
    for place in range(len(ways(Path(), 1))):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            worker = folder / "work.sh"
            worker.write_text(WORKER.format(begun=folder / "begun"))
            worker.chmod(0o755)
            run(ways(worker, options.tasks)[place], folder, options.tasks)


if __name__ == "__main__":
    main()

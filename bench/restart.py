"""A session of a million tasks, half of them done, is started again: seconds and memory.

    python bench/restart.py [--tasks 1000000]

The half that is done is written through the journal as a master does it. Then the very command
is run: from its start until it says READY (replayed and listening), and until the first task.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from pexecd.core.effects import TaskDone, TicketEnded, TicketGiven
from pexecd.core.values import End
from pexecd.jobs import read_job
from pexecd.jobs.values import Job
from pexecd.ports import ResultKept, StoredResult
from pexecd.state import Start, prepare
from pexecd.store import Journal, StateFolder

JOB = """\
[job]
parameters = table.txt
[worker]
command = true $n
"""
#: Records of so many tasks in one commit.
BATCH = 5000


async def half_done(job: Job) -> float:
    """Load the table and write half of its tasks as done; seconds that the loading took."""
    folder = StateFolder.claim(job.state)
    journal = Journal.open(folder.database, reactor)  # type: ignore[arg-type]
    began = time.monotonic()
    prepare(job, Start(), journal)
    loaded = time.monotonic() - began
    for first in range(1, job.tasks // 2 + 1, BATCH):
        records = []
        for task in range(first, min(first + BATCH, job.tasks // 2 + 1)):
            ticket = 9999 + task
            result = StoredResult("output", 0, b"", None)
            records += [
                TicketGiven(ticket, task, "client-1", ":", managed=True, speaks=True),
                ResultKept(ticket, task, (result,)),
                TicketEnded(ticket, task, End.DONE, seconds=0.001),
                TaskDone(task, ticket),
            ]
        await journal.append(records)
    await journal.close()
    folder.release()
    return loaded


def restart(folder: Path) -> None:
    """Run the command and print what it takes."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(folder / "notify"))
    listener.settimeout(300)
    environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pexecd.cli.main", "run", "job.ini"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while b"READY=1" not in listener.recv(4096):
        pass
    ready = time.monotonic() - began
    peak = next(
        int(line.split()[1]) // 1024
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
    print(f"ready after {ready:.2f} s, peak {peak} MB resident")
    process.send_signal(signal.SIGINT)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.ini").write_text(JOB)
        with (folder / "table.txt").open("w") as table:
            table.write("n\n")
            table.writelines(f"{n}\n" for n in range(1, options.tasks + 1))
        job = read_job(folder / "job.ini")
        loading: list[float] = []

        def write() -> None:
            done = Deferred.fromCoroutine(half_done(job))
            done.addCallback(loading.append)
            done.addBoth(lambda result: (reactor.stop(), result)[1])  # type: ignore[attr-defined]

        reactor.callWhenRunning(write)  # type: ignore[attr-defined]
        reactor.run()  # type: ignore[attr-defined]
        print(f"{options.tasks} tasks checked, identified and stored in {loading[0]:.1f} s")
        restart(folder)


if __name__ == "__main__":
    main()

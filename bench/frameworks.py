"""The workloads in frameworks that are Python packages, each run in a process of its own.

    python -m bench.frameworks dask|hyperqueue W1..W5 TASKS FOLDER

Prints a line of JSON: seconds of start-up, of the work, and when the first result was there by
``time.monotonic()``. Outputs are in FOLDER/out: dask gathers them, in order, in one file, for
HyperQueue each task writes one of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Slots of W3; all others have two.
SLOTS = {"W3": 8}


def command(workload: str, number: int, folder: str) -> list[str]:
    """What a task runs."""
    return {
        "W1": ["/bin/true", str(number)],
        "W2": ["/bin/echo", str(number)],
        "W3": ["/bin/sleep", "0.1"],
        "W4": [f"{folder}/work.sh", str(number)],
        "W5": ["/bin/echo", str(number)],
    }[workload]


def dask(workload: str, tasks: int, folder: str) -> dict[str, float]:
    """LocalCluster with two processes, results gathered in order."""
    from distributed import Client, LocalCluster  # noqa: PLC0415 - not everybody has it

    out = f"{folder}/out"
    threads = SLOTS.get(workload, 2) // 2

    def run(number: int) -> str:
        environment = {**os.environ, "OUT": out}
        done = subprocess.run(
            command(workload, number, folder),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        )
        return done.stdout

    began = time.monotonic()
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=threads, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        started = time.monotonic()
        results = client.gather(client.map(run, range(1, tasks + 1), pure=False))
        ended = time.monotonic()
    if workload in ("W2", "W5"):
        Path(out, "all").write_text("".join(results))
    return {"startup": started - began, "work": ended - started, "first": ended}


def hyperqueue(workload: str, tasks: int, folder: str) -> dict[str, float]:
    """LocalCluster with one worker; standard output goes to a file for each task."""
    from hyperqueue import Job, LocalCluster  # noqa: PLC0415 - not everybody has it
    from hyperqueue.cluster import WorkerConfig  # noqa: PLC0415

    began = time.monotonic()
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=SLOTS.get(workload, 2)))
        client = cluster.client()
        started = time.monotonic()
        job = Job(default_workdir=folder)
        for number in range(1, tasks + 1):
            output: Any = f"{folder}/out/{number}" if workload in ("W2", "W5") else None
            job.program(
                command(workload, number, folder),
                env={"OUT": f"{folder}/out"},
                stdout=output,
                stderr=None,
            )
        client.wait_for_jobs([client.submit(job)])
        ended = time.monotonic()
    return {"startup": started - began, "work": ended - started, "first": ended}


def main() -> None:
    name, workload, tasks, folder = sys.argv[1:]
    run = {"dask": dask, "hyperqueue": hyperqueue}[name]
    print(json.dumps(run(workload, int(tasks), folder)), flush=True)


if __name__ == "__main__":
    main()

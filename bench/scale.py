"""How large it may be: a long table, many clients, a big result; with bounds on time and memory.

    python -m bench.scale table [--tasks 1000000] [--clients 4] [--size 64]
    python -m bench.scale clients [--clients 10000] [--seconds 30]
    python -m bench.scale result [--bytes 2000000000]

table: no-op tasks by simulated clients (bench/load.py). The master is killed when half of them
are done, and started again; the clients carry on. clients: each holds a task that never ends
and a request for another one, and pings every ten seconds. result: one client posts a result of
zeros, which is then collected: twice its size is needed on the disk for a while.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.load import Loading
from bench.machine import about, print_about, raise_open_files
from bench.measured import show_profile
from bench.running import NOBODY, PEXECD, MasterProcess, end_in_order, write_job

JOB = """\
[job]
cluster = hosts
parameters = table.txt
[worker]
command = true $n
[collect]
output = table results.txt
"""
#: A master that was started again waits for clients that it does not know: two pings, at the end.
LONG = JOB + "[client]\nping = 1\n"
#: The last tenth but for the end: tickets whose answer was lost with the master that was killed
#: are given again when their clients have been silent about them for some seconds.
LAST = (0.88, 0.98)
#: Seconds between two looks at how far the master is.
LOOK = 0.05
#: Nothing is given twice, so that clients hold their requests.
HELD = JOB.replace("[worker]", "duplicates = 1\n[worker]")
BIG = JOB.replace("table results.txt", "concat results.bin")


def master_in(folder: Path) -> MasterProcess:
    return MasterProcess(folder, "run", "job.ini")


# --- a long table ----------------------------------------------------------------------------


def stored(folder: Path) -> bool:
    """Whether the whole table is in the database."""
    database = folder / "job.pexecd" / "session.db"
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute(
                "SELECT (SELECT max(number) FROM tasks) = CAST(value AS INTEGER)"
                " FROM meta WHERE key = 'tasks'"
            ).fetchone() or (0,)
            return found == 1
    except sqlite3.Error:  # it is being made
        return False


def settled(folder: Path) -> int:
    """How many tasks are done; no scan: they are numbered as they come."""
    database = folder / "job.pexecd" / "session.db"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT max(task) FROM settled").fetchone()
            return int(found[0] or 0)
    except sqlite3.Error:
        return 0


def part(marks: list[list[float]], low: float, high: float) -> tuple[list[float], list[float]]:
    """The first and last mark of a part of the whole: tasks confirmed, and when."""
    total = marks[-1][0]
    within = [mark for mark in marks if low * total <= mark[0] <= high * total] or marks[-1:]
    return within[0], within[-1]


def rate(marks: list[list[float]], low: float, high: float) -> float:
    """Tasks a second in a part of the whole."""
    first, last = part(marks, low, high)
    return (last[0] - first[0]) / max(last[1] - first[1], 1e-9)


def cpu_of(
    marks: list[list[float]], low: float, high: float, watched: list[tuple[float, float]]
) -> float:
    """The master's CPU microseconds for a task in a part of the whole.

    Args:
        marks: tasks confirmed, and when.
        low: where the part begins, of 1.
        high: where it ends.
        watched: times, and the master's CPU seconds up to then.
    """
    first, last = part(marks, low, high)
    within = [used for at, used in watched if first[1] <= at <= last[1]]
    times = [at for at, _ in watched if first[1] <= at <= last[1]]
    if len(within) < 2:
        return 0.0
    busy = (within[-1] - within[0]) / (times[-1] - times[0])
    return busy / max(rate(marks, low, high), 1e-9) * 1e6


def long_table(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    tasks = options.tasks
    write_job(folder, LONG, NOBODY, tasks)
    found: dict[str, Any] = {"tasks": tasks}
    state = folder / "job.pexecd"
    per_client = {"clients": options.clients, "size": options.size, "step": max(1, tasks // 200)}
    watched: list[tuple[float, float]] = []
    with master_in(folder) as master, Loading(state, "exchange", **per_client) as loading:
        ready = threading.Thread(target=lambda: found.update(ready=master.ready()))
        ready.start()
        while not stored(folder) and master.poll() is None:
            time.sleep(0.01)
        stored_at = time.monotonic()
        found["stored"] = stored_at - master.began
        ready.join()
        while settled(folder) < tasks // 2 and loading.runs():
            watched.append((time.monotonic(), master.cpu()))
            time.sleep(LOOK)
        found["peak_before"] = master.memory()
        master.kill()
        killed_at = time.monotonic()
        first_watched, watched = watched, []
        with master_in(folder) as again:
            found["restart"] = again.ready()
            while loading.runs():
                watched.append((time.monotonic(), again.cpu()))
                time.sleep(LOOK)
            seen = loading.seen()
            end = time.monotonic()
            found["peak_after"] = again.memory()
            again.wait()
            found["end"] = time.monotonic() - end
    marks = seen["marks"]
    found |= {
        "first": seen["first"] - master.began,
        "first_before_stored": seen["first"] < stored_at,
        "back": next((at for _, at in marks if at > killed_at), killed_at) - killed_at,
        "rate_first": rate(marks, 0, 0.1),
        "rate_last": rate(marks, *LAST),
        "cpu_first": cpu_of(marks, 0, 0.1, first_watched),
        "cpu_last": cpu_of(marks, *LAST, watched),
        "lost_connections": seen["lost"],
    }
    with (folder / "results.txt").open() as lines:
        assert next(lines) == "n|output\n"
        count = 0
        for count, line in enumerate(lines, 1):
            assert line == f"{count}|{count}\n", line
    assert count == tasks, f"{count} results"
    return found


def tell_table(found: dict[str, Any]) -> None:
    earlier = "before that" if found["first_before_stored"] else "after that"
    print(
        f"{found['tasks']} tasks\n"
        f"  table checked and stored after   {found['stored']:8.2f} s\n"
        f"  ready after                      {found['ready']:8.2f} s\n"
        f"  first task given after           {found['first']:8.2f} s, {earlier}\n"
        f"  rate of the first tenth          {found['rate_first']:8.0f} tasks/s, master's CPU "
        f"{found['cpu_first']:.0f} us a task\n"
        f"  rate of the last tenth           {found['rate_last']:8.0f} tasks/s, master's CPU "
        f"{found['cpu_last']:.0f} us a task\n"
        f"  killed half-way: ready again in  {found['restart']:8.2f} s, results confirmed again "
        f"{found['back']:.2f} s after the kill\n"
        f"  peak resident                    {found['peak_before']:8d} MB, "
        f"{found['peak_after']} MB after the restart\n"
        f"  from the last answer to the end  {found['end']:8.2f} s"
    )


# --- many clients ----------------------------------------------------------------------------


def many_clients(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    clients = options.clients
    problem = raise_open_files(2 * clients + 200)
    if problem:
        raise SystemExit(problem)
    write_job(folder, HELD, NOBODY, clients)
    book = folder / "book"
    profiled = [sys.executable, "-m", "bench.measured", str(book)] if options.profile else PEXECD
    more = {"PEXEC_BENCH_PROFILE": "1"} if options.profile else {}
    with MasterProcess(folder, "run", "job.ini", command=profiled, **more) as master:
        master.ready()
        many = {"clients": clients, "seconds": options.seconds, "ping": options.ping}
        with Loading(folder / "job.pexecd", "hold", **many) as loading:
            found = loading.line()
            if options.profile:
                os.kill(master.pid, signal.SIGUSR1)
            before, at, waited = master.cpu(), time.monotonic(), master.waited()
            share, late, resident = 0.0, 0.0, []
            while loading.runs():
                time.sleep(0.2)
                resident.append(master.memory("VmRSS"))
                passed = time.monotonic() - at
                share = (master.cpu() - before) / passed
                late = (master.waited() - waited) / passed
            found |= loading.seen()
        if master.poll() is not None:
            raise SystemExit(f"the master has ended\n{master.said()}")
        found |= {"share": share, "late": late}
        found |= {"resident": max(resident), "peak": master.memory()}
        if options.profile:
            os.kill(master.pid, signal.SIGINT)
            master.wait(130)
            show_profile(book)
    return found


def tell_clients(found: dict[str, Any]) -> None:
    ping, lag = found["ping"], found["lag"]
    print(
        f"{found['clients']} clients, {found['held']} hold a request at the end, "
        f"{found['over']} were told that their task is over; all began in {found['ramp']:.1f} s\n"
        f"  master's share of a core   {found['share'] * 100:8.1f} %, "
        f"{found['late'] * 100:.1f} % of the time it waited for one\n"
        f"  master's memory            {found['resident']:8d} MB, at its peak {found['peak']} MB\n"
        f"  requests                   {found['requests'] / found['seconds']:8.0f} /s, "
        f"pings {found['pings'] / found['seconds']:.0f} /s\n"
        f"  /ping, median              {ping['median']:8.2f} ms\n"
        f"  /ping, 99th percentile     {ping['p99']:8.2f} ms (longest {ping['most']:.1f})\n"
        f"  the load's own delay, 99th {lag['p99']:8.2f} ms (longest {lag['most']:.1f})"
    )


# --- a big result ----------------------------------------------------------------------------


def big_result(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    size = options.bytes
    free = shutil.disk_usage(folder).free
    if free < 2 * size + (1 << 30):
        raise SystemExit(
            f"{folder} has {free // 10**6} MB free, {2 * size // 10**6 + 1074} MB are needed: "
            "take fewer --bytes or another --folder"
        )
    write_job(folder, BIG, NOBODY, 1)
    with master_in(folder) as master:
        master.ready()
        idle = master.memory()
        before = master.cpu()
        peak = idle
        with Loading(folder / "job.pexecd", "big", bytes=size) as loading:
            while loading.runs():
                peak = max(peak, master.memory())
                time.sleep(0.05)
            found = loading.seen()
        posted = time.monotonic()
        while master.poll() is None:
            peak = max(peak, master.memory())
            time.sleep(0.02)
        cpu = master.wait() - before
    results = folder / "results.bin"
    assert results.stat().st_size == size, results.stat().st_size
    return {**found, "end": time.monotonic() - posted, "idle": idle, "peak": peak, "cpu": cpu}


def tell_result(found: dict[str, Any]) -> None:
    rate = found["bytes"] / found["seconds"] / 1e6
    print(
        f"a result of {found['bytes'] / 1e6:.0f} MB: answered with {found['status']}\n"
        f"  posted and stored in       {found['seconds']:8.1f} s, {rate:.0f} MB/s\n"
        f"  collected, ended after     {found['end']:8.1f} s\n"
        f"  master's memory            {found['idle']:8d} MB before, {found['peak']} MB peak\n"
        f"  master's CPU               {found['cpu']:8.1f} s"
    )


WAYS = {
    "table": (long_table, tell_table),
    "clients": (many_clients, tell_clients),
    "result": (big_result, tell_result),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=None, help="table: 4; clients: 10000")
    parser.add_argument("--size", type=int, default=64, help="table: tasks in one exchange")
    parser.add_argument("--seconds", type=float, default=30, help="clients: measure so long")
    parser.add_argument("--ping", type=float, default=10, help="clients: seconds between pings")
    parser.add_argument("--profile", action="store_true", help="clients: of the reactor's thread")
    parser.add_argument("--bytes", type=int, default=2 * 10**9, help="result: its size")
    parser.add_argument("--folder", type=Path, help="where to work: another disk, say")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    end_in_order()
    if options.clients is None:
        options.clients = 10_000 if options.what == "clients" else 4
    work, tell = WAYS[options.what]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        machine = about(Path(name))
        if not options.json:
            print_about(machine)
            sys.stdout.flush()
        found = work(Path(name), options)
    if options.json:
        print(json.dumps({"about": machine, **found}))
    else:
        tell(found)


if __name__ == "__main__":
    main()

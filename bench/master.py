"""The master's CPU time for a task, everything journalled, collected in order.

    python -m bench.master [--rounds 3] [--scale 1] [--rows "of 16;pair"] [--profile] [--json]

Simulated clients (bench/load.py), a process of their own, run nothing and post at once. Counted
is all that the master and its children use from READY to the end: reactor, journal's writer,
validation, collection, end. The rows: exchanges of several sizes by one client, and the founding
pair of requests by one client and by sixteen, without validation; then with ready-made tests, and
with a function of the user in processes of its own, whose start counts.

Beside it, in the same round, what the barest master on twisted.web and SQLite uses for the same
requests (bench/bare.py). The aims were set in microseconds on another machine, where such a master
was measured, too: what they are of that is the aim here (``x bare``).

--profile shows where the reactor's time goes (cProfile, which makes it two to three times as much).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import Loading
from bench.machine import about, print_about
from bench.measured import show_profile
from bench.running import NOBODY, MasterProcess, end_in_order, write_job

JOB = """\
[job]
cluster = hosts
parameters = table.txt
[worker]
command = true $n
[collect]
output = table results.txt
"""
TESTS = "[validate]\noutput = one_line number\n"
FUNCTION = TESTS + "function = checks.py:validate\n"
CHECKS = """\
def validate(parameters, result):
    return result["output"].text() == parameters["n"] + "\\n"
"""


@dataclass(frozen=True)
class Row:
    """One way in which clients may talk to the master."""

    name: str
    way: str
    clients: int
    tasks: int
    #: At most so many microseconds for a task where a bare master uses so many; 0: no aim.
    aim: tuple[int, int] = (0, 0)
    size: int = 0
    #: The section of the job that validates.
    validate: str = ""


ROWS = [
    Row("exchanges of 1", "exchange", 1, 6000, (350, 269), size=1),
    Row("exchanges of 4", "exchange", 1, 15000, size=4),
    Row("exchanges of 16", "exchange", 1, 40000, (60, 27), size=16),
    Row("exchanges of 64", "exchange", 1, 60000, size=64),
    Row("pair, 1 client", "pair", 1, 4000, (650, 578)),
    Row("pair, 16 clients", "pair", 16, 8000, (400, 239)),
    Row("of 16, with tests", "exchange", 1, 40000, size=16, validate=TESTS),
    Row("of 16, function", "exchange", 1, 10000, size=16, validate=FUNCTION),
]


BARE = [sys.executable, "-m", "bench.bare"]


def write_row(row: Row, tasks: int, folder: Path) -> None:
    """The job of a row, with so many tasks."""
    write_job(folder, row.validate + JOB, NOBODY, tasks)
    (folder / "checks.py").write_text(CHECKS)


def clients_of(row: Row, folder: Path) -> Loading:
    """The simulated clients of a row, for the master in this folder."""
    sizes = {"size": row.size} if row.size else {}
    return Loading(folder / "job.pexecd", row.way, clients=row.clients, **sizes)


def rows_named(words: str) -> list[Row]:
    """Those whose names hold one of the words, which have ; between them."""
    return [row for row in ROWS if any(one in row.name for one in words.split(";"))]


def measure(row: Row, tasks: int, folder: Path, profile: bool) -> dict[str, Any]:
    """Run a job of so many tasks to its end; microseconds for a task, by who used them.

    Returns:
        ``{}`` when the master does not know the exchange.
    """
    write_row(row, tasks, folder)
    book = folder / "book"
    command = [sys.executable, "-m", "bench.measured", str(book)]
    more = {"PEXEC_BENCH_PROFILE": "1"} if profile else {}
    with MasterProcess(folder, "run", "--fresh", "job.ini", command=command, **more) as master:
        master.ready()
        if profile:
            os.kill(master.pid, signal.SIGUSR1)
        before, threads = master.cpu(), master.threads()
        with clients_of(row, folder) as loading:
            seen = loading.seen()
        if not seen:
            return {}
        master.wait()
    expected = ["n|output", *(f"{n}|{n}" for n in range(1, tasks + 1))]
    if (folder / "results.txt").read_text().splitlines() != expected:
        raise SystemExit("the results are not what they should be")
    used = json.loads(book.read_text())
    total = used["all"] + used["children"] - before
    parts = {"reactor": 0.0, "journal": 0.0, "other threads": 0.0, "processes": used["children"]}
    for thread, name, seconds in used["threads"]:
        spent = seconds - threads.get(thread, 0.0)
        if name == "bench":
            total -= spent
        elif name == "MainThread":
            parts["reactor"] += spent
        else:
            parts["journal" if "journal" in name else "other threads"] += spent
    return {
        "us": total / tasks * 1e6,
        **{part: seconds / tasks * 1e6 for part, seconds in parts.items()},
        "rate": tasks / (seen["last"] - seen["first"]),
        "requests": seen["requests"] / tasks,
    }


def measure_bare(row: Row, tasks: int, folder: Path) -> float:
    """Microseconds for a task of a bare master."""
    shutil.rmtree(folder / "job.pexecd", ignore_errors=True)
    with MasterProcess(folder, str(folder), str(tasks), command=BARE) as master:
        master.ready()
        before = master.cpu()
        with clients_of(row, folder) as loading:
            loading.seen()
        used = master.wait() - before
    shutil.rmtree(folder / "job.pexecd")
    return used / tasks * 1e6


def median(found: list[dict[str, Any]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many tasks")
    parser.add_argument(
        "--rows", default="", help="only those whose names hold one of these, with ; between them"
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to work: another disk, say")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    end_in_order()
    rows = rows_named(options.rows)
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        machine = about(Path(name))
        if not options.json:
            print_about(machine)
        for _ in range(options.rounds):
            for row in rows:
                tasks = max(64, round(row.tasks * options.scale))
                one = measure(row, tasks, Path(name), options.profile)
                if one and row.aim[0] and not options.profile:
                    one["bare"] = measure_bare(row, tasks, Path(name))
                if one:
                    found[row.name].append(one)
                if options.profile and one and not options.json:
                    print(f"\n{row.name}: {tasks} tasks")
                    show_profile(Path(name) / "book")
    medians = {row: median(one) if one else None for row, one in found.items()}
    if options.json:
        print(json.dumps({"about": machine, "rows": medians, "rounds": found}))
        return
    print(
        f"{'CPU us a task':18} {'all':>6} {'bare':>6} {'x bare':>7} {'at most':>8} {'reactor':>8} "
        f"{'journal':>8} {'threads':>8} {'processes':>10} {'tasks/s':>8}"
    )
    for row in rows:
        one = medians[row.name]
        if one is None:
            print(f"{row.name:18} this master has no exchange")
            continue
        beside = f"{'':23}"
        if "bare" in one:
            most = row.aim[0] / row.aim[1]
            beside = f"{one['bare']:6.0f} {one['us'] / one['bare']:7.2f} {most:8.2f}"
        print(
            f"{row.name:18} {one['us']:6.0f} {beside} {one['reactor']:8.0f} "
            f"{one['journal']:8.0f} {one['other threads']:8.0f} {one['processes']:10.0f} "
            f"{one['rate']:8.0f}"
        )


if __name__ == "__main__":
    main()

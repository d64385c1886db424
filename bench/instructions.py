"""The instructions that the master's processor carries out for a task: a measure without noise.

    python -m bench.instructions [--scale 1] [--rows "of 16;pair"] [--json]

The master runs under valgrind (which must be installed), some forty times slower, with few tasks
and with five times as many: the difference of the two is what a task needs, start and end left out.
Validators and the kernel are not counted, so that a commit costs next to nothing here, and the time
that memory takes is not seen. But two runs agree within a percent on any machine, whatever else it
does: what a change saves is seen here first, and then in bench/master.py.

Beside it what the barest master (bench/bare.py) needs, and how many times as much that is.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import about, print_about
from bench.master import BARE, Row, clients_of, rows_named, write_row
from bench.running import PEXECD, MasterProcess, end_in_order

#: The fewer tasks are so many of bench/master.py's.
FEW = 0.04
#: And the more so many times as many.
TIMES = 5

VALGRIND = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]


def count(row: Row, tasks: int, folder: Path, *, bare: bool) -> int:
    """The instructions of a master, from its start to its end."""
    log = folder / "valgrind.log"
    log.unlink(missing_ok=True)
    shutil.rmtree(folder / "job.pexecd", ignore_errors=True)
    command = [*VALGRIND, f"--log-file={log}", *(BARE if bare else PEXECD)]
    words = [str(folder), str(tasks)] if bare else ["run", "--fresh", "job.ini"]
    if not bare:
        write_row(row, tasks, folder)
    # The order in sets and dictionaries of names is the same in each run.
    with MasterProcess(folder, *words, command=command, PYTHONHASHSEED="0") as master:
        master.ready()
        with clients_of(row, folder) as loading:
            loading.seen()
        master.wait()
    found = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text())
    if found is None:
        raise SystemExit(f"{log}: valgrind counted nothing:\n{log.read_text()}")
    return int(found[1].replace(",", ""))


def for_a_task(row: Row, few: int, folder: Path, *, bare: bool) -> float:
    """Thousands of instructions."""
    more = count(row, TIMES * few, folder, bare=bare)
    return (more - count(row, few, folder, bare=bare)) / (TIMES - 1) / few / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="times as many tasks")
    parser.add_argument(
        "--rows", default="", help="only those whose names hold one of these, with ; between them"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        raise SystemExit("valgrind is not installed: apt-get install valgrind, or the like")
    end_in_order()
    rows = rows_named(options.rows)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        machine = about(Path(name))
        if not options.json:
            print_about(machine)
            print(f"{'1000 instructions a task':24} {'all':>7} {'bare':>7} {'x bare':>7}")
        for row in rows:
            few = max(16, round(row.tasks * FEW * options.scale))
            ours = for_a_task(row, few, Path(name), bare=False)
            found[row.name] = {"thousands": ours}
            beside = ""
            if not row.validate:  # the bare one knows no validation
                bare = found[row.name]["bare"] = for_a_task(row, few, Path(name), bare=True)
                beside = f"{bare:7.0f} {ours / bare:7.2f}"
            if not options.json:
                print(f"{row.name:24} {ours:7.0f} {beside}", flush=True)
    if options.json:
        print(json.dumps({"about": machine, "rows": found}))


if __name__ == "__main__":
    main()

"""N tasks of /bin/echo on two slots: pexecd with all its books, beside xargs -P2 that keeps none.

    python bench/echo.py [--tasks 10000] [--rounds 3]

Rounds alternate; each line is a round, the last the medians. Only the ratio means anything on a
machine that is shared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = """\
[job]
cluster = here
parameters = table.txt
[worker]
command = /bin/echo $n
[collect]
output = table results.txt
"""


def xargs(tasks: int) -> float:
    """Seconds that bare xargs takes."""
    began = time.monotonic()
    subprocess.run(f"seq {tasks} | xargs -P2 -n1 /bin/echo > /dev/null", shell=True, check=True)
    return time.monotonic() - began


def pexecd(tasks: int, folder: Path) -> float:
    """Seconds that a whole job takes, start-up and collection in order included."""
    (folder / "job.ini").write_text(JOB)
    (folder / "here").write_text("2/:\n")
    (folder / "table.txt").write_text("n\n" + "".join(f"{n}\n" for n in range(1, tasks + 1)))
    command = [sys.executable, "-m", "pexecd.cli.main", "run", "--fresh", "job.ini"]
    began = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    expected = ["n|output", *(f"{n}|{n}" for n in range(1, tasks + 1))]
    assert (folder / "results.txt").read_text().splitlines() == expected
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, options.rounds + 1):
            theirs.append(options.tasks / xargs(options.tasks))
            ours.append(options.tasks / pexecd(options.tasks, Path(folder)))
            print(
                f"round {number}: xargs {theirs[-1]:.0f} tasks/s, pexecd {ours[-1]:.0f} tasks/s, "
                f"ratio {ours[-1] / theirs[-1]:.3f}",
                flush=True,
            )
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    print(
        f"median: xargs {statistics.median(theirs):.0f} tasks/s, "
        f"pexecd {statistics.median(ours):.0f} tasks/s, ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()

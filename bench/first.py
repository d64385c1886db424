"""What takes the time from the command to the first result of a one-task job.

    python -m bench.first [--ssh] [--rounds 5]

Prints when each line of the master's log came, when the worker ran, when its result stood in the
file and when the command ended, in milliseconds since the command was given: of the round that was
the median by its result. Then what the imports of the command cost, by package, in a run of
their own. With --ssh the host is an sshd on this computer, and a user with an empty home.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from bench.machine import about, print_about
from bench.peers import SSH, ssh_is_there, sshd_hosts, stop
from bench.running import PEXECD, end_in_order, environment, write_job
from tests.system.sshd import Lab

#: The worker says when it ran.
JOB = """\
[job]
cluster = hosts
parameters = table.txt
[worker]
command = /bin/date +%s.%N
[collect]
output = table results.txt
"""
#: As ``pexecd run`` loads itself.
LOADING = """
import pexecd.cli.main
from pexecd.cli.early import import_reactor
import_reactor()
import pexecd.cli.run
"""
#: Imports that take less are not worth a line, in milliseconds.
LEAST = 2.0

#: Milliseconds since the command was given, and what happened.
Story = list[tuple[float, str]]


def run(folder: Path) -> tuple[float, Story]:
    """Run the job in the folder once; milliseconds to its result, and all that happened."""
    story: Story = []
    results = folder / "results.txt"
    results.unlink(missing_ok=True)
    wall, began = time.time(), time.monotonic()

    def now() -> float:
        return (time.monotonic() - began) * 1000

    process = subprocess.Popen(
        [*PEXECD, "run", "--fresh", "--verbose", "job.ini"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            # a line that shows progress is written over and over
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rstrip().rpartition("\r")[2])
            if text:
                story.append((now(), text))

    reading = threading.Thread(target=read)
    reading.start()
    first = 0.0
    try:
        while process.poll() is None:
            if not first and results.exists() and results.read_bytes().count(b"\n") == 2:
                first = now()
            time.sleep(0.0005)
    finally:
        stop(process)
    story.append((now(), "THE COMMAND HAS ENDED"))
    reading.join()
    if process.returncode or not results.exists():
        raise SystemExit(f"exit status {process.returncode}: {story}")
    first = first or now()
    ran = float(results.read_text().split("|")[-1])
    story += [(first, "THE RESULT IS IN ITS FILE"), ((ran - wall) * 1000, "THE WORKER RUNS")]
    return first, sorted(story)


def cpu_of_children() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def imports() -> list[tuple[float, str]]:
    """Milliseconds that modules of each package took to import, without what they import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", LOADING],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    found: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        match = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", line)
        if match:
            package = match[2].split(".")[0]
            in_library = package in sys.stdlib_module_names
            found["the standard library" if in_library else package] += int(match[1])
    return [(total / 1000, name) for name, total in found.most_common()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ssh", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    end_in_order()
    if options.ssh and (missing := ssh_is_there()):
        sys.exit(missing)
    rounds = []
    used = cpu_of_children()
    for _ in range(options.rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            if options.ssh:
                lab = stack.enter_context(Lab())
                (host,) = sshd_hosts(lab, 1)
                write_job(folder, JOB + SSH, f"1/{host.address}\n", 1)
                shutil.copytree(lab.ssh_config(host).parent, folder, dirs_exist_ok=True)
            else:
                write_job(folder, JOB, "2/:\n", 1)
            rounds.append(run(folder))
            machine = about(folder)
    used = (cpu_of_children() - used) / options.rounds
    firsts = sorted(first for first, _ in rounds)
    middle = firsts[len(firsts) // 2]
    story = next(story for first, story in rounds if first == middle)
    packages = imports()
    if options.json:
        print(
            json.dumps(
                {"about": machine, "ms": firsts, "cpu": used, "story": story, "imports": packages}
            )
        )
        return
    print_about(machine)
    print(f"the first result after {middle:.0f} ms ({firsts[0]:.0f}-{firsts[-1]:.0f})\n")
    for at, what in story:
        print(f"{at:8.0f} ms  {what}")
    others = ", sshd and the making of the user among it" if options.ssh else ""
    print(f"\nCPU of the command and all that it started: {used * 1000:.0f} ms{others}")
    total = sum(took for took, _ in packages)
    print(f"\nthe imports of the command: {total:.0f} ms (somewhat more than usual, as measured)\n")
    for took, name in packages:
        if took >= LEAST:
            print(f"{took:8.0f} ms  {name}")


if __name__ == "__main__":
    main()

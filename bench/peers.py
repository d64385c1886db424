"""pexecd beside its peers, alternating in one run: what `make bench` runs.

    python -m bench.peers [--rounds 5] [--tasks 10000] [--workloads W1,W2,W3,W4,W5,S2,S5]
                          [--peers pexecd,dask] [--slow-fsync 10] [--folder DIR] [--json]

W1: no-op tasks, two slots. W2: `echo N`, standard output collected with its parameter, two slots.
W3: `sleep 0.1` on eight slots, ideal time / wall time. W4: a file of 100 kB back from each task,
two slots. W5: seconds from the command to the first result of a job of one task. S2: W2 over two
sshd hosts on this computer, a slot each. S5: W5 on such a host that has never seen pexecd. (W6,
what a kill -9 costs, is bench/crash.py.)

A peer that is not installed is left out with a word. Every result is checked in every round. All
times are from the command to its end, pexecd's start-up included; the start-up of frameworks (dask,
hyperqueue), and of pexecd in W3, which is about full slots, is taken off and shown apart. Slow
peers get a fifth of the tasks, over SSH a twentieth.
Ratios are to xargs in the same round (S2: to pexecd's W2). xargs, GNU pexec and hyperqueue keep no
books.

--slow-fsync MS adds pexecd with every fsync and fdatasync of the master so much slower, all its
threads included; clients and workers are spared (the client syncs nothing).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import about, package, print_about, version
from bench.running import PEXECD, end_in_order, environment, write_job
from tests.system.sshd import Lab, Sshd

#: Bytes of W4's files: the task's number, filled up with zeros in front.
SIZE = 100_000
WORK = f"""\
#!/bin/sh
printf '%0{SIZE}d' "$1" > "${{OUT:-.}}/big${{OUT:+-$1}}"
"""
#: How long a task of W3 sleeps, and on how many slots.
SLEEP, SLOTS = 0.1, 8

HEAD = "[job]\ncluster = hosts\nparameters = table.txt\n"
COLLECTED = "[collect]\noutput = table results.txt\n"
JOBS = {
    "W1": HEAD + "[worker]\ncommand = /bin/true $n\n",
    "W2": HEAD + "[worker]\ncommand = /bin/echo $n\n" + COLLECTED,
    "W3": HEAD + f"[worker]\ncommand = /bin/sleep {SLEEP}\n",
    "W4": HEAD
    + "[worker]\nname = work.sh\nexecutable = work.sh\ncommand = work.sh $n\n"
    + "[result]\nbig = big\n[collect]\nbig = concat results.bin\n",
    "W5": HEAD + "[worker]\ncommand = /bin/echo $n\n" + COLLECTED,
}
SSH = "[ssh]\nconfig = ssh_config\n"


class WrongResultError(Exception):
    """What came out is not what should."""


@dataclass
class Run:
    """One workload, run once."""

    tasks: int
    #: From the command to its end.
    seconds: float
    #: Of the whole process tree.
    cpu: float
    #: Of a framework; it is part of ``seconds``.
    startup: float = 0.0
    #: Seconds to the first result, for W5.
    first: float = 0.0

    def figure(self, workload: str) -> float:
        """Tasks a second; for W3 the efficiency; for W5 seconds to the first result."""
        if workload.endswith("5"):
            return self.first
        work = self.seconds - self.startup
        return self.tasks * SLEEP / SLOTS / work if workload == "W3" else self.tasks / work


@dataclass
class Place:
    """Where a way runs: a new folder for each run."""

    folder: Path
    tasks: int
    #: Variables of the environment.
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def expect(self, found: list[str], *, ordered: bool = True) -> None:
        expected = [str(number) for number in range(1, self.tasks + 1)]
        if found != expected and (ordered or sorted(found, key=int) != expected):
            raise WrongResultError(f"{self.folder}: the results are not 1 to {self.tasks}")

    def expect_files(self) -> None:
        """The files of W4."""
        names = sorted(path.name for path in self.out.iterdir())
        if names != sorted(f"big-{number}" for number in range(1, self.tasks + 1)):
            raise WrongResultError(f"{self.out}: there are not the files of {self.tasks} tasks")
        for path in self.out.iterdir():
            text = path.read_text()
            if len(text) != SIZE or int(text.lstrip("0")) != int(path.name[4:]):
                raise WrongResultError(f"{path}: is not what the task wrote")


def stop(process: subprocess.Popen[Any]) -> None:
    """End what still runs when a bench is broken off: pexecd ends its clients, too."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def timed(command: str | list[str], place: Place, until: Callable[[], bool] | None = None) -> Run:
    """Run a command in its folder to the end, which must be a success.

    Args:
        command: for ``sh``, or words.
        place: the folder and environment.
        until: is asked again and again until it says that the first result is there.
    """
    words = ["sh", "-c", command] if isinstance(command, str) else command
    variables = environment({"OUT": str(place.out), **place.more})
    with (place.folder / "err").open("wb") as err:
        began = time.monotonic()
        process = subprocess.Popen(
            words,
            cwd=place.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        first = cpu = 0.0
        try:
            while until is not None and process.poll() is None:
                if until():
                    first = time.monotonic() - began
                    break
                time.sleep(0.0005)
            if process.returncode is None:  # Popen would wait without the usage
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu = usage.ru_utime + usage.ru_stime
        finally:
            stop(process)
        seconds = time.monotonic() - began
    if process.returncode:
        said = (place.folder / "err").read_text(errors="replace")[-3000:]
        raise WrongResultError(f"{command}: exit status {process.returncode}\n{said}")
    return Run(place.tasks, seconds, cpu, first=first or seconds)


def has_line(path: Path, line: bytes) -> Callable[[], bool]:
    def look() -> bool:
        try:
            return line in path.read_bytes()
        except FileNotFoundError:
            return False

    return look


# --- the peers -------------------------------------------------------------------------------

#: A way runs one workload.
Way = Callable[[Place], Run]


def by_lines(template: Mapping[str, str], *, ordered: bool) -> dict[str, Way]:
    """Ways that are shell commands with ``{tasks}``; W2 and W5 fill ``lines``, W4 ``out``."""

    def way(workload: str) -> Way:
        def run(place: Place) -> Run:
            command = template[workload].format(tasks=place.tasks)
            lines = place.folder / "lines"
            until = has_line(lines, b"1\n") if workload == "W5" else None
            done = timed(command, place, until)
            if workload in ("W2", "W5"):
                place.expect(lines.read_text().split(), ordered=ordered)
            elif workload == "W4":
                place.expect_files()
            return done

        return run

    return {workload: way(workload) for workload in template}


XARGS = by_lines(
    {
        "W1": "seq {tasks} | xargs -P2 -n1 /bin/true",
        "W2": "seq {tasks} | xargs -P2 -n1 /bin/echo > lines",
        "W3": f"yes {SLEEP} | head -n {{tasks}} | xargs -P{SLOTS} -n1 /bin/sleep",
        "W4": "seq {tasks} | xargs -P2 -n1 ./work.sh",
        "W5": "seq {tasks} | xargs -P2 -n1 /bin/echo > lines",
    },
    ordered=False,
)
PARALLEL = by_lines(
    {
        "W1": "seq {tasks} | parallel -j2 --joblog jl /bin/true",
        "W2": "seq {tasks} | parallel -j2 -k --joblog jl /bin/echo > lines",
        "W3": f"seq {{tasks}} | parallel -j{SLOTS} --joblog jl /bin/sleep {SLEEP} '#'",
        "W4": "seq {tasks} | parallel -j2 --joblog jl ./work.sh",
        "W5": "seq {tasks} | parallel -j2 -k --joblog jl /bin/echo > lines",
    },
    ordered=True,
)
PEXEC = by_lines(
    {
        "W1": "pexec -n 2 -r $(seq {tasks}) -e N -o /dev/null -c -- '/bin/true $N'",
        "W2": "pexec -n 2 -r $(seq {tasks}) -e N -o 'each/%s' -c -- 'echo $N' && "
        "seq -f 'each/%.0f' {tasks} | xargs cat > lines",
        "W3": f"pexec -n {SLOTS} -r $(seq {{tasks}}) -e N -c -- 'sleep {SLEEP}'",
        "W4": "pexec -n 2 -r $(seq {tasks}) -e N -c -- './work.sh $N'",
        "W5": "pexec -n 2 -r $(seq {tasks}) -e N -o lines -c -- 'echo $N'",
    },
    ordered=True,
)


def framework(name: str) -> dict[str, Way]:
    def way(workload: str) -> Way:
        def run(place: Place) -> Run:
            command = [sys.executable, "-m", "bench.frameworks", name, workload]
            words = [*command, str(place.tasks), str(place.folder)]
            said = place.folder / "said"
            began = time.monotonic()
            done = timed(f"exec {shlex.join(words)} > said", place)
            seen = json.loads(said.read_text().splitlines()[-1])
            done.startup = done.seconds - seen["work"]
            done.first = seen["first"] - began
            if workload in ("W2", "W5"):
                whole = place.out / "all"
                if whole.exists():
                    place.expect(whole.read_text().split())
                else:
                    each = [place.out / str(number + 1) for number in range(place.tasks)]
                    place.expect([path.read_text().strip() for path in each])
            elif workload == "W4":
                place.expect_files()
            return done

        return run

    return {workload: way(workload) for workload in JOBS}


def check_pexecd(place: Place, workload: str) -> None:
    """The whole result of a job, and the books."""
    if workload in ("W2", "W5"):
        lines = (place.folder / "results.txt").read_text().splitlines()
        if lines[:1] != ["n|output"]:
            raise WrongResultError("results.txt: the headline is wrong")
        for line in lines[1:]:
            parameter, _, output = line.partition("|")
            if parameter != output:
                raise WrongResultError(f"results.txt: {line}")
        place.expect([line.partition("|")[0] for line in lines[1:]])
    elif workload == "W4":
        with (place.folder / "results.bin").open("rb") as file:
            for number in range(1, place.tasks + 1):
                if file.read(SIZE) != b"%0*d" % (SIZE, number):
                    raise WrongResultError(f"results.bin: task {number} is wrong")
            if file.read(1):
                raise WrongResultError("results.bin: is too long")
    numbers = json.loads((place.folder / "job.pexecd" / "statistics.json").read_text())
    if numbers["done"] != place.tasks:
        raise WrongResultError(f"statistics.json: {numbers['done']} of {place.tasks} are done")


def first_given(place: Place) -> float:
    """When the first task was given out, in seconds since 1970."""
    lines = (place.folder / "job.pexecd" / "joblog.tsv").read_text().splitlines()
    column = lines[0].split("\t").index("Starttime")
    return min(float(line.split("\t")[column]) for line in lines[1:])


def pexecd(shim: Mapping[str, str] | None = None) -> dict[str, Way]:
    """``pexecd run`` on this computer.

    Args:
        shim: variables that make its syncs slow.
    """

    def way(workload: str) -> Way:
        def run(place: Place) -> Run:
            slots = SLOTS if workload == "W3" else 2
            write_job(place.folder, JOBS[workload], f"{slots}/:\n", place.tasks)
            local = Place(place.folder, place.tasks, {**(shim or {}), "OUT": ""})
            until = None
            if workload == "W5":
                until = has_line(place.folder / "results.txt", b"1|1\n")
            began = time.time()
            done = timed([*PEXECD, "run", "--fresh", "job.ini"], local, until)
            check_pexecd(place, workload)
            if workload == "W3":
                done.startup = first_given(place) - began
            return done

        return run

    return {workload: way(workload) for workload in JOBS}


# --- over SSH --------------------------------------------------------------------------------


def sshd_hosts(lab: Lab, count: int) -> list[Sshd]:
    """New users with empty homes: such a host has never seen pexecd."""
    return [lab.sshd(f"127.0.0.{2 + number}", extra="MaxSessions 100") for number in range(count)]


def pexecd_over_ssh(place: Place, hosts: list[Sshd], lab: Lab, workload: str, *more: str) -> Run:
    write_job(
        place.folder,
        JOBS[workload] + SSH,
        "".join(f"1/{host.address}\n" for host in hosts),
        place.tasks,
    )
    shutil.copytree(lab.ssh_config(*hosts).parent, place.folder, dirs_exist_ok=True)
    until = has_line(place.folder / "results.txt", b"1|1\n") if workload == "W5" else None
    command = [*PEXECD, "run", "--fresh", *more, "job.ini"]
    done = timed(command, Place(place.folder, place.tasks, {"OUT": ""}), until)
    check_pexecd(place, workload)
    return done


def ssh_ways() -> dict[str, dict[str, Way]]:
    """Ways of S2 and S5, by peer."""

    def ours(workload: str, count: int) -> Way:
        def run(place: Place) -> Run:
            with Lab() as lab:
                return pexecd_over_ssh(place, sshd_hosts(lab, count), lab, workload)

        return run

    def parallel(place: Place) -> Run:
        with Lab() as lab:
            hosts = sshd_hosts(lab, 2)
            multiplexed = (
                "Host *\n  ControlMaster auto\n  ControlPersist 60\n"
                f"  ControlPath {place.folder}/%C\n  LogLevel ERROR\n"
            )
            config = lab.ssh_config(*hosts, extra=multiplexed)
            for host in hosts:  # the logins are not in the rate, as pexecd's are
                subprocess.run(
                    ["ssh", "-F", str(config), host.address, "true"],
                    check=True,
                    stderr=subprocess.DEVNULL,
                )
            logins = ",".join(f"1/{host.address}" for host in hosts)
            way = by_lines(
                {
                    "W2": f"seq {{tasks}} | parallel -k --joblog jl --ssh 'ssh -F {config}' "
                    f"-S {logins} /bin/echo > lines"
                },
                ordered=True,
            )
            try:
                return way["W2"](place)
            finally:
                for host in hosts:
                    subprocess.run(
                        ["ssh", "-F", str(config), "-O", "exit", host.address],
                        check=False,
                        stderr=subprocess.DEVNULL,
                    )

    return {
        "pexecd": {"S2": ours("W2", 2), "S5": ours("W5", 1)},
        "parallel": {"S2": parallel},
    }


# --- the run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    name: str
    #: What it says of itself; empty when it is not installed.
    version: str
    ways: Mapping[str, Way]
    #: It gets one of so many tasks.
    part: int = 1
    #: How to get it.
    advice: str = ""


def slow_syncs(folder: Path, milliseconds: float) -> dict[str, str]:
    """Compile what makes syncs slow; the variables that put it in front of a process."""
    library = folder / "slow_fsync.so"
    source = Path(__file__).with_name("slow_fsync.c")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
        check=True,
    )
    return {"LD_PRELOAD": str(library), "SLOW_FSYNC_MS": str(milliseconds)}


def peers(folder: Path, slow: float, ssh: bool) -> list[Peer]:
    ours = package("pexecd")
    over = ssh_ways() if ssh else {"pexecd": {}, "parallel": {}}
    pip = "pip install '.[bench]'"
    found = [
        Peer("xargs", version("xargs"), XARGS),
        Peer("pexecd", ours, {**pexecd(), **over["pexecd"]}),
    ]
    if slow:
        ways = pexecd(slow_syncs(folder, slow))
        found.append(Peer(f"pexecd, fsync +{slow:g} ms", ours, ways))
    return [
        *found,
        Peer("GNU pexec", version("pexec", "--version"), PEXEC, 1, "apt-get install pexec"),
        Peer(
            "GNU parallel",
            version("parallel"),
            {**PARALLEL, **over["parallel"]},
            5,
            "apt-get install parallel",
        ),
        Peer("dask", package("distributed"), framework("dask"), 5, pip),
        Peer("hyperqueue", package("hyperqueue"), framework("hyperqueue"), 5, pip),
    ]


def tasks_of(workload: str, peer: Peer, tasks: int) -> int:
    """How many tasks a peer gets."""
    if workload.endswith("5"):
        return 1
    if workload == "W3":
        return max(SLOTS, tasks // 20)
    if workload == "W4":
        tasks = tasks // 5
    if workload == "S2" and peer.part > 1:
        return max(10, tasks // 20)
    return max(10, tasks // peer.part)


def one_run(peer: Peer, workload: str, tasks: int, folder: Path) -> Run:
    """Run it in a new folder, which stays until the end of the bench.

    A file system may have to step over what was deleted lately whenever it makes a file (ext4
    without a journal does, for minutes): who comes next would pay for that.
    """
    place = Place(Path(tempfile.mkdtemp(dir=folder)), tasks_of(workload, peer, tasks))
    place.out.mkdir()
    (place.folder / "each").mkdir()
    work = place.folder / "work.sh"
    work.write_text(WORK)
    work.chmod(0o755)
    return peer.ways[workload](place)


#: By workload and peer, a run for each round.
Found = dict[str, dict[str, list[Run]]]


def spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


TITLES = {
    "W1": "no-op tasks, 2 slots: tasks/s",
    "W2": "echo N, collected, 2 slots: tasks/s",
    "W3": f"sleep {SLEEP} on {SLOTS} slots: ideal time / wall time",
    "W4": f"{SIZE // 1000} kB back from each task, 2 slots: tasks/s",
    "W5": "one task: seconds to its result",
    "S2": "echo N over two sshd hosts, a slot each: tasks/s",
    "S5": "one task on a host that has never seen pexecd: seconds to its result",
}


def of_base(workload: str, runs: list[Run], found: Found) -> str:
    """The median of the ratios to what is compared with, in the same round."""
    base = found.get("W2", {}).get("pexecd") if workload == "S2" else found[workload].get("xargs")
    if base is None or workload.endswith("5"):
        return ""
    other = "W2" if workload == "S2" else workload
    pairs = zip(runs, base, strict=False)
    ratios = [one.figure(workload) / two.figure(other) for one, two in pairs]
    return f"{statistics.median(ratios):.3f}"


def print_table(found: Found) -> None:
    """A table for each workload, which Markdown understands."""
    for workload, rows in found.items():
        digits = 0 if workload in ("W1", "W2", "W4", "S2") else 3
        here = workload[0] == "W" and workload != "W5"  # not the CPU of other hosts
        base = "of pexecd here (W2)" if workload == "S2" else "of xargs"
        print(f"\n**{workload}** {TITLES[workload]}\n")
        print(f"| | median (min-max) | {base} | CPU s / 1000 | start-up s | tasks |")
        print("|---|---|---|---|---|---|")
        for name, runs in rows.items():
            figures = spread([run.figure(workload) for run in runs], digits)
            startup = statistics.median(run.startup for run in runs)
            cpu = statistics.median(run.cpu / run.tasks * 1000 for run in runs)
            cells = [
                name,
                figures,
                of_base(workload, runs, found),
                f"{cpu:.2f}" if here else "",
                f"{startup:.2f}" if startup else "",
                str(runs[0].tasks),
            ]
            print(f"| {' | '.join(cells)} |")


def as_json(found: Found) -> dict[str, Any]:
    return {
        workload: {
            name: [{**vars(run), "figure": run.figure(workload)} for run in runs]
            for name, runs in rows.items()
        }
        for workload, rows in found.items()
    }


def ssh_is_there() -> str:
    """Why there can be no sshd hosts; else empty."""
    if os.geteuid() != 0:
        return "S2 and S5 are left out: only root can start sshd hosts for users of their own"
    if not shutil.which("sshd") and not Path("/usr/sbin/sshd").exists():
        return "S2 and S5 are left out: apt-get install openssh-server"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=10_000, help="of W1 and W2; others by it")
    parser.add_argument("--workloads", default=",".join(TITLES))
    parser.add_argument("--peers", default="", help="only those with one of these in their name")
    parser.add_argument("--slow-fsync", type=float, default=0, metavar="MS")
    parser.add_argument("--folder", type=Path, help="where to work: another disk, say")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    end_in_order()
    workloads = options.workloads.split(",")
    if unknown := [one for one in workloads if one not in TITLES]:
        parser.error(f"no such workload: {', '.join(unknown)}")

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        machine = about(folder)
        ssh = any(one.startswith("S") for one in workloads)
        if ssh and (missing := ssh_is_there()):
            say(missing)
            workloads = [one for one in workloads if not one.startswith("S")]
            ssh = False
        chosen = []
        for peer in peers(folder, options.slow_fsync, ssh):
            wanted = not options.peers or peer.name == "xargs"
            if not wanted and not any(one in peer.name for one in options.peers.split(",")):
                continue
            if not peer.version:
                say(f"{peer.name} is left out, it is not installed: {peer.advice}")
                continue
            chosen.append(peer)
            known = re.search(r"\d[\w.]*", peer.version)
            machine[peer.name] = known.group() if known else peer.version
        if not options.json:
            print_about(machine)
        found: Found = {}
        for number in range(options.rounds):
            for workload in workloads:
                ways = [peer for peer in chosen if workload in peer.ways]
                rows = found.setdefault(workload, {peer.name: [] for peer in ways})
                # each comes first once: a machine may slow down by and by
                turn = number % len(ways)
                for peer in ways[turn:] + ways[:turn]:
                    run = one_run(peer, workload, options.tasks, folder)
                    rows[peer.name].append(run)
                    say(
                        f"round {number + 1} {workload} {peer.name}: "
                        f"{run.figure(workload):.4g} in {run.seconds:.2f} s"
                    )
    if options.json:
        print(json.dumps({"about": machine, "runs": as_json(found)}))
    else:
        print_table(found)


if __name__ == "__main__":
    main()

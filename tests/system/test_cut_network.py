"""Jobs whose network is cut: real sshd on computers of their own, behind real cables."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.cable import Computer, Cut, Network
from tests.system.running import PEXECD, JobFolder, adds_up
from tests.system.sshd import Lab, Sshd
from tests.waiting import wait_until

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
listen = tcp:8080:interface={master}
duplicates = 1
[worker]
name = work
command = work $n
executable = work.sh
[collect]
output = table results.txt
[client]
ping = {ping}
[ssh]
config = ssh_config
"""

#: Leaves a line, and waits until it or all workers may end.
WORKER = """\
#!/bin/sh
echo "$1 $PEXEC_HOST" >> {folder}/runs
until [ -e "{folder}/go-$1-$PEXEC_HOST" ] || [ -e {folder}/go ]; do sleep 0.05; done
echo "$1 ends" >> {folder}/ends
echo "$(($1 * 2))"
"""

#: How soon SSH notices a cut.
IMPATIENT = "Host *\n  ConnectTimeout 1\n  ServerAliveInterval 1\n  ServerAliveCountMax 1\n"


class Site:
    """A master's computer, hosts, and a job for them."""

    def __init__(self, path: Path, hosts: int, *, tasks: int, ping: int) -> None:
        self.tasks = tasks
        self.network = Network()
        self.lab = Lab()
        try:
            self.master = self.network.computer()
            self.computers = [self.network.computer() for _ in range(hosts)]
            self.hosts = [self._host(computer) for computer in self.computers]
            self.folder = self.lab.folder / "work"  # where the hosts' users may write
            self.folder.mkdir()
            self.folder.chmod(0o777)
            for name in ("runs", "ends"):
                (self.folder / name).touch()
                (self.folder / name).chmod(0o666)
            self.job = JobFolder(
                path / "job",
                JOB.format(master=self.master.address, ping=ping),
                ["n", *map(str, range(1, tasks + 1))],
                {
                    "lab.hosts": "".join(f"2/{host.address}\n" for host in self.hosts),
                    "work.sh": WORKER.format(folder=self.folder),
                },
            )
            self.lab.ssh_config(*self.hosts, extra=IMPATIENT).rename(self.job.path / "ssh_config")
        except BaseException:
            self.close()
            raise

    def _host(self, computer: Computer) -> Sshd:
        return self.lab.sshd(computer.address, port=2222, within=computer.command())

    def start(self) -> subprocess.Popen[str]:
        return self.job.start(*self.master.command(*PEXECD, "run", "job.ini"))

    def runs(self) -> list[tuple[int, str]]:
        """Task and host of each worker that was started."""
        lines = (self.folder / "runs").read_text().splitlines()
        return [(int(task), host) for task, host in map(str.split, lines)]

    def ends(self) -> int:
        """How many workers came to their end."""
        return len((self.folder / "ends").read_text().splitlines())

    def go(self, task: int | None = None, host: str = "") -> None:
        """Let a worker end, or all."""
        (self.folder / ("go" if task is None else f"go-{task}-{host}")).touch()

    def finish(self, process: subprocess.Popen[str]) -> str:
        """To the end: every result once and in order, ends that add up, nothing left."""
        printed = self.job.finish(process)
        lines = [f"{n}|{2 * n}" for n in range(1, self.tasks + 1)]
        assert self.job.lines("results.txt") == ["n|output", *lines]
        adds_up(self.job.statistics())
        return printed

    def close(self) -> None:
        self.network.close()
        self.lab.close()


MakeSite = Callable[..., Site]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[MakeSite]:
    sites = []

    def make(hosts: int, *, tasks: int, ping: int) -> Site:
        sites.append(Site(tmp_path, hosts, tasks=tasks, ping=ping))
        return sites[-1]

    yield make
    for made in sites:
        made.close()


@pytest.fixture(params=["blackhole", "unreachable"])
def how(request: pytest.FixtureRequest) -> Cut:
    found: Cut = request.param
    return found


def unanswered(computer: Computer) -> bool:
    """Whether a connection has sent what nobody acknowledges, or waits to be established."""
    table = subprocess.run(
        computer.command("cat", "/proc/net/tcp"), capture_output=True, text=True, check=True
    )
    for line in table.stdout.splitlines()[1:]:
        _, _, peer, state, queues, *_ = line.split()
        to_master = peer.endswith(f":{8080:04X}")
        if to_master and (state == "02" or queues.partition(":")[0] != "00000000"):
            return True
    return False


def test_a_short_cut_while_results_are_posted(site: MakeSite, how: Cut) -> None:
    here = site(2, tasks=12, ping=3)
    process = here.start()
    wait_until(lambda: len(here.runs()) == 4, here.job.log)
    with here.master.cut(how):
        here.go()
        wait_until(lambda: here.ends() == 4)
        if how == "blackhole":
            wait_until(lambda: all(map(unanswered, here.computers)))
    here.finish(process)
    assert Counter(task for task, _ in here.runs()) == Counter(range(1, 13))
    assert here.job.statistics()["ends"]["done"] == 12


def test_a_long_cut_costs_the_host_its_tickets_and_not_its_place(site: MakeSite) -> None:
    here = site(2, tasks=8, ping=1)
    lost, other = (host.address for host in here.hosts)
    process = here.start()
    wait_until(lambda: len(here.runs()) == 4, here.job.log)
    wait_until(lambda: here.job.statistics()["pending"] == 4, here.job.log)
    of_lost = {task for task, host in here.runs() if host == lost}
    of_other = {task for task, host in here.runs() if host == other}

    def again() -> list[int]:
        """Tasks of the host that was lost, that the other one has begun."""
        return [task for task, host in here.runs() if host == other and task in of_lost]

    with here.computers[0].cut("blackhole"):
        # first in doubt, then given to who asks next
        wait_until(lambda: here.job.statistics()["pending"] == 6, here.job.log)
        here.go(of_other.pop(), other)
        wait_until(lambda: len(again()) == 1, here.job.log)
        (first,) = again()
        here.go(first, other)
        wait_until(lambda: len(again()) == 2, here.job.log)
        (second,) = of_lost - {first}
    # The first was done elsewhere: its worker here is stopped, and a new one takes its slot.
    wait_until(lambda: len([1 for _, host in here.runs() if host == lost]) == 3, here.job.log)
    # The second was not: the late result counts, and the worker elsewhere is stopped.
    here.go(second, lost)
    wait_until(lambda: len([1 for _, host in here.runs() if host == lost]) == 4, here.job.log)
    here.go()
    here.finish(process)
    numbers = here.job.statistics()
    assert numbers["ends"]["lost"] == 1
    assert numbers["ends"]["cancelled"] == 1
    assert numbers["ends"]["done"] == 8
    assert numbers["hosts"][lost]["lost"] == 1
    assert numbers["hosts"][other]["cancelled"] == 1


#: Stands in for a program on the host; begins when the test says so.
GATE = """\
#!/bin/sh
touch {folder}/begun
until [ -e {folder}/open ]; do sleep 0.05; done
exec {program} "$@"
"""


@pytest.mark.parametrize("program", ["python3", "scp"])
def test_a_cut_while_the_client_is_started(site: MakeSite, program: str) -> None:
    here = site(1, tasks=4, ping=1)
    (host,) = here.hosts
    gate = here.folder / program
    found = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin")
    gate.write_text(GATE.format(folder=here.folder, program=found))
    gate.chmod(0o755)
    (host.home / ".bashrc").write_text(f"PATH={here.folder}:$PATH\n")
    here.go()
    process = here.start()
    wait_until((here.folder / "begun").exists, here.job.log)
    with here.computers[0].cut("blackhole"):
        wait_until(lambda: "no sign of life" in here.job.log(), here.job.log)
        wait_until(lambda: "no connection to" in here.job.log(), here.job.log)
    (here.folder / "open").touch()
    printed = here.finish(process)
    assert "no sign of life" in printed
    assert Counter(task for task, _ in here.runs()) == Counter(range(1, 5))


def test_a_master_killed_during_a_cut(site: MakeSite) -> None:
    here = site(1, tasks=6, ping=3)
    process = here.start()
    wait_until(lambda: len(here.runs()) == 2, here.job.log)
    with here.computers[0].cut("unreachable"):
        here.go()
        wait_until(lambda: here.ends() == 2)
        process.kill()
        process.communicate()
        process = here.start()
        wait_until(lambda: "no connection to" in here.job.log(), here.job.log)
    assert "Failure" not in here.finish(process)
    assert Counter(task for task, _ in here.runs()) == Counter(range(1, 7))


def test_the_only_host_that_comes_back_does_nothing_twice(site: MakeSite) -> None:
    """Not even when it asks for a task before it has pinged or posted those it has."""
    here = site(1, tasks=6, ping=1)
    process = here.start()
    wait_until(lambda: len(here.runs()) == 2, here.job.log)
    wait_until(lambda: here.job.statistics()["pending"] == 4, here.job.log)
    with here.computers[0].cut("blackhole"):
        here.go()
        wait_until(lambda: here.ends() == 2)
        wait_until(lambda: here.job.statistics()["pending"] == 6, here.job.log)
    here.finish(process)
    assert Counter(task for task, _ in here.runs()) == Counter(range(1, 7))

"""Tunnelled jobs whose hosts fall silent: cables cut amid uploads, an sshd that is stopped.

``PEXECD_TEST_CUT="20 180"``: cuts of so many seconds, beyond those until the master notices, for
both kinds of tunnels; without it one of each has to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.cable import Computer, Network
from tests.system.running import PEXECD, adds_up
from tests.system.sshd import Lab, Sshd, children, end_process
from tests.system.test_tunnelled_jobs import NO_SOCKETS, Work
from tests.waiting import wait_until

TOLD = os.environ.get("PEXECD_TEST_CUT", "").split()
SOCKET, PORT = pytest.param("", id="socket"), pytest.param(NO_SOCKETS, id="port")

#: Bytes of a result that goes by a request of its own, for the first tasks; the others' are small.
BIG, BIG_TASKS = 1_000_000, 4

WORKER = """\
#!/bin/sh
echo "$1 $PEXEC_HOST" >> {folder}/runs
until [ -e {folder}/go ]; do sleep 0.05; done
if [ $1 -le {tasks} ]; then head -c {size} /dev/zero; fi | tr '\\000' x > field.txt
echo "$1" >> field.txt
echo "$(($1 * 2))"
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


class FieldWork(Work):
    """A job with results of two kinds: those that go in exchanges, and uploads."""

    def __init__(self, path: Path, lab: Lab, hosts: list[Sshd], tasks: int, more: str = "") -> None:
        super().__init__(path, lab, hosts, tasks, more)
        job = self.job.path / "job.ini"
        sections = "[result]\noutput = stdout\nfield = field.txt\n[collect]\nfield = concat fields"
        job.write_text(job.read_text().replace("[collect]", sections))
        worker = WORKER.format(folder=self.folder, tasks=BIG_TASKS, size=BIG)
        (self.job.path / "work.sh").write_text(worker)

    def finish(self, process: subprocess.Popen[str]) -> str:
        """To the end. Tasks in doubt may run twice, their results count once."""
        self.go()
        printed = self.job.finish(process)
        self.check(printed)
        self.check_fields()
        return printed

    def check_fields(self) -> None:
        """All results, of both kinds, are there once and in order."""
        lines = [f"{n}|{2 * n}" for n in range(1, self.tasks + 1)]
        assert self.job.lines("results.txt") == ["n|output", *lines]
        fields = self.job.lines("fields")
        assert [line.strip("x") for line in fields] == [str(n) for n in range(1, self.tasks + 1)]
        assert [len(line) for line in fields[:BIG_TASKS]] == [BIG + 1] * BIG_TASKS
        numbers = self.job.statistics()
        adds_up(numbers)
        assert "Traceback" not in (self.job.state / "log" / "master.log").read_text()
        # tickets in doubt, at most: nothing failed
        assert numbers["done"] == self.tasks
        assert (
            numbers["ends"]["done"] + numbers["ends"]["lost"] + numbers["ends"]["cancelled"]
            == (numbers["tickets"])
        )

    def arriving(self) -> bool:
        """Whether some of an upload has come, and more is to come."""
        sizes = [path.stat().st_size for path in self.job.state.rglob("*") if path.is_file()]
        return any(BIG // 20 < size < BIG // 2 for size in sizes)


def log_says(work: Work, words: str, host: int = 0, times: int = 1) -> None:
    """Wait until the log says something of a host."""
    what = f"{work.names[host]}: "

    def said() -> bool:
        lines = (work.job.state / "log" / "master.log").read_text().splitlines()
        return len([1 for line in lines if what in line and words in line]) >= times

    wait_until(said, work.job.log)


def hosts_of(lab: Lab, computers: list[Computer], extra: str = "") -> list[Sshd]:
    return [
        lab.sshd(each.address, port=2222, within=each.command(), extra=extra) for each in computers
    ]


@pytest.mark.parametrize("seconds", [float(word) for word in TOLD or ["0"]])
@pytest.mark.parametrize("extra", [SOCKET, PORT] if TOLD else [SOCKET])
def test_a_cut_amid_uploads(
    tmp_path: Path, lab: Lab, network: Network, extra: str, seconds: float
) -> None:
    master, *computers = (network.computer() for _ in range(3))
    hosts = hosts_of(lab, computers, extra)
    work = FieldWork(tmp_path / "job", lab, hosts, 10)
    job = work.job.path / "job.ini"
    # a client that is not back when the run ends hears of nothing: it leaves when that is over
    patience = f"ping = 1\npatience = {seconds + 60:.0f}"
    job.write_text(job.read_text().replace("ping = 1", patience))
    process = work.start(4, *master.command(*PEXECD, "run", "job.ini"))
    for computer in computers:
        computer.slow("4mbit")
    work.go()
    wait_until(work.arriving, work.job.log)
    with master.cut("blackhole"):
        for number in range(len(hosts)):
            log_says(work, "no sign of life", number)
            log_says(work, "no connection to", number)
        time.sleep(seconds)  # the very thing that is tried
    mended = time.monotonic()
    work.finish(process)
    print(f"{time.monotonic() - mended:.1f} s from a mended cable to the end of the run")


@pytest.mark.parametrize("extra", [SOCKET, PORT] if TOLD else [PORT])
def test_an_sshd_that_is_stopped(tmp_path: Path, lab: Lab, extra: str) -> None:
    host = lab.sshd("127.0.0.56", extra=extra)
    work = FieldWork(tmp_path / "job", lab, [host], 6)
    process = work.start(2)
    stopped = children(host.process.pid)
    frozen = [pid for pid in stopped if b"sshd" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert frozen
    try:
        for pid in [host.process.pid, *frozen]:
            os.kill(pid, signal.SIGSTOP)
        work.go()
        log_says(work, "no sign of life")
        # connections are possible again; the old one is there still, and says nothing
        os.kill(host.process.pid, signal.SIGCONT)
        again = time.monotonic()
        work.finish(process)
        print(f"{time.monotonic() - again:.1f} s from an sshd that goes on to the end of the run")
    finally:
        for pid in frozen:
            end_process(pid)


def test_a_cut_for_ever(tmp_path: Path, lab: Lab, network: Network) -> None:
    """The other host does the work, the run ends, and nothing goes on behind the cut."""
    master, *computers = (network.computer() for _ in range(3))
    hosts = hosts_of(lab, computers)
    work = FieldWork(tmp_path / "job", lab, hosts, 8)
    job = work.job.path / "job.ini"
    job.write_text(job.read_text().replace("ping = 1", "ping = 1\npatience = 5"))
    process = work.start(4, *master.command(*PEXECD, "run", "job.ini"))
    with computers[0].cut("blackhole"):
        log_says(work, "no connection to")
        # in doubt, then done by the other one
        wait_until(lambda: work.job.statistics()["pending"] == 6, work.job.log)
        work.go()
        begun = time.monotonic()
        printed = work.job.finish(process)
        print(f"{time.monotonic() - begun:.1f} s to the end of the run")
        left = hosts[0].user

        def at_work() -> list[int]:
            return [pid for pid in left.processes() if not is_of_sshd(pid)]

        wait_until(lambda: not at_work(), lambda: f"behind the cut go on: {at_work()}")
        print(f"{time.monotonic() - begun:.1f} s to the end of all behind the cut")
    work.check_fields()
    work.assert_secret_is_kept(printed)
    assert f"{work.names[0]}: no connection to" in printed
    numbers = work.job.statistics()
    assert numbers["hosts"][work.names[1]]["done"] == 8
    assert numbers["hosts"][work.names[0]]["lost"] == 2


def test_the_only_host_is_cut_off_for_ever(tmp_path: Path, lab: Lab, network: Network) -> None:
    master, computer = network.computer(), network.computer()
    work = FieldWork(tmp_path / "job", lab, hosts_of(lab, [computer]), 4, "give_up = 8")
    process = work.start(2, *master.command(*PEXECD, "run", "job.ini"))
    with computer.cut("blackhole"):
        begun = time.monotonic()
        printed = work.job.finish(process, expect=3)
        print(f"{time.monotonic() - begun:.1f} s to the end of the run")
    assert "no connection to" in printed
    # the same command goes on where it stopped, with the client that is still there
    job = work.job.path / "job.ini"
    job.write_text(job.read_text().replace("give_up = 8", ""))
    work.finish(work.job.start(*master.command(*PEXECD, "run", "job.ini")))


def is_of_sshd(pid: int) -> bool:
    try:
        return b"sshd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return True

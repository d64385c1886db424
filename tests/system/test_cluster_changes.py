"""Hosts are added, removed and changed while their job runs: real sshd, real clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import JobFolder, adds_up
from tests.system.sshd import Lab, Sshd, free_port
from tests.waiting import wait_until

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
duplicates = 1
[worker]
name = work
command = work $n
executable = work.sh
[collect]
output = table results.txt
[client]
ping = 1
[ssh]
config = ssh_config
"""

#: Says where it runs, and waits for leave; the slot tells one client's workers from another's.
WORKER = """\
#!/bin/sh
touch {folder}/$PEXEC_HOST.$1
until [ -e {folder}/go ] || [ -e {folder}/go.$PEXEC_HOST ]; do sleep 0.05; done
echo "$(($1 * 2))"
"""

TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "pexecd"]
TASKS = 30


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


class Play:
    """A job on some hosts, of which the cluster file names the first at first."""

    def __init__(
        self, path: Path, lab: Lab, hosts: list[Sshd], lines: list[str], more: str = ""
    ) -> None:
        self.folder = lab.folder / "begun"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.job = JobFolder(
            path,
            JOB.replace("[worker]", f"{more}[worker]"),
            ["n", *map(str, range(1, TASKS + 1))],
            {"lab.hosts": "\n".join(lines) + "\n", "work.sh": WORKER.format(folder=self.folder)},
        )
        lab.ssh_config(*hosts).rename(self.job.path / "ssh_config")

    def write(self, *lines: str) -> None:
        """Change the cluster file, as editors do: a new one in its place."""
        new = self.job.path / "lab.hosts.new"
        new.write_text("\n".join(lines) + "\n")
        new.rename(self.job.path / "lab.hosts")

    def begun(self, host: Sshd) -> int:
        """How many workers have begun on a host."""
        return sum(name.startswith(f"{host.address}.") for name in os.listdir(self.folder))

    def until_begun(self, host: Sshd, number: int) -> None:
        wait_until(
            lambda: self.begun(host) == number, lambda: f"{self.begun(host)}\n{self.job.log()}"
        )

    def until_logged(self, text: str) -> None:
        wait_until(lambda: text in self.job.log(), self.job.log)

    def go(self, host: Sshd | None = None) -> None:
        (self.folder / (f"go.{host.address}" if host else "go")).touch()

    def finish(self, process: subprocess.Popen[str]) -> dict[str, dict[str, object]]:
        self.go()
        self.printed = self.job.finish(process)
        table = self.job.lines("results.txt")
        assert table == ["n|output", *(f"{n}|{2 * n}" for n in range(1, TASKS + 1))]
        numbers = self.job.statistics()
        adds_up(numbers)
        assert numbers["ends"]["lost"] == 0
        hosts: dict[str, dict[str, object]] = numbers["hosts"]
        return hosts


def client_of(host: Sshd) -> list[int]:
    found = []
    for pid in host.user.processes():
        try:
            if b"pexec_client" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def finish_without(gone: Sshd, second: Sshd, play: Play, process: subprocess.Popen[str]) -> None:
    """The two that run on a host that is one no more are finished; no further one begins there."""
    play.until_logged(f"{gone.address}: not in the cluster file any more")
    assert client_of(gone)
    play.go(gone)
    wait_until(lambda: not client_of(gone), play.job.log)
    assert play.begun(gone) == 2
    hosts = play.finish(process)
    assert (hosts[gone.address]["done"], hosts[second.address]["done"]) == (2, TASKS - 2)
    assert hosts[gone.address]["status"] == "removed"


def test_added_removed_and_broken(tmp_path: Path, lab: Lab) -> None:
    first, second = (lab.sshd(f"127.0.0.{n}") for n in (91, 92))
    play = Play(tmp_path / "job", lab, [first, second], [f"2/{first.address}"])
    process = play.job.start()
    play.until_begun(first, 2)

    play.write(f"2/{first.address}", f"2/{second.address} slot=3")
    file = play.job.path / "lab.hosts"
    play.until_logged(f"{file}:2: unknown key 'slot'")
    play.write(f"2/{first.address}", f"3/{second.address}")
    play.until_begun(second, 3)

    play.write(f"3/{second.address}")
    finish_without(first, second, play, process)
    assert "did you mean" in play.printed
    assert "the hosts stay as they were" in play.printed
    left = [path.name for path in first.home.rglob("*") if "pexec" in path.name]
    assert left == []


def test_changed_and_back_again(tmp_path: Path, lab: Lab) -> None:
    host = lab.sshd("127.0.0.93")
    play = Play(tmp_path / "job", lab, [host], [f"1/{host.address}"])
    process = play.job.start(*TWISTD, "--job", "job.ini")
    play.until_begun(host, 1)
    (before,) = client_of(host)

    play.write(f"4/{host.address}")
    process.send_signal(signal.SIGHUP)
    play.until_logged(f"{host.address}: its client ends when its workers have")
    play.go(host)
    wait_until(lambda: before not in client_of(host), play.job.log)
    (play.folder / f"go.{host.address}").unlink()
    wait_until(lambda: play.begun(host) >= 5, play.job.log)
    (after,) = client_of(host)

    play.write(f":  start=no dir={tmp_path}/here")
    process.send_signal(signal.SIGHUP)
    play.until_logged(f"{host.address}: not in the cluster file any more")
    play.write(f"2/{host.address}")
    process.send_signal(signal.SIGHUP)
    play.until_logged(f"{host.address}: new in the cluster file")
    hosts = play.finish(process)

    assert after not in client_of(host)
    assert hosts[host.address]["done"] == TASKS
    assert json.loads((play.job.state / "statistics.json").read_text())["done"] == TASKS


def test_clients_here_come_and_go_too(tmp_path: Path, lab: Lab) -> None:
    host = lab.sshd("127.0.0.94")
    play = Play(tmp_path / "job", lab, [host], ["2/:"])
    process = play.job.start()
    wait_until(lambda: len(os.listdir(play.folder)) == 2, play.job.log)
    play.write("3/:", f"1/{host.address}")
    play.until_logged("this computer: its client ends when its workers have")
    play.until_begun(host, 1)
    (play.folder / "go.:").touch()
    play.until_logged("this computer: client ended: exit status 0")
    (play.folder / "go.:").unlink()
    wait_until(lambda: play.job.log().count("this computer: client started") == 2, play.job.log)
    hosts = play.finish(process)
    assert hosts[":"]["failed"] == 0
    play.job.assert_nothing_left()


def test_removed_while_no_master_was_there(tmp_path: Path, lab: Lab) -> None:
    first, second = (lab.sshd(f"127.0.0.{n}") for n in (95, 96))
    # Without a tunnel: who is no host any more has no way to the master through SSH.
    listen = f"listen = ssl:{free_port('127.0.0.1')}\n"
    play = Play(tmp_path / "job", lab, [first, second], [f"2/{first.address}"], listen)
    process = play.job.start()
    play.until_begun(first, 2)
    process.kill()
    process.communicate()

    # Twice: the next master but one knows it, too.
    play.write(f"2/{second.address}")
    process = play.job.start()
    play.until_begun(second, 2)
    process.kill()
    process.communicate()
    process = play.job.start()
    finish_without(first, second, play, process)


def test_changed_while_no_master_was_there(tmp_path: Path, lab: Lab) -> None:
    host = lab.sshd("127.0.0.97")
    play = Play(tmp_path / "job", lab, [host], [f"1/{host.address}", "1/:  start=no"])
    process = play.job.start()
    play.until_begun(host, 1)
    (before,) = client_of(host)
    process.kill()
    process.communicate()

    play.write("1/:  start=no", f"4/{host.address}")
    process = play.job.start()
    play.until_logged(f"{host.address}: its client ends when its workers have")
    assert client_of(host) == [before]
    play.go(host)
    wait_until(lambda: before not in client_of(host), play.job.log)
    (play.folder / f"go.{host.address}").unlink()
    play.until_begun(host, 5)
    hosts = play.finish(process)
    assert hosts[host.address]["done"] == TASKS
    assert ":: its client ends" not in play.job.log()

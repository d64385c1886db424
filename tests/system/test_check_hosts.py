"""``pexecd check --hosts``: a line for each host, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pexecd.summary import size
from tests.system.running import PEXECD, JobFolder
from tests.system.sshd import Lab, Sshd, free_port
from tests.system.test_shared_home import own_host
from tests.waiting import wait_until

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
[worker]
name = work
command = work $n
executable.linux-x86_64 = work.sh
executable.linux-aarch64 = work.sh
[ssh]
config = ssh_config
"""


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")  # each host has a /tmp of its own
    with Lab() as lab:
        yield lab


@pytest.fixture
def mounts(lab: Lab) -> Iterator[list[Path]]:
    found: list[Path] = []
    yield found
    for path in found:
        subprocess.run(["umount", "--lazy", path], check=True)


def make_job(path: Path, lab: Lab, lines: list[str], *hosts: Sshd) -> JobFolder:
    files = {"lab.hosts": "\n".join(lines) + "\n", "work.sh": "#!/bin/sh\n"}
    job = JobFolder(path, JOB, ["n", "1"], files)
    lab.ssh_config(*hosts).rename(job.path / "ssh_config")
    return job


def check(job: JobFolder, *arguments: str, expect: int = 0) -> str:
    return job.finish(job.start(*PEXECD, "check", "job.ini", "--hosts", *arguments), expect)


def mounted(lab: Lab, mounts: list[Path], host: Sshd, options: str) -> str:
    path = lab.folder / f"mount-{len(mounts)}"
    path.mkdir()
    owner = f"{options},uid={host.user.uid},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "tmpfs", path], check=True)
    mounts.append(path)
    return f"{host.address} dir={path}/pexecd"


def test_every_host_has_a_line(tmp_path: Path, lab: Lab, mounts: list[Path]) -> None:
    shared = lab.add_user()
    home = [
        lab.sshd(f"127.0.0.{81 + number}", user=shared, within=own_host(f"home{number}"))
        for number in range(2)
    ]
    csh = lab.sshd("127.0.0.83", shell="/bin/tcsh")
    (csh.home / ".cshrc").write_text("echo Welcome!\nset prompt='%n'\n")
    fish = lab.sshd("127.0.0.84", shell="/usr/bin/fish")
    noisy = lab.sshd("127.0.0.85")
    (noisy.home / ".bashrc").write_text("echo Welcome; echo to this machine >&2\n")
    no_python = lab.sshd("127.0.0.86")
    commands = lab.folder / "no-python"
    commands.mkdir()
    for name in ("sh", "mkdir", "bash"):
        (commands / name).symlink_to(f"/bin/{name}")
    (no_python.home / ".bashrc").write_text(f"export PATH={commands}\n")
    disk = lab.sshd("127.0.0.87")
    other = lab.sshd("127.0.0.88")
    hosts = [*home, csh, fish, noisy, no_python, disk, other]
    refused = f"127.0.0.89:{free_port('127.0.0.89')}"
    lines = [
        *(host.address for host in home),
        f"{csh.address} shared=us",
        f"7/{fish.address} shared=us",
        noisy.address,
        no_python.address,
        mounted(lab, mounts, disk, "size=4k"),
        # the same host by other names, for what else may be wrong with a folder
        mounted(lab, mounts, disk, "ro").replace("127.", f"{disk.login}@127."),
        mounted(lab, mounts, disk, "noexec").replace(
            f"{disk.address}", f"{disk.address}:{disk.port}"
        ),
        f"{other.address} platform=linux-riscv64",
        refused,
        "127.0.0.90 start=no",
        ":",
    ]
    job = make_job(tmp_path / "job", lab, lines, *hosts)
    before = {host: left_by_us(host.home) for host in hosts}

    printed = check(job)

    words = [line.split(maxsplit=1) for line in printed.partition("Hosts:\n")[2].splitlines()]
    said = [line[1] for line in words]
    assert [line[0] for line in words[:3]] == [home[0].address, home[1].address, csh.address]
    ready = f"ready: linux-{os.uname().machine}, Python 3."
    assert said[0].startswith(ready)
    assert said[0].endswith(f"free, the same folder as {home[1].address}")
    assert said[1].endswith(f"free, the same folder as {home[0].address}")
    assert said[2].startswith(ready)
    assert said[2].endswith("free")
    assert said[3] == f"shared=us, but its folder is not that of {fish.address}"
    assert said[4].startswith(ready)
    assert " 7 slots," in said[4]
    assert said[5] == f"shared=us, but its folder is not that of {csh.address}"
    assert said[6].startswith(ready)
    assert said[7].startswith("unusable: no usable Python: none of these is Python 3.6 or newer")
    assert "its disk is full" in said[8]
    assert "No space left on device; make room there, or name another folder" in said[8]
    assert "on a read-only file system" in said[9]
    assert "have it mounted for writing" in said[9]
    assert "(a noexec mount?)" in said[10]
    assert "on another file system by dir=" in said[10]
    assert "no worker for its platform: linux-riscv64" in said[11]
    assert "connection refused" in said[12]
    assert said[13] == "by hand: you start its client (start=no)"
    assert ready in printed.splitlines()[-2].replace("this computer", "")
    assert printed.splitlines()[-1].startswith("6 of 12 hosts can be used, with ")
    assert {host: left_by_us(host.home) for host in hosts} == before
    assert [path for mount in mounts for path in mount.iterdir()] == []
    assert not job.state.exists()
    job.assert_nothing_left()


def left_by_us(home: Path) -> list[str]:
    """All but what fish makes."""
    paths = (str(path.relative_to(home)) for path in home.rglob("*"))
    return sorted(path for path in paths if not path.startswith((".config", ".local")))


def test_json_and_no_host_of_use(tmp_path: Path, lab: Lab) -> None:
    refused = f"127.0.0.89:{free_port('127.0.0.89')}"
    job = make_job(tmp_path / "job", lab, [refused])
    report = json.loads(check(job, "--json", expect=3))
    (host,) = report["hosts"]
    assert (host["host"], host["status"], host["shares_with"]) == (refused, "unusable", [])
    assert "refused" in host["reason"]
    assert "0 of 1 hosts can be used, with 0 slots." in check(job, expect=3)


def test_mistakes_come_first(tmp_path: Path, lab: Lab) -> None:
    job = make_job(tmp_path / "job", lab, ["127.0.0.89 slots=many"])
    assert "lab.hosts:1: 'many' slots" in check(job, expect=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_nothing_is_left_on_those_that_answered(
    tmp_path: Path, lab: Lab, number: signal.Signals
) -> None:
    host = lab.sshd("127.0.0.82")
    with socket.create_server(("127.0.0.89", 0)) as silent:  # it never says a word
        lines = [host.address, f"127.0.0.89:{silent.getsockname()[1]}"]
        job = make_job(tmp_path / "job", lab, lines, host)
        process = job.start(*PEXECD, "check", "job.ini", "--hosts")
        folder = host.home / ".cache" / "pexecd"
        wait_until(lambda: folder.is_dir() and os.listdir(folder))
        os.kill(process.pid, number)
        assert "interrupted" in job.finish(process, 130)
    assert left_by_us(host.home) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9_949_999, "9.9 MB"),
        (9_950_000, "10 MB"),
        (999_600_000, "1.0 GB"),
        (84_000_000_000, "84 GB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert size(number) == text


@pytest.fixture
def session_scope() -> Iterator[Path]:
    """A control group with the name of a logind session's."""
    root = next(
        (
            path
            for path in map(Path, ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup"))
            if (path / "cgroup.procs").exists()
        ),
        None,
    )
    if root is None:
        pytest.skip("no control groups to make here")
    outer = root / f"pexecd-test-{os.getpid()}"
    scope = outer / "session-7.scope"
    scope.mkdir(parents=True)
    yield scope
    wait_until(lambda: not (scope / "cgroup.procs").read_text())
    scope.rmdir()
    outer.rmdir()


def test_a_host_whose_logind_ends_clients(tmp_path: Path, session_scope: Path) -> None:
    with Lab() as lab:  # it must end before the control group goes
        settings = lab.folder / "systemd"
        settings.mkdir()
        (settings / "logind.conf").write_text("[Login]\nKillUserProcesses=yes\n")
        script = (
            f"mount --bind {settings} /etc/systemd && echo $$ > {session_scope}/cgroup.procs && "
            'exec "$@"'
        )
        within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        host = lab.sshd("127.0.0.95", within=within)
        job = make_job(tmp_path / "job", lab, [host.address], host)
        printed = check(job)
        assert "ready: " in printed
        assert "but logind there ends a client when its SSH connection does" in printed
        assert "KillExcludeUsers=" in printed

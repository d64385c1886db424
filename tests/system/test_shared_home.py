"""Several hosts with one home: one copy of the client, one of the worker, nothing taken away.

Each host is an sshd in a UTS namespace of its own (its name) and a mount namespace of its own (its
``/tmp``, with the lock of the one client); one Unix user has one home on all. Another host shares
nothing with them. A real NFS mount would need a kernel with nfs and nfsd.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.running import JobFolder, adds_up
from tests.system.sshd import Lab, Sshd, User
from tests.waiting import wait_until

#: How often the job is run; the full measure is 20.
RUNS = int(os.environ.get("PEXECD_SHARED_RUNS", "2"))

ADDRESSES = ("127.0.0.51", "127.0.0.52", "127.0.0.53")
APART = "127.0.0.54"

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
delete_worker = yes
delete_client = yes
[ssh]
config = ssh_config
"""

#: Nobody ends before every host has begun, and the test says so.
WORKER = """\
#!/bin/sh
touch {folder}/$PEXEC_HOST
until [ -e {folder}/go ]; do sleep 0.05; done
cmp "$0" "$(command -v work)" || exit 7
echo "$(($1 * 2))"
"""


def own_host(name: str) -> list[str]:
    """What leads into a host of that name with a /tmp of its own."""
    script = f'hostname {name} && mount -t tmpfs -o mode=1777 tmpfs /tmp && exec "$@"'
    return ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")  # each host has a /tmp of its own
    with Lab() as lab:
        yield lab


def clients(user: User, host: Sshd) -> list[int]:
    """The clients that run on one of the hosts of a user."""

    def place(pid: int) -> str:
        try:
            if b"pexec_client" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return ""
            return os.readlink(f"/proc/{pid}/ns/uts")
        except OSError:
            return ""

    here = os.readlink(f"/proc/{host.process.pid}/ns/uts")
    return [pid for pid in user.processes() if place(pid) == here]


def test_three_hosts_in_one_home(tmp_path: Path, lab: Lab) -> None:
    user = lab.add_user()
    hosts = [
        lab.sshd(address, user=user, within=own_host(f"shared{number}"))
        for number, address in enumerate(ADDRESSES)
    ]
    hosts.append(lab.sshd(APART))
    for number in range(RUNS):
        one_run(tmp_path / str(number), lab, user, hosts, end_one=number % 2 == 0)


def one_run(path: Path, lab: Lab, user: User, hosts: list[Sshd], *, end_one: bool) -> None:
    begun = lab.folder / f"begun-{path.name}"
    begun.mkdir()
    begun.chmod(0o777)
    names = [f"{host.login}@{host.address}:{host.port}" for host in hosts]
    job = JobFolder(
        path,
        JOB,
        ["n", *map(str, range(1, 41))],
        {
            "lab.hosts": "".join(f"2/{name}\n" for name in names),
            "work.sh": WORKER.format(folder=begun),
        },
    )
    lab.ssh_config(*hosts).rename(job.path / "ssh_config")
    process = job.start()
    wait_until(lambda: set(os.listdir(begun)) == set(names), job.log)
    if end_one:
        # It cleans up as it is told to: the others must not notice.
        (victim,) = clients(user, hosts[0])
        os.kill(victim, signal.SIGTERM)
        wait_until(lambda: not clients(user, hosts[0]), job.log)
    (begun / "go").touch()
    job.finish(process)
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{2 * n}" for n in range(1, 41))]
    log = (job.state / "log" / "master.log").read_text()
    assert log.count(": client copied") == 2, log
    assert log.count(": worker fetched") == 2, log
    assert log.count(f"{names[-1]}: client copied") == 1, log
    assert "set aside" not in log
    numbers = job.statistics()
    adds_up(numbers)
    ends = numbers["ends"]
    failures = job.state / "log" / "failures.log"
    costly = (ends["failed"], ends["invalid"], ends["timed out"], ends["lost"])
    assert costly == (0, 0, 0, 0), failures.read_text()
    assert all(numbers["hosts"][name]["done"] for name in names[1:])
    wait_until(lambda: not any(clients(user, host) for host in hosts), lambda: "clients are left")
    left = [str(path) for path in user.home.rglob("*")]
    assert not left

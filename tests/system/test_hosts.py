"""Whole jobs on several hosts: real sshd, each for a Unix user and home of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.conftest import find_python
from tests.system.running import JobFolder, adds_up
from tests.system.sshd import Lab, Sshd, end_process, free_port
from tests.waiting import wait_until

ADDRESSES = ("127.0.0.21", "127.0.0.22", "127.0.0.23")

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
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

#: Waits until every host has begun one, so that no host can do all the work alone.
WORKER = """\
#!/bin/sh
touch {folder}/$PEXEC_HOST
until [ "$(ls {folder} | wc -l)" -ge {hosts} ]; do sleep 0.05; done
echo "$(($1 * 2))"
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def make_job(
    tmp_path: Path, lab: Lab, hosts: list[Sshd], more: str = "", text: str = JOB
) -> JobFolder:
    begun = lab.folder / "begun"  # where the hosts' users may write, which tmp_path is not
    begun.mkdir()
    begun.chmod(0o777)
    lines = [f"2/{host.user.name}@{host.address}:{host.port}" for host in hosts if host.user]
    job = JobFolder(
        tmp_path / "job",
        text,
        ["n", *map(str, range(1, 41))],
        {
            "lab.hosts": "\n".join(lines) + "\n" + more,
            "work.sh": WORKER.format(folder=begun, hosts=len(hosts)),
        },
    )
    lab.ssh_config(*hosts).rename(job.path / "ssh_config")
    return job


def results() -> list[str]:
    return ["n|output", *(f"{n}|{2 * n}" for n in range(1, 41))]


def test_three_hosts_share_the_work_and_one_that_refuses_is_named(tmp_path: Path, lab: Lab) -> None:
    hosts = [lab.sshd(address, user=True) for address in ADDRESSES]
    refused = f"127.0.0.24:{free_port('127.0.0.24')}"
    job = make_job(tmp_path, lab, hosts, refused + "\n")
    printed = job.run()
    assert job.lines("results.txt") == results()
    assert "refused" in printed
    numbers = job.statistics()
    adds_up(numbers)
    by_host = numbers["hosts"]
    assert len(by_host) == 4
    assert all(by_host[name]["done"] for name in by_host if name != refused)
    assert by_host[refused]["done"] == 0
    assert "refused" in by_host[refused]["reason"]
    for host in hosts:
        assert host.user is not None
        user = host.user
        wait_until(
            lambda user=user: not [pid for pid in user.processes() if not is_sshd(pid)],  # type: ignore[misc]
            lambda: "processes are left on a host",
        )
        left = {str(path.relative_to(host.home)) for path in host.home.rglob("*")}
        assert not [name for name in left if "pexec" in name], left
        assert not list(Path("/tmp").glob(f"pexec-{user.uid}/*"))


def is_client(pid: int) -> bool:
    try:
        return b"pexec_client" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended, as sessions of sshd do any time
        return False


def is_sshd(pid: int) -> bool:
    try:
        return b"sshd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def test_what_the_settings_keep_is_kept_and_used_again(tmp_path: Path, lab: Lab) -> None:
    host = lab.sshd(ADDRESSES[0], user=True)
    keep = JOB.replace("[client]\n", "[client]\ndelete_client = no\ndelete_worker = no\n")
    job = make_job(tmp_path, lab, [host], text=keep)
    job.run()
    copies = list(host.home.rglob("pexec_client-*.py"))
    assert len(copies) == 1
    assert list(host.home.rglob("worker/*/work"))
    when = copies[0].stat().st_mtime_ns
    job.run("--fresh")
    assert job.lines("results.txt") == results()
    assert list(host.home.rglob("pexec_client-*.py")) == copies
    assert copies[0].stat().st_mtime_ns == when


def test_a_host_whose_client_is_killed_goes_on(tmp_path: Path, lab: Lab) -> None:
    hosts = [lab.sshd(address, user=True) for address in ADDRESSES[:2]]
    job = make_job(tmp_path, lab, hosts)
    (job.path / "work.sh").write_text(
        WORKER.format(folder=lab.folder / "begun", hosts=3)  # nobody ends before the test says so
    )
    process = job.start()
    wait_until(lambda: len(os.listdir(lab.folder / "begun")) == 2, job.log)
    victim = hosts[0].user
    assert victim is not None
    clients = [pid for pid in victim.processes() if is_client(pid)]
    assert clients
    for pid in clients:
        end_process(pid)
    started = f"{victim.name}@{hosts[0].address}:{hosts[0].port}: client started"
    wait_until(lambda: job.log().count(started) == 2, job.log)
    (lab.folder / "begun" / "go").touch()
    job.finish(process)
    assert job.lines("results.txt") == results()
    numbers = job.statistics()
    adds_up(numbers)
    assert numbers["ends"]["lost"] >= 1


def test_the_work_of_a_host_that_dies_goes_to_the_others(tmp_path: Path, lab: Lab) -> None:
    hosts = [lab.sshd(address, user=True) for address in ADDRESSES[:2]]
    alone = JOB.replace("[worker]", "duplicates = 1\n[worker]", 1)  # no copies before it is missed
    job = make_job(tmp_path, lab, hosts, text=alone)
    (job.path / "work.sh").write_text(
        WORKER.format(folder=lab.folder / "begun", hosts=3)  # nobody ends before the test says so
    )
    process = job.start()
    wait_until(lambda: len(os.listdir(lab.folder / "begun")) == 2, job.log)
    dead, victim = hosts[0], hosts[0].user
    assert victim is not None
    dead.stop()
    for pid in victim.processes():
        end_process(pid)
    (lab.folder / "begun" / "go").touch()
    printed = job.finish(process)
    name = f"{victim.name}@{dead.address}:{dead.port}"
    assert f"{name}: nothing was heard of its client" in printed
    assert job.lines("results.txt") == results()
    numbers = job.statistics()
    adds_up(numbers)
    assert numbers["hosts"][name]["lost"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=16k", "No space"),
        ("size=1M,ro", "on a read-only file system"),
        ("size=1M,noexec", "a noexec mount?"),
    ],
    ids=["full", "ro", "noexec"],
)
def test_a_host_whose_folder_is_of_no_use_is_named_and_the_others_do_the_work(
    tmp_path: Path, lab: Lab, options: str, words: str
) -> None:
    good, bad = (lab.sshd(address, user=True) for address in ADDRESSES[:2])
    assert bad.user is not None
    small = lab.folder / "small"
    small.mkdir()
    owner = f"{options},uid={bad.user.uid},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "tmpfs", small], check=True)
    try:
        name = f"{bad.user.name}@{bad.address}:{bad.port}"
        job = make_job(tmp_path, lab, [good], f"{name} dir={small}/pexecd\n")
        lab.ssh_config(good, bad).rename(job.path / "ssh_config")
        (job.path / "work.sh").write_text(
            WORKER.format(folder=lab.folder / "begun", hosts=2)  # nobody ends before it is named
        )
        process = job.start()
        wait_until(lambda: words in job.log(), job.log)
        (lab.folder / "begun" / "go").touch()
        printed = job.finish(process)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
    assert job.lines("results.txt") == results()
    reason = job.statistics()["hosts"][name]["reason"]
    assert words in reason
    assert reason in printed


def test_tasks_that_fill_the_disk_of_a_host_are_done_elsewhere(tmp_path: Path, lab: Lab) -> None:
    good, bad = (lab.sshd(address, user=True) for address in ADDRESSES[:2])
    assert bad.user is not None
    small = lab.folder / "small"
    small.mkdir()
    owner = f"size=1M,uid={bad.user.uid},mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "tmpfs", small], check=True)
    try:
        name = f"{bad.user.name}@{bad.address}:{bad.port}"
        job = make_job(
            tmp_path,
            lab,
            [good],
            f"1/{name} dir={small}/pexecd\n",
            JOB.replace("[client]\n", "[result]\noutput = stdout\nfield = field.bin\n[client]\n"),
        )
        lab.ssh_config(good, bad).rename(job.path / "ssh_config")
        (job.path / "work.sh").write_text(
            WORKER.format(folder=lab.folder / "begun", hosts=2)
            + "head -c 2000000 /dev/zero > field.bin\nexit 0\n"  # it notices nothing
        )
        job.run()
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
    assert job.lines("results.txt") == results()
    numbers = job.statistics()
    adds_up(numbers)
    assert numbers["hosts"][name]["done"] == 0
    assert numbers["hosts"][name]["failed"] >= 1
    assert "no space left" in (job.state / "log" / "failures.log").read_text()


def test_no_usable_host_at_all_ends_the_run_with_status_3(tmp_path: Path, lab: Lab) -> None:
    host = lab.sshd(ADDRESSES[0], user=True)
    job = make_job(tmp_path, lab, [host])
    known = lab.ssh_config(host, known_hosts="")
    known.rename(job.path / "ssh_config")
    printed = job.run(expect=3)
    assert "host key" in printed
    adds_up(job.statistics())
    assert not list(host.home.rglob("*pexec*"))
    job.assert_nothing_left()


def test_give_up_ends_a_run_without_hosts(tmp_path: Path, lab: Lab) -> None:
    refused = f"127.0.0.24:{free_port('127.0.0.24')}"
    job = JobFolder(
        tmp_path / "job",
        JOB.replace("[worker]", "give_up = 3\n[worker]").partition("[ssh]")[0],
        ["n", "1"],
        {"lab.hosts": refused + "\n", "work.sh": "#!/bin/sh\n"},
    )
    printed = job.run(expect=3)
    assert "refused" in printed


PYTHONS = {"3.6": "3.6.15", "3.8": "3.8.18", "3.11": "3.11.7", "3.13": "3.13.0"}

#: What ends in every way there is, with results of every kind.
MIXED_JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
timeout = 2
attempts = 1
[worker]
name = work
command = work $n
executable = work.sh
[result]
output = stdout
said = stderr
big = big.txt
[collect]
output = table results.txt
said = table said.txt
big = concat big.txt
failed = failed.txt
[client]
ping = 1
[ssh]
config = ssh_config
"""

MIXED_WORKER = """\
#!/bin/sh
case $1 in
bad) echo "it is bad" >&2; exit 7;;
slow) sleep 600;;
esac
echo "said $1" >&2
head -c 2000000 /dev/zero | tr '\\000' x > big.txt
echo "$1" >> big.txt
readlink /proc/$PPID/exe
"""


def test_clients_of_many_pythons_over_ssh(tmp_path: Path, lab: Lab) -> None:
    """Jobs side by side, each on a host whose Python is another."""
    tasks = ["bad", "slow", *map(str, range(1, 7))]
    running = []
    with contextlib.ExitStack() as mounts:
        for number, (short, exact) in enumerate(PYTHONS.items()):
            # where the hosts' users may look, which the home of who runs the tests is not
            place = lab.folder / f"python-{short}"
            place.mkdir()
            prefix = Path(find_python(short, exact)).resolve().parents[1]
            subprocess.run(["mount", "--bind", prefix, place], check=True)
            mounts.callback(subprocess.check_call, ["umount", "--lazy", place])
            host = lab.sshd(f"127.0.0.{61 + number}")
            program = place / "bin" / f"python{short}"
            start = lab.folder / f"start-{short}"  # its library, too, is said to be in that home
            start.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={place}/lib exec {program} "$@"\n')
            start.chmod(0o755)
            line = f"2/{host.login}@{host.address}:{host.port} python={start}\n"
            files = {"lab.hosts": line, "work.sh": MIXED_WORKER}
            job = JobFolder(tmp_path / short, MIXED_JOB, ["n", *tasks], files)
            lab.ssh_config(host).rename(job.path / "ssh_config")
            running.append((job, job.start(), program))
        for job, process, program in running:
            job.finish(process, expect=1)
            assert job.lines("results.txt") == ["n|output", *(f"{n}|{program}" for n in tasks[2:])]
            assert job.lines("said.txt") == ["n|said", *(f"{n}|said {n}" for n in tasks[2:])]
            assert job.lines("big.txt") == ["x" * 2_000_000 + n for n in tasks[2:]]
            failed = (job.path / "failed.txt").read_text()
            assert "bad" in failed
            assert "slow" in failed
            numbers = job.statistics()
            adds_up(numbers)
            assert (numbers["done"], numbers["failed"]) == (6, 2)
            assert "it is bad" in (job.state / "log" / "failures.log").read_text()


def test_clients_of_a_killed_master_hear_the_end_of_a_job_with_failed_tasks(
    tmp_path: Path, lab: Lab
) -> None:
    hosts = [lab.sshd(address, user=True) for address in ADDRESSES[:2]]
    text = JOB.replace("[worker]", "attempts = 1\n[worker]")
    job = make_job(tmp_path, lab, hosts, text=text)
    (job.path / "table.txt").write_text("n\n1\n2\n")
    first = lab.folder / "begun" / "first"
    (job.path / "work.sh").write_text(
        f"#!/bin/sh\n[ $1 = 1 ] && exit 1\nmkdir {first} && exec sleep 1000\necho 4\n"
    )
    process = job.start()
    wait_until(first.exists, job.log)
    (sleeps,) = [host.user for host in hosts if host.user and host.user.uid == first.stat().st_uid]
    clients = [pid for pid in sleeps.processes() if is_client(pid)]
    for pid in clients:
        os.kill(pid, signal.SIGSTOP)  # it will not hear that the other host has done it
    joblog = job.state / "joblog.tsv"
    wait_until(lambda: "\tdone\t" in joblog.read_text(), job.log)
    process.kill()
    process.communicate()
    for pid in clients:
        os.kill(pid, signal.SIGCONT)
    job.run(expect=1)
    wait_until(
        lambda: not [pid for pid in sleeps.processes() if not is_sshd(pid)],
        lambda: "processes are left on a host",
    )
    assert not list(Path("/tmp").glob(f"pexec-{sleeps.uid}/*"))

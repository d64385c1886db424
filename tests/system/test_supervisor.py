"""A master that is killed, stopped or restarted, with and without a supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system.running import JobFolder, adds_up, interrupt
from tests.waiting import LONG, wait_until

TWISTD = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "pexecd"]

#: Seconds that a worker takes, and that the master is away meanwhile.
WORK, AWAY = map(float, os.environ.get("PEXECD_TEST_AWAY", "3 1").split())

JOB = """\
[job]
parameters = table.txt
duplicates = 1
[worker]
name = work
shell = yes
command = echo "$n $PEXEC_TICKET" >> {folder}/runs; {work}; echo $n
[collect]
output = table results.txt
[client]
ping = 2
"""


MakeJob = Callable[[int, str], JobFolder]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[MakeJob]:
    """Make a job whose workers each leave a line in ``runs``; ``{folder}`` is where."""
    jobs = []

    def make(tasks: int, work: str) -> JobFolder:
        path = tmp_path / "job"
        text = JOB.format(folder=path, work=work.format(folder=path))
        jobs.append(JobFolder(path, text, ["n", *map(str, range(1, tasks + 1))]))
        return jobs[-1]

    yield make
    for job in jobs:
        for pid in job.processes():  # there are some only if the test failed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def runs(job: JobFolder) -> list[list[str]]:
    """Task and ticket of each worker that was started."""
    file = job.path / "runs"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def clients(job: JobFolder) -> set[int]:
    """The clients that have gone to work: those that guard their workers."""
    found = job.processes()
    parents = {int(Path(f"/proc/{pid}/stat").read_text().split()[3]) for pid in found}
    return {pid for pid, line in found.items() if "pexec_client" in line and pid in parents}


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=LONG)


def assert_all_done_once(job: JobFolder, tasks: int) -> None:
    """Every result once and in order; and no worker ran twice."""
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, tasks + 1))]
    assert Counter(task for task, _ in runs(job)) == Counter(map(str, range(1, tasks + 1)))
    adds_up(job.statistics())
    job.assert_nothing_left()


# --- a supervisor ---------------------------------------------------------------------------------

RUN = """\
#!/bin/sh
echo $$ > pid.new && mv pid.new pid
cd {folder}
exec {twistd} --job job.ini >> master.out 2>&1
"""
# as RestartPreventExitStatus= in systemd's units: what has an exit status is over; -1: a signal
FINISH = '#!/bin/sh\n[ "$1" = -1 ] || { echo "$1" > status; printf x > supervise/control; }\n'


class Supervisor:
    """runit's ``runsv`` on a folder of its own: starts the master again whenever it was killed."""

    def __init__(self, job: JobFolder, folder: Path) -> None:
        self.folder = folder
        self.before = ""
        folder.mkdir()
        for name, text in (
            ("run", RUN.format(folder=job.path, twistd=" ".join(TWISTD))),
            ("finish", FINISH),
        ):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.process = job.start("runsv", str(folder))

    def master(self) -> int:
        """The process ID of a master that ``kill`` did not see yet; 0 after the end."""
        while self.process.poll() is None:
            try:
                found = (self.folder / "pid").read_text().strip()
            except FileNotFoundError:
                found = ""
            if found and found != self.before:
                self.before = found
                return int(found)
            time.sleep(0.01)
        return 0

    def wait(self) -> str:
        """The exit status that the master ended with."""
        self.process.communicate(timeout=LONG)
        return (self.folder / "status").read_text().strip()

    def end(self) -> None:
        """Whatever went wrong: no master, and none started again."""
        if self.process.poll() is None:
            subprocess.run(["sv", "-w", "30", "force-shutdown", str(self.folder)], check=False)
            self.process.communicate(timeout=LONG)


@pytest.mark.parametrize(
    ("kills", "seconds"), [(3, 0.02), pytest.param(50, 0.12, marks=pytest.mark.slow)]
)
def test_a_master_killed_at_random_moments_loses_nothing(
    make_job: MakeJob, tmp_path: Path, kills: int, seconds: float
) -> None:
    assert shutil.which("runsv"), "install runit: make system-packages"
    tasks = 400
    # the last ones do not end before all kills
    gate = f"[ $n -lt {tasks - 1} ] || until [ -e {{folder}}/gate ]; do sleep 0.1; done"
    job = make_job(tasks, f"sleep {seconds}; {gate}")
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    supervisor = Supervisor(job, tmp_path / "service")
    done = []
    try:
        wait_until(lambda: runs(job))
        for _ in range(kills):
            master = supervisor.master()
            # some while it reads what is stored, some while it works
            time.sleep(chance.uniform(0, 2.5))
            os.kill(master, signal.SIGKILL)
            done.append(len(runs(job)))
        (job.path / "gate").touch()
        status = supervisor.wait()
    finally:
        supervisor.end()
    print(f"seed {seed}: killed after {done} runs; {len(runs(job))} runs of {tasks} tasks")
    assert status == "0", (job.path / "master.out").read_text()[-5000:]
    assert_all_done_once(job, tasks)


def test_a_restart_by_the_supervisor_leaves_the_clients_alone(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(6, "until [ -e {folder}/gate ]; do sleep 0.1; done")
    supervisor = Supervisor(job, tmp_path / "service")
    try:
        wait_until(lambda: runs(job))
        before = clients(job)
        supervisor.master()
        subprocess.run(["sv", "-w", "30", "restart", str(supervisor.folder)], check=True)
        supervisor.master()
        (job.path / "gate").touch()
        assert supervisor.wait() == "0"
    finally:
        supervisor.end()
    assert len(before) == 1
    assert_all_done_once(job, 6)


# --- without one ----------------------------------------------------------------------------------

WAITING = "until [ -e {folder}/gate ]; do sleep 0.1; done"


def begun(job: JobFolder, *command: str) -> tuple[subprocess.Popen[str], set[int]]:
    """A master whose client works in all its slots, and that client.

    All of them: a master that is killed between giving a ticket and telling its client of it
    leaves a ticket that is waited for a while.
    """
    process = job.start(*command)
    slots = len(os.sched_getaffinity(0))
    wait_until(lambda: len(runs(job)) >= min(slots, len(job.lines("table.txt")) - 1), job.log)
    return process, clients(job)


def begun_again(job: JobFolder, *command: str) -> subprocess.Popen[str]:
    """The same command again; it has found the client from before."""

    def found() -> bool:
        card = json.loads((job.state / "session.json").read_text())
        # once for the client that it starts, and again when that one says who is there
        told = job.log().rpartition("ProtocolSite starting")[2].count("client started")
        return bool(card["pid"] == process.pid and told == 2)

    process = job.start(*command)
    wait_until(found, job.log)
    return process


def work_on(job: JobFolder, before: set[int], *command: str) -> None:
    """The same command again, while the client from before carries on; to the end."""
    process = begun_again(job, *command)
    assert before <= set(job.processes())
    (job.path / "gate").touch()
    job.finish(process)


@pytest.mark.parametrize("daemon", [True, False])
def test_after_a_kill_the_same_command_goes_on(make_job: MakeJob, daemon: bool) -> None:
    job = make_job(6, WAITING)
    command = [*TWISTD, "--job", "job.ini"] if daemon else []
    for _ in range(2):
        process, before = begun(job, *command)
        kill(process)
    assert len(before) == 1
    work_on(job, before, *command)
    assert_all_done_once(job, 6)


def test_workers_outlast_a_master_that_is_away(make_job: MakeJob) -> None:
    job = make_job(4, f"sleep {WORK}")
    process, before = begun(job)
    kill(process)
    time.sleep(AWAY)
    assert len(before) == 1
    job.run()
    assert_all_done_once(job, 4)


def test_what_ended_while_the_master_was_away_is_posted_later(make_job: MakeJob) -> None:
    job = make_job(6, WAITING)
    process, before = begun(job)
    kill(process)
    (job.path / "gate").touch()
    wait_until(lambda: not any(line.startswith("sleep") for line in job.processes().values()))
    assert before <= set(job.processes())
    job.run()
    assert_all_done_once(job, 6)


def test_the_end_of_an_earlier_masters_client_is_noticed(make_job: MakeJob) -> None:
    job = make_job(6, WAITING)
    process, before = begun(job)
    kill(process)
    process = begun_again(job)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    (job.path / "gate").touch()
    job.finish(process)
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, 7))]
    job.assert_nothing_left()


@pytest.mark.parametrize(("daemon", "number"), [(True, signal.SIGTERM), (False, signal.SIGHUP)])
def test_a_signal_that_ends_the_master_alone(
    make_job: MakeJob, daemon: bool, number: signal.Signals
) -> None:
    job = make_job(6, WAITING)
    command = [*TWISTD, "--job", "job.ini"] if daemon else []
    process, before = begun(job, *command)
    process.send_signal(number)
    job.finish(process, expect=-number)
    assert before
    assert "Traceback" not in job.log()
    work_on(job, before, *command)
    assert_all_done_once(job, 6)


def test_sighup_ends_no_daemon(make_job: MakeJob) -> None:
    job = make_job(6, WAITING)
    command = [*TWISTD, "--job", "job.ini"]
    process, before = begun(job, *command)
    process.send_signal(signal.SIGHUP)
    (job.path / "gate").touch()
    job.finish(process)
    assert before
    assert_all_done_once(job, 6)


def test_a_daemon_whose_terminal_is_closed_ends_alone(make_job: MakeJob) -> None:
    job = make_job(6, WAITING)
    command = [*TWISTD, "--job", "job.ini"]
    terminal, before = begun(job, "script", "-qfc", shlex.join(command), "/dev/null")
    master = json.loads((job.state / "session.json").read_text())["pid"]
    kill(terminal)
    wait_until(lambda: master not in job.processes(), job.log)
    work_on(job, before, *command)
    assert_all_done_once(job, 6)


def test_who_waits_for_a_task_is_not_told_to_die(make_job: MakeJob) -> None:
    job = make_job(1, WAITING)
    command = [*TWISTD, "--job", "job.ini"]
    process, before = begun(job, *command)
    card = json.loads((job.state / "session.json").read_text())
    address = urlsplit(card["url"])

    def ask(path: str) -> socket.socket:
        connection = socket.create_connection((address.hostname, address.port), LONG)
        connection.sendall(f"GET {path}?sessionID={card['session']} HTTP/1.0\r\n\r\n".encode())
        return connection

    with ask("/task") as held, ask("/config") as later:
        assert b" 200 " in later.recv(1000)  # so the first was read, too
        process.terminate()
        assert held.recv(1000) == b""
    job.finish(process, expect=-signal.SIGTERM)
    work_on(job, before, *command)
    assert_all_done_once(job, 1)


def test_ctrl_c_stops_all_of_a_daemon_in_the_foreground(make_job: MakeJob) -> None:
    job = make_job(6, WAITING)
    process, _ = begun(job, *TWISTD, "--job", "job.ini")
    interrupt(process)
    job.finish(process, expect=130)
    job.assert_nothing_left()
    adds_up(job.statistics())


def test_an_earlier_masters_client_is_stopped_too(make_job: MakeJob) -> None:
    job = make_job(6, WAITING)
    process, _ = begun(job)
    kill(process)
    process = begun_again(job)
    interrupt(process)
    job.finish(process, expect=130)
    job.assert_nothing_left()


def test_the_supervisor_is_told_when_clients_are_heard(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(3, "true")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(LONG)
        process = job.start(
            *("env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", *TWISTD, "--job", "job.ini")
        )
        heard = [supervisor.recv(1000).decode()]
        while heard[-1] != "READY=1":
            heard.append(supervisor.recv(1000).decode())
        assert (job.state / "session.json").exists()
        while heard[-1] != "STOPPING=1":
            heard.append(supervisor.recv(1000).decode())
        job.finish(process)
    assert any("of 3 done" in line for line in heard)

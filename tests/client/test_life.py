"""A client's beginning and end, and what it survives: cuts, kills, others beside it."""

from __future__ import annotations

import ast
import hashlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.client.conftest import BOTH, CLIENT, Hosts
from tests.client.master import SESSION, Master, Task
from tests.client.test_work import WORKER
from tests.waiting import LONG, wait_until

SLEEPS = "sleep 1000"
#: The name of a worker's folder, as a pattern: a hash.
TICKET_FOLDER = "[0-9a-f]" * 24


def running(hosts: Hosts, words: str = SLEEPS) -> int:
    return sum(line.startswith(words) for line in hosts.processes().values())


# --- the beginning ---------------------------------------------------------------------------


def holds_something(path: Path) -> bool:
    """Whether a file is there, and was written to."""
    return path.exists() and path.stat().st_size > 0


def test_positional_arguments_as_in_the_founding_document(hosts: Hosts, master: Master) -> None:
    master.worker = WORKER
    master.config["Worker"] = "ising"
    checksum = hashlib.md5(WORKER).hexdigest()
    master.add(Task(10000, "ising 1"))
    arguments = [SESSION, "bin/ising", checksum, "localhost", str(master.port)]
    call = subprocess.run(
        [hosts.python, str(CLIENT), "--dir", str(hosts.dir), "--slots", "1", *arguments],
        env=hosts.environment(),
        timeout=30,
    )
    assert call.returncode == 0
    assert "says 1" in master.text(10000)
    assert "host" not in master.requests[0][1]


def test_a_worker_that_is_there_already_is_not_fetched(hosts: Hosts, master: Master) -> None:
    there = hosts.home / "ising"
    there.write_bytes(WORKER)
    checksum = hashlib.md5(WORKER).hexdigest()
    master.add(Task(10000, "ising 1"))

    assert hosts.run(Command=str(there), MD5=checksum) == 0

    assert "says 1" in master.text(10000)
    assert master.count("/worker") == 0
    assert there.exists()


def test_background_says_when_the_client_is_ready(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, "cat", inputs={"stdin": b"x"}))
    master.more = True

    assert hosts.run("--background") == 0

    assert master.count("/config") == 1
    master.wait(lambda: 10000 in master.completed)
    clients = [line for line in hosts.processes().values() if "pexec_client" in line]
    assert len(clients) == 1
    assert SESSION not in "".join(hosts.processes().values())
    (place,) = hosts.places()
    assert (place / "log").exists()
    with master.changed:
        master.more = False
    hosts.assert_gone()
    assert not hosts.dir.exists()


#: Is ended when it has just made its folder.
ENDED_EARLY = """\
import os, runpy, signal, sys
make = os.makedirs
def make_and_be_ended(*arguments, **more):
    make(*arguments, **more)
    os.kill(os.getpid(), signal.{name})
os.makedirs = make_and_be_ended
runpy.run_path({client!r}, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_client_that_is_ended_while_it_begins_leaves_nothing(hosts: Hosts, name: str) -> None:
    early = hosts.home / "early.py"
    early.write_text(ENDED_EARLY.format(name=name, client=str(CLIENT)))

    assert hosts.run(client=early) == 128 + signal.Signals[name]

    assert not hosts.dir.exists()
    assert not hosts.locks()


#: Loses its file when it has just been loaded.
LOSES_FILE = """\
import os
with open({client!r}) as file:
    code = compile(file.read(), {client!r}, "exec")
os.unlink({client!r})
exec(code, {{"__name__": "__main__", "__file__": {client!r}}})
"""


def test_a_client_whose_file_is_removed_while_it_begins_goes_on(
    hosts: Hosts, master: Master
) -> None:
    copy = hosts.home / "copy.py"
    shutil.copy(CLIENT, copy)
    begin = hosts.home / "begin.py"
    begin.write_text(LOSES_FILE.format(client=str(copy)))
    master.add(Task(10000, "cat", inputs={"stdin": b"x"}))

    assert hosts.run("--background", "--copied", client=begin) == 0

    master.wait(lambda: 10000 in master.completed)
    hosts.assert_gone()
    assert not hosts.dir.exists()


def test_the_session_id_is_in_no_log_and_no_name(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, f"false {SESSION}"), Task(10001, f"/{SESSION}"), Task(10002, SLEEPS))
    client = hosts.start()
    wait_until(lambda: running(hosts))
    names = [str(path) for path in hosts.dir.rglob("*")]
    client.send_signal(signal.SIGTERM)
    client.wait(LONG)

    assert names
    assert not [name for name in names if SESSION in name]
    assert "***" in hosts.log()
    assert SESSION not in hosts.log()


def test_exit_codes_at_the_beginning(hosts: Hosts, master: Master) -> None:
    checksum = hashlib.sha256(CLIENT.read_bytes()).hexdigest()
    background = "--background"
    assert hosts.run(background, "--verify", "0" * 64) == 61
    assert hosts.run("--verify", checksum, Session="another") == 66
    assert hosts.run(background, Session="another") == 66
    assert hosts.run(background, Server="http://127.0.0.1:1", StartLimit="0.3") == 64
    assert "127.0.0.1:1 " in hosts.log()
    assert "refused" in hosts.log()
    assert hosts.run(background, Server="http://no-such-host.invalid:80", StartLimit="0.3") == 64
    master.answers["/config"] = [(404, None)]
    assert hosts.run(background) == 64
    master.answers["/config"] = [(415, None)]
    assert hosts.run(background) == 67
    master.answers["/config"] = [(503, "0"), (500, None)]
    assert hosts.run() == 0
    assert hosts.run(Colour="green") == 2
    assert hosts.run(Server="ftp://127.0.0.1:1") == 2
    assert not hosts.dir.exists()
    hosts.assert_gone()


def test_an_old_python_is_told_so() -> None:
    # what runs before the check must be readable for Pythons that are older
    text = CLIENT.read_text()
    head = text[: text.index("import collections")]
    code = head.replace("if sys.version_info < (3, 6)", "if sys.version_info < (9, 0)")
    call = subprocess.run(["python3", "-c", code], capture_output=True, text=True)
    assert call.returncode == 62
    assert "3.6" in call.stderr
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.JoinedStr)]
    assert text.isascii()


def test_unusable_folders_are_named(hosts: Hosts, master: Master, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for folder, reason in [
        (str(file), "File exists"),
        (str(file / "below"), "Not a directory"),
        (str(open_to_all), "others can write"),
        ("/proc/pexecd", "No such file"),
    ]:
        assert hosts.run("--background", Dir=folder) == 63, folder
        assert reason in hosts.log()
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
        assert hosts.run(Dir=str(foreign)) == 63
        assert "belongs to user 12345" in hosts.log()


@pytest.mark.parametrize(
    ("options", "reason"), [("noexec", "Permission denied"), ("size=4k", "No space left")]
)
def test_mounts_that_cannot_be_used(
    hosts: Hosts, master: Master, tmp_path: Path, options: str, reason: str
) -> None:
    master.worker = WORKER
    folder = tmp_path / "mounted"
    folder.mkdir(0o700)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        folder.chmod(0o700)
        assert hosts.run("--background", Dir=str(folder)) == 63
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert reason in hosts.log()
    hosts.assert_gone()


def test_one_client_for_each_host_and_session(hosts: Hosts, master: Master) -> None:
    master.more = True
    first = hosts.start()
    master.wait(lambda: master.count("/task"))

    assert hosts.run("--background") == 65

    first.kill()
    first.wait()
    with master.changed:
        master.more = False
    assert hosts.run() == 0  # the lock died with the process


# --- the server goes, refuses, stumbles --------------------------------------------------------


@BOTH
def test_403_stops_the_workers(hosts: Hosts, master: Master, exchange: bool) -> None:
    master.config["Ping"] = "0.1"
    master.add(Task(10000, SLEEPS))
    client = hosts.start()
    wait_until(lambda: running(hosts))
    with master.changed:
        master.answers["/exchange" if exchange else "/ping"] = [(403, None)]

    assert client.wait(LONG) == 66
    hosts.assert_gone()
    assert not hosts.dir.exists()


@BOTH
def test_a_server_that_restarts_in_the_middle(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, "/bin/sh -c 'until test -e go; do sleep 0.02; done; echo here'"))
    client = hosts.start(Slots="2")
    wait_until(lambda: list(hosts.dir.glob(f"sweep-*/h*/{TICKET_FOLDER}")))
    master.stop()
    (folder,) = hosts.dir.glob(f"sweep-*/h*/{TICKET_FOLDER}")
    (folder / "go").touch()
    wait_until(lambda: any(map(holds_something, hosts.dir.glob("sweep-*/h*/unsent"))))
    assert client.poll() is None
    master.add(Task(10001, "echo more"))
    master.start()

    assert client.wait(LONG) == 0
    assert master.text(10000) == "here\n"
    assert master.text(10001) == "more\n"


@pytest.mark.parametrize("exchange", [False])
def test_uploads_are_repeated_until_confirmed(hosts: Hosts, master: Master) -> None:
    master.answers["/complete"] = [(503, "0"), (503, None), (500, None)]
    master.answers["/task"] = [(503, "0"), (502, None)]
    master.add(Task(10000, "echo a"), Task(10001, "echo b"))

    assert hosts.run() == 0

    assert master.text(10000) == "a\n"
    assert master.text(10001) == "b\n"
    assert master.count("/complete") == 5


@pytest.mark.parametrize("exchange", [False])
@pytest.mark.parametrize("status", [400, 404, 405, 413])
def test_a_final_answer_drops_the_ticket(hosts: Hosts, master: Master, status: int) -> None:
    master.answers["/complete"] = [(status, None)]
    master.add(Task(10000, "head -c 3000000 /dev/zero"), Task(10001, "echo b"))
    client = hosts.start()
    master.wait(lambda: 10001 in master.completed)
    with master.changed:
        master.live.clear()

    assert client.wait(LONG) == 0
    assert f"ticket 10000: the server does not take it: status {status}" in hosts.log()
    assert master.count("/complete") == 2


def test_patience_ends_and_the_next_client_posts(hosts: Hosts, master: Master) -> None:
    master.config["Patience"] = "1"
    master.worker = b"#!/bin/sh\nuntil test -e go; do sleep 0.02; done; echo kept\n"
    master.add(Task(10000, "worker"), Task(10001, SLEEPS))
    client = hosts.start(Slots="2")
    wait_until(lambda: len(list(hosts.dir.glob(f"sweep-*/h*/{TICKET_FOLDER}"))) == 2)
    master.stop()
    for folder in hosts.dir.glob(f"sweep-*/h*/{TICKET_FOLDER}"):
        (folder / "go").touch()

    assert client.wait(LONG) == 64
    hosts.assert_gone()
    (place,) = hosts.places()
    assert [path.name for path in place.iterdir()] == ["unsent"]

    with master.changed:
        master.live.clear()
    master.start()
    assert hosts.run() == 0
    assert master.text(10000) == "kept\n"
    assert sorted(master.completed) == [10000]
    assert not hosts.dir.exists()


def test_after_the_last_task_a_server_that_is_gone_is_not_waited_for(
    hosts: Hosts, master: Master, tmp_path: Path
) -> None:
    """The run may have ended amid an upload, which a copy elsewhere had made needless."""
    quick = tmp_path / "client.py"
    quick.write_text(CLIENT.read_text().replace("AFTERWARDS = 60.0", "AFTERWARDS = 0.5"))
    master.answers["/complete"] = [(503, "1")] * 9
    master.answers["/task"] = [(503, None)]
    master.add(Task(10000, "head -c 200000 /dev/zero"))
    client = hosts.start(client=quick)
    master.wait(lambda: master.count("/task"))
    told = master.count("/complete")
    master.wait(lambda: master.count("/complete") >= told + 2)  # it has read that answer by now
    master.stop()
    master.answers.clear()

    assert client.wait(LONG) == 64
    (place,) = hosts.places()
    assert list(place.glob("*.json"))

    master.start()
    assert hosts.run() == 0
    assert master.completed[10000]["output"].size == 200_000
    assert not hosts.dir.exists()


# --- kill -9 -----------------------------------------------------------------------------------


def test_killed_clients_take_their_workers_along(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, f"/bin/sh -c '{SLEEPS} & {SLEEPS}'"), Task(10001, SLEEPS))
    # one that is in no process group the client knows of
    master.add(Task(10002, f"/bin/sh -c 'setsid {SLEEPS} & {SLEEPS}'"))
    client = hosts.start(Slots="3")
    wait_until(lambda: running(hosts) == 5)

    client.kill()

    hosts.assert_gone()


def test_the_next_client_ends_workers_and_sweeps(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, f"/bin/sh -c '{SLEEPS} & {SLEEPS}'"))
    client = hosts.start()
    wait_until(lambda: running(hosts) == 2)
    guards = [pid for pid, line in hosts.processes().items() if "pexec-guard" in line]
    os.kill(guards[0], signal.SIGKILL)  # the worst case: nobody is left to end the workers
    client.kill()
    client.wait()
    assert running(hosts) == 2
    master.live.clear()

    assert hosts.run() == 0

    hosts.assert_gone()
    assert not hosts.dir.exists()


def test_the_sweep_kills_no_stranger(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, SLEEPS))
    client = hosts.start()
    wait_until(lambda: running(hosts))
    (place,) = hosts.places()
    client.kill()
    client.wait()
    hosts.assert_gone()
    # in the same folder, and a worker of another client whose name begins alike
    variables = {**os.environ, "PEXEC_TICKET": "10000", "PEXEC_FOLDER": f"{place}1/x"}
    stranger = subprocess.Popen(["sleep", "1001"], env=variables, cwd=place)
    try:
        master.live.clear()
        assert hosts.run() == 0
        assert stranger.poll() is None
        assert not hosts.dir.exists()
    finally:
        stranger.kill()
        stranger.wait()


@BOTH
def test_the_next_client_posts_what_a_killed_one_had(
    hosts: Hosts, master: Master, exchange: bool
) -> None:
    go = f"until test -e {hosts.home}/go; do sleep 0.02; done"
    large = "mkdir d; yes deep | head -c 200000 > d/f"
    results = {"r": "d/f", "out": "stdout"}
    master.add(
        Task(10000, f"/bin/sh -c '{go}; {large}; echo short'", results=results),
        Task(10001, f"/bin/sh -c '{go}; echo why >&2; exit 1'"),
        Task(10002, f"/bin/sh -c '{go}; echo small'"),
    )
    client = hosts.start(Slots="3")
    wait_until(lambda: running(hosts, "/bin/sh -c until") == 3)
    with master.changed:
        for path in ("/complete", "/failed", "/exchange"):
            master.answers[path] = [(503, "60"), (503, "60")]
    (hosts.home / "go").touch()
    (place,) = hosts.places()
    entries = place / "unsent"
    wait_until(lambda: [one for one in place.glob("*.json") if one.read_bytes().endswith(b"}")])
    wait_until(
        lambda: entries.exists() and b"why" in (text := entries.read_bytes()) and b"small" in text
    )
    client.kill()
    client.wait()
    with master.changed:
        master.live.clear()
        master.answers.clear()

    assert hosts.run() == 0

    assert master.completed[10000]["r"].size == 200_000
    assert master.text(10000, "out") == "short\n"
    assert master.failed[10001]["Exit"] == "1"
    assert master.tails[10001] == b"why\n"
    assert master.text(10002) == "small\n"
    assert not hosts.dir.exists()


def test_what_a_full_disk_cut_off_hides_nothing_that_is_kept_later(
    hosts: Hosts, master: Master
) -> None:
    go = "until test -e {0}/{1}; do sleep 0.02; done"
    first, second = (go.format(hosts.home, name) for name in ("first", "second"))
    master.add(
        Task(10000, f"/bin/sh -c '{first}; head -c 9000 /dev/zero'"),
        Task(10001, f"/bin/sh -c '{second}; echo small'"),
    )
    client = hosts.start(Slots="2")
    wait_until(lambda: running(hosts, "/bin/sh -c until") == 2)
    with master.changed:
        master.answers["/exchange"] = [(503, "60")]
    limit = resource.prlimit(client.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(client.pid, resource.RLIMIT_FSIZE, (2000, limit[1]))  # as good as a full disk
    (hosts.home / "first").touch()
    wait_until(lambda: "cannot record 1 tickets" in hosts.log())
    resource.prlimit(client.pid, resource.RLIMIT_FSIZE, limit)
    (hosts.home / "second").touch()
    (place,) = hosts.places()
    wait_until(lambda: b"small" in (data := (place / "unsent").read_bytes()) and len(data) > 9000)
    client.kill()
    client.wait()
    with master.changed:
        master.live.clear()
        master.answers.clear()

    assert hosts.run() == 0

    assert master.completed[10000]["output"].size == 9000
    assert master.text(10001) == "small\n"
    assert not hosts.dir.exists()


def test_what_cannot_be_taken_over_stays_where_it_is(hosts: Hosts, master: Master) -> None:
    master.answers["/exchange"] = []
    wait = f"until test -e {hosts.home}/go; do sleep 0.02; done"
    master.add(Task(10000, f"/bin/sh -c '{wait}; head -c 60000 /dev/zero'"))
    client = hosts.start()
    wait_until(lambda: running(hosts, "/bin/sh -c until"))
    with master.changed:
        master.answers["/exchange"] = [(503, "60")] * 2
    (hosts.home / "go").touch()
    (place,) = hosts.places()
    wait_until(lambda: (place / "unsent").exists() and (place / "unsent").stat().st_size > 60000)
    client.kill()
    client.wait()
    with master.changed:
        master.live.clear()
        master.answers["/config"] = [(503, "1")]
    second = hosts.start()
    master.wait(lambda: master.count("/config") == 2)
    resource.prlimit(second.pid, resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    wait_until(lambda: "cannot record 1 tickets" in hosts.log())
    second.kill()
    second.wait()
    with master.changed:
        master.answers.clear()

    assert hosts.run() == 0

    assert master.completed[10000]["output"].size == 60000
    assert not hosts.dir.exists()


def killed_with_a_result(
    hosts: Hosts, master: Master, path: str, *then: tuple[int, str | None]
) -> Path:
    """The folder of a client that was killed when it had kept a result: it was to come again.

    Args:
        hosts: where it ran.
        master: who did not take the result.
        path: what the result was posted to.
        then: how the next ones that post there are answered.
    """
    master.add(Task(10000, f"/bin/sh -c 'until test -e {hosts.home}/go; do sleep 0.02; done'"))
    client = hosts.start()
    wait_until(lambda: running(hosts, "/bin/sh -c until"))
    with master.changed:
        master.answers[path] = [(503, "60"), *then]
    (hosts.home / "go").touch()
    (place,) = hosts.places()
    wait_until(lambda: holds_something(place / "unsent"))
    # or the next client had that answer
    master.wait(lambda: len(master.answers[path]) == len(then))
    client.kill()
    client.wait()
    return place


@BOTH
def test_what_two_clients_have_kept_is_posted_once(
    hosts: Hosts, master: Master, exchange: bool
) -> None:
    """One takes over what another has kept, and is killed before it is out of the other's file."""
    path = "/exchange" if exchange else "/complete"
    place = killed_with_a_result(hosts, master, path)
    hosts.assert_gone()
    shutil.copytree(place, f"{place}0")
    with master.changed:
        master.live.clear()

    assert hosts.run() == 0

    told = master.heard("complete") if exchange else [10000] * (master.count(path) - 1)
    assert told == [10000]
    assert not hosts.dir.exists()


@BOTH
def test_a_refused_session_leaves_nothing_of_earlier_clients(
    hosts: Hosts, master: Master, exchange: bool
) -> None:
    killed_with_a_result(hosts, master, "/exchange" if exchange else "/complete", (403, None))

    assert hosts.run() == 66

    assert not hosts.dir.exists()


def test_a_result_that_vanishes_before_it_is_sent(hosts: Hosts, master: Master) -> None:
    master.answers["/complete"] = [(503, "2")]
    master.add(Task(10000, "head -c 200000 /dev/zero"))
    client = hosts.start()
    master.wait(lambda: master.count("/complete"))
    (output,) = hosts.dir.glob("sweep-*/h*/*.out")
    output.unlink()

    assert client.wait(LONG) == 0

    assert master.failed[10000]["Kind"] == "missing"
    assert "gone" in master.failed[10000]["Reason"]
    assert not master.completed


def test_nobody_needs_to_hear_what_it_says(hosts: Hosts, master: Master) -> None:
    # a client on the master's own computer talks into a pipe, and masters are killed
    master.add(*(Task(10000 + n, "false") for n in range(3)), Task(10003, "echo a"))
    command = [hosts.python, str(CLIENT), "--dir", str(hosts.dir), "--from", "-"]
    pipes = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipes, stdout=pipes, stderr=pipes, env=hosts.environment()
    ) as client:
        assert client.stdin
        assert client.stdout
        assert client.stderr
        client.stdout.close()
        client.stderr.close()
        client.stdin.write(f"Session={SESSION}\nServer={master.url}\nHost=h1\n".encode())
        client.stdin.close()
        assert client.wait(LONG) == 0

    assert sorted(master.failed) == [10000, 10001, 10002]
    assert master.text(10003) == "a\n"


# --- the worker, and folders that hosts share ----------------------------------------------


def test_a_worker_with_the_wrong_checksum_is_fetched_again(hosts: Hosts, master: Master) -> None:
    master.config["DeleteWorker"] = "No"
    master.worker = WORKER
    assert hosts.run() == 0
    assert hosts.run() == 0
    assert master.count("/worker") == 1
    (shared,) = hosts.dir.glob("sweep-*/worker/*/worker")
    assert shared.read_bytes() == WORKER
    shared.write_bytes(b"broken")
    master.add(Task(10000, "worker 1"))

    assert hosts.run() == 0

    assert master.count("/worker") == 2
    assert shared.read_bytes() == WORKER
    assert "says 1" in master.text(10000)


def test_a_worker_that_arrives_damaged_is_not_run(hosts: Hosts, master: Master) -> None:
    master.worker = WORKER
    master.config["SHA256"] = "0" * 64
    master.config["Worker"] = "worker"
    master.add(Task(10000, "worker"))
    client = hosts.start()
    master.wait(lambda: master.count("/worker") > 1)
    client.send_signal(signal.SIGTERM)
    client.wait(LONG)

    assert not master.given
    assert "wrong checksum" in hosts.log()
    assert not hosts.dir.exists()


def test_clients_that_share_a_folder_fetch_the_worker_once(hosts: Hosts, master: Master) -> None:
    master.worker = WORKER
    master.more = True
    master.worker_may_go.clear()
    clients = [hosts.start(Host=f"h{n}") for n in range(3)]
    master.wait(lambda: master.count("/worker") and master.count("/config") == 3)
    wait_until(lambda: len(hosts.places()) == 3)
    (lock,) = hosts.dir.glob("sweep-*/worker/*/.lock")
    assert lock.read_text().startswith("h")
    master.worker_may_go.set()
    master.add(*(Task(10000 + n, "/bin/sh -c 'sleep 0.3; worker'") for n in range(6)))
    master.wait(lambda: len(master.completed) == 6)
    with master.changed:
        master.more = False
        master.changed.notify_all()

    assert [client.wait(LONG) for client in clients] == [0, 0, 0]
    assert master.count("/worker") == 1
    assert not hosts.dir.exists()


def test_a_worker_in_use_is_not_pulled_away(hosts: Hosts, master: Master) -> None:
    go = hosts.home / "go"
    master.worker = b"#!/bin/sh\nuntil test -e $1; do sleep 0.02; done\necho ok\n"
    master.add(Task(10000, f"worker {go}"), Task(10001, f"worker {go}"))
    stays = hosts.start(Host="h1", Slots="1")
    wait_until(lambda: list(hosts.dir.glob(f"sweep-*/h1-*/{TICKET_FOLDER}")))
    leaves = hosts.start(Host="h2", Slots="1")
    wait_until(lambda: list(hosts.dir.glob(f"sweep-*/h2-*/{TICKET_FOLDER}")))
    (shared,) = hosts.dir.glob("sweep-*/worker/*/worker")
    assert shared.stat().st_nlink == 3
    leaves.send_signal(signal.SIGTERM)
    leaves.wait(LONG)

    assert shared.stat().st_nlink == 2
    shared.unlink()
    master.add(Task(10002, f"worker {go}"))
    go.touch()

    assert stays.wait(LONG) == 0
    assert sorted(master.completed) == [10000, 10002]
    assert not hosts.dir.exists()


def test_an_abandoned_lock_is_broken(hosts: Hosts, master: Master, tmp_path: Path) -> None:
    master.worker = WORKER
    master.config["DeleteWorker"] = "No"
    assert hosts.run() == 0
    (shared,) = hosts.dir.glob("sweep-*/worker/*/worker")
    shared.unlink()
    lock = shared.with_name(".lock")
    lock.write_text("somebody 1")
    quick = tmp_path / "client.py"
    quick.write_text(CLIENT.read_text().replace("LOCK_STALE = 30.0", "LOCK_STALE = 1.0"))

    begun = time.monotonic()
    assert hosts.run(client=quick) == 0

    assert time.monotonic() - begun > 1
    assert shared.read_bytes() == WORKER
    assert not lock.exists()


def test_what_a_killed_client_had_of_the_worker_is_removed(
    hosts: Hosts, master: Master, tmp_path: Path
) -> None:
    master.worker = WORKER
    master.worker_may_go.clear()
    client = hosts.start()
    master.wait(lambda: master.count("/worker"))
    client.kill()
    client.wait()
    assert list(hosts.dir.glob("sweep-*/worker/*/.new-*"))
    master.worker_may_go.set()
    quick = tmp_path / "client.py"
    quick.write_text(CLIENT.read_text().replace("LOCK_STALE = 30.0", "LOCK_STALE = 0.2"))

    assert hosts.run(client=quick) == 0

    assert not hosts.dir.exists()


def test_a_lock_that_is_renewed_is_respected(hosts: Hosts, master: Master, tmp_path: Path) -> None:
    quick = tmp_path / "client.py"
    text = CLIENT.read_text().replace("LOCK_STALE = 30.0", "LOCK_STALE = 1.0")
    quick.write_text(text.replace("LOCK_RENEW = 5.0", "LOCK_RENEW = 0.2"))
    master.worker = WORKER
    master.more = True
    master.worker_may_go.clear()
    first = hosts.start(Host="h1", client=quick)
    master.wait(lambda: master.count("/worker"))
    second = hosts.start(Host="h2", client=quick)
    master.wait(lambda: master.count("/config") == 2)
    time.sleep(2.5)  # the passing of time is what is tested: more than two stale times
    assert master.count("/worker") == 1
    master.worker_may_go.set()
    master.wait(lambda: master.count("/task") == 2)
    assert master.count("/worker") == 1
    with master.changed:
        master.more = False
    assert [first.wait(LONG), second.wait(LONG)] == [0, 0]
    assert not hosts.dir.exists()


@pytest.mark.parametrize("delete", ["Yes", "No"])
def test_the_copied_client_deletes_itself(hosts: Hosts, master: Master, delete: str) -> None:
    master.config["DeleteClient"] = delete
    master.worker = WORKER
    folder = hosts.home / ".cache" / "pexecd"
    folder.mkdir(parents=True, mode=0o700)
    copy = folder / "pexec_client-0123.py"
    shutil.copy(CLIENT, copy)

    assert hosts.run(client=copy, Dir="~/.cache/pexecd", Copied="Yes") == 0

    assert hosts.locks() == []
    left = [path for path in hosts.home.rglob("*") if not path.name.startswith("log")]
    assert left == ([] if delete == "Yes" else [hosts.home / ".cache", folder, copy])


def test_a_client_that_was_not_copied_stays(hosts: Hosts, master: Master) -> None:
    copy = hosts.home / "client.py"
    shutil.copy(CLIENT, copy)
    assert hosts.run(client=copy) == 0
    assert copy.exists()


def test_a_name_with_several_addresses(hosts: Hosts, master: Master) -> None:
    # localhost may be ::1 first, where nobody listens
    assert hosts.run(Server=f"http://localhost:{master.port}") == 0
    assert master.requests[0][2]["host"] == f"localhost:{master.port}"


def test_an_ipv6_literal(hosts: Hosts) -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        listener.settimeout(LONG)
        port = listener.getsockname()[1]
        client = hosts.start(Server=f"http://[::1]:{port}/base")
        peer, _ = listener.accept()
        with peer:
            request = peer.recv(65536).decode()
            peer.sendall(b"HTTP/1.0 403 No\r\n\r\n")
        assert client.wait(LONG) == 66
    assert request.startswith("GET /base/config?sessionID=")
    assert f"\r\nHost: [::1]:{port}\r\n" in request

"""What a client does with tasks: runs workers, says how they ended."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.client.conftest import BOTH, CLIENT, Hosts
from tests.client.master import SESSION, Master, Task
from tests.waiting import LONG, wait_until

WORKER = b"#!/bin/sh\necho worker $0 says $@\n"


@BOTH
@pytest.mark.parametrize("slots", [1, 3])
def test_works_a_session_to_its_end_and_leaves_nothing(
    hosts: Hosts, master: Master, slots: int
) -> None:
    master.worker = WORKER
    master.add(*(Task(10000 + n, f"worker number {n}") for n in range(12)))

    assert hosts.run(Slots=str(slots)) == 0, hosts.log()

    assert sorted(master.completed) == list(range(10000, 10012))
    assert "says number 7" in master.text(10007)
    given = master.given.copy()  # on a busy machine what waited too long is given back, and again
    for ticket in master.heard("back"):
        given.remove(ticket)
    assert sorted(given) == sorted(set(given))
    assert not hosts.dir.exists()
    hosts.assert_gone()


def test_slots_work_at_the_same_time(hosts: Hosts, master: Master, tmp_path: Path) -> None:
    script = tmp_path / "meet"
    script.write_text(
        f"#!/bin/sh\ntouch {tmp_path}/$1\nfor other in a b c; do\n"
        f"  while ! test -e {tmp_path}/$other; do sleep 0.01; done\ndone\necho $PEXEC_SLOT\n"
    )
    script.chmod(0o700)
    master.add(*(Task(10000 + n, f"{script} {word}") for n, word in enumerate("abc")))

    assert hosts.run(Slots="3") == 0

    assert {master.text(ticket).strip() for ticket in master.completed} == {"0", "1", "2"}


@BOTH
def test_requests_say_who_is_asking(hosts: Hosts, master: Master, exchange: bool) -> None:
    master.worker = WORKER
    master.add(Task(10000, "worker"))

    assert hosts.run(Host="node 7") == 0

    for path, query, headers in master.requests:
        assert query["sessionID"] == SESSION
        assert query["host"] == "node 7"
        assert headers["accept"] == "application/x-pexec; framing=length"
        assert path == "/config" or query["client"] == "c1"
    config = master.requests[0][1]
    assert config["slots"] == "1"
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)
    assert config["platform"] == f"linux-{machine}"
    asked = {path: query for path, query, _ in master.requests}
    assert asked["/exchange" if exchange else "/task"]["worker"] == "worker"
    assert asked["/worker"]["name"] == "worker"
    if exchange:
        (seconds,) = [words[2] for one in master.exchanges for words in one.entries]
        assert float(seconds) < 10
        assert not set(asked) & {"/task", "/complete"}
    else:
        assert float(asked["/complete"]["seconds"]) < 10


def test_workers_get_their_variables(hosts: Hosts, master: Master) -> None:
    master.config["Environment"] = "FROM_CONFIG=a b = c"
    master.worker = b"#!/bin/sh\nenv\nulimit -c\n"
    task = Task(10016, "worker", environment={"FROM_TASK": "x=1; $(id) \u00fc '"})
    master.add(task)

    assert hosts.run(Host="h9") == 0

    lines = master.text(10016).splitlines()
    for line in [
        "PEXEC_SESSION=sweep",
        "PEXEC_TASK=17",
        "PEXEC_TICKET=10016",
        "PEXEC_SLOT=0",
        "PEXEC_HOST=h9",
        "FROM_CONFIG=a b = c",
        "FROM_TASK=x=1; $(id) \u00fc '",
        f"HOME={hosts.home}",
    ]:
        assert line in lines
    assert SESSION not in master.text(10016)


def test_the_worker_is_found_by_a_shell(hosts: Hosts, master: Master) -> None:
    master.worker = WORKER
    master.add(Task(10000, "/bin/sh -c 'worker $X; pwd'", environment={"X": "hello"}))

    assert hosts.run() == 0

    said, folder = master.text(10000).splitlines()
    assert said.endswith("says hello")
    assert Path(folder).parent.parent.parent == hosts.dir.resolve()
    assert SESSION not in folder


def test_arguments_arrive_as_they_were_sent(hosts: Hosts, master: Master) -> None:
    master.worker = b'#!/bin/sh\nprintf "<%s>" "$@"\n'
    master.add(Task(10000, r"""worker 'a b' "c\"d" '; touch hacked; $(id)' 'ü€' '' e\ f"""))

    assert hosts.run() == 0

    assert master.text(10000) == """<a b><c"d><; touch hacked; $(id)><ü€><><e f>"""


def test_names_are_the_same_in_every_locale(
    hosts: Hosts, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands over SSH often run in the C locale, where old Pythons know ASCII alone."""
    monkeypatch.setenv("LC_ALL", "C")
    hosts.dir = hosts.home / "dé"
    master.worker = b"#!/bin/sh\ncat \xc3\xa4 >\xc3\xb6\necho $PEXEC_FOLDER; pwd\n"
    master.config["Worker"] = "wörker"
    results = {"ergebnis ö": "ö", "output": "stdout"}
    master.add(Task(10000, "wörker", results=results, inputs={"ä": b"in"}))

    assert hosts.run() == 0

    assert master.text(10000, "ergebnis ö") == "in"
    folder, same = master.text(10000).splitlines()
    assert folder == same
    assert folder.startswith(f"{hosts.dir.resolve()}/")
    queries = {path: query for path, query, _ in master.requests}
    assert queries["/worker"]["name"] == queries["/exchange"]["worker"] == "wörker"
    assert not hosts.dir.exists()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_inputs_arrive_whole(hosts: Hosts, master: Master, framing: str) -> None:
    master.framing = framing
    odd = b"--begin content--\n--end content--\n\0\xff\r\n"
    large = os.urandom(3_000_000)
    master.add(
        Task(
            10000,
            "/bin/sh -c 'cat; cat in/deep/odd.bin; sha256sum < large; ls -A'",
            inputs={"stdin": b"first\n", "in/deep/odd.bin": odd, "./large": large},
        ),
        Task(10001, "cat", inputs={"stdin": b"plain\r\n--end content--x"}, framed=False),
        Task(10002, "cat"),
    )

    assert hosts.run() == 0, hosts.log()

    said = master.completed[10000]["output"].data
    checksum = hashlib.sha256(large).hexdigest().encode()
    assert said == b"first\n" + odd + checksum + b"  -\nin\nlarge\n"
    assert master.text(10001) == "plain\r\n--end content--x"
    assert master.text(10002) == ""


@BOTH
def test_results_come_from_files_and_streams(hosts: Hosts, master: Master) -> None:
    odd = b"a\n--end content--\n[Result]\nName=output\n\0\xff"
    master.add(
        Task(
            10000,
            "/bin/sh -c 'mkdir -p out/deep; cat > out/deep/odd; echo no > stdout; echo yes; "
            "echo err >&2; : > empty'",
            inputs={"stdin": odd},
            results={
                "a": "out/./deep/odd",
                "b": "./stdout",
                "c": "stdout",
                "d": "stderr",
                "e": "empty",
            },
        )
    )

    assert hosts.run() == 0

    got = {name: content.data for name, content in master.completed[10000].items()}
    assert got == {"a": odd, "b": b"no\n", "c": b"yes\n", "d": b"err\n", "e": b""}


@BOTH
def test_failures_say_why(hosts: Hosts, master: Master, tmp_path: Path) -> None:
    link = "ln -s /etc/passwd result"
    script = tmp_path / "script"
    script.write_text("#!/nothing/there\n")
    script.chmod(0o755)
    no_script = tmp_path / "no script"
    no_script.write_text("echo 1\n")
    no_script.chmod(0o755)
    master.add(
        Task(10000, "/bin/sh -c 'echo bad >&2; exit 3'"),
        Task(10001, "/bin/sh -c 'kill -9 $$'"),
        Task(10002, "true", results={"spectrum": "out/spectrum.dat"}),
        Task(10003, f"'{tmp_path}/nothing there'"),
        Task(10004, f"/bin/sh -c '{link}'", results={"output": "result"}),
        Task(10005, "/bin/sh -c 'ln -s /etc d'", results={"output": "d/passwd"}),
        Task(10006, "/bin/sh -c 'mkfifo result'", results={"output": "result"}),
        Task(10007, "/bin/sh -c 'yes | head -c 100000 >&2; exit 1'"),
        Task(10008, str(script)),
        Task(10009, f"'{no_script}'"),
    )

    assert hosts.run(Slots="2") == 0

    assert not master.completed
    failed = master.failed
    assert failed[10000]["Kind"] == "exit"
    assert failed[10000]["Exit"] == "3"
    assert master.tails[10000] == b"bad\n"
    assert failed[10001]["Kind"] == "signal"
    assert failed[10001]["Signal"] == "9"
    assert failed[10002]["Kind"] == "missing"
    assert "out/spectrum.dat" in failed[10002]["Reason"]
    assert failed[10003]["Kind"] == "start"
    assert failed[10003]["Reason"] == f"{tmp_path / 'nothing there'}: No such file or directory"
    assert failed[10008]["Kind"] == "start"
    assert "the file is; its #! interpreter" in failed[10008]["Reason"]
    assert "no #! line, or is for another platform" in failed[10009]["Reason"]
    assert {failed[ticket]["Kind"] for ticket in (10004, 10005, 10006)} == {"missing"}
    assert len(master.tails[10007]) == 4096
    assert all(float(failed[ticket]["Seconds"]) < 10 for ticket in (10000, 10001, 10002))


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../x", "a//b", "..", "a/"])
def test_paths_stay_below_the_folder(hosts: Hosts, master: Master, path: str) -> None:
    master.add(
        Task(10000, "true", inputs={path: b"x"}),
        Task(10001, "true", results={"output": path}),
        Task(10002, "echo ok"),
    )

    assert hosts.run() == 0

    assert master.failed[10000]["Kind"] == "refused"
    assert master.failed[10001]["Kind"] == "refused"
    assert master.text(10002) == "ok\n"
    assert not hosts.dir.exists()


def test_a_broken_task_is_refused_and_the_next_one_run(hosts: Hosts, master: Master) -> None:
    broken = Task(10000, "echo 'no closing quote")
    master.add(broken, Task(10001, "true", results={}), Task(10002, "echo ok"))

    assert hosts.run() == 0

    assert master.failed[10000]["Kind"] == "refused"
    assert master.failed[10001]["Kind"] == "refused"
    assert master.text(10002) == "ok\n"


def test_a_hanging_worker_is_stopped_with_its_children(hosts: Hosts, master: Master) -> None:
    stubborn = 'trap "" TERM; sleep 1000 & while :; do sleep 1; done'
    master.add(
        Task(10000, "/bin/sh -c 'sleep 1000 & sleep 1001'", timeout=1),
        Task(10001, f"/bin/sh -c '{stubborn}'", timeout=1),
    )

    assert hosts.run(Slots="2") == 0

    assert master.failed[10000]["Kind"] == "timeout"
    assert 0.9 < float(master.failed[10000]["Seconds"]) < 2.9
    assert master.failed[10001]["Kind"] == "timeout"
    assert master.failed[10001]["Signal"] == "9"
    hosts.assert_gone()


def test_as_many_files_are_open_as_may_be_where_that_is_less_than_all_slots_might_need(
    hosts: Hosts, master: Master
) -> None:
    wait = f"until test -e {hosts.home}/go; do sleep 0.1; done"
    master.add(*(Task(10000 + n, f"/bin/sh -c '{wait}'") for n in range(80)))
    master.answers["/config"] = [(503, "1")]
    client = hosts.start(Slots="80")
    master.wait(lambda: master.count("/config"))
    resource.prlimit(client.pid, resource.RLIMIT_NOFILE, (128, 400))
    master.wait(lambda: len(master.given) == 80)
    (hosts.home / "go").touch()

    assert client.wait(LONG) == 0, hosts.log()
    assert not master.failed
    assert "only 400 files may be open" in hosts.log()


def test_a_worker_that_ended_in_time_did_so_also_where_it_is_seen_late(
    hosts: Hosts, master: Master
) -> None:
    go = hosts.home / "go"
    command = f"/bin/sh -c 'until test -e {go}; do sleep 0.02; done; echo ended'"
    master.add(Task(10000, command, timeout=2))
    client = hosts.start()
    wait_until(
        lambda: any(line.startswith("/bin/sh -c until") for line in hosts.processes().values())
    )
    client.send_signal(signal.SIGSTOP)
    go.touch()
    # a zombie has no variables any more; the guard has, and the client
    wait_until(lambda: len(hosts.processes()) == 2)
    time.sleep(2)  # the passing of time is what is tested
    client.send_signal(signal.SIGCONT)

    assert client.wait(LONG) == 0
    assert not master.failed
    assert master.text(10000) == "ended\n"


def test_a_hanging_worker_is_stopped_with_other_groups(hosts: Hosts, master: Master) -> None:
    """``timeout``, shells with job control and some MPIs make process groups of their own."""
    master.more = True
    master.add(
        Task(10000, "/bin/sh -c 'timeout 1000 sleep 1000; echo done'", timeout=1),
        Task(10001, "/bin/sh -c 'timeout 1001 sleep 1001; echo done'"),
    )
    hosts.start(Slots="2")
    master.wait(lambda: 10000 in master.failed)

    def sleeping() -> set[str]:
        return {line for line in hosts.processes().values() if "sleep" in line}

    wait_until(lambda: not any("1000" in line for line in sleeping()))
    assert "sleep 1001" in {line.strip() for line in sleeping()}


def test_what_workers_left_ends_with_the_client(hosts: Hosts, master: Master) -> None:
    left = "setsid sleep 1000 & until grep -qs ^sleep /proc/$!/cmdline; do :; done"
    master.add(Task(10000, f"/bin/sh -c '{left}; echo done'"))

    assert hosts.run() == 0

    assert master.text(10000) == "done\n"
    hosts.assert_gone()


def test_children_that_outlive_their_worker_are_killed(hosts: Hosts, master: Master) -> None:
    master.more = True
    master.add(Task(10000, "/bin/sh -c 'sleep 1000 & echo done'"))
    hosts.start()
    master.wait(lambda: 10000 in master.completed)

    wait_until(lambda: not any(line.startswith("sleep") for line in hosts.processes().values()))


@BOTH
def test_pings_for_each_ticket_and_205_stops_the_worker(
    hosts: Hosts, master: Master, exchange: bool
) -> None:
    def pings(ticket: str) -> bool:
        asked = [query["ticket"] for path, query, _ in master.requests if path == "/ping"]
        assert not (asked and exchange)
        return (asked + [str(each) for each in master.heard("running")]).count(ticket) > 2

    master.config["Ping"] = "0.1"
    master.add(Task(10000, "sleep 1000"), Task(10001, "sleep 1001"))
    client = hosts.start(Slots="2")
    for ticket in ("10000", "10001"):
        master.wait(partial(pings, ticket))
    with master.changed:
        master.over.add(10000)
        master.live.discard(10000)
    wait_until(lambda: not any("sleep 1000" in line for line in hosts.processes().values()))
    assert any("sleep 1001" in line for line in hosts.processes().values())
    with master.changed:
        master.over.add(10001)
        master.live.discard(10001)

    assert client.wait(LONG) == 0
    assert not master.completed
    assert not master.failed


def test_a_large_result_needs_little_memory(hosts: Hosts, master: Master) -> None:
    size = 300 * 1024 * 1024
    master.more = True
    master.add(Task(10000, f"head -c {size} /dev/zero"))
    client = hosts.start()
    master.wait(lambda: 10000 in master.completed)

    status = Path(f"/proc/{client.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    assert peak < 60 * 1024
    content = master.completed[10000]["output"]
    assert content.size == size


def test_a_large_input_needs_little_memory(hosts: Hosts, master: Master) -> None:
    master.more = True
    master.add(Task(10000, "wc -c", inputs={"stdin": bytes(120_000_000)}))
    client = hosts.start()
    master.wait(lambda: 10000 in master.completed)

    status = Path(f"/proc/{client.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    assert peak < 60 * 1024
    assert master.text(10000).strip() == "120000000"


WHERE = "/bin/sh -c 'set -- $(cut -d\" \" -f1,5,6 /proc/self/stat); echo $$ $2 $3'"


def test_a_worker_has_a_process_group_of_its_own(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, WHERE))

    assert hosts.run() == 0

    pid, group, _ = master.text(10000).split()
    assert group == pid


def test_a_terminal_is_none_of_its_workers_business(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, WHERE), Task(10001, "/bin/sh -c 'echo a > /dev/tty; echo $?'"))
    orders = hosts.home / "orders"
    orders.write_text(f"Session={SESSION}\nServer={master.url}\nHost=h1\nDir={hosts.dir}\n")
    ours, theirs = os.openpty()
    command = ["setsid", "--ctty", hosts.python, str(CLIENT), "--from", str(orders)]
    client = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=hosts.environment()
    )
    hosts.clients.append(client)
    (hosts.home / "log-0").touch()
    os.close(theirs)

    assert client.wait(LONG) == 0

    os.close(ours)
    pid, group, session = master.text(10000).split()
    assert pid == group == session
    assert master.text(10001).strip() != "0"


@BOTH
def test_a_stopped_client_reports_its_tickets(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, "sleep 1000"), Task(10001, "sleep 1000"))
    client = hosts.start(Slots="2")
    wait_until(lambda: sum("sleep 1000" in line for line in hosts.processes().values()) == 2)

    client.send_signal(signal.SIGTERM)

    assert client.wait(LONG) == 128 + signal.SIGTERM
    assert {failure["Kind"] for failure in master.failed.values()} == {"stopped"}
    assert sorted(master.failed) == [10000, 10001]
    hosts.assert_gone()
    assert not hosts.dir.exists()


@BOTH
def test_a_stopped_client_does_not_wait_for_a_dead_server(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, "sleep 1000"))
    client = hosts.start()
    wait_until(lambda: any("sleep 1000" in line for line in hosts.processes().values()))
    master.stop()

    begun = time.monotonic()
    client.send_signal(signal.SIGINT)

    assert client.wait(LONG) == 128 + signal.SIGINT
    assert time.monotonic() - begun < 4
    hosts.assert_gone()
    assert not hosts.dir.exists()


def test_failed_attempts_are_kept_where_config_says_so(hosts: Hosts, master: Master) -> None:
    master.config["KeepFailed"] = "Yes"
    master.add(Task(10000, "/bin/sh -c 'echo part > part; echo why >&2; exit 1'"))
    master.add(Task(10001, "true"))

    assert hosts.run() == 0

    kept = hosts.dir.glob("sweep-*/failed/*")
    (place,) = kept
    assert place.name == "10000"
    assert (place / "folder" / "part").read_text() == "part\n"
    assert (place / "stderr").read_text() == "why\n"
    assert not hosts.places()


def test_folders_that_workers_locked_are_removed(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, "/bin/sh -c 'mkdir -p a/b; touch a/b/c; chmod 0 a/b a .'"))

    assert hosts.run() == 0

    assert not hosts.dir.exists()

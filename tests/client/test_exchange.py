"""The client's side of the exchange: what goes together, what waits, what survives."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.client.conftest import CLIENT, Hosts, load_client
from tests.client.master import Master, Task
from tests.client.test_work import WORKER
from tests.waiting import LONG, wait_until

SLEEP = "sleep 1000"


def running(hosts: Hosts, words: str = SLEEP) -> int:
    return sum(line.startswith(words) for line in hosts.processes().values())


def waits_for(path: Path) -> str:
    return f"until test -e {path}; do sleep 0.02; done"


def test_short_tasks_share_exchanges(hosts: Hosts, master: Master) -> None:
    master.add(*(Task(10000 + n, f"/bin/echo {n}") for n in range(400)))

    assert hosts.run(Slots="2") == 0, hosts.log()

    # by what they say: one that waits here for long is given back, and has another ticket then
    assert sorted(int(master.text(ticket)) for ticket in master.completed) == list(range(400))
    assert len(master.exchanges) < 200
    assert max(len(exchange.tasks) for exchange in master.exchanges) > 4
    assert max(exchange.want for exchange in master.exchanges) <= 512 + 2
    assert sorted(master.heard("complete")) == sorted(master.completed)
    assert not {"/complete", "/failed"} & {path for path, _, _ in master.requests}
    assert not hosts.dir.exists()


def test_nothing_is_fetched_ahead_of_long_tasks(hosts: Hosts, master: Master) -> None:
    go = hosts.home / "go"
    master.add(*(Task(10000 + n, f"/bin/sh -c 'sleep 1.1; {waits_for(go)}'") for n in range(6)))
    hosts.start(Slots="2")
    go.touch()
    master.wait(lambda: len(master.completed) >= 4)

    assert max(exchange.want for exchange in master.exchanges) == 2
    assert not master.heard("back")


def test_what_waits_behind_a_long_task_is_given_back(hosts: Hosts, master: Master) -> None:
    """The first tasks are short, so some are fetched ahead of what turns out to be long."""
    go = hosts.home / "go"
    short = [Task(10000 + n, "/bin/echo x") for n in range(60)]
    long = [Task(10100 + n, f"/bin/sh -c '{waits_for(go)}'") for n in range(3)]
    last = [Task(10200 + n, "/bin/echo y") for n in range(20)]
    master.add(*short, *long, *last)
    master.more = True
    client = hosts.start(Slots="2")
    master.wait(lambda: master.heard("back"))

    back = master.heard("back")
    assert not set(back) & (set(master.completed) | set(master.failed))
    assert running(hosts, "/bin/sh -c until") == 2
    go.touch()
    with master.changed:
        master.more = False
    assert client.wait(LONG) == 0
    assert len(master.completed) == 83
    assert len(set(master.given)) == len(master.given)


def test_pings_are_shared_and_over_stops_what_runs_and_what_waits(
    hosts: Hosts, master: Master
) -> None:
    master.config["Ping"] = "0.1"
    master.add(*(Task(10000 + n, SLEEP) for n in range(2)))
    client = hosts.start(Slots="2")
    master.wait(lambda: len(master.heard("running")) >= 6)
    pings = [exchange for exchange in master.exchanges if exchange.tickets("running")]
    assert all(exchange.tickets("running") == [10000, 10001] for exchange in pings[1:])
    seconds = [float(words[2]) for exchange in pings for words in exchange.entries]
    assert seconds[-1] > seconds[0]

    with master.changed:
        master.over |= {10000, 10001}
        master.live.clear()

    assert client.wait(LONG) == 0
    assert not master.completed
    assert not master.failed
    assert master.count("/ping") == 0


def test_none_means_that_a_held_request_waits(hosts: Hosts, master: Master) -> None:
    master.more = True
    master.config["Ping"] = "0.1"
    client = hosts.start(Slots="2")
    master.wait(lambda: master.count("/task") == 1)
    assert len([exchange for exchange in master.exchanges if exchange.want]) == 1

    master.add(Task(10000, SLEEP))
    # the other slot waits by such a request, while exchanges go on beside it
    master.wait(lambda: master.count("/task") == 2 and 10000 in master.heard("running"))
    master.add(Task(10001, "/bin/echo b"))
    master.wait(lambda: 10001 in master.completed)
    with master.changed:
        master.over.add(10000)
        master.live.discard(10000)
        master.more = False

    assert client.wait(LONG) == 0


def test_large_results_go_beside_the_exchanges(hosts: Hosts, master: Master) -> None:
    large = [Task(10000 + n, "head -c 200000 /dev/zero") for n in range(12)]
    small = [Task(10100 + n, "head -c 131072 /dev/zero") for n in range(3)]
    master.add(*large, *small)

    assert hosts.run(Slots="2") == 0

    sizes = [results["output"].size for results in master.completed.values()]
    assert sorted(sizes) == [131072] * 3 + [200_000] * 12
    assert master.count("/complete") == 12
    assert len(master.heard("complete")) == 3


def test_results_beyond_what_may_wait_in_memory_go_beside_the_exchanges(
    hosts: Hosts, master: Master
) -> None:
    wait = f"until test -e {hosts.home}/go; do sleep 0.02; done"
    command = f"/bin/sh -c '{wait}; head -c 131072 /dev/zero'"
    master.add(*(Task(10000 + n, command) for n in range(40)))
    client = hosts.start(Slots="40")
    wait_until(lambda: sum("until test" in line for line in hosts.processes().values()) >= 40)
    master.exchange_may_go.clear()
    (hosts.home / "go").touch()

    # one exchange under way, what may wait for the next one, and those
    master.wait(lambda: master.count("/complete") >= 10)
    master.exchange_may_go.set()

    assert client.wait(LONG) == 0
    sizes = [results["output"].size for results in master.completed.values()]
    assert sizes == [131072] * 40


def test_on_a_slow_way_larger_results_go_beside_the_exchanges(hosts: Hosts, master: Master) -> None:
    """Behind a long body pings would wait: after a slow exchange only small results go by them."""
    tasks = [
        f"/bin/sh -c 'head -c 100000 /dev/zero; {waits_for(hosts.home / name)}'" for name in "abc"
    ]
    master.add(*(Task(10000 + n, command) for n, command in enumerate(tasks)))
    client = hosts.start(Slots="3")
    wait_until(lambda: running(hosts, "/bin/sh -c head") == 3)
    master.exchange_may_go.clear()
    (hosts.home / "a").touch()
    master.wait(lambda: master.heard("complete"))
    time.sleep(1.5)  # so slow is the answer
    master.exchange_may_go.set()
    master.wait(lambda: len(master.completed) == 1)
    (hosts.home / "b").touch()
    (hosts.home / "c").touch()

    assert client.wait(LONG) == 0
    assert len(master.completed) == 3
    assert len(master.heard("complete")) == 1
    assert master.count("/complete") == 2


def test_an_exchange_is_no_larger_than_the_server_takes(hosts: Hosts, master: Master) -> None:
    master.config["ExchangeMost"] = "30000"  # the master asserts that
    master.add(*(Task(10000 + n, "head -c 9000 /dev/zero") for n in range(30)))

    assert hosts.run(Slots="2") == 0

    sizes = [results["output"].size for results in master.completed.values()]
    assert sizes == [9000] * 30
    assert len(master.exchanges) >= 10


def test_a_large_input_comes_with_an_exchange(hosts: Hosts, master: Master) -> None:
    large = os.urandom(300_000)
    master.add(
        Task(10000, "/bin/sh -c 'cat; wc -c < a/b'", inputs={"stdin": b"x\n", "a/b": large}),
        Task(10001, "cat", inputs={"stdin": b"--end content--\n\0"}),
        Task(10002, "/bin/echo 'a  b'"),
    )

    assert hosts.run(Slots="2") == 0

    assert master.text(10000) == "x\n300000\n"
    assert master.text(10001) == "--end content--\n\0"
    assert master.text(10002) == "a  b\n"


def test_results_survive_a_server_that_is_away(hosts: Hosts, master: Master) -> None:
    """They are put on disk, stay in memory, and go out in exchanges when it is back."""
    master.answers["/exchange"] = []
    go = hosts.home / "go"
    tasks = [Task(10000 + n, f"/bin/sh -c '{waits_for(go)}; echo {n}'") for n in range(3)]
    master.add(*tasks)
    client = hosts.start(Slots="3")
    wait_until(lambda: running(hosts, "/bin/sh -c until") == 3)
    master.stop()
    go.touch()
    (place,) = hosts.places()
    unsent = place / "unsent"
    wait_until(lambda: unsent.exists() and unsent.read_bytes().count(b"complete ") == 3)
    master.start()

    assert client.wait(LONG) == 0
    assert [master.text(10000 + n) for n in range(3)] == ["0\n", "1\n", "2\n"]
    assert not hosts.dir.exists()


@pytest.mark.parametrize("status", [400, 404, 413])
def test_what_the_server_does_not_take_together_goes_one_by_one(
    hosts: Hosts, master: Master, status: int
) -> None:
    go = hosts.home / "go"
    master.add(
        Task(10000, f"/bin/sh -c '{waits_for(go)}; echo a'"),
        Task(10001, f"/bin/sh -c '{waits_for(go)}; exit 1'"),
        Task(10002, "/bin/echo c"),
    )
    client = hosts.start(Slots="2")
    wait_until(lambda: running(hosts, "/bin/sh -c until") == 2)
    with master.changed:
        master.answers["/exchange"] = [(status, None)] * 2
    go.touch()

    assert client.wait(LONG) == 0
    assert master.text(10000) == "a\n"
    assert master.failed[10001]["Kind"] == "exit"
    assert master.text(10002) == "c\n"
    assert master.count("/complete") + master.count("/failed") > 0


def test_a_server_without_exchange_is_asked_for_none_by_what_was_left_of_it(
    hosts: Hosts, master: Master
) -> None:
    """A task is to be given back when the server has none any more, and a worker takes its time."""
    master.exchange_may_go.clear()
    master.share = 1
    stubborn = "/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'"
    master.add(Task(10000, stubborn), Task(10001, "echo a"))
    client = hosts.start(Slots="2")
    master.wait(lambda: len(master.exchanges) == 1)
    master.exchange_may_go.set()
    master.exchange_may_go.clear()
    master.wait(lambda: len(master.exchanges) == 2)
    wait_until(lambda: running(hosts, "/bin/sh -c trap"))
    client.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopped by signal" in hosts.log())
    with master.changed:
        master.answers["/exchange"] = [(404, None)] * 100
    master.exchange_may_go.set()

    assert client.wait(LONG) == 128 + signal.SIGTERM
    hosts.assert_gone()
    assert not hosts.dir.exists()


def test_a_client_killed_in_the_middle_loses_nothing_for_good(hosts: Hosts, master: Master) -> None:
    """What it had not told, the server gives out again under new tickets."""
    master.add(*(Task(10000 + n, f"/bin/echo {n}") for n in range(300)))
    client = hosts.start(Slots="2")
    master.wait(lambda: len(master.completed) > 50)
    client.send_signal(signal.SIGKILL)
    client.wait()
    hosts.assert_gone()
    with master.changed:
        for ticket in sorted(master.live):
            master.live.discard(ticket)
            words = master.everything[ticket].command
            master.tasks.append(Task(ticket + 1000, words))
            master.everything[ticket + 1000] = master.tasks[-1]

    assert hosts.run(Slots="2") == 0, hosts.log()

    said = {content["output"].data.decode() for content in master.completed.values()}
    assert said == {f"{n}\n" for n in range(300)}
    assert not hosts.dir.exists()


def test_a_stopped_client_gives_back_what_waits(hosts: Hosts, master: Master) -> None:
    go = hosts.home / "go"
    short = [Task(10000 + n, "/bin/echo x") for n in range(100)]
    long = [Task(10200 + n, f"/bin/sh -c '{waits_for(go)}'") for n in range(30)]
    master.add(*short, *long)
    client = hosts.start(Slots="2")
    wait_until(lambda: running(hosts, "/bin/sh -c until") == 2)
    client.send_signal(signal.SIGTERM)

    assert client.wait(LONG) == 128 + signal.SIGTERM
    stopped = {ticket for ticket, pairs in master.failed.items() if pairs["Kind"] == "stopped"}
    assert len(stopped) == 2
    assert set(master.given) == set(master.completed) | stopped | set(master.heard("back"))
    hosts.assert_gone()
    assert not hosts.dir.exists()


def test_a_stopped_client_gives_back_what_comes_afterwards(hosts: Hosts, master: Master) -> None:
    master.exchange_may_go.clear()
    master.add(Task(10000, "echo a"))
    client = hosts.start()
    master.wait(lambda: master.exchanges)
    client.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopped by signal" in hosts.log())
    master.exchange_may_go.set()

    assert client.wait(LONG) == 128 + signal.SIGTERM
    assert master.heard("back") == [10000]
    assert not hosts.dir.exists()


def test_a_stopped_client_asks_no_more_often_than_the_server_wants(
    hosts: Hosts, master: Master
) -> None:
    master.add(Task(10000, SLEEP))
    client = hosts.start()
    wait_until(lambda: running(hosts))
    with master.changed:
        master.answers["/exchange"] = [(503, "60")] * 10_000
    client.send_signal(signal.SIGTERM)

    assert client.wait(LONG) == 128 + signal.SIGTERM
    assert master.count("/exchange") == 2  # that which brought the task, and the last one


def test_folders_are_used_again_only_when_they_are_as_they_were(
    hosts: Hosts, master: Master
) -> None:
    """Whatever a worker did to its folder or wrote to its streams, the next finds nothing of it."""
    deeds = [
        "true",
        "touch a; rm a",
        "touch b",
        "mkdir c",
        "chmod 500 .",
        "echo noise >&2",
        "echo more >&2; touch d",
        "rm -rf $PWD",
    ]
    look = "ls -A; stat -c %a .; pwd"
    commands = [f"/bin/sh -c '{deed}'" for deed in deeds]
    tasks = []
    for number, command in enumerate(commands):
        tasks.append(Task(10000 + 2 * number, command))
        tasks.append(Task(10001 + 2 * number, f"/bin/sh -c '{look}; echo bad >&2; exit 3'"))
        tasks[-1].results = {"output": "stdout"}
        tasks[-1].command = tasks[-1].command.replace("; echo bad >&2; exit 3", "")
    last = Task(10100, "/bin/sh -c 'echo bad >&2; exit 3'")
    master.add(*tasks, last)

    assert hosts.run() == 0

    for number, deed in enumerate(deeds):
        mode, folder = master.text(10001 + 2 * number).splitlines()
        assert mode == "700", deed
        assert folder.startswith(str(hosts.dir.resolve()))
    assert master.tails[10100] == b"bad\n"


def test_output_that_is_longer_than_a_pipe(hosts: Hosts, master: Master) -> None:
    sizes = [0, 1, 16383, 16384, 16385, 65536, 65537, 1_000_000, 3]
    results = {"out": "stdout", "err": "stderr"}
    command = "/bin/sh -c 'head -c %d /dev/zero; head -c %d /dev/zero >&2'"
    master.add(
        *(Task(10000 + n, command % (size, size), results) for n, size in enumerate(sizes)),
        Task(
            10100,
            "/bin/sh -c 'setsid sleep 1000 & until grep -qs ^sleep /proc/$!/cmdline; "
            "do :; done; echo x'",
        ),
        Task(10101, "/bin/sh -c 'echo first > /dev/stdout; echo second > /dev/stdout'"),
    )

    assert hosts.run() == 0

    for number, size in enumerate(sizes):
        got = master.completed[10000 + number]
        assert (got["out"].size, got["err"].size) == (size, size)
    assert master.text(10100) == "x\n"  # who holds the pipe in secret stops nobody
    assert master.text(10101).endswith("second\n")
    hosts.assert_gone()


def test_workers_get_default_signals(hosts: Hosts, master: Master) -> None:
    master.add(Task(10000, "/bin/sh -c 'grep -E ^Sig[BI] /proc/self/status'"))

    assert hosts.run() == 0

    lines = dict(line.split(":\t") for line in master.text(10000).splitlines())
    assert int(lines["SigBlk"], 16) == 0
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not int(lines["SigIgn"], 16) & 1 << number - 1


def test_entries_that_were_cut_off_do_not_count(tmp_path: Path) -> None:
    client = load_client()
    first = client.Outcome("10000", 0.25, b"body\n")
    second = client.Outcome("10001", None, b"Kind=exit\n\n")
    data = b"".join(first.entry() + second.entry())
    for length in range(len(data) + 1):
        found = client.read_entries(data[:length])
        whole = 2 if length == len(data) else int(length >= len(b"".join(first.entry())))
        assert len(found) == whole
    assert [each.entry() for each in found] == [first.entry(), second.entry()]
    assert (found[0].ticket, found[0].seconds, found[1].seconds) == ("10000", 0.25, None)


def test_help_needs_no_server(python: str) -> None:
    call = subprocess.run([python, str(CLIENT), "--help"], capture_output=True, text=True)
    assert call.returncode == 0
    assert "Exit status" in call.stdout


def test_no_task_is_asked_for_before_the_worker_is_there(hosts: Hosts, master: Master) -> None:
    """Pings are due while another client, or a slow network, still brings it."""
    master.worker = WORKER
    master.config.update(Worker="ising", Ping="0.01")
    master.worker_may_go.clear()
    master.add(Task(10000, "ising 1"))
    release = threading.Timer(0.5, master.worker_may_go.set)  # fifty pings later
    release.start()
    assert hosts.run() == 0
    release.join()
    assert "says 1" in master.text(10000)
    assert master.heard("failed") == []

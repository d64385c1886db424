"""Clients that know the founding document and nothing else work a session to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system.running import JobFolder, adds_up, interrupt
from tests.waiting import LONG, wait_until

FOREIGN = Path(__file__).with_name("foreign")

#: Nobody is started: clients come by themselves.
JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
[worker]
name = double
command = double $n
executable = double.sh
[input]
stdin = n
data.txt = @data.in
[result]
output = stdout
copy = out/copy.txt
[collect]
output = table results.txt
copy = concat copies.txt
[client]
ping = 1
"""

WORKER = """\
#!/bin/sh
read from_stdin
mkdir -p out
cat data.txt > out/copy.txt
echo $(($1 + from_stdin))
"""

FILES = {"lab.hosts": "127.0.0.1 start=no\n", "double.sh": WORKER, "data.in": "n is $n\n"}


@dataclass
class Served:
    """A master that waits for clients."""

    job: JobFolder
    process: subprocess.Popen[str]
    url: str
    host: str
    port: str
    session: str


@contextmanager
def served(path: Path, text: str = JOB, table: list[str] | None = None) -> Iterator[Served]:
    job = JobFolder(path / "job", text, table or ["n", *map(str, range(1, 13))], FILES)
    process = job.start()
    card = job.state / "session.json"
    wait_until(lambda: card.exists() or process.poll() is not None)
    try:
        values = json.loads(card.read_text())
        url = urlsplit(values["url"])
        yield Served(
            job, process, values["url"], str(url.hostname), str(url.port), values["session"]
        )
    finally:
        if process.poll() is None:
            interrupt(process)
            process.communicate(timeout=LONG)


def work(master: Served, *command: str, worker: str = "double") -> None:
    subprocess.run(
        [*command, master.host, master.port, master.session, worker],
        timeout=LONG,
        check=True,
        env={**os.environ, "PEXEC_TEST_MARK": master.job.mark},
    )


def check(master: Served) -> None:
    master.job.finish(master.process)
    job = master.job
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{2 * n}" for n in range(1, 13))]
    assert job.lines("copies.txt") == [f"n is {n}" for n in range(1, 13)]
    adds_up(job.statistics())
    job.assert_nothing_left()


def test_perl_with_plain_sockets_and_http_1_0(tmp_path: Path) -> None:
    with served(tmp_path) as master:
        work(master, "perl", str(FOREIGN / "client.pl"))
        check(master)


ODD = [
    [],
    ["--crlf"],
    ["--no-host"],
    ["--half-close"],
    ["--no-ping"],
    ["--blanks"],
    ["--crlf", "--no-host", "--half-close", "--no-ping", "--blanks"],
]


@pytest.mark.parametrize("options", ODD, ids=lambda options: " ".join(options) or "plain")
def test_odd_habits(tmp_path: Path, options: list[str]) -> None:
    with served(tmp_path) as master:
        work(master, sys.executable, str(FOREIGN / "odd.py"), *options)
        check(master)


def test_curl_posts_forms(tmp_path: Path) -> None:
    with served(tmp_path) as master:
        work(master, "sh", str(FOREIGN / "client.sh"))
        check(master)


def curl(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        ["curl", "-sS", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_head_takes_nothing(tmp_path: Path) -> None:
    with served(tmp_path, table=["n", "1"]) as master:
        where = f"{master.url}/task?sessionID={master.session}"
        assert curl("--head", where)[0] == 405
        status, body = curl(where)
        assert status == 200
        assert body.startswith("Ticket=10000\n")
        done, _ = curl(
            "-F", "output=2", "-F", "copy=n is 1",
            f"{master.url}/complete?sessionID={master.session}&ticket=10000",
        )  # fmt: skip
        assert done == 200
        master.job.finish(master.process)
        assert master.job.statistics()["tickets"] == 1


def test_what_is_wrong_is_answered_and_changes_nothing(tmp_path: Path) -> None:
    with served(tmp_path, table=["n", "1"]) as master:
        url, session = master.url, master.session
        assert curl(f"{url}/config?sessionID=wrong")[0] == 403
        assert curl(f"{url}/task?sessionID={session}&worker=other")[0] == 403
        assert curl(f"{url}/worker?sessionID={session}&name=double&platform=vax-vms")[0] == 200
        assert curl(f"{url}/worker?sessionID={session}&name=other&platform=any")[0] == 403
        assert curl(f"{url}/nothing?sessionID={session}")[0] == 404
        assert curl("-X", "DELETE", f"{url}/task?sessionID={session}")[0] == 405
        assert curl(f"{url}/task")[0] == 400
        assert curl(f"{url}/ping?sessionID={session}&ticket=x")[0] == 400
        assert curl(f"{url}/ping?sessionID={session}&ticket=77")[0] == 205
        status, body = curl(f"{url}/task?sessionID={session}")
        assert (status, body[:12]) == (200, "Ticket=10000")
        ticket = f"sessionID={session}&ticket=10000"
        assert curl(f"{url}/ping?{ticket}")[0] == 204
        assert curl("--data-binary", "rubbish", f"{url}/complete?{ticket}")[0] == 400
        assert curl(f"{url}/ping?{ticket}")[0] == 204
        body = "[Result]\nName=output\n--begin content--\n2\n--end content--\n"
        body += "[Result]\nName=copy\n--begin content--\nn is 1\n\n--end content--\n"
        assert curl("--data-binary", body, f"{url}/complete?{ticket}")[0] == 200
        master.job.finish(master.process)
        assert master.job.lines("results.txt") == ["n|output", "1|2"]
        assert master.job.lines("copies.txt") == ["n is 1"]


def test_what_comes_while_the_clients_leave_is_collected(tmp_path: Path) -> None:
    with served(tmp_path, table=["n", "1", "2"]) as master:
        task = f"{master.url}/task?sessionID={master.session}"
        assert curl(task)[1].startswith("Ticket=10000\n")
        assert curl(task)[1].startswith("Ticket=10001\n")
        interrupt(master.process)
        ping = f"{master.url}/ping?sessionID={master.session}&ticket=10000"
        wait_until(lambda: curl(ping)[0] == 205)
        done, _ = curl(
            "-F", "output=4", "-F", "copy=n is 2",
            f"{master.url}/complete?sessionID={master.session}&ticket=10001",
        )  # fmt: skip
        assert done == 200
        assert curl(task)[0] == 503
        printed = master.job.finish(master.process, expect=130)
        assert master.job.lines("results.txt") == ["n|output", "2|4"]
        assert "1 of 2 sets have no result" in printed
        assert master.job.statistics()["collected"] == 1

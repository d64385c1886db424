"""A whole job by exchanges alone, with a real master that is killed in the middle of them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlencode

from pexecd.protocol.wire import TaskMessage
from tests.system.protocol_server import ANNOUNCED, request
from tests.system.running import adds_up
from tests.system.test_foreign_clients import served
from tests.unit.protocol.test_exchange import complete, failed, read_supply, result
from tests.unit.protocol.vectors import decode_task
from tests.waiting import LONG

TASKS = 400
BATCH = 25

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
[worker]
name = double
command = double $n
executable = double.sh
[result]
output = stdout
[collect]
output = concat results.txt
[client]
ping = 1
"""


class Client:
    """As docs/protocol.md has it: it repeats what got no answer, and has its results until then."""

    def __init__(self, host: str, port: str, session: str) -> None:
        self._address = host, int(port)
        self._words = {"sessionID": session, "host": "127.0.0.1", "client": "client-7"}
        self._connection: http.client.HTTPConnection | None = None
        #: How often each task was worked, and how many exchanges got no answer.
        self.worked = Counter[int]()
        self.repeated = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(
        self, method: str, path: str, body: bytes = b"", **words: object
    ) -> tuple[int, bytes, str]:
        """One request, until it has an answer: status, body, ``Retry-After``."""
        name, _, value = ANNOUNCED.partition(": ")
        target = f"{path}?{urlencode({**self._words, **words})}"
        end = time.monotonic() + LONG
        while True:
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPConnection(*self._address, timeout=LONG)
                self._connection.request(method, target, body or None, {name: value})
                reply = self._connection.getresponse()
                return reply.status, reply.read(), reply.headers.get("Retry-After", "")
            except (OSError, http.client.HTTPException):
                assert time.monotonic() < end
                self.close()
                self.repeated += 1
                time.sleep(0.05)  # the master is dead just now

    def send_only(self, body: bytes, want: int) -> None:
        """An exchange whose answer never comes."""
        with socket.create_connection(self._address, timeout=LONG) as peer:
            path = f"/exchange?{urlencode({**self._words, 'want': want})}"
            peer.sendall(request("POST", path, body, ANNOUNCED, version="HTTP/1.1"))

    def exchange(self, body: bytes, want: int) -> tuple[list[TaskMessage], str]:
        while True:
            status, answer, again = self.ask("POST", "/exchange", body, want=want)
            if status == 200:
                _, tasks, left = read_supply(answer)
                return tasks, left
            assert (status, bool(again)) == (503, True), (status, answer)
            time.sleep(0.05)

    def work(self, message: TaskMessage) -> bytes:
        """What becomes of a ticket: every task fails at first where it is a multiple of 50."""
        self.worked[message.task] += 1
        if message.task % 50 == 0 and self.worked[message.task] == 1:
            return failed(message.ticket, b"Kind=exit\nReason=exit status 1\nExit=1\n")
        if message.task % 7 == 0 and self.worked[message.task] == 1:
            return b"back %d\n" % message.ticket
        return complete(message.ticket, result(output(message.task)), 0.001)


def output(task: int) -> bytes:
    """Some are too large for the journal."""
    return b"%d\n" % (2 * task) if task % 60 else b"%d " % task * 10_000 + b"\n"


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_job_by_exchanges_survives_a_master_that_is_killed(tmp_path: Path) -> None:
    table = ["n", *map(str, range(1, TASKS + 1))]
    with served(tmp_path, JOB, table) as master:
        client = Client(master.host, master.port, master.session)
        status, config, _ = client.ask("GET", "/config")
        assert status == 200
        assert b"\nExchange=/exchange\n" in config
        process, body, left, rounds = master.process, b"", "", 0
        while left != "end":
            rounds += 1
            if rounds in (4, 9):
                # It has read the exchange, or not; it has written it down, or not.
                client.send_only(body, BATCH)
                kill(process)
                process = master.job.start()
            tasks, left = client.exchange(body, BATCH)
            body = b"".join(client.work(message) for message in tasks)
            if left == "none":
                status, answer, again = client.ask("GET", "/task")
                if status == 200:
                    body += client.work(decode_task(answer))
                elif not again:
                    break
        client.close()
        master.job.finish(process)
        assert b"".join(output(task) for task in range(1, TASKS + 1)) == (
            (master.job.path / "results.txt").read_bytes()
        )
        numbers = master.job.statistics()
        adds_up(numbers)
        assert (numbers["done"], numbers["failed"]) == (TASKS, 0)
        assert numbers["ends"]["failed"] == TASKS // 50
        assert client.repeated
        master.job.assert_nothing_left()

"""As little as a master on twisted.web and SQLite can be: what bench/master.py measures pexecd by.

    python -m bench.bare FOLDER TASKS

It hands out the numbers from 1 to TASKS, journals each ticket and each result in a thread (WAL,
synchronous=FULL) before it speaks of it, writes ``results.txt`` in FOLDER in order, and ends. It
knows no hosts, no retries, no deadlines, no repeated or lost message, no bad input, no restart.
FOLDER/job.pexecd gets a ``session.json`` for bench/load.py.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from pexecd.notify import Notifier

reactor: Any = installed_reactor

_RESULT = re.compile(
    rb"complete ([0-9]+) [0-9.]+ [0-9]+\n\[Result\]\nName=output\nLength=[0-9]+\n"
    rb"--begin content--\n(.*?)\n--end content--\n\n",
    re.DOTALL,
)
_TASK = b"[Task]\nTicket=%d\nExecutable=true\nArgument=%d\n[Parameters]\nTask=%d\n"


class Journal:
    """Commits what waits, all of it at once, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[list[Any], list[Any], Callable[[], None]]]
        self._queue = queue.SimpleQueue()
        threading.Thread(target=self._work, name="journal", daemon=True).start()

    def append(
        self,
        tickets: list[tuple[int, int]],
        rows: list[tuple[int, bytes]],
        done: Callable[[], None],
    ) -> None:
        """Store tickets with their tasks, and results with their tickets.

        ``done`` is called in the reactor's thread when they are on disk.
        """
        self._queue.put((tickets, rows, done))

    def _work(self) -> None:
        database = sqlite3.connect(self._path, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE tickets (ticket INTEGER PRIMARY KEY, task INTEGER)")
        database.execute("CREATE TABLE results (ticket INTEGER PRIMARY KEY, data BLOB)")
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            tickets = [row for some, _, _ in batch for row in some]
            rows = [row for _, some, _ in batch for row in some]
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT INTO tickets VALUES (?, ?)", tickets)
            database.executemany("INSERT INTO results VALUES (?, ?)", rows)
            database.execute("COMMIT")
            reactor.callFromThread(_call_all, [done for _, _, done in batch])


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()


class Bare:
    """Numbers out, results in."""

    def __init__(self, folder: Path, tasks: int) -> None:
        self._tasks = tasks
        self._next = 1
        self._results: list[bytes | None] = [None] * tasks
        self._written = 0
        self._output = (folder / "results.txt").open("wb")
        self._output.write(b"n|output\n")
        self._journal = Journal(folder / "job.pexecd" / "bare.db")

    def turn(
        self, rows: list[tuple[int, bytes]], want: int, done: Callable[[list[bytes]], None]
    ) -> None:
        """Take results, and give tasks when all is on disk."""
        first, self._next = self._next, min(self._next + want, self._tasks + 1)
        given = range(first, self._next)

        def stored() -> None:
            for ticket, data in rows:
                self._results[ticket - 10001] = data
            if rows:
                self._collect()
            done([_TASK % (10000 + n, n, n) for n in given])

        if rows or given:
            self._journal.append([(10000 + n, n) for n in given], rows, stored)
        else:
            reactor.callLater(0, stored)

    def _collect(self) -> None:
        while self._written < self._tasks:
            data = self._results[self._written]
            if data is None:
                return
            self._written += 1
            self._output.write(b"%d|%b\n" % (self._written, data.strip()))
        self._output.flush()
        os.fsync(self._output.fileno())
        reactor.callLater(0.1, reactor.stop)


class Answers(Resource):
    """A resource that answers without regard to what comes with the request."""

    isLeaf = True

    def __init__(self, bare: Bare) -> None:
        super().__init__()
        self._bare = bare


class Config(Answers):
    def render_GET(self, _request: Request) -> bytes:
        return b"Client=bare\nExchange=/exchange\n"


class Task(Answers):
    def render_GET(self, request: Request) -> Any:
        def answer(tasks: list[bytes]) -> None:
            if not tasks:
                request.setResponseCode(503)
            request.write(b"".join(tasks))
            request.finish()

        self._bare.turn([], 1, answer)
        return NOT_DONE_YET


class Complete(Answers):
    def render_POST(self, request: Request) -> Any:
        ticket = int(request.args[b"ticket"][0])
        body = request.content.read()
        data = body[body.index(b"--begin content--\n") + 18 : body.rindex(b"\n--end content--")]
        self._bare.turn([(ticket, data)], 0, lambda _: request.finish())
        return NOT_DONE_YET


class Exchange(Answers):
    def render_POST(self, request: Request) -> Any:
        found = _RESULT.findall(request.content.read())
        want = int(request.args[b"want"][0])

        def answer(tasks: list[bytes]) -> None:
            request.write(b"".join([b"task %d\n%b\n" % (len(task), task) for task in tasks]))
            if not tasks:
                request.write(b"end\n")
            request.finish()

        self._bare.turn([(int(ticket), data) for ticket, data in found], want, answer)
        return NOT_DONE_YET


class QuietSite(Site):
    """No access log, and no clock for one."""

    noisy = False

    def log(self, request: Any) -> None:
        pass


def main() -> None:
    folder, tasks = Path(sys.argv[1]), int(sys.argv[2])
    state = folder / "job.pexecd"
    state.mkdir()
    bare = Bare(folder, tasks)
    root = Resource()
    for name, kind in (
        (b"config", Config),
        (b"task", Task),
        (b"complete", Complete),
        (b"exchange", Exchange),
    ):
        root.putChild(name, kind(bare))
    port = reactor.listenTCP(0, QuietSite(root), interface="127.0.0.1")
    url = f"http://127.0.0.1:{port.getHost().port}"
    (state / "session.json").write_text(json.dumps({"url": url, "session": "bare"}))
    reactor.callWhenRunning(Notifier(os.environ).ready)
    reactor.run()


if __name__ == "__main__":
    main()

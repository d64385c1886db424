"""Simulated clients: a process that speaks the real protocol to a master and runs nothing.

    python -m bench.load STATE exchange [--size 16] [--clients 1]
    python -m bench.load STATE pair [--clients 16]
    python -m bench.load STATE hold [--clients 10000] [--seconds 30]
    python -m bench.load STATE big [--bytes 1000000000]

STATE is the master's state folder; session.json is waited for. Every client is a host of its
own. What was seen is printed as JSON, times are those of ``time.monotonic()``, which all
processes of a computer share. ``hold`` prints a line before, once all clients hold their
requests.

The other benches start it as a process of its own, so that its CPU is not the master's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from bench.machine import raise_open_files
from bench.running import ROOT, environment

#: Connections come from as many addresses of this computer: one has 28,000 ports.
SOURCES = 16
#: So many connections are being made at once.
OPENING = 100
#: Seconds for which the master holds a request for a task.
HOLD = 30.0
#: Seconds that a master which is gone is waited for.
PATIENCE = 120.0
#: Exit status when the master knows the single requests only.
NO_EXCHANGE = 3

_HEAD = "Host: master\r\nAccept: application/x-pexec; framing=length\r\n"


@dataclass(frozen=True)
class Where:
    """A master."""

    address: str
    port: int
    session: str

    @classmethod
    def read(cls, state: Path) -> Where:
        """What ``session.json`` says; waits for it."""
        while True:
            try:
                card = json.loads((state / "session.json").read_bytes())
                break
            except (FileNotFoundError, ValueError):
                time.sleep(0.005)
        url = urlsplit(card["url"])
        return cls(url.hostname or "", url.port or 0, card["session"])


@dataclass(frozen=True)
class Answer:
    status: int
    retry: bool
    body: bytes


class Connection(asyncio.Protocol):
    """One connection that stays open, with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: Any = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._needed = 0

    @classmethod
    async def open(cls, where: Where, number: int) -> Connection:
        source = f"127.0.0.{2 + number % SOURCES}"
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            cls, where.address, where.port, local_addr=(source, 0)
        )
        return connection

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; fires with the answer, or fails with ``ConnectionError``."""
        assert self._waiting is None
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < self._needed:
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        place = head.find(b"\r\ncontent-length:")
        length = int(head[place + 17 :].split(b"\r", 1)[0]) if place >= 0 else 0
        self._needed = end + 4 + length
        if len(self._buffer) < self._needed:
            return
        body, self._buffer = self._buffer[end + 4 :], b""
        self._needed = 0
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.cancelled():
            waiting.set_result(Answer(int(head[9:12]), b"\r\nretry-after:" in head, body))

    def connection_lost(self, error: Exception | None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(ConnectionError("the master closed the connection"))

    def close(self) -> None:
        self._transport.close()


@dataclass
class Seen:
    """What a load has seen; all times of ``time.monotonic()``."""

    #: Tasks that are confirmed.
    done: int = 0
    #: When the first task came.
    first: float | None = None
    #: When the last one was confirmed.
    last: float | None = None
    #: When so many were confirmed, about a hundred of them.
    marks: list[tuple[int, float]] = field(default_factory=list)
    #: Confirmed tasks between two marks.
    step: int = 1000
    requests: int = 0
    #: How often a connection was lost.
    lost: int = 0

    def task(self) -> None:
        if self.first is None:
            self.first = time.monotonic()

    def confirmed(self, tasks: int) -> None:
        before, self.done = self.done, self.done + tasks
        self.last = time.monotonic()
        if before // self.step != self.done // self.step or not before:
            self.marks.append((self.done, self.last))

    def as_json(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "first": self.first,
            "last": self.last,
            "marks": self.marks,
            "requests": self.requests,
            "lost": self.lost,
        }


class Client:
    """One simulated client, on a host of its own."""

    def __init__(self, where: Where, number: int, seen: Seen) -> None:
        self.number = number
        self._where = where
        self._seen = seen
        self._host = f"simulated-{number}"
        self._query = ""
        #: The path of the exchange, if the master has it.
        self.exchange_path = ""

    async def connect(self) -> Connection:
        """A connection; a master that is being started again is waited for."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return await Connection.open(self._where, self.number)
            except OSError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)

    def request(self, method: str, path: str, more: str = "", body: bytes = b"") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        head = f"{method} {path}?{self._query}{more} HTTP/1.1\r\n{_HEAD}{length}\r\n"
        return head.encode() + body

    async def call(self, connection: Connection, request: bytes) -> tuple[Connection, Answer]:
        """Send a request, again if the master went away; the connection to go on with."""
        while True:
            self._seen.requests += 1
            try:
                return connection, await connection.ask(request)
            except ConnectionError:
                self._seen.lost += 1
                connection = await self.connect()

    async def begin(self, slots: int) -> Connection:
        """Fetch config."""
        self._query = f"sessionID={self._where.session}&host={self._host}"
        connection = await self.connect()
        request = self.request("GET", "/config", f"&slots={slots}")
        connection, answer = await self.call(connection, request)
        if answer.status != 200:
            raise SystemExit(f"/config: {answer.status} {answer.body!r}")
        pairs = dict(line.split("=", 1) for line in answer.body.decode().splitlines())
        self._query += f"&client={pairs['Client']}"
        self.exchange_path = pairs.get("Exchange", "")
        return connection

    # --- the ways to work -------------------------------------------------------------------

    async def work_by_exchange(self, size: int) -> None:
        """Take so many tasks, finish them all, post them and take the next, in one request."""
        connection = await self.begin(slots=2)
        if not self.exchange_path:
            raise SystemExit(NO_EXCHANGE)
        request = self.request("POST", self.exchange_path, f"&want={size}")
        head = request[: request.index(b"Content-Length")]
        tasks: list[tuple[bytes, bytes]] = []
        while True:
            body = b"".join(map(_complete_entry, tasks))
            request = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
            connection, answer = await self.call(connection, request)
            if answer.status == 503:  # it cannot store just now
                await asyncio.sleep(0.1)
                continue
            if answer.status != 200:
                raise SystemExit(f"exchange: {answer.status} {answer.body!r}")
            if tasks:
                self._seen.confirmed(len(tasks))
            tasks, words = _entries(answer.body)
            if tasks:
                self._seen.task()
            elif b"end" in words:
                break
            else:  # none at this moment: wait for one
                connection, task = await self.take(connection)
                if task is None:
                    break
                tasks = [task]
        connection.close()

    async def work_by_pairs(self) -> None:
        """The founding pair of requests for each task."""
        connection = await self.begin(slots=1)
        while True:
            connection, task = await self.take(connection)
            if task is None:
                break
            ticket, number = task
            more = f"&ticket={ticket.decode()}&seconds=0.001"
            while True:
                request = self.request("POST", "/complete", more, _results(number))
                connection, answer = await self.call(connection, request)
                if answer.status == 200:
                    break
                if answer.status != 503:
                    raise SystemExit(f"/complete: {answer.status} {answer.body!r}")
                await asyncio.sleep(0.1)
            self._seen.confirmed(1)
        connection.close()

    async def take(self, connection: Connection) -> tuple[Connection, tuple[bytes, bytes] | None]:
        """Ask for a task until there is one, or none is left."""
        request = self.request("GET", "/task")
        while True:
            connection, answer = await self.call(connection, request)
            if answer.status == 200:
                self._seen.task()
                return connection, _task(answer.body)
            if answer.status != 503:
                raise SystemExit(f"/task: {answer.status} {answer.body!r}")
            if not answer.retry:
                return connection, None
            await asyncio.sleep(1)


def _task(text: bytes) -> tuple[bytes, bytes]:
    """Ticket and number of a task in a body of ``/task``."""
    ticket = text.index(b"Ticket=") + 7
    number = text.index(b"\nTask=") + 6
    return text[ticket : text.index(b"\n", ticket)], text[number : text.index(b"\n", number)]


def _results(number: bytes) -> bytes:
    return b"[Result]\nName=output\nLength=%d\n--begin content--\n%b\n\n--end content--\n" % (
        len(number) + 1,
        number,
    )


def _complete_entry(task: tuple[bytes, bytes]) -> bytes:
    ticket, number = task
    results = _results(number)
    return b"complete %b 0.001 %d\n%b\n" % (ticket, len(results), results)


def _entries(body: bytes) -> tuple[list[tuple[bytes, bytes]], set[bytes]]:
    """The tasks in an answer of the exchange, and the first words of its other entries."""
    tasks, words, place = [], set(), 0
    while place < len(body):
        end = body.index(b"\n", place)
        word, _, rest = body[place:end].partition(b" ")
        place = end + 1
        if word == b"task":
            length = int(rest)
            tasks.append(_task(body[place : place + length]))
            place += length + 1
        else:
            words.add(word)
    return tasks, words


# --- many clients that wait ------------------------------------------------------------------


class Held:
    """Clients that have a task which never ends, ask for another one, and ping."""

    def __init__(self, where: Where, seen: Seen, ping: float, count: int) -> None:
        self._where = where
        self._seen = seen
        self._ping = ping
        self._count = count
        self._opening = asyncio.Semaphore(OPENING)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held = 0
        self.over = 0
        #: Latencies in seconds, by the time of the answer.
        self.pings: list[tuple[float, float]] = []
        #: How late this very process was, as it makes latencies longer.
        self.lags: list[float] = []

    async def run(self, seconds: float, first: int) -> dict[str, Any]:
        """Let all begin, wait until they hold, and measure for so long."""
        lagging = self._spawn(self._lag())
        begun = time.monotonic()
        beginning = [self._begin(number) for number in range(first, first + self._count)]
        # Each must have its task first: a request for another one would take somebody else's.
        for client, waiting in await asyncio.gather(*beginning):
            self._spawn(self._hold(client, waiting))
        await asyncio.sleep(max(HOLD, self._ping) + 1)
        steady = time.monotonic()
        self.lags.clear()
        print(json.dumps({"steady": steady, "ramp": steady - begun}), flush=True)
        requests = self._seen.requests
        await asyncio.sleep(seconds)
        end = time.monotonic()
        lagging.cancel()
        found = sorted(took for at, took in self.pings if steady <= at <= end)
        return {
            "clients": self._count,
            "held": self._held,
            "seconds": end - steady,
            "requests": self._seen.requests - requests,
            "over": self.over,
            "pings": len(found),
            "ping": _spread(found),
            "lag": _spread(sorted(self.lags)),
        }

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _begin(self, number: int) -> tuple[Client, Connection]:
        client = Client(self._where, number, self._seen)
        async with self._opening:
            waiting = await client.begin(slots=2)
            waiting, task = await client.take(waiting)
            if task is None:
                raise SystemExit("the table has fewer tasks than there are clients")
            pinging = await client.connect()
        self._spawn(self._pings(client, pinging, task[0]))
        return client, waiting

    def _turn(self, client: Client, gap: float) -> float:
        """Seconds of delay, spread over a gap between requests: not all were started at once."""
        return gap * (client.number % 997) / 997

    async def _hold(self, client: Client, connection: Connection) -> None:
        await asyncio.sleep(self._turn(client, HOLD))
        self._held += 1
        await client.take(connection)
        self._held -= 1  # it should never come

    async def _pings(self, client: Client, connection: Connection, ticket: bytes) -> None:
        request = client.request("GET", "/ping", f"&ticket={ticket.decode()}")
        # By the clock, not from the last one: were this process late once, all those that were due
        # then would ping together for ever.
        due = time.monotonic() // self._ping * self._ping + self._turn(client, self._ping)
        while True:
            while due <= time.monotonic():
                due += self._ping
            await asyncio.sleep(due - time.monotonic())
            asked = time.monotonic()
            connection, answer = await client.call(connection, request)
            now = time.monotonic()
            self.pings.append((now, now - asked))
            if answer.status != 204:
                self.over += 1
                return

    async def _lag(self) -> None:
        while True:
            asked = time.monotonic()
            await asyncio.sleep(0.01)
            self.lags.append(time.monotonic() - asked - 0.01)


def _spread(found: list[float]) -> dict[str, float]:
    """Median, 99th percentile and longest, in milliseconds."""
    if not found:
        return {}
    places = {"median": len(found) // 2, "p99": len(found) * 99 // 100, "most": len(found) - 1}
    return {name: round(found[place] * 1000, 3) for name, place in places.items()}


# --- one large result ------------------------------------------------------------------------


async def post_big(where: Where, seen: Seen, size: int) -> dict[str, Any]:
    """Take a task, and post so many bytes of zeros as its result."""
    client = Client(where, 1, seen)
    connection, task = await client.take(await client.begin(slots=1))
    connection.close()
    if task is None:
        raise SystemExit("there was no task")
    head = b"[Result]\nName=output\nLength=%d\n--begin content--\n" % size
    tail = b"\n--end content--\n"
    more = f"&ticket={task[0].decode()}&seconds=1"
    request = client.request("POST", "/complete", more).replace(
        b"Content-Length: 0", b"Content-Length: %d" % (len(head) + size + len(tail))
    )
    began = time.monotonic()
    zeros = bytes(1 << 20)
    with socket.create_connection((where.address, where.port)) as sending:
        sending.sendall(request + head)
        for _ in range(size >> 20):
            sending.sendall(zeros)
        sending.sendall(zeros[: size & (1 << 20) - 1] + tail)
        status = int(sending.recv(65536).split()[1])
    posted = time.monotonic()
    connection, task = await client.take(await client.connect())
    connection.close()
    return {"status": status, "seconds": posted - began, "bytes": size}


# --- the program -----------------------------------------------------------------------------


async def run(options: argparse.Namespace) -> dict[str, Any]:
    where = await asyncio.to_thread(Where.read, options.state)
    seen = Seen(step=options.step)
    if options.way == "hold":
        return await Held(where, seen, options.ping, options.clients).run(
            options.seconds, options.first
        )
    if options.way == "big":
        return await post_big(where, seen, options.bytes)
    clients = [
        Client(where, number, seen)
        for number in range(options.first, options.first + options.clients)
    ]
    if options.way == "exchange":
        await asyncio.gather(*(client.work_by_exchange(options.size) for client in clients))
    else:
        await asyncio.gather(*(client.work_by_pairs() for client in clients))
    return seen.as_json()


class Loading:
    """A load as a process of its own, killed when the block is left.

    Args:
        state: the master's state folder.
        way: what it does.
        options: of the program, without their dashes.
    """

    def __init__(self, state: Path, way: str, **options: float) -> None:
        words = ((f"--{name}", str(value)) for name, value in options.items())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load", str(state), way, *itertools.chain(*words)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.runs():
            self._process.kill()
        self._process.communicate()

    def runs(self) -> bool:
        return self._process.poll() is None

    def line(self) -> dict[str, Any]:
        """What it prints on its way."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            raise SystemExit(f"the load ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(said)
        return found

    def seen(self) -> dict[str, Any]:
        """Wait for its end: what it has seen; ``{}`` if the master has no exchange."""
        assert self._process.stdout is not None
        output = self._process.stdout.read()
        status = self._process.wait()
        if status == NO_EXCHANGE:
            return {}
        if status:
            raise SystemExit(f"the load ended with status {status}")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("state", type=Path)
    parser.add_argument("way", choices=["exchange", "pair", "hold", "big"])
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, help="number of the first client")
    parser.add_argument("--size", type=int, default=16, help="tasks in one exchange")
    parser.add_argument("--step", type=int, default=1000, help="tasks between two time stamps")
    parser.add_argument("--seconds", type=float, default=30, help="hold: measure so long")
    parser.add_argument("--ping", type=float, default=10, help="hold: seconds between pings")
    parser.add_argument("--bytes", type=int, default=10**9, help="big: size of the result")
    options = parser.parse_args()
    if options.way == "hold" and (problem := raise_open_files(2 * options.clients + 100)):
        sys.exit(problem)
    print(json.dumps(asyncio.run(run(options))), flush=True)


if __name__ == "__main__":
    main()

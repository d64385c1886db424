"""A small master for the client's tests: docs/protocol.md over real sockets, in threads."""

from __future__ import annotations

import contextlib
import hashlib
import io
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.waiting import LONG

# one for each test process: a client locks its host for its session, and tests run side by side
SESSION = f"5ecre7-session-{secrets.token_hex(8)}"


@dataclass
class Task:
    ticket: int
    command: str
    results: dict[str, str] = field(default_factory=lambda: {"output": "stdout"})
    inputs: dict[str, bytes] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    timeout: int = 31536000
    framed: bool = True

    def encode(self) -> bytes:
        lines = [f"Ticket={self.ticket}", f"Timeout={self.timeout}", f"Task={self.ticket - 9999}"]
        lines += [f"Environment={name}={value}" for name, value in self.environment.items()]
        body = "\n".join([*lines, f"CommandLine={self.command}"]).encode() + b"\n"
        for file, content in self.inputs.items():
            body += f"[Input]\nFile={file}\n".encode()
            body += b"Length=%d\n" % len(content) if self.framed else b""
            body += b"--begin content--\n" + content + b"\n--end content--\n"
        for name, file in self.results.items():
            body += f"[Result]\nName={name}\nFile={file}\n".encode()
        return body


@dataclass
class Content:
    """A result as it arrived; of a large one only size and checksum."""

    size: int
    sha256: str
    data: bytes


@dataclass
class Exchange:
    """One exchange as it was heard, and what it brought."""

    want: int
    size: int
    #: Words of the entries' first lines.
    entries: list[list[str]]
    tasks: list[int] = field(default_factory=list)

    def tickets(self, kind: str) -> list[int]:
        return [int(words[1]) for words in self.entries if words[0] == kind]


class Master:
    """Serves the tasks it was given; everything it hears is in its attributes."""

    def __init__(self, exchange: bool = True) -> None:
        self.changed = threading.Condition()
        self.config: dict[str, str] = {
            "DeleteWorker": "Yes",
            "DeleteClient": "Yes",
            "Ping": "0",
            "Client": "c1",
            "Patience": "30",
            "Nice": "0",
            "Session": "sweep",
        }
        if exchange:
            self.config |= {"Exchange": "/exchange", "ExchangeMost": "1048576"}
        self.worker: bytes | None = None
        self.tasks: list[Task] = []
        #: Every task that was ever told, by ticket.
        self.everything: dict[int, Task] = {}
        #: Tickets given out and not settled.
        self.live: set[int] = set()
        self.given: list[int] = []
        self.over: set[int] = set()
        self.completed: dict[int, dict[str, Content]] = {}
        self.failed: dict[int, dict[str, str]] = {}
        self.tails: dict[int, bytes] = {}
        self.exchanges: list[Exchange] = []
        #: An exchange gives no more tasks than this.
        self.share = 1 << 30
        #: An exchange waits for this after it was heard, before anything is done.
        self.exchange_may_go = threading.Event()
        self.exchange_may_go.set()
        self.requests: list[tuple[str, dict[str, str], dict[str, str]]] = []
        #: What a path answers instead, one request after another: status and Retry-After.
        self.answers: dict[str, list[tuple[int, str | None]]] = {}
        #: "length", "chunked" or "close": how a 200 is framed.
        self.framing = "length"
        #: More tasks will come: hold /task open although nothing lives.
        self.more = False
        #: /worker waits for this.
        self.worker_may_go = threading.Event()
        self.worker_may_go.set()
        self.port = 0
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = Server(self, self.port)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away at once, with all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.going = True
            server.shutdown()
            server.server_close()
            server.cut()
            with self.changed:
                self.changed.notify_all()

    def add(self, *tasks: Task) -> None:
        with self.changed:
            self.tasks += tasks
            self.everything.update({task.ticket: task for task in tasks})
            self.changed.notify_all()

    def wait(self, condition: Callable[[], Any]) -> None:
        """Until something holds that depends on what was heard."""
        with self.changed:
            assert self.changed.wait_for(condition, LONG), (
                f"not in {LONG} s; completed {sorted(self.completed)}, failed {self.failed}"
            )

    def heard(self, kind: str) -> list[int]:
        """The tickets that entries of that kind were about, in order."""
        return [ticket for exchange in self.exchanges for ticket in exchange.tickets(kind)]

    def count(self, path: str) -> int:
        return sum(1 for request in self.requests if request[0] == path)

    def text(self, ticket: int, name: str = "output") -> str:
        return self.completed[ticket][name].data.decode()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, master: Master, port: int) -> None:
        self.master = master
        self.going = False
        self._sockets: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._sockets.add(request)
        super().process_request(request, client_address)

    def cut(self) -> None:
        for each in list(self._sockets):
            with contextlib.suppress(OSError):  # it may be closed
                each.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients are killed and connections cut on purpose


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: Nagle's delay would slow every test
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self.serve(b"")

    def do_POST(self) -> None:
        self.serve(b"")

    def serve(self, _: bytes) -> None:
        master = self.server.master
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        with master.changed:
            if self.server.going:
                self.close_connection = True
                return
            master.requests.append((parts.path, query, headers))
            master.changed.notify_all()
            answers = master.answers.get(parts.path)
            instead = answers.pop(0) if answers else None
        if instead is not None:
            if instead[0] == 413:
                self.close_connection = True
            elif self.command == "POST":
                self.rfile.read(int(headers["content-length"]))
            self.answer(instead[0], b"as the test wants", retry_after=instead[1])
        elif query.get("sessionID") != SESSION:
            self.answer(403, b"")
        else:
            getattr(self, "serve_" + parts.path.strip("/"))(master, query)

    def answer(self, status: int, body: bytes, retry_after: str | None = None) -> None:
        framing = self.server.master.framing if status == 200 else "length"
        self.send_response(status)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        if framing == "length" and status != 204:
            self.send_header("Content-Length", str(len(body)))
        elif framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            pieces = [body[at : at + 7001] for at in range(0, len(body), 7001)]
            body = b"".join(b"%x;x=y\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
            body += b"0\r\n\r\n"
        elif framing == "close":
            self.close_connection = True
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def serve_config(self, master: Master, query: dict[str, str]) -> None:
        config = dict(master.config)
        if master.worker is not None:
            config.setdefault("Worker", "worker")
            config.setdefault("SHA256", hashlib.sha256(master.worker).hexdigest())
            config.setdefault("MD5", hashlib.md5(master.worker).hexdigest())
        self.answer(200, "".join(f"{key}={value}\n" for key, value in config.items()).encode())

    def serve_worker(self, master: Master, query: dict[str, str]) -> None:
        master.worker_may_go.wait(LONG)
        assert master.worker is not None
        self.answer(200, master.worker)

    def serve_ping(self, master: Master, query: dict[str, str]) -> None:
        self.answer(205 if int(query["ticket"]) in master.over else 204, b"")

    def serve_task(self, master: Master, query: dict[str, str]) -> None:
        end = time.monotonic() + 30
        with master.changed:
            while not master.tasks and (master.live or master.more) and not self.server.going:
                self.connection.setblocking(False)
                try:
                    if not self.connection.recv(1, socket.MSG_PEEK):
                        self.close_connection = True  # the peer has left: it takes nothing
                        return
                except BlockingIOError:
                    pass
                finally:
                    self.connection.setblocking(True)
                master.changed.wait(min(0.1, end - time.monotonic()))
            if self.server.going:
                self.close_connection = True
                return
            task = master.tasks.pop(0) if master.tasks else None
            if task is not None:
                master.live.add(task.ticket)
                master.given.append(task.ticket)
        if task is None:
            self.answer(503, b"no task left")
        else:
            self.answer(200, task.encode())

    def serve_complete(self, master: Master, query: dict[str, str]) -> None:
        body = Limited(self.rfile, int(self.headers["Content-Length"]))
        self.settle(master, int(query["ticket"]), read_results(body))
        self.answer(200, b"")

    def serve_failed(self, master: Master, query: dict[str, str]) -> None:
        body = Limited(self.rfile, int(self.headers["Content-Length"]))
        self.settle(master, int(query["ticket"]), failure=read_failure(body))
        self.answer(200, b"")

    def serve_exchange(self, master: Master, query: dict[str, str]) -> None:
        size = int(self.headers["Content-Length"])
        assert size <= int(master.config["ExchangeMost"])
        body = Limited(self.rfile, size)
        exchange = Exchange(int(query["want"]), size, [])
        deeds: list[Callable[[], None]] = []
        answer = b""
        while body.left:
            words = body.line().decode().split()
            exchange.entries.append(words)
            kind, ticket = words[0], int(words[1])
            if kind in {"complete", "failed"}:
                part = Limited(io.BytesIO(body.read(int(words[-1]))), int(words[-1]))
                assert body.read(1) == b"\n"
                how = read_results(part) if kind == "complete" else None
                failure = None if kind == "complete" else read_failure(part)
                deeds.append(partial(self.settle, master, ticket, how, failure))
                assert not part.left
            elif kind == "back":
                deeds.append(partial(self.give_back, master, ticket))
            else:
                assert kind in {"running", "waiting"}, kind
                if ticket in master.over:
                    answer += b"over %d\n" % ticket
        with master.changed:
            master.exchanges.append(exchange)
            master.changed.notify_all()
        master.exchange_may_go.wait(LONG)
        with master.changed:
            if self.server.going:
                self.close_connection = True
                return
            for deed in deeds:
                deed()
            for task in master.tasks[: min(exchange.want, master.share)]:
                exchange.tasks.append(task.ticket)
                encoded = task.encode()
                answer += b"task %d\n%s\n" % (len(encoded), encoded)
            del master.tasks[: len(exchange.tasks)]
            master.live.update(exchange.tasks)
            master.given += exchange.tasks
            if exchange.want and not exchange.tasks:
                answer += b"none\n" if master.live or master.more else b"end\n"
            master.changed.notify_all()
        self.answer(200, answer)

    def give_back(self, master: Master, ticket: int) -> None:
        if ticket in master.live:
            master.live.remove(ticket)
            task = replace(master.everything[ticket], ticket=max(master.everything) + 1)
            master.everything[task.ticket] = task
            master.tasks.append(task)

    def settle(
        self,
        master: Master,
        ticket: int,
        results: dict[str, Content] | None = None,
        failure: tuple[dict[str, str], bytes] | None = None,
    ) -> None:
        with master.changed:
            if results is not None:
                master.completed[ticket] = results
            if failure is not None:
                master.failed[ticket], master.tails[ticket] = failure
            master.live.discard(ticket)
            master.changed.notify_all()


def read_results(body: Limited) -> dict[str, Content]:
    results = {}
    while body.left:
        assert body.line() == b"[Result]"
        name = body.pair(b"Name").decode()
        results[name] = body.content(int(body.pair(b"Length")))
    return results


def read_failure(body: Limited) -> tuple[dict[str, str], bytes]:
    pairs: dict[str, str] = {}
    tail = None
    while body.left and tail is None:
        key, _, value = body.line().partition(b"=")
        if key == b"Length":
            tail = body.content(int(value)).data
        else:
            pairs[key.decode()] = value.decode()
    return pairs, tail or b""


class Limited:
    """The body of a request, read exactly."""

    def __init__(self, file: BufferedIOBase, left: int) -> None:
        self._file = file
        self.left = left

    def read(self, count: int) -> bytes:
        data = self._file.read(min(count, self.left))
        if not data and count:
            raise ConnectionError("the body breaks off")
        self.left -= len(data)
        return data

    def line(self) -> bytes:
        line = self._file.readline(min(65536, self.left))
        if not line:
            raise ConnectionError("the body breaks off")
        self.left -= len(line)
        return line.rstrip(b"\n")

    def pair(self, key: bytes) -> bytes:
        found, _, value = self.line().partition(b"=")
        assert found == key, found
        return value

    def content(self, length: int) -> Content:
        assert self.line() == b"--begin content--"
        checksum = hashlib.sha256()
        kept = b""
        left = length
        while left:
            data = self.read(min(left, 1 << 20))
            left -= len(data)
            checksum.update(data)
            if length < 1 << 20:
                kept += data
        assert self.line() == b""
        assert self.line() == b"--end content--"
        return Content(length, checksum.hexdigest(), kept)

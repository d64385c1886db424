"""The client alone: echo tasks from a minimal exchange server on loopback, beside bare xargs.

    python bench/client.py [--tasks 5000] [--rounds 5] [--slots 2] [--python python3] [--delay 0]

The server keeps no books: what is measured is the client's engine and its side of the exchange.
Rounds alternate with ``xargs -P SLOTS -n1 /bin/echo``: on a shared machine only the ratio means
anything. A round prints tasks a second of both, their ratio (from the first exchange to the last
result, and with the client's start and end), the client's own CPU for a task, and how many tasks an
exchange brought. Not in that CPU are the client's start, which takes some 0.1 s, and its children.
``--delay`` has the server wait before each answer, as a slow disk would.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CLIENT = Path(__file__).resolve().parents[1] / "client" / "pexec_client.py"
CONFIG = (
    b"Ping=10\nClient=c\nPatience=60\nSession=bench\nNice=10\n"
    b"Exchange=/exchange\nExchangeMost=1048576\n"
)
#: Seconds that a master takes to start. A Linux that has just seen the client busy with its own
#: start may put worker after worker on one processor, and leave the other one idle.
STARTING = 0.3
TASK = (
    b"Ticket=%d\nTimeout=600\nTask=%d\nCommandLine=/bin/echo line %d\n"
    b"[Result]\nName=output\nFile=stdout\n"
)
RESULT = b"[Result]\nName=output\nLength=%d\n--begin content--\n%s\n--end content--\n"


class Server:
    """Gives so many echo tasks, and checks every answer."""

    def __init__(self, tasks: int, delay: float) -> None:
        self.tasks = tasks
        self.delay = delay
        self.left = list(range(tasks - 1, -1, -1))  # the next is the last
        self.done: set[int] = set()
        self.exchanges = 0
        self.pid = 0
        self.begun = self.ended = self.whole = 0.0
        self.cpu = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        file = connection.makefile("rb")
        while line := file.readline():
            url = urlsplit(line.split()[1].decode())
            length = 0
            while (header := file.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            body = file.read(length)
            if url.path == "/config":
                time.sleep(STARTING)
                status, answer = b"200 OK", CONFIG
            elif url.path == "/exchange":
                want = int(parse_qs(url.query)["want"][0])
                status, answer = b"200 OK", self._exchange(want, body)
            elif url.path == "/task":
                self._all_done()
                status, answer = b"503 No", b""
            else:
                raise ValueError(url.path)
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(answer))
            with contextlib.suppress(ConnectionError):
                connection.sendall(head + answer)

    def _exchange(self, want: int, body: bytes) -> bytes:
        if not self.begun:
            self.begun = time.monotonic()
            self.cpu = -self._cpu_used()
        self.exchanges += 1
        at = 0
        while at < len(body):
            end = body.index(b"\n", at)
            kind, ticket, *rest = body[at:end].split()
            if kind != b"complete":
                at = end + 1
                if kind == b"back":  # on a machine that stood still for half a second
                    self.left.append(int(ticket) - 10000)
                continue
            at = end + 1 + int(rest[1]) + 1
            number = int(ticket) - 10000
            said = b"line %d\n" % number
            if body[end + 1 : at - 1] != RESULT % (len(said), said):
                raise ValueError(body[end - 100 : at])
            self.done.add(number)
        if self.delay:
            time.sleep(self.delay)
        numbers = [self.left.pop() for _ in range(min(want, len(self.left)))]
        tasks = [TASK % (10000 + number, number, number) for number in numbers]
        if len(self.done) == self.tasks:
            self._all_done()
            return b"end\n" if want else b""
        if want and not tasks:
            return b"none\n"
        return b"".join(b"task %d\n%s\n" % (len(task), task) for task in tasks)

    def _all_done(self) -> None:
        """Everything is in: the client is asked, while it still is, what it has used."""
        while len(self.done) < self.tasks:
            time.sleep(0.001)
        if not self.ended:
            self.ended = time.monotonic()
            self.cpu += self._cpu_used()

    def _cpu_used(self) -> float:
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9


def run_client(options: argparse.Namespace) -> Server:
    server = Server(options.tasks, options.delay)
    folder = tempfile.mkdtemp(prefix="bench-")
    settings = (
        f"Session=s\nServer=http://127.0.0.1:{server.port}\nHost=h-{server.port}\n"
        f"Dir={folder}\nSlots={options.slots}\n"
    )
    begun = time.monotonic()
    client = subprocess.Popen(
        [options.python, str(options.client), "--from", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    server.pid = client.pid
    assert client.stdin
    with client.stdin as stdin:
        stdin.write(settings.encode())
    if client.wait() or len(server.done) != options.tasks:
        sys.exit(f"the client failed: {client.returncode}, {len(server.done)} tasks done")
    server.whole = time.monotonic() - begun
    shutil.rmtree(folder, ignore_errors=True)
    return server


def run_xargs(options: argparse.Namespace) -> float:
    lines = "".join(f"{number}\n" for number in range(options.tasks)).encode()
    begun = time.monotonic()
    command = ["xargs", f"-P{options.slots}", "-n1", "/bin/echo", "line"]
    subprocess.run(command, input=lines, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--client", default=CLIENT)
    options = parser.parse_args()
    rows = []
    for number in range(options.rounds):
        xargs = run_xargs(options)
        server = run_client(options)
        steady = server.ended - server.begun
        row = (xargs / steady, xargs / server.whole, server.cpu / options.tasks * 1e6)
        rows.append(row)
        print(
            f"round {number + 1}: xargs {options.tasks / xargs:5.0f}/s, client "
            f"{options.tasks / steady:5.0f}/s: {row[0]:.2f} ({row[1]:.2f} with start and end), "
            f"own CPU {row[2]:.0f} us a task, "
            f"{options.tasks / server.exchanges:.0f} tasks an exchange",
            flush=True,
        )
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print("medians: {:.2f}, {:.2f} with start and end, {:.0f} us".format(*medians))


if __name__ == "__main__":
    main()

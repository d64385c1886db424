"""A client with old habits, each of them an option; written from the founding document.

odd.py [OPTIONS] HOST PORT SESSION [WORKER]

Without options it is an ordinary client with one slot. It ends at the first 503.
"""

from __future__ import annotations

import argparse
import http.client
import io
import os
import platform
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode


@dataclass
class Section:
    pairs: dict[str, str] = field(default_factory=dict)
    content: bytes = b""


@dataclass
class Task:
    pairs: dict[str, str]
    inputs: list[Section]
    results: list[Section]


def read_task(body: bytes) -> Task:
    """Read the body of a reply to /task; lines may end with CRLF, blanks may stand around '='."""
    head = Section()
    sections: dict[str, list[Section]] = {"[Input]": [], "[Result]": []}
    current = head
    lines = io.BytesIO(body)
    for raw in lines:
        line = raw.decode().strip()
        if line in sections:
            current = Section()
            sections[line].append(current)
        elif line == "--begin content--":
            content = b""
            for part in lines:
                if part.removesuffix(b"\n").removesuffix(b"\r") == b"--end content--":
                    break
                content += part
            current.content = content.removesuffix(b"\n")
        elif line:
            key, _, value = line.partition("=")
            current.pairs[key.strip()] = value.strip()
    return Task(head.pairs, sections["[Input]"], sections["[Result]"])


class Client:
    def __init__(self, options: argparse.Namespace, home: Path) -> None:
        self.options = options
        self.home = home
        self.ping = 0

    def request(
        self, method: str, path: str, body: bytes | None = None, **arguments: str
    ) -> tuple[int, bytes]:
        """Status and body of the reply to one request, on a connection of its own."""
        query = urlencode({"sessionID": self.options.session, **arguments})
        if self.options.no_host:
            head = f"{method} /{path}?{query} HTTP/1.0\r\n"
        else:
            head = f"{method} /{path}?{query} HTTP/1.1\r\nConnection: close\r\n"
            head += f"Host: {self.options.host}:{self.options.port}\r\n"
        if body is not None:
            head += f"Content-Length: {len(body)}\r\n"
        with socket.create_connection((self.options.host, self.options.port)) as connection:
            connection.sendall(f"{head}\r\n".encode() + (body or b""))
            if self.options.half_close:
                connection.shutdown(socket.SHUT_WR)
            reply = http.client.HTTPResponse(connection, method=method)
            reply.begin()
            return reply.status, reply.read()

    def expect(self, status: int, wanted: int, what: str) -> None:
        if status != wanted:
            raise SystemExit(f"{what}: {status}")

    def work_to_the_end(self) -> None:
        status, body = self.request("GET", "config")
        self.expect(status, 200, "config")
        if not self.options.no_ping:
            self.ping = int(read_task(body).pairs["Ping"])
        worker = {}
        if self.options.worker is not None:
            self.fetch_worker(self.options.worker)
            worker = {"worker": self.options.worker}
        while True:
            status, body = self.request("GET", "task", **worker)
            if status == 503:
                return
            self.expect(status, 200, "task")
            self.work(read_task(body))

    def fetch_worker(self, name: str) -> None:
        """Put the worker on the path, where a command line finds it."""
        machine = platform.machine().lower()
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
        system = platform.system().lower()
        status, binary = self.request("GET", "worker", name=name, platform=f"{system}-{machine}")
        self.expect(status, 200, "worker")
        path = self.home / "bin" / name
        path.parent.mkdir()
        path.write_bytes(binary)
        path.chmod(0o700)
        os.environ["PATH"] = f"{path.parent}:{os.environ['PATH']}"

    def work(self, task: Task) -> None:
        ticket = task.pairs["Ticket"]
        folder = self.home / ticket
        folder.mkdir()
        stdin, stdout = self.home / f"{ticket}.stdin", self.home / f"{ticket}.stdout"
        stdin.write_bytes(b"")
        for section in task.inputs:
            name = section.pairs["File"]
            path = stdin if name == "stdin" else folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(section.content)
        if not self.run(task, folder, stdin, stdout):
            return
        results = [
            (section.pairs["Name"], stdout if name == "stdout" else folder / name)
            for section in task.results
            for name in [section.pairs["File"]]
        ]
        if all(path.is_file() for _name, path in results):
            body = b"".join(self.result(name, path.read_bytes()) for name, path in results)
            status, _body = self.request("POST", "complete", body, ticket=ticket)
            self.expect(status, 200, "complete")
        else:
            self.fail(ticket)

    def run(self, task: Task, folder: Path, stdin: Path, stdout: Path) -> bool:
        """Run the worker; False if it failed, which is told, or if its ticket was over."""
        ticket = task.pairs["Ticket"]
        deadline = time.monotonic() + int(task.pairs["Timeout"])
        command = shlex.split(task.pairs["CommandLine"])
        with stdin.open("rb") as source, stdout.open("wb") as target:
            try:
                process = subprocess.Popen(
                    command, cwd=folder, stdin=source, stdout=target, start_new_session=True
                )
            except OSError:
                self.fail(ticket)
                return False
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                os.killpg(process.pid, signal.SIGKILL)
                status = process.wait()
                break
            try:
                status = process.wait(min(left, self.ping or left))
                break
            except subprocess.TimeoutExpired:
                if self.ping and self.request("GET", "ping", ticket=ticket)[0] == 205:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return False
        if status != 0:
            self.fail(ticket)
        return status == 0

    def fail(self, ticket: str) -> None:
        status, _body = self.request("GET", "failed", ticket=ticket)
        self.expect(status, 200, "failed")

    def result(self, name: str, content: bytes) -> bytes:
        """A section of the body of /complete."""
        end = "\r\n" if self.options.crlf else "\n"
        equals = " = " if self.options.blanks else "="
        head = f"[Result]{end}Name{equals}{name}{end}--begin content--{end}"
        return head.encode() + content + f"{end}--end content--{end}".encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flag = parser.add_argument
    flag("--no-host", action="store_true", help="HTTP/1.0 without Host")
    flag("--no-ping", action="store_true", help="never ping")
    flag("--half-close", action="store_true", help="close the sending side after each request")
    flag("--crlf", action="store_true", help="lines of bodies end with CRLF")
    flag("--blanks", action="store_true", help="blanks around '=' in bodies")
    flag("host")
    flag("port", type=int)
    flag("session")
    flag("worker", nargs="?")
    with tempfile.TemporaryDirectory(prefix="foreign-") as home:
        Client(parser.parse_args(), Path(home)).work_to_the_end()


if __name__ == "__main__":
    main()

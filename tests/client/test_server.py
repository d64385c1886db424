"""Where a client finds its master: sockets, TLS with a pinned certificate, a file that says it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest

from pexecd.store.certificate import Certificate
from tests.client.conftest import CLIENT, Hosts
from tests.client.master import SESSION, Master, Task
from tests.waiting import LONG, wait_until

#: More than any buffer on the way.
LARGE = 3 * 1024 * 1024


class Gate:
    """Passes connections on to the master; remembers what came in."""

    def __init__(self, listener: socket.socket, master: Master, pem: Path | None = None) -> None:
        self.heard = b""
        self.connections = 0
        self._listener = listener
        self._master = master
        self._context = None
        if pem:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(pem)
        listener.listen(9)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError), peer:
            if self._context:
                peer = self._context.wrap_socket(peer, server_side=True)
            with peer, socket.create_connection(("127.0.0.1", self._master.port)) as there:
                while True:
                    # TLS is for one thread at a time
                    ready = select.select([peer, there], [], [])[0]
                    if peer in ready:
                        data = peer.recv(65536)
                        self.heard += data[:2000]
                        there.sendall(data)
                        if not data:
                            return
                    if there in ready:
                        data = there.recv(65536)
                        peer.sendall(data)
                        if not data:
                            return

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def tcp() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


def url(listener: socket.socket, fingerprint: str) -> str:
    return f"https://127.0.0.1:{listener.getsockname()[1]}#{fingerprint}"


def unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


@pytest.fixture
def private(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder


def work_for(master: Master) -> str:
    """A worker to fetch, an input and a result that fill all buffers; the result's checksum."""
    data = os.urandom(LARGE // 2).hex().encode()
    master.worker = b"#!/bin/sh\ncat\nexit\n" + b"#" * LARGE
    master.add(Task(10000, "worker", inputs={"stdin": data}))
    return hashlib.sha256(data).hexdigest()


def test_by_tls_with_the_one_who_has_the_certificate(
    hosts: Hosts, master: Master, tmp_path: Path
) -> None:
    pem = tmp_path / "certificate.pem"
    made = Certificate.keep(pem)
    listener = tcp()
    gate = Gate(listener, master, pem)
    checksum = work_for(master)

    assert hosts.run(Server=url(listener, made.fingerprint)) == 0, hosts.log()

    gate.close()
    assert master.completed[10000]["output"].sha256 == checksum
    assert gate.heard.startswith(b"GET /config?")


def test_nothing_is_said_to_one_who_has_another_certificate(
    hosts: Hosts, master: Master, tmp_path: Path
) -> None:
    pem = tmp_path / "certificate.pem"
    Certificate.keep(pem)
    listener = tcp()
    gate = Gate(listener, master, pem)

    assert hosts.run(Server=url(listener, "0" * 64), StartLimit="1") == 64

    gate.close()
    assert "who answers is not the master" in hosts.log()
    assert gate.connections
    assert gate.heard == b""
    assert master.requests == []


def test_nothing_is_said_to_one_who_speaks_no_tls(hosts: Hosts, master: Master) -> None:
    listener = tcp()
    gate = Gate(listener, master)

    assert hosts.run(Server=url(listener, "0" * 64), StartLimit="1") == 64

    gate.close()
    assert SESSION.encode() not in gate.heard
    assert master.requests == []


def test_a_connection_that_is_cut_before_tls_begins_is_one_of_many(
    hosts: Hosts, tmp_path: Path
) -> None:
    """A client that has just begun loads TLS when it is connected, which takes its time."""
    here, go = tmp_path / "here", tmp_path / "go"
    lines = (
        f'open("{here}", "w").close()',
        f'while not os.path.exists("{go}"): time.sleep(0.01)',
        "import ssl  #",
    )
    slow = tmp_path / "client.py"
    slow.write_text(CLIENT.read_text().replace(lines[-1], "\n        ".join(lines)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG)
        server = f"https://127.0.0.1:{listener.getsockname()[1]}#{'0' * 64}"
        client = hosts.start(client=slow, Server=server, StartLimit=str(LONG))
        peer, _ = listener.accept()
        wait_until(here.exists)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        go.touch()
        listener.accept()[0].close()  # it tries again

    client.terminate()
    assert client.wait(LONG) == 128 + signal.SIGTERM


def test_by_a_socket(hosts: Hosts, master: Master, private: Path) -> None:
    gate = Gate(unix(private / "socket"), master)
    checksum = work_for(master)

    assert hosts.run(Server=f"unix:{private}/socket") == 0, hosts.log()

    gate.close()
    assert master.completed[10000]["output"].sha256 == checksum


def test_a_socket_that_others_could_have_put_there_is_left_alone(
    hosts: Hosts, master: Master, private: Path
) -> None:
    gate = Gate(unix(private / "socket"), master)
    private.chmod(0o777)

    assert hosts.run(Server=f"unix:{private}/socket", StartLimit="0.5") == 64

    assert f"others can write to folder {private}" in hosts.log()
    # nor is what a file says that others could have written
    file = private / "server"
    file.write_text(f"{master.url}\n")
    assert hosts.run(Server=f"file:{file}", StartLimit="0.5") == 64
    gate.close()
    assert gate.connections == 0
    assert master.requests == []


def test_a_file_says_where_and_is_read_again_when_nobody_answers_there(
    hosts: Hosts, master: Master, private: Path, tmp_path: Path
) -> None:
    pem = tmp_path / "certificate.pem"
    made = Certificate.keep(pem)
    gate = Gate(unix(private / "socket"), master)
    file = private / "server"
    file.write_text(f"unix:{private}/socket\n")
    master.more = True
    client = hosts.start(Server=f"file:{file}")
    master.wait(lambda: master.requests)
    gate.close()
    file.unlink()
    listener = tcp()
    second = Gate(listener, master, pem)
    (private / "new").write_text(f"{url(listener, made.fingerprint)}\n")
    (private / "new").rename(file)
    master.stop()  # with all connections
    master.start()
    master.add(Task(10000, "echo hello"))
    master.wait(lambda: 10000 in master.completed)
    master.more = False
    master.stop()
    master.start()

    assert client.wait(LONG) == 0, hosts.log()
    second.close()
    assert second.connections


def test_what_is_no_server_is_refused(hosts: Hosts) -> None:
    for server in ("https://127.0.0.1:1", "https://127.0.0.1:1#abc", "unix:socket", "http://a#1"):
        wrong = server != "http://a#1"
        assert (hosts.run(Server=server, StartLimit="0.2") == 2) is wrong, server

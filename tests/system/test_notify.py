"""What is sent to a supervisor's socket, and that nothing goes wrong without one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pexecd.notify import Notifier


@pytest.fixture(params=["file", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    name = (
        str(tmp_path / "notify") if request.param == "file" else f"\0pexecd-{os.urandom(8).hex()}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name)
        listening.setblocking(False)
        yield listening


def environment_of(supervisor: socket.socket) -> dict[str, str]:
    name = supervisor.getsockname()
    address = f"@{name[1:].decode()}" if isinstance(name, bytes) else name
    return {"NOTIFY_SOCKET": address, "HOME": "/"}


def heard(supervisor: socket.socket) -> list[bytes]:
    lines = []
    while True:
        try:
            lines.append(supervisor.recv(1000))
        except BlockingIOError:
            return lines


def test_the_supervisor_hears_each_word_once(supervisor: socket.socket) -> None:
    notifier = Notifier(environment_of(supervisor))
    notifier.status("reading")
    notifier.ready()
    notifier.status("1 of 2 done")
    notifier.status("1 of 2 done")
    notifier.status("2 of 2 done")
    notifier.stopping()
    notifier.stopping()
    assert heard(supervisor) == [
        b"STATUS=reading",
        b"READY=1",
        b"STATUS=1 of 2 done",
        b"STATUS=2 of 2 done",
        b"STOPPING=1",
    ]


def test_children_do_not_inherit_the_socket(supervisor: socket.socket) -> None:
    environment = environment_of(supervisor)
    notifier = Notifier(environment)
    assert environment == {"HOME": "/"}
    notifier.stopping()


def test_a_supervisor_that_reads_nothing_holds_nobody_up(supervisor: socket.socket) -> None:
    notifier = Notifier(environment_of(supervisor))
    for number in range(10_000):
        notifier.status(str(number))
    assert 0 < len(heard(supervisor)) < 10_000
    notifier.stopping()


def test_without_a_supervisor_nothing_happens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.status("text")
        notifier.stopping()

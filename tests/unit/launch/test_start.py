"""What a client is told, and how its end is understood."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import pexecd
from pexecd.errors import HostError, StateError
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import NoPlatformError, NoPythonError, explain
from pexecd.launch.launcher import pause
from pexecd.launch.start import client_lines, command_by_hand, start_input
from pexecd.ports import ClientOrder

ORDER = ClientOrder("secret", "public-name", "http://127.0.0.1:8080")
PROGRAM = ClientProgram(Path("/x/pexec_client.py"), "0123456789abcdef" * 4)


def test_client_file() -> None:
    program = ClientProgram.read(client_file())
    assert program.sha256 == hashlib.sha256(client_file().read_bytes()).hexdigest()
    assert program.remote_name == f"pexec_client-{program.sha256[:16]}.py"


def test_client_file_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pexecd, "__file__", str(tmp_path / "pexecd" / "__init__.py"))
    with pytest.raises(StateError, match="install pexecd again"):
        client_file()
    wheel = tmp_path / "pexecd" / "_client" / "pexec_client.py"
    checkout = tmp_path / "client" / "pexec_client.py"
    for place in (checkout, wheel):
        place.parent.mkdir(parents=True)
        place.touch()
        assert client_file() == place


def test_orders() -> None:
    assert client_lines(HostSpec("node7", "node7"), ORDER).decode().splitlines() == [
        "Session=secret",
        "Server=http://127.0.0.1:8080",
        "Public=public-name",
        "Host=node7",
        "Dir=~/.cache/pexecd",
    ]
    host = HostSpec("node7", "node7", slots=3, platform="linux-x86_64", dir="/scratch/é")
    assert client_lines(host, ORDER).decode().splitlines()[3:] == [
        "Host=node7",
        "Dir=/scratch/é",
        "Slots=3",
        "Platform=linux-x86_64",
    ]


def test_orders_come_last() -> None:
    host = HostSpec("node7", "node7", python="/opt/py thon")
    script, *lines = start_input(host, ORDER, PROGRAM, "run").decode().splitlines()
    assert "secret" not in script
    assert lines[:2] == ["~/.cache/pexecd", "/opt/py thon"]
    assert lines[2].startswith("exec(")
    assert lines[3:7] == [PROGRAM.sha256, "run", PROGRAM.remote_name, "node7"]
    assert lines[7:] == client_lines(host, ORDER).decode().splitlines()


def test_by_hand() -> None:
    host = HostSpec("node7", "node7", slots=2, dir="~/a b", start=False)
    text = command_by_hand(host, ORDER, PROGRAM.path)
    assert "pexec_client.py --host node7 --slots 2 --dir '~/a b' --background --from -" in text
    assert "http://127.0.0.1:8080" in text
    assert "secret" not in text


@pytest.mark.parametrize("status", [0, 1, 61, 65, 127, None])
def test_statuses_that_are_no_reason(status: int | None) -> None:
    assert explain("node7", status, "") is None


def test_statuses_that_are() -> None:
    error = explain("node7", 62, "none of\nthese \x1b[1m")
    assert isinstance(error, NoPythonError)
    assert error.said == "none of these [1m"
    assert str(error).startswith("node7: no usable Python: none of these [1m; install")
    assert all(isinstance(explain("node7", status, ""), HostError) for status in (63, 64, 66))
    platform = explain("node7", 67, "")
    assert isinstance(platform, NoPlatformError)
    assert not platform.retry


def test_pauses_grow_and_stay_within_bounds() -> None:
    lowest = [pause(attempt, 0.0) for attempt in range(1, 12)]
    highest = [pause(attempt, 1.0) for attempt in range(1, 12)]
    assert lowest[0] == 1
    assert lowest == sorted(lowest)
    assert highest[-1] == 300
    assert pause(10**9, 1.0) == 300
    assert (pause(1, 0.0, 20.0), pause(1, 0.5, 20.0)) == (20, 30)
    assert all(low < high for low, high in zip(lowest, highest, strict=True))

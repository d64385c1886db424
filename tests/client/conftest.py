"""Real clients, run by the oldest and the newest Python, against a real small master."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.client.master import SESSION, Master
from tests.waiting import LONG, describe, processes_with, wait_until

CLIENT = Path(__file__).resolve().parents[2] / "client" / "pexec_client.py"
PYTHONS = {"3.6": "3.6.15", "3.13": "3.13.0"}


def load_client() -> ModuleType:
    """The client as a module, for what can be tested without a process."""
    spec = importlib.util.spec_from_file_location("pexec_client", CLIENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_python(short: str, exact: str) -> str:
    """The interpreter of that version; a missing one fails, it does not skip.

    pyenv's ``python`` on PATH is asked first, wherever its versions are kept; last the user's
    own pyenv, for an environment that does not know of it.
    """
    code = "import sys; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"
    own = f"{pwd.getpwuid(os.getuid()).pw_dir}/.pyenv/versions/{exact}/bin/python"
    for name, version in (("python", exact), (f"python{short}", ""), (own, "")):
        found = shutil.which(name)
        if found:
            environment = {**os.environ, "PYENV_VERSION": version} if version else None
            call = subprocess.run(
                [found, "-c", code], capture_output=True, text=True, env=environment
            )
            words = call.stdout.splitlines()
            if words[:1] == [short]:
                return words[1]
    pytest.fail(
        f"Python {short} is needed for these tests: neither pyenv's python with "
        f"PYENV_VERSION={exact} nor python{short} is on PATH"
    )


@pytest.fixture(scope="session", params=sorted(PYTHONS))
def python(request: pytest.FixtureRequest) -> str:
    return find_python(request.param, PYTHONS[request.param])


@pytest.fixture
def exchange() -> bool:
    """Has the master an exchange? ``BOTH`` has a test try both."""
    return True


BOTH = pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "single"])


@pytest.fixture
def master(exchange: bool) -> Iterator[Master]:
    master = Master(exchange)
    master.start()
    yield master
    master.worker_may_go.set()
    master.exchange_may_go.set()
    master.stop()


class Hosts:
    """Starts clients, and knows every process that came of them by a variable."""

    def __init__(self, python: str, master: Master, home: Path) -> None:
        self.python = python
        self.master = master
        self.home = home
        self.dir = home / "pexecd"
        self.mark = uuid.uuid4().hex
        self.clients: list[subprocess.Popen[bytes]] = []
        self._names = {(SESSION, os.uname().nodename)}

    def start(
        self, *options: str, client: Path = CLIENT, session: str = SESSION, **keys: str
    ) -> subprocess.Popen[bytes]:
        settings = {
            "Session": session,
            "Server": self.master.url,
            "Slots": "1",
            "Host": "h1-" + self.mark[:8],
            "Dir": str(self.dir),
            "StartLimit": "10",
        }
        settings.update(keys)
        self._names.add((session, settings["Host"]))
        log = self.home / f"log-{len(self.clients)}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [self.python, "-W", "error", str(client), "--from", "-", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=self.environment(),
            )
        self.clients.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(f"{k}={v}\n" for k, v in settings.items()).encode())
        process.stdin.close()
        process.stdout.close()
        return process

    def run(self, *options: str, client: Path = CLIENT, **keys: str) -> int:
        return self.start(*options, client=client, **keys).wait(LONG)

    def environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home), "PEXEC_TEST_MARK": self.mark}

    def log(self, number: int = -1) -> str:
        if number < 0:
            number += len(self.clients)
        return (self.home / f"log-{number}").read_text()

    def processes(self) -> dict[int, str]:
        """All processes that came of our clients, themselves too, with their command lines."""
        return processes_with(f"PEXEC_TEST_MARK={self.mark}")

    def assert_gone(self) -> None:
        """Every process ends by itself."""
        wait_until(lambda: not self.processes(), lambda: describe(self.processes()))

    def kill(self) -> None:
        """End all processes; again and again, for one that just begins has no variables yet."""

        def killed() -> bool:
            found = self.processes()
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not found

        for process in self.clients:
            if process.poll() is None:
                process.kill()
                process.wait()
        wait_until(killed, lambda: describe(self.processes()))
        client = load_client()
        for session, host in self._names:  # a killed client leaves its lock's file
            lock = client.HostLock(session, host)
            lock.take()
            lock.release()

    def locks(self) -> list[Path]:
        """The locks of clients of this test that are there."""
        client = load_client()
        paths = [Path(client.HostLock(*name)._path) for name in self._names]
        return [path for path in paths if path.exists()]

    def places(self) -> list[Path]:
        """The folders of clients."""
        return [path for path in self.dir.glob("sweep-*/h*-*") if path.is_dir()]


@pytest.fixture
def hosts(python: str, master: Master, tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(python, master, tmp_path)
    yield hosts
    hosts.kill()
    for number in range(len(hosts.clients)):
        assert "Traceback" not in hosts.log(number)
        assert "Warning" not in hosts.log(number)

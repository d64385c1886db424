"""Clients are started on hosts, by the real client and real sshd processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.launch import local
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import (
    FolderUnusableError,
    LoginUnusableError,
    NoPythonError,
    ServerUnreachableError,
    SessionRefusedError,
    StartFailedError,
)
from pexecd.launch.launcher import Launcher
from pexecd.ports import ClientOrder, IHostWatcher, ILauncher
from pexecd.ssh import Connector
from pexecd.ssh.errors import CopyFailedError, HostKeyUnknownError
from tests.system.sshd import Lab, Sshd, end_process, free_port

reactor: Any = installed_reactor
lab: Lab

SECRET = "s3cret-" + "0123456789abcdef" * 2


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab
    with Lab() as lab:
        yield


class Master(Resource):
    """As much of a master as a client needs to begin, to wait, and to end."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.ended = False
        self.silent = False
        self.asked: list[str] = []
        self._held: list[Request] = []

    def render_GET(self, request: Request) -> Any:
        if request.args[b"sessionID"] != [SECRET.encode()]:
            request.setResponseCode(403)
            return b"no such session\n"
        path = request.path.decode()
        self.asked.append(f"{path} {request.args.get(b'host', [b''])[0].decode()}")
        if path == "/config" and not self.silent:
            return b"DeleteWorker=Yes\nDeleteClient=Yes\nPing=0\nPatience=5\nSession=test\n"
        if (path == "/task" and not self.ended) or self.silent:
            self._held.append(request)
            request.notifyFinish().addErrback(lambda _: self._held.remove(request))
            return NOT_DONE_YET
        request.setResponseCode(503)
        return b""

    def end(self) -> None:
        """No task is left."""
        self.ended = True
        for request in self._held:
            request.setResponseCode(503)
            request.finish()
        self._held = []


@implementer(IHostWatcher)
class Watcher:
    """Notes all that it hears; ``until`` waits for something."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.failed: list[tuple[HostError, bool]] = []
        self.ended: list[tuple[str, str]] = []
        self.outdated: list[str] = []
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    def host_started(self, host: str) -> None:
        self.started.append(host)
        self._look()

    def host_failed(self, error: HostError, final: bool) -> None:
        self.failed.append((error, final))
        self._look()

    def client_ended(self, host: str, status: str) -> None:
        self.ended.append((host, status))
        self._look()

    def client_outdated(self, host: str) -> None:
        self.outdated.append(host)
        self._look()

    def until(self, condition: Callable[[], object]) -> Deferred[None]:
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self._look()
        return waiting.addTimeout(30, reactor)

    def _look(self) -> None:
        for entry in self._waiting[:]:
            if entry[0]():
                self._waiting.remove(entry)
                entry[1].callback(None)


class LaunchCase(TestCase):
    def setUp(self) -> None:
        self.master = Master()
        self.site = Site(self.master, timeout=None)
        self.site.noisy = False
        self.connections = WrappingFactory(self.site)
        self.connections.noisy = False
        self.port = reactor.listenTCP(0, self.connections, interface="127.0.0.1")
        self.server = f"http://127.0.0.1:{self.port.getHost().port}"
        self.session = SECRET
        self.watcher = Watcher()
        verifyObject(IHostWatcher, self.watcher)

    def tearDown(self) -> Any:
        return Deferred.fromCoroutine(self.close())

    async def close(self) -> None:
        await self.port.stopListening()
        for connection in list(self.connections.protocols):
            connection.transport.abortConnection()
        await becomes(lambda: not self.connections.protocols)

    def launch(self, *hosts: HostSpec, config: Path | None = None, **kwargs: Any) -> Launcher:
        launcher = Launcher(
            reactor,
            hosts,
            lambda _: ClientOrder(self.session, "test-public", self.server),
            self.watcher,
            Connector(reactor, config),
            jitter=lambda: 0.0,
            **kwargs,
        )
        verifyObject(ILauncher, launcher)
        self.addCleanup(launcher.stop)
        launcher.start()
        return launcher

    async def on(self, host: Sshd, **settings: Any) -> Launcher:
        """Launch on one host over SSH, and wait until something came of it."""
        launcher = self.launch(
            HostSpec(host.address, host.address, **settings), config=lab.ssh_config(host)
        )
        await self.watcher.until(lambda: self.watcher.started or self.watcher.failed)
        return launcher

    async def fails(self, kind: type[HostError], host: Sshd, **settings: Any) -> HostError:
        launcher = await self.on(host, **settings)
        await launcher.stop()
        self.assertEqual(self.watcher.started, [])
        (error, _final) = self.watcher.failed[0]
        self.assertIsInstance(error, kind, str(error))
        return error


async def becomes(condition: Callable[[], object]) -> None:
    """Wait until something is so that nobody tells of."""
    for _ in range(1000):
        if condition():
            return
        await deferLater(reactor, 0.02)
    raise AssertionError("it did not come about")


def processes(word: str) -> list[int]:
    """Those whose command line holds a word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                text = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in text:
                found.append(int(entry.name))
    return found


class TestOverSSH(LaunchCase):
    async def test_an_empty_host(self) -> None:
        """The client is copied, survives the disconnect, and goes when all is done."""
        host = lab.sshd("127.0.0.31")
        launcher = await self.on(host)
        self.assertEqual((self.watcher.started, self.watcher.failed), ([host.address], []))
        await launcher.stop()
        program = ClientProgram.read(client_file())
        copy = host.home / ".cache/pexecd" / program.remote_name
        self.assertEqual(copy.read_bytes(), program.path.read_bytes())
        self.assertEqual(copy.parent.stat().st_mode & 0o777, 0o700)
        self.assertIn(f"/config {host.address}", self.master.asked)
        self.assertNotEqual(host.user.processes(), [])
        self.assertEqual(processes(SECRET), [])

        self.master.end()

        await becomes(lambda: not copy.exists())

    async def test_started_again_it_is_found_running(self) -> None:
        host = lab.sshd("127.0.0.32")
        launcher = await self.on(host)
        launcher.revive(host.address)
        await self.watcher.until(lambda: len(self.watcher.started) == 2)
        self.assertEqual([line for line in self.master.asked if "/config" in line][1:], [])

    async def test_a_client_that_was_killed_is_started_again(self) -> None:
        host = lab.sshd("127.0.0.33")
        launcher = await self.on(host)
        for pid in host.user.processes():
            end_process(pid)
        launcher.revive(host.address)
        await self.watcher.until(lambda: len(self.watcher.started) == 2)
        self.assertEqual(len([line for line in self.master.asked if "/config" in line]), 2)

    async def test_several_hosts_and_one_that_is_not_known(self) -> None:
        hosts = [lab.sshd(f"127.0.0.{n}") for n in (34, 35, 36)]
        known = "".join(host.known_hosts for host in hosts[:2])
        config = lab.ssh_config(*hosts, known_hosts=known)
        self.launch(*(HostSpec(host.address, host.address) for host in hosts), config=config)
        await self.watcher.until(lambda: len(self.watcher.started) == 2 and self.watcher.failed)
        ((error, final),) = self.watcher.failed
        self.assertIsInstance(error, HostKeyUnknownError)
        self.assertTrue(final)

    async def test_stopped_while_the_client_starts_nothing_stays(self) -> None:
        self.master.silent = True
        host = lab.sshd("127.0.0.38")
        program = lab.folder / "patient.py"
        program.write_text(client_file().read_text().replace("default=20.0", "default=600.0"))
        launcher = self.launch(
            HostSpec(host.address, host.address), config=lab.ssh_config(host), client=program
        )
        await becomes(lambda: f"/config {host.address}" in self.master.asked)
        self.assertNotEqual(host.user.processes(), [])
        await launcher.stop()
        await becomes(lambda: host.user.processes() == [])

    async def test_login_shells_and_what_their_files_print_do_no_harm(self) -> None:
        csh = lab.sshd("127.0.0.39", shell="/bin/tcsh")
        (csh.home / ".cshrc").write_text("echo Welcome\\!\necho '! \"here\"'\n")
        fish = lab.sshd("127.0.0.51", shell="/usr/bin/fish")
        noisy = lab.sshd("127.0.0.52")
        (noisy.home / ".bashrc").write_text("echo Welcome; echo to this machine >&2\n")
        hosts = (csh, fish, noisy)
        self.launch(
            *(HostSpec(host.address, host.address, dir="~/an odd 'name'") for host in hosts),
            config=lab.ssh_config(*hosts),
        )
        await self.watcher.until(lambda: len(self.watcher.started) + len(self.watcher.failed) == 3)
        self.assertEqual(self.watcher.failed, [])

    async def test_half_a_copy_is_replaced(self) -> None:
        host = lab.sshd("127.0.0.37")
        folder = host.home / "odd 'name'"
        folder.mkdir(mode=0o700)
        program = ClientProgram.read(client_file())
        copy = folder / program.remote_name
        copy.write_bytes(program.path.read_bytes()[:1000])
        for path in (folder, copy):
            os.chown(path, host.user.uid, host.user.gid)
        await self.on(host, dir="~/odd 'name'", slots=1)
        self.assertEqual(self.watcher.started, [host.address])
        self.assertEqual(copy.read_bytes(), program.path.read_bytes())


class TestReasons(LaunchCase):
    async def test_no_python(self) -> None:
        host = lab.sshd("127.0.0.41")
        commands = lab.folder / "no-python"
        commands.mkdir()
        for name in ("sh", "mkdir", "bash"):
            (commands / name).symlink_to(f"/bin/{name}")
        (commands / "python3").write_text("#!/bin/sh\nexit 1\n")  # as one that is too old
        (commands / "python3").chmod(0o755)
        (host.home / ".bashrc").write_text(f"export PATH={commands}\n")
        error = await self.fails(NoPythonError, host, python="/opt/python")
        self.assertIn("/opt/python", error.said)
        self.assertFalse((host.home / ".cache").exists())

    async def test_folder_that_cannot_be_made(self) -> None:
        error = await self.fails(FolderUnusableError, lab.sshd("127.0.0.42"), dir="/proc/pexecd")
        self.assertIn("/proc/pexecd", error.said)

    async def test_folder_of_somebody_else(self) -> None:
        host = lab.sshd("127.0.0.43")
        folder = host.home / "open"
        folder.mkdir()
        os.chown(folder, host.user.uid, host.user.gid)
        folder.chmod(0o777)
        await self.fails(FolderUnusableError, host, dir="~/open")
        self.assertEqual(list(folder.iterdir()), [])
        program = ClientProgram.read(client_file())
        (folder / program.remote_name).write_bytes(program.path.read_bytes())
        self.watcher.failed = []
        await self.fails(FolderUnusableError, host, dir="~/open")

    async def test_server_that_cannot_be_reached(self) -> None:
        self.server = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        source = client_file().read_text().replace("default=20.0", "default=0.5")
        program = lab.folder / "hasty.py"
        program.write_text(source)
        host = lab.sshd("127.0.0.44")
        launcher = self.launch(
            HostSpec(host.address, host.address),
            config=lab.ssh_config(host),
            client=program,
        )
        await self.watcher.until(lambda: self.watcher.failed)
        await launcher.stop()
        self.assertIsInstance(self.watcher.failed[0][0], ServerUnreachableError)

    async def test_session_that_the_server_does_not_know(self) -> None:
        self.session = "another"
        await self.fails(SessionRefusedError, lab.sshd("127.0.0.45"))

    async def test_no_scp(self) -> None:
        host = lab.sshd("127.0.0.46")
        commands = lab.folder / "all-but-scp"
        commands.mkdir()
        for name in ("sh", "mv", "rm", "mkdir", "python3"):
            (commands / name).symlink_to(f"/usr/bin/{name}")
        (host.home / ".bashrc").write_text(f"export PATH={commands}\n")
        await self.fails(CopyFailedError, host)

    async def test_a_login_shell_that_runs_nothing(self) -> None:
        host = lab.sshd("127.0.0.47", shell="/usr/sbin/nologin")
        error = await self.fails(LoginUnusableError, host)
        self.assertIn("not available", error.said)

    async def test_a_start_up_file_that_exits(self) -> None:
        host = lab.sshd("127.0.0.50")
        (host.home / ".bashrc").write_text("echo Welcome; exit 0\n")
        error = await self.fails(LoginUnusableError, host)
        self.assertEqual(error.said, "Welcome")

    async def test_anything_else(self) -> None:
        """Commands work, but starting does not."""
        shell = lab.folder / "no-sh"
        shell.write_text(
            '#!/bin/sh\ncase $2 in exec*) echo out of order >&2; exit 9;; esac\nexec /bin/sh "$@"\n'
        )
        shell.chmod(0o755)
        host = lab.sshd("127.0.0.48", shell=str(shell))
        error = await self.fails(StartFailedError, host)
        self.assertIn("out of order", str(error))

    async def test_no_session_id_in_any_reason(self) -> None:
        host = lab.sshd("127.0.0.49")
        (host.home / ".bashrc").write_text("cat >&2; exit 3\n")  # says all that it was told
        error = await self.fails(HostError, host)
        self.assertNotIn(SECRET, str(error))


class TestHere(LaunchCase):
    def here(self, **settings: Any) -> HostSpec:
        return HostSpec(":", ":", local=True, dir=str(lab.folder / self.id()), **settings)

    def own_copy(self) -> Path:
        """By whose path its process can be told from others."""
        path = lab.folder / f"{self.id()}.py"
        path.write_bytes(client_file().read_bytes())
        return path

    async def test_it_runs_until_it_is_stopped(self) -> None:
        program = self.own_copy()
        launcher = self.launch(self.here(slots=1), client=program)
        await becomes(lambda: "/task :" in self.master.asked)
        (pid,) = processes(str(program))
        self.assertEqual(os.getsid(pid), pid)
        self.assertEqual(processes(SECRET), [])
        await launcher.stop()
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    async def test_no_task_is_left(self) -> None:
        launcher = self.launch(self.here())
        self.master.end()
        await self.watcher.until(lambda: self.watcher.ended)
        self.assertEqual(self.watcher.ended, [(":", "exit status 0")])
        self.master.ended = False
        launcher.revive(":")
        await self.watcher.until(lambda: len(self.watcher.started) == 2)

    async def test_killed_it_is_started_again(self) -> None:
        program = self.own_copy()
        self.launch(self.here(), client=program)
        await becomes(lambda: "/task :" in self.master.asked)
        (pid,) = processes(str(program))
        os.kill(pid, signal.SIGKILL)
        await self.watcher.until(lambda: len(self.watcher.started) == 2)
        self.assertEqual(self.watcher.ended, [(":", "signal 9")])

    async def spare(self, program: Path, python: str = sys.executable) -> local.Spare:
        spare = local.Spare(reactor, python, program)
        self.addCleanup(spare.stop)
        await becomes(lambda: processes(str(program)))  # no command line before it has begun
        return spare

    async def test_one_that_was_started_already_is_told(self) -> None:
        program = self.own_copy()
        spare = await self.spare(program)
        (before,) = processes(str(program))
        launcher = self.launch(self.here(), client=program, spare=spare)
        await becomes(lambda: "/task :" in self.master.asked)
        self.assertEqual(processes(str(program)), [before])
        await spare.stop()  # it is the launcher's now
        os.kill(before, signal.SIGKILL)
        await self.watcher.until(lambda: len(self.watcher.started) == 2)
        await launcher.stop()
        self.assertEqual(processes(str(program)), [])

    async def test_one_that_was_started_already_and_has_died(self) -> None:
        program = self.own_copy()
        spare = await self.spare(program)
        (before,) = processes(str(program))
        os.kill(before, signal.SIGKILL)
        await becomes(lambda: not Path(f"/proc/{before}").exists())
        self.launch(self.here(), client=program, spare=spare)
        await becomes(lambda: "/task :" in self.master.asked)

    async def test_one_that_was_started_already_by_another_python(self) -> None:
        program = self.own_copy()
        spare = await self.spare(program)
        (before,) = processes(str(program))
        self.launch(self.here(python="/usr/bin/python3"), client=program, spare=spare)
        await becomes(lambda: "/task :" in self.master.asked)
        self.assertEqual(len(processes(str(program))), 2)
        await spare.stop()
        self.assertNotIn(before, processes(str(program)))

    async def test_folder_that_cannot_be_made(self) -> None:
        launcher = self.launch(HostSpec(":", ":", local=True, dir="/proc/pexecd"))
        await self.watcher.until(lambda: self.watcher.failed)
        await launcher.stop()
        self.assertIsInstance(self.watcher.failed[0][0], FolderUnusableError)

    async def test_a_python_that_is_not_there(self) -> None:
        # as in a run: then a shell is in between
        with_shell = ["/bin/sh", "-c", 'exec "$0" "$@"']
        self.patch(local, "with_limit_before", lambda command: [*with_shell, *command])
        self.launch(self.here(python="/none/python"))
        await self.watcher.until(lambda: self.watcher.failed)
        error, final = self.watcher.failed[0]
        self.assertIsInstance(error, NoPythonError)
        self.assertIn("/none/python: No such file", error.reason)
        self.assertFalse(final)

    async def test_a_python_that_ends_at_once(self) -> None:
        self.launch(self.here(python="/bin/false"))
        # often it is gone before the call that started it returns
        await self.watcher.until(lambda: len(self.watcher.failed) == 2)
        self.assertIn("exit status 1", self.watcher.failed[0][0].reason)

    async def test_one_that_does_not_listen_to_sigterm(self) -> None:
        program = lab.folder / "stubborn.py"
        program.write_text(
            "import signal, sys, urllib.request\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "server = dict(line.strip().split('=', 1) for line in sys.stdin)\n"
            "url = server['Server'] + '/config?host=:&sessionID=' + server['Session']\n"
            "urllib.request.urlopen(url)\n"
            "signal.pause()\nsignal.pause()\n"
        )
        launcher = self.launch(self.here(), client=program)
        await becomes(lambda: "/config :" in self.master.asked)
        self.patch(local, "STOP_LIMIT", 0.2)
        await launcher.stop()
        self.assertEqual(processes(str(program)), [])


class TestByHand(LaunchCase):
    async def test_the_command_is_told_without_the_secret(self) -> None:
        told: list[str] = []

        def observer(event: Any) -> None:
            told.append(str(event.get("text")))

        globalLogPublisher.addObserver(cast("ILogObserver", observer))
        self.addCleanup(globalLogPublisher.removeObserver, cast("ILogObserver", observer))
        self.launch(HostSpec("node 7", "node7", start=False, slots=3))
        text = "\n".join(told)
        self.assertIn("--host 'node 7' --slots 3", text)
        self.assertNotIn(SECRET, text)
        self.assertEqual((self.watcher.started, self.watcher.failed), ([], []))

"""Conch, as it is used here, against real sshd processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from twisted.conch.ssh.common import NS
from twisted.conch.ssh.keys import Key
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.ports import CommandResult
from pexecd.shell import RUN_SCRIPT, script_input
from pexecd.ssh import connector
from pexecd.ssh.connector import Connector
from pexecd.ssh.errors import (
    ChannelRefusedError,
    CommandFailedError,
    ConnectionLostError,
    CopyFailedError,
    HostKeyChangedError,
    HostKeyRevokedError,
    HostKeyUnknownError,
    KeysRejectedError,
    NameUnknownError,
    NoCommonAlgorithmError,
    NotSSHError,
    PeerVanishedError,
    RefusedError,
    ThrottledError,
    TimedOutError,
)
from pexecd.ssh.transport import Deadlines
from tests.system.sshd import Lab, Sshd, children, make_key

reactor: Any = installed_reactor
DEADLINES = Deadlines()
lab: Lab
#: The host that most tests share: with all kinds of host keys.
plain: Sshd


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab, plain  # noqa: PLW0603 - trial's TestCase takes no fixtures
    with Lab() as lab:
        plain = lab.sshd("127.0.0.11", host_keys=("ed25519", "ecdsa", "rsa"))
        yield


def new_key(kind: str, passphrase: str = "") -> Path:
    return make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "id", kind, passphrase)


def written(config: Path) -> str:
    return Path(f"{config}.known_hosts").read_text()


def new_file(content: bytes) -> Path:
    path = Path(tempfile.mkdtemp(dir=lab.folder)) / "file"
    path.write_bytes(content)
    return path


class SSHCase(TestCase):
    """Connections are closed at the end, so that trial finds the reactor clean."""

    async def connect(
        self,
        host: Sshd | None = None,
        config: Path | None = None,
        deadlines: Deadlines = DEADLINES,
        spec: HostSpec | None = None,
    ) -> Any:
        host = host or plain
        opener = Connector(reactor, config or lab.ssh_config(host), deadlines=deadlines)
        connection: Any = await opener.connect(spec or HostSpec(host.address, host.address))
        self.addCleanup(connection.close)
        return connection

    async def fails(self, kind: type[HostError], *args: Any, **kwargs: Any) -> HostError:
        with self.assertRaises(kind) as caught:
            await self.connect(*args, **kwargs)
        error: HostError = caught.exception
        return error

    async def run_command(self, connection: Any, command: str, stdin: bytes = b"") -> CommandResult:
        result: CommandResult = await connection.run(command, stdin, 10)
        return result


class TestKeys(SSHCase):
    async def logs_in_with(self, kind: str) -> None:
        key = new_key(kind)
        plain.authorize(key)
        connection = await self.connect(config=lab.ssh_config(plain, keys=[key]))
        self.assertEqual((await self.run_command(connection, "echo hello")).stdout, b"hello\n")

    async def test_ed25519(self) -> None:
        await self.logs_in_with("ed25519")

    async def test_ecdsa(self) -> None:
        await self.logs_in_with("ecdsa")

    async def test_rsa_signs_with_sha2(self) -> None:
        await self.logs_in_with("rsa")

    async def with_agent(self, kind: str) -> None:
        key = new_key(kind)
        plain.authorize(key)
        with lab.agent(new_key("ed25519"), key) as agent:
            # `IdentityFile none`: else ssh's default files would count
            extra = f"IdentityAgent {agent}\nIdentityFile none"
            connection = await self.connect(config=lab.ssh_config(plain, extra=extra, keys=[]))
            self.assertEqual((await self.run_command(connection, "true")).status, 0)

    async def test_agent_with_rsa(self) -> None:
        await self.with_agent("rsa")

    async def test_agent_with_ed25519(self) -> None:
        await self.with_agent("ed25519")

    async def test_encrypted_key_through_the_agent_only(self) -> None:
        key = new_key("ed25519", "secret")
        plain.authorize(key)
        config = lab.ssh_config(plain, keys=[key])

        error = await self.fails(KeysRejectedError, config=config)

        self.assertIn("encrypted, and not in ssh-agent", str(error))

    async def test_an_agent_that_is_gone_does_no_harm(self) -> None:
        for path in ("/nonexistent/agent", "/etc/passwd", "/tmp/" + 120 * "x"):
            await self.connect(config=lab.ssh_config(plain, extra=f"IdentityAgent {path}"))

    def agent_that_stops(self, answers: list[bytes]) -> tuple[Path, Deferred[None]]:
        """Its socket; fires when it has been asked what it does not answer."""
        asked: Deferred[None] = Deferred()

        class Agent(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                if answers:
                    self.transport.write(answers.pop(0))
                else:
                    asked.callback(None)

        factory = Factory.forProtocol(Agent)
        factory.noisy = False
        path = Path(tempfile.mkdtemp(dir=lab.folder)) / "agent"
        self.addCleanup(reactor.listenUNIX(str(path), factory).stopListening)
        return path, asked

    async def test_an_agent_that_does_not_sign_is_named(self) -> None:
        blob = Key.fromFile(str(lab.key)).public().blob()
        answer = struct.pack(">BL", 12, 1) + NS(blob) + NS(b"")
        path, _ = self.agent_that_stops([NS(answer)])
        config = lab.ssh_config(plain, extra=f"IdentityAgent {path}\nIdentityFile none", keys=[])
        error = await self.fails(
            KeysRejectedError, config=config, deadlines=Deadlines(authenticate=0.5)
        )
        self.assertIn("(ssh-agent) did not sign", str(error))
        self.assertIn("ED25519 SHA256:", str(error))

    async def test_cancelled_while_it_waits_for_the_agent(self) -> None:
        path, asked = self.agent_that_stops([])  # trial would find a connection that is left
        config = lab.ssh_config(plain, extra=f"IdentityAgent {path}")
        waiting = Connector(reactor, config).connect(HostSpec("h", plain.address))
        await asked
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting

    async def test_a_host_that_takes_no_key(self) -> None:
        extra = "PubkeyAuthentication no\nPasswordAuthentication yes"
        error = await self.fails(KeysRejectedError, lab.sshd("127.0.0.27", extra=extra))
        self.assertIn("the host takes no key, it asks for password", str(error))
        self.assertIn("ssh -M", str(error))
        self.assertNotIn("authorized_keys", str(error))

    async def test_a_host_that_asks_for_a_key_and_a_password(self) -> None:
        extra = "AuthenticationMethods publickey,password\nPasswordAuthentication yes"
        error = await self.fails(KeysRejectedError, lab.sshd("127.0.0.28", extra=extra))
        self.assertIn("the host also asks for password", str(error))
        self.assertIn("ssh -M", str(error))

    async def test_two_keys_are_asked_for(self) -> None:
        second = new_key("ed25519")
        host = lab.sshd("127.0.0.12", extra="AuthenticationMethods publickey,publickey")
        host.authorize(second)
        await self.connect(host, lab.ssh_config(host, keys=[lab.key, second]))

    async def test_rejected_keys_are_named(self) -> None:
        key = new_key("ed25519")
        config = lab.ssh_config(plain, keys=[key])

        error = await self.fails(KeysRejectedError, config=config)

        self.assertIn(str(key), str(error))
        self.assertTrue(error.retry)
        self.assertEqual((error.host, error.stage), (plain.address, "authenticate"))

    async def test_too_many_keys(self) -> None:
        keys = [new_key("ed25519") for _ in range(7)]
        config = lab.ssh_config(plain, keys=keys)

        error = await self.fails(KeysRejectedError, config=config)

        self.assertIn("Too many authentication failures", error.said)


class TestHostKeys(SSHCase):
    def known(self, text: str, extra: str = "") -> Path:
        return lab.ssh_config(plain, extra=extra, known_hosts=text)

    def another(self, host: Sshd, kind: str = "ed25519") -> str:
        """A line of known_hosts with a key that is not the host's."""
        key = new_key(kind)
        return f"[{host.address}]:{host.port} {key.with_name('id.pub').read_text()}"

    async def test_unknown(self) -> None:
        error = await self.fails(HostKeyUnknownError, config=self.known(""))
        self.assertFalse(error.retry)
        self.assertIn("SHA256:", str(error))

    async def test_changed(self) -> None:
        config = self.known(self.another(plain))
        error = await self.fails(HostKeyChangedError, config=config)
        self.assertFalse(error.retry)
        self.assertIn("ssh_config.known_hosts:1", str(error))

    async def test_changed_is_refused_whatever_the_settings_say(self) -> None:
        config = self.known(self.another(plain), extra="StrictHostKeyChecking no")
        await self.fails(HostKeyChangedError, config=config)

    async def test_revoked(self) -> None:
        _name, key = plain.known_hosts.splitlines()[0].split(" ", 1)
        config = self.known(f"{plain.known_hosts}@revoked * {key}\n")
        await self.fails(HostKeyRevokedError, config=config)

    async def test_each_kind_of_key_alone_is_enough(self) -> None:
        for line in plain.known_hosts.splitlines():
            await self.connect(config=self.known(line + "\n"))

    async def test_a_new_key_is_added(self) -> None:
        config = self.known("# no key\n", extra="StrictHostKeyChecking accept-new")
        await self.connect(config=config)
        strict = self.known(written(config))
        await self.connect(config=strict)
        ssh = ["ssh", "-F", str(strict), "-o", "BatchMode=yes", plain.address, "true"]
        done = await deferToThread(subprocess.run, ssh, timeout=20)
        self.assertEqual(done.returncode, 0)

    async def test_accept_new_does_not_accept_another_type_of_key(self) -> None:
        host = lab.sshd("127.0.0.13")
        config = lab.ssh_config(
            host,
            extra="StrictHostKeyChecking accept-new",
            known_hosts=self.another(host, "ecdsa"),
        )
        error = await self.fails(HostKeyChangedError, host, config)
        self.assertIn("is not the ecdsa-sha2-nistp256 key in", str(error))


class TestReaching(SSHCase):
    def spec(self, port: int, address: str = "127.0.0.1") -> HostSpec:
        return HostSpec("strange", address, port=port)

    def listen(self, words: bytes, hang_up: bool = False) -> HostSpec:
        connected = self.connected = Deferred[None]()

        class Peer(Protocol):
            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(words)
                connected.callback(None)
                if hang_up:
                    self.transport.loseConnection()

        factory = Factory.forProtocol(Peer)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return self.spec(port.getHost().port)

    async def test_refused(self) -> None:
        with socket.socket() as bound:  # bound, but nobody listens
            bound.bind(("127.0.0.1", 0))
            error = await self.fails(RefusedError, spec=self.spec(bound.getsockname()[1]))
        self.assertTrue(error.retry)

    async def test_unknown_name(self) -> None:
        await self.fails(NameUnknownError, spec=self.spec(22, "no-such-host.invalid"))

    def unanswered(self) -> HostSpec:
        """A port whose queue is full: packets to it are dropped, as by a host that is gone."""
        listening = socket.socket()
        self.addCleanup(listening.close)
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        there = listening.getsockname()
        for _ in range(2):
            filler = socket.socket()
            self.addCleanup(filler.close)
            filler.setblocking(False)
            filler.connect_ex(there)
        return self.spec(there[1])

    def silence_the_name_service(self) -> Deferred[None]:
        """As a dead one would be, which cannot be had here; fires when it is asked."""
        asked: Deferred[None] = Deferred()
        over = threading.Event()

        def getaddrinfo(*_: object) -> NoReturn:
            reactor.callFromThread(asked.callback, None)
            over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "too late")

        self.patch(socket, "getaddrinfo", getaddrinfo)
        self.addCleanup(over.set)
        return asked

    async def test_a_name_service_that_does_not_answer(self) -> None:
        self.silence_the_name_service()
        spec = self.spec(22, "lab.invalid")
        error = await self.fails(TimedOutError, spec=spec, deadlines=Deadlines(connect=0.2))
        self.assertIn("the name service does not answer for lab.invalid", str(error))

    async def test_an_address_that_is_dead_before_one_that_is_not(self) -> None:
        def getaddrinfo(*_: object) -> list[Any]:
            pair = [("127.0.0.2", 0), (plain.address, 0)]  # nobody listens at the first
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", there) for there in pair]

        config = lab.ssh_config(plain, extra=f"HostKeyAlias [{plain.address}]:{plain.port}")
        self.patch(socket, "getaddrinfo", getaddrinfo)
        await self.connect(config=config, spec=HostSpec("two", plain.address))

    async def test_packets_that_are_dropped(self) -> None:
        spec = self.unanswered()
        error = await self.fails(TimedOutError, spec=spec, deadlines=Deadlines(connect=0.2))
        self.assertEqual(error.stage, "connect")
        self.assertTrue(error.retry)

    async def test_silent_peer(self) -> None:
        spec = self.listen(b"")
        error = await self.fails(TimedOutError, spec=spec, deadlines=Deadlines(greeting=0.2))
        self.assertEqual(error.stage, "greeting")

    async def test_silent_after_its_version(self) -> None:
        spec = self.listen(b"SSH-2.0-tarpit\r\n")
        error = await self.fails(TimedOutError, spec=spec, deadlines=Deadlines(key_exchange=0.2))
        self.assertEqual(error.stage, "key exchange")

    async def test_not_ssh(self) -> None:
        spec = self.listen(b"220 mail.example.org ESMTP\r\n", hang_up=True)
        error = await self.fails(NotSSHError, spec=spec)
        self.assertIn("220 mail.example.org ESMTP", error.said)

    async def test_garbage_without_end(self) -> None:
        await self.fails(NotSSHError, spec=self.listen(b"x" * 100_000))

    async def test_throttled(self) -> None:
        host = lab.sshd("127.0.0.14", extra="MaxStartups 1:100:1")
        with socket.create_connection((host.address, host.port)):  # takes the only place
            error = await self.fails(ThrottledError, host)
        self.assertIn("MaxStartups", str(error))
        self.assertGreater(error.least_pause, 0)

    async def test_no_common_algorithm(self) -> None:
        """Neither for Conch nor for ssh, which may do what Conch cannot."""
        host = lab.sshd("127.0.0.15", extra="Ciphers chacha20-poly1305@openssh.com")
        config = lab.ssh_config(host, extra="Ciphers aes128-ctr")
        error = await self.fails(NoCommonAlgorithmError, host, config)
        self.assertIn("chacha20-poly1305@openssh.com", str(error))
        self.assertFalse(error.retry)

    async def cancelled(self, spec: HostSpec, when: Deferred[None]) -> None:
        waiting = Connector(reactor, lab.ssh_config(plain)).connect(spec)
        await when
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting

    async def test_cancelled_while_it_waits_for_the_greeting(self) -> None:
        await self.cancelled(self.listen(b""), self.connected)

    async def test_cancelled_while_it_looks_up_the_name(self) -> None:
        await self.cancelled(self.spec(22, "lab.invalid"), self.silence_the_name_service())

    async def test_a_host_that_does_not_answer_keeps_no_other_waiting(self) -> None:
        self.patch(connector, "MOST_HANDSHAKES", 1)
        opener = Connector(reactor, lab.ssh_config(plain))
        dead = opener.connect(self.unanswered())
        connection = await opener.connect(HostSpec(plain.address, plain.address))
        await connection.close()
        self.assertFalse(dead.called)
        dead.cancel()
        with self.assertRaises(CancelledError):
            await dead

    async def test_cancelled_while_it_waits_for_its_turn(self) -> None:
        self.patch(connector, "MOST_HANDSHAKES", 1)
        opener = Connector(reactor, lab.ssh_config(plain))
        first = opener.connect(self.listen(b""))
        await self.connected
        both = [first, opener.connect(self.listen(b""))]
        for waiting in reversed(both):
            waiting.cancel()
            with self.assertRaises(CancelledError):
                await waiting

    async def test_cancelled_while_it_connects(self) -> None:
        spec = self.unanswered()
        connect, connecting = reactor.connectTCP, Deferred[None]()

        def noted(*args: Any, **kwargs: Any) -> Any:
            reactor.callLater(0, connecting.callback, None)
            return connect(*args, **kwargs)

        self.patch(reactor, "connectTCP", noted)
        await self.cancelled(spec, connecting)


class TestCommands(SSHCase):
    async def test_status_output_and_input(self) -> None:
        connection = await self.connect()
        result = await self.run_command(connection, "cat; echo oops >&2; exit 3", b"given")
        self.assertEqual(
            (result.status, result.signal, result.stdout, result.stderr),
            (3, None, b"given", b"oops\n"),
        )

    async def test_signal(self) -> None:
        connection = await self.connect()
        result = await self.run_command(connection, "kill -TERM $$")
        self.assertEqual((result.status, result.signal), (None, "TERM"))

    async def test_much_output_is_cut(self) -> None:
        connection = await self.connect()
        command = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo end >&2"
        result = await self.run_command(connection, command)
        self.assertEqual((result.status, len(result.stdout)), (0, 1024 * 1024))
        self.assertTrue(result.stderr.endswith(b"end\n"))
        self.assertLess(len(result.stderr), 10_000)

    async def test_much_input(self) -> None:
        connection = await self.connect()
        result = await self.run_command(connection, "sleep 0.1; wc -c", b"x" * 5_000_000)
        self.assertEqual(result.stdout.strip(), b"5000000")

    async def test_input_that_nobody_reads(self) -> None:
        connection = await self.connect()
        result = await self.run_command(connection, "exit 7", b"x" * 5_000_000)
        self.assertEqual(result.status, 7)

    async def test_more_commands_than_the_server_takes_at_once(self) -> None:
        connection = await self.connect()
        results = await gatherResults([connection.run(f"echo {n}", b"", 20) for n in range(30)])
        self.assertEqual([int(result.stdout) for result in results], list(range(30)))

    async def test_a_command_that_takes_too_long(self) -> None:
        connection = await self.connect()
        with self.assertRaises(TimedOutError):
            await connection.run("exec sleep 60", b"", 0.3)
        self.assertEqual((await self.run_command(connection, "echo alive")).stdout, b"alive\n")

    async def test_a_server_that_takes_one_command_at_a_time(self) -> None:
        """Each begins when the one before has ended, which still counts there for a moment."""
        connection = await self.connect(lab.sshd("127.0.0.17", extra="MaxSessions 1"))
        for n in range(10):
            result = await self.run_command(connection, f"echo {n}")
            self.assertEqual(result.stdout, b"%d\n" % n)

    async def test_no_session_is_allowed(self) -> None:
        host = lab.sshd("127.0.0.16", extra="MaxSessions 0")
        connection = await self.connect(host)
        with self.assertRaises(ChannelRefusedError):
            await self.run_command(connection, "true")

    async def test_the_server_ends_a_command_that_says_nothing(self) -> None:
        """Its channel is closed with neither status nor signal, and the connection lives."""
        host = lab.sshd("127.0.0.20", extra="ChannelTimeout session:command=1s")
        # the second goes by the system's ssh, which has no say in it
        for config in (lab.ssh_config(host), lab.ssh_config(host, extra="BindAddress 127.0.0.1")):
            connection = await self.connect(host, config)
            with self.assertRaises(CommandFailedError) as caught:
                await connection.run("echo begun >&2; exec sleep 60", b"", 30)
            self.assertIn("without an exit status: begun; ", str(caught.exception))
            self.assertIn("ChannelTimeout", str(caught.exception))
            result = await self.run_command(connection, "echo alive")
            self.assertEqual((result.status, result.stdout), (0, b"alive\n"))
            await connection.close()

    async def test_the_server_dies_under_a_command(self) -> None:
        host = lab.sshd("127.0.0.17")
        connection = await self.connect(host)
        running = connection.run("echo begun >&2; exec sleep 60", b"", 30)
        await self.run_command(connection, "true")  # so the first one has begun

        host.drop_connections()

        with self.assertRaises(ConnectionLostError):
            await running
        self.assertIsInstance(await connection.lost, ConnectionLostError)
        with self.assertRaises(ConnectionLostError):
            await self.run_command(connection, "true")

    async def test_a_server_that_stops_answering(self) -> None:
        host = lab.sshd("127.0.0.18")
        connection = await self.connect(
            host, deadlines=Deadlines(keepalive=0.2, silence=0.6, close=0.2)
        )
        await self.run_command(connection, "true")  # sshd has forked for the user by then
        running = connection.run("exec sleep 60", b"", 30)
        for pid in children(host.process.pid):
            os.kill(pid, signal.SIGSTOP)  # the connection stays, nobody answers

        with self.assertRaises(PeerVanishedError):
            await running

    async def test_an_idle_connection_stays(self) -> None:
        connection = await self.connect(deadlines=Deadlines(keepalive=0.1, silence=0.5))
        result = await connection.run("exec sleep 1", b"", 10)
        self.assertEqual(result.status, 0)

    async def test_rekeying(self) -> None:
        host = lab.sshd("127.0.0.19", extra="RekeyLimit 100K")
        connection = await self.connect(host)
        result = await self.run_command(connection, "head -c 1000000 /dev/zero")
        self.assertEqual(len(result.stdout), 1_000_000)


class TestScripts(SSHCase):
    ODD = "a 'b' \"c\" $HOME !x `id` \\ é # ; *"

    async def echo(self, host: Sshd) -> None:
        connection = await self.connect(host)
        script = 'printf "%s|" "$word"; cat;'
        stdin = script_input(script, {"word": self.ODD}, b"rest")
        result = await self.run_command(connection, RUN_SCRIPT, stdin)
        self.assertIn(f"{self.ODD}|rest".encode(), result.stdout)

    async def test_arguments_arrive_as_they_are(self) -> None:
        await self.echo(plain)

    async def test_a_noisy_start_up_file(self) -> None:
        host = lab.sshd("127.0.0.20")
        (host.home / ".bashrc").write_text("echo Welcome to the lab; echo quota >&2\n")
        await self.echo(host)

    async def test_a_login_shell_that_is_no_posix_shell(self) -> None:
        """Shells like csh and fish agree on single quotes; so does Python's shlex."""
        shell = lab.folder / "odd-shell"
        shell.write_text(
            "#!/usr/bin/python3\n"
            "import os, shlex, sys\n"
            "assert sys.argv[1] == '-c', sys.argv\n"
            "command = sys.argv[2]\n"
            "assert not set(command) & set('!\\\\\\n'), command\n"
            "words = shlex.split(command)\n"
            "assert words.pop(0) == 'exec', words\n"
            "os.execv(words[0], words)\n"
        )
        shell.chmod(0o755)
        await self.echo(lab.sshd("127.0.0.21", shell=str(shell)))


class TestCopy(SSHCase):
    async def copied(self, connection: Any, name: str, content: bytes, home: Path) -> None:
        source = new_file(content)
        await connection.copy(source, f"~/{name}", 0o750, 20)
        target = home / name
        self.assertEqual(target.read_bytes(), content)
        self.assertEqual(stat.S_IMODE(target.stat().st_mode), 0o750)

    async def test_odd_names_and_sizes(self) -> None:
        host = lab.sshd("127.0.0.22")
        connection = await self.connect(host)
        big = os.urandom(6_000_001)
        for name, content in [
            ("plain", b"x"),
            ("empty", b""),
            (TestScripts.ODD.replace("/", "") + "'", b"odd"),
            ("-rf", b"dash"),
            ("big", big),
            ("big", b"replaced"),
        ]:
            await self.copied(connection, name, content, host.home)
        self.assertEqual(len(list(host.home.iterdir())), 5)  # no temporary name is left

    async def test_noise_before_scp(self) -> None:
        host = lab.sshd("127.0.0.23")
        (host.home / ".bashrc").write_text("echo Welcome; printf 'no newline'\n")
        await self.copied(await self.connect(host), "file", b"content", host.home)

    async def test_no_scp_there(self) -> None:
        host = lab.sshd("127.0.0.24")
        commands = lab.folder / "no-scp"
        commands.mkdir()
        for name in ("sh", "mv", "rm"):
            (commands / name).symlink_to(f"/bin/{name}")
        (host.home / ".bashrc").write_text(f"export PATH={commands}\n")
        with self.assertRaises(CopyFailedError) as caught:
            await self.copied(await self.connect(host), "file", b"content", host.home)
        self.assertIn("no scp", str(caught.exception))

    async def test_a_start_up_file_that_exits(self) -> None:
        host = lab.sshd("127.0.0.26")
        (host.home / ".bashrc").write_text("echo Welcome; exit 0\n")
        with self.assertRaises(CopyFailedError):
            await self.copied(await self.connect(host), "file", b"content", host.home)

    async def test_no_such_folder(self) -> None:
        source = new_file(b"x")
        connection = await self.connect()
        with self.assertRaises(CopyFailedError) as caught:
            await connection.copy(source, "/nonexistent/file", 0o600, 20)
        self.assertIn("No such file or directory", caught.exception.said)

    async def test_no_file_here(self) -> None:
        connection = await self.connect()
        with self.assertRaises(CopyFailedError):
            await connection.copy(Path("/nonexistent/file"), "~/never", 0o600, 20)
        self.assertFalse((plain.home / "never").exists())

    async def test_the_server_dies_under_a_copy(self) -> None:
        host = lab.sshd("127.0.0.25")
        commands = lab.folder / "hanging-scp"
        commands.mkdir()
        (commands / "scp").write_text("#!/bin/sh\n: > ~/begun\nexec sleep 60\n")
        (commands / "scp").chmod(0o755)
        (host.home / ".bashrc").write_text(f"PATH={commands}:$PATH\n")
        connection = await self.connect(host)
        source = new_file(b"x")
        copying = connection.copy(source, "~/file", 0o600, 20)
        await self.run_command(connection, "until [ -e ~/begun ]; do sleep 0.02; done")

        host.drop_connections()

        with self.assertRaises(ConnectionLostError):
            await copying

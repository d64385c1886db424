"""The ways to a host: jump hosts, the system's ssh, a connection that the user shares."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.process import ProcessReader, reapProcessHandlers
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from pexecd.errors import ForwardRefusedError, HostError
from pexecd.jobs.values import HostSpec
from pexecd.ports import CommandResult, IConnection
from pexecd.ssh import binary, jump
from pexecd.ssh.connector import Connector
from pexecd.ssh.errors import (
    ConnectionLostError,
    CopyFailedError,
    HostKeyChangedError,
    HostKeyRevokedError,
    HostKeyUnknownError,
    JumpRefusedError,
    KeysRejectedError,
    NameUnknownError,
    NotSSHError,
    PeerVanishedError,
    ProxyCommandError,
    RefusedError,
    SettingsError,
    ThrottledError,
    TimedOutError,
)
from pexecd.ssh.mux import MuxConnection
from pexecd.ssh.transport import Deadlines, Transport
from tests.system.running import PEXECD
from tests.system.sshd import Lab, Sshd, children, make_key
from tests.waiting import LONG

reactor: Any = installed_reactor
DEADLINES = Deadlines()
#: What Conch has none of.
HARDENED = "Ciphers chacha20-poly1305@openssh.com\nKexAlgorithms sntrup761x25519-sha512@openssh.com"
lab: Lab
gate: Sshd
#: Behind the gate, as far as the settings are concerned.
inner: Sshd
hardened: Sshd


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab, gate, inner, hardened  # noqa: PLW0603 - trial's TestCase takes no fixtures
    with Lab() as lab:
        gate = lab.sshd("127.0.0.61")
        inner = lab.sshd("127.0.0.62")
        hardened = lab.sshd("127.0.0.63", extra=HARDENED)
        yield


def jump_to(host: Sshd, by: str) -> str:
    return f"Host {host.address}\n  ProxyJump {by}\nHost *"


def logins(host: Sshd) -> int:
    return sum("Accepted publickey" in line for line in host.log)


async def becomes_true(what: Any) -> None:
    """Poll, with a deadline."""
    for _ in range(int(LONG / 0.02)):
        if what():
            return
        await deferLater(reactor, 0.02)
    raise AssertionError("it did not come true")


def ssh_processes(folder: Path) -> list[int]:
    """Those whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(folder) in command and b"pexecd-ssh-" in command:
                found.append(int(entry.name))
    return found


class WaysCase(TestCase):
    """At the end neither connection nor process nor folder is left."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=lab.folder))
        self.patch(tempfile, "tempdir", str(self.folder))

        #: Closed before ``tearDown`` looks for what is left.
        self.closing: list[Any] = []

    async def tearDown(self) -> None:  # type: ignore[override]  # trial takes it
        await self.close()
        await becomes_true(lambda: not ssh_processes(self.folder))
        self.assertEqual([path.name for path in self.folder.iterdir()], [])

    async def open(
        self,
        address: str,
        config: Path,
        deadlines: Deadlines = DEADLINES,
        opener: Connector | None = None,
        **spec: Any,
    ) -> Any:
        opener = opener or Connector(reactor, config, deadlines=deadlines)
        connection: Any = await opener.connect(HostSpec(address, address, **spec))
        self.assertTrue(IConnection.providedBy(connection))
        self.closing.append(connection)
        return connection

    async def close(self) -> None:
        for connection in self.closing:
            await connection.close()

    async def fails(self, kind: type[HostError], *args: Any, **kwargs: Any) -> HostError:
        with self.assertRaises(kind) as caught:
            await self.open(*args, **kwargs)
        error: HostError = caught.exception
        self.assertIs(type(error), kind)
        return error

    async def works(self, connection: Any, home: Path) -> None:
        """Commands and copies, in all their variety."""
        result: CommandResult = await connection.run("cat; echo oops >&2; exit 3", b"given", 20)
        self.assertEqual(
            (result.status, result.signal, result.stdout, result.stderr),
            (3, None, b"given", b"oops\n"),
        )
        result = await connection.run("kill -TERM $$", b"", 20)
        self.assertEqual((result.status, result.signal), (None, "TERM"))
        result = await connection.run("wc -c", b"x" * 5_000_000, 20)
        self.assertEqual(result.stdout.strip(), b"5000000")
        result = await connection.run("head -c 3000000 /dev/zero", b"", 20)
        self.assertEqual((result.status, len(result.stdout)), (0, 1024 * 1024))
        results = await gatherResults([connection.run(f"echo {n}", b"", 20) for n in range(10)])
        self.assertEqual([int(result.stdout) for result in results], list(range(10)))
        content = os.urandom(3_000_001)
        source = Path(tempfile.mkdtemp(dir=lab.folder)) / "file"
        source.write_bytes(content)
        await connection.copy(source, "~/a 'file'", 0o750, 20)
        self.assertEqual((home / "a 'file'").read_bytes(), content)
        with self.assertRaises(CopyFailedError):
            await connection.copy(source, "/nonexistent/file", 0o600, 20)
        with self.assertRaises(TimedOutError):
            await connection.run("exec sleep 60", b"", 0.3)

    def listen(self, words: bytes = b"", hang_up: bool = False) -> int:
        """A port of 127.0.0.1 where something else than sshd answers."""
        self.connected = Deferred[None]()

        class Peer(Protocol):
            def connectionMade(peer) -> None:
                assert peer.transport is not None
                peer.transport.write(words)
                if not self.connected.called:
                    self.connected.callback(None)
                if hang_up:
                    peer.transport.loseConnection()

        factory = Factory.forProtocol(Peer)
        factory.noisy = False
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)


class TestJumps(WaysCase):
    async def test_one(self) -> None:
        connection = await self.open(
            inner.address, lab.ssh_config(gate, inner, extra=jump_to(inner, gate.address))
        )
        before = logins(gate)
        await self.works(connection, inner.home)
        self.assertEqual(logins(gate), before)
        await self.close()
        await becomes_true(lambda: not children(gate.process.pid))

    async def test_hosts_share_the_connection_to_it(self) -> None:
        hosts = [lab.sshd(f"127.0.0.{n}", user=inner.user) for n in range(64, 67)]
        extra = "".join(jump_to(host, gate.address).removesuffix("Host *") for host in hosts)
        opener = Connector(reactor, lab.ssh_config(gate, *hosts, extra=f"{extra}Host *"))
        before = logins(gate)
        specs = [HostSpec(f"{n}", hosts[n % 3].address) for n in range(20)]
        most, begin = self.count_handshakes()
        self.patch(Transport, "begin", begin)
        connections: Any = await gatherResults([opener.connect(spec) for spec in specs])
        self.assertEqual(logins(gate), before + 1)
        self.assertLessEqual(max(most), jump.MOST_HANDSHAKES)

        for connection in connections[1:]:
            await connection.close()
        result = await connections[0].run("echo alive", b"", 20)
        self.assertEqual(result.stdout, b"alive\n")
        await connections[0].close()
        await becomes_true(lambda: not children(gate.process.pid))

        again = await opener.connect(specs[0])  # the gate is opened anew
        self.assertEqual(logins(gate), before + 2)
        await again.close()

    def count_handshakes(self) -> tuple[list[int], Any]:
        """How many handshakes with hosts behind the gate there were at any time."""
        most, running = [0], set[Transport]()
        begin = Transport.begin

        def counted(transport: Transport) -> None:
            if isinstance(transport.transport, jump.Way):
                running.add(transport)
                most.append(len(running))
                transport.ready.addBoth(ended, transport)
            begin(transport)

        def ended(result: Any, transport: Transport) -> Any:
            running.discard(transport)
            return result

        return most, counted

    async def test_two(self) -> None:
        second = lab.sshd("127.0.0.67")
        by = f"{second.login}@{second.address}:{second.port}"
        config = lab.ssh_config(gate, second, inner, extra=jump_to(inner, f"{gate.address},{by}"))
        connection = await self.open(inner.address, config)
        await self.works(connection, inner.home)
        self.assertEqual(logins(second), 1)
        await self.close()

    async def test_a_jump_host_with_a_jump_host(self) -> None:
        second = lab.sshd("127.0.0.68")
        extra = jump_to(inner, second.address) + "\n" + jump_to(second, gate.address)
        config = lab.ssh_config(gate, second, inner, extra=extra)
        before = logins(gate)
        await self.open(inner.address, config)
        self.assertEqual((logins(gate) - before, logins(second)), (1, 1))
        await self.close()

    async def test_a_hardened_one(self) -> None:
        """Its ssh is shared by the hosts behind it, which need none of their own."""
        config = lab.ssh_config(hardened, inner, extra=jump_to(inner, hardened.address))
        before = logins(hardened)
        opener = Connector(reactor, config)
        one = await self.open(inner.address, config, opener=opener)
        two = await self.open(inner.address, config, opener=opener)
        self.assertNotIsInstance(one, MuxConnection)
        await self.works(two, inner.home)
        self.assertEqual(logins(hardened), before + 1)
        await self.close()

    # --- errors name the gate --------------------------------------------------------------------

    async def test_it_refuses(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            there = f"127.0.0.1:{bound.getsockname()[1]}"
            config = lab.ssh_config(inner, extra=jump_to(inner, there))
            error = await self.fails(RefusedError, inner.address, config)
        self.assertEqual((error.host, error.gate), (inner.address, there))
        self.assertIn(f"jump host {there}: connection refused", str(error))

    async def test_its_key_is_unknown(self) -> None:
        config = lab.ssh_config(
            gate, inner, extra=jump_to(inner, gate.address), known_hosts=inner.known_hosts
        )
        error = await self.fails(HostKeyUnknownError, inner.address, config)
        self.assertIn(f"jump host {gate.address}: its host key", str(error))
        self.assertFalse(error.retry)

    async def test_it_lets_nobody_in(self) -> None:
        closed = lab.sshd("127.0.0.69", extra="AllowUsers nobody-at-all")
        config = lab.ssh_config(closed, inner, extra=jump_to(inner, closed.address))
        error = await self.fails(KeysRejectedError, inner.address, config)
        self.assertEqual((error.gate, error.least_pause), (closed.address, 60.0))

    async def test_the_first_of_two_fails(self) -> None:
        by = f"nobody.invalid,{gate.address}"
        config = lab.ssh_config(gate, inner, extra=jump_to(inner, by))
        error = await self.fails(NameUnknownError, inner.address, config)
        self.assertEqual((error.host, error.gate), (inner.address, "nobody.invalid"))
        self.assertEqual(str(error).count("jump host"), 1)

    async def test_it_forwards_nothing(self) -> None:
        strict = lab.sshd("127.0.0.70", extra="AllowTcpForwarding no")
        config = lab.ssh_config(strict, inner, extra=jump_to(inner, strict.address))
        error = await self.fails(JumpRefusedError, inner.address, config)
        self.assertIn("AllowTcpForwarding", str(error))

    async def test_the_host_behind_it_refuses(self) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port = bound.getsockname()[1]
            config = lab.ssh_config(gate, extra=f"Host 127.0.0.1\n  ProxyJump {gate.address}")
            error = await self.fails(RefusedError, "127.0.0.1", config, port=port)
        self.assertIn(f"from jump host {gate.address}", str(error))
        self.assertEqual(error.gate, "")

    async def test_the_host_behind_it_has_no_address(self) -> None:
        config = lab.ssh_config(gate, extra=f"Host *.invalid\n  ProxyJump {gate.address}\nHost *")
        await self.fails(NameUnknownError, "lab.invalid", config)

    async def test_the_host_behind_it_is_silent(self) -> None:
        config = lab.ssh_config(gate, extra=f"Host 127.0.0.1\n  ProxyJump {gate.address}\nHost *")
        deadlines = Deadlines(greeting=0.2)
        error = await self.fails(TimedOutError, "127.0.0.1", config, deadlines, port=self.listen())
        self.assertEqual(error.stage, "greeting")

    async def test_a_circle(self) -> None:
        extra = jump_to(inner, gate.address) + "\n" + jump_to(gate, inner.address)
        config = lab.ssh_config(gate, inner, extra=extra)
        opener = Connector(reactor, config)
        both = [opener.connect(HostSpec(h.address, h.address)) for h in (inner, gate)]
        for each in both:
            with self.assertRaises(SettingsError) as caught:
                await each
            self.assertIn("in a circle", str(caught.exception))

    async def test_it_dies(self) -> None:
        mortal = lab.sshd("127.0.0.71")
        config = lab.ssh_config(mortal, inner, extra=jump_to(inner, mortal.address))
        connection = await self.open(inner.address, config)
        running = connection.run("exec sleep 60", b"", 30)
        await connection.run("true", b"", 20)
        mortal.drop_connections()
        with self.assertRaises(ConnectionLostError) as caught:
            await running
        self.assertIn(mortal.address, str(caught.exception))
        self.assertIsInstance(await connection.lost, ConnectionLostError)

    async def test_it_stops_answering(self) -> None:
        mute = lab.sshd("127.0.0.72")
        config = lab.ssh_config(mute, inner, extra=jump_to(inner, mute.address))
        deadlines = Deadlines(keepalive=0.2, silence=0.6, close=0.2)
        connection = await self.open(inner.address, config, deadlines)
        await connection.run("true", b"", 20)
        for pid in children(mute.process.pid):
            os.kill(pid, signal.SIGSTOP)
        with self.assertRaises(ConnectionLostError):
            await connection.run("true", b"", 20)

    async def test_cancelled_while_it_connects(self) -> None:
        there = f"127.0.0.1:{self.listen()}"
        opener = Connector(reactor, lab.ssh_config(inner, extra=jump_to(inner, there)))
        waiting = [opener.connect(HostSpec(name, inner.address)) for name in "ab"]
        await self.connected
        for each in waiting:
            each.cancel()
            with self.assertRaises(CancelledError):
                await each
        # one of them may still have asked `ssh -G`, whose end is seen a moment after it was killed
        while any(isinstance(reader, ProcessReader) for reader in reactor.getReaders()):
            await deferLater(reactor, 0.01)
        while reapProcessHandlers:
            await deferLater(reactor, 0.01)


class TestSystemSSH(WaysCase):
    #: Only ssh itself can do that.
    BY_SSH = "BindAddress 127.0.0.1"

    async def test_a_hardened_server(self) -> None:
        config = lab.ssh_config(hardened)
        opener = Connector(reactor, config)
        connection = await self.open(hardened.address, config, opener=opener)
        self.assertIsInstance(connection, MuxConnection)
        await self.works(connection, hardened.home)

        tried = len([line for line in hardened.log if "Unable to negotiate" in line])
        await self.open(hardened.address, config, opener=opener)  # it is known by now
        self.assertEqual(len([x for x in hardened.log if "Unable to negotiate" in x]), tried)
        await self.close()

    async def test_algorithms_of_the_users_choice(self) -> None:
        host = lab.sshd("127.0.0.73", extra="LogLevel DEBUG1")
        await self.open(host.address, lab.ssh_config(host, extra="Ciphers aes256-ctr"))
        self.assertTrue(any("cipher: aes256-ctr" in line for line in host.log))
        config = lab.ssh_config(host, extra="Ciphers aes256-gcm@openssh.com")
        connection = await self.open(host.address, config)
        self.assertIsInstance(connection, MuxConnection)
        self.assertTrue(any("cipher: aes256-gcm" in line for line in host.log))
        await self.close()

    async def test_proxy_command(self) -> None:
        inside = lab.ssh_config(gate)
        way = f"ProxyCommand ssh -F {inside} -W %h:%p {gate.address}"
        connection = await self.open(inner.address, lab.ssh_config(inner, extra=way))
        await self.works(connection, inner.home)
        await self.close()

    async def test_a_hardened_server_behind_a_jump_host(self) -> None:
        config = lab.ssh_config(gate, hardened, extra=jump_to(hardened, gate.address))
        connection = await self.open(hardened.address, config)
        self.assertIsInstance(connection, MuxConnection)
        self.assertEqual((await connection.run("echo hi", b"", 20)).stdout, b"hi\n")
        await self.close()

    async def test_a_certificate_authority_for_host_keys(self) -> None:
        authority = make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "ca", "ed25519")
        host = lab.sshd("127.0.0.74")
        self.certify(authority, host.host_keys[0], "-h", "-n", "127.0.0.74")
        with host.config.open("a") as file:
            file.write(f"HostCertificate {host.host_keys[0]}-cert.pub\n")
        host.stop()
        host.log.clear()
        host.start()
        line = f"@cert-authority *.0.0.74,[127.*]:* {self.public(authority)}"
        config = lab.ssh_config(host, known_hosts=line)
        connection = await self.open(host.address, config)
        self.assertIsInstance(connection, MuxConnection)
        await self.close()

        other = make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "ca", "ed25519")
        line = f"@cert-authority [127.*]:* {self.public(other)}"
        await self.fails(HostKeyUnknownError, host.address, lab.ssh_config(host, known_hosts=line))

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def public(self, key: Path) -> str:
        return key.with_name(f"{key.name}.pub").read_text()

    def certify(self, authority: Path, key: Path, *options: str) -> None:
        command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *options]
        subprocess.run([*command, f"{key}.pub"], check=True, timeout=LONG)

    async def test_user_certificates(self) -> None:
        authority = make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "ca", "ed25519")
        host = lab.sshd("127.0.0.75", extra=f"TrustedUserCAKeys {authority}.pub")
        for kind in ("ed25519", "ecdsa", "rsa"):
            key = make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "id", kind)
            config = lab.ssh_config(host, keys=[key])
            error = await self.fails(KeysRejectedError, host.address, config)
            self.assertIn(str(key), str(error))
            self.certify(authority, key, "-n", host.login)
            connection = await self.open(host.address, config)  # the one beside the key
            self.assertNotIsInstance(connection, MuxConnection)
            elsewhere = Path(tempfile.mkdtemp(dir=lab.folder)) / "mine.pub"
            os.rename(f"{key}-cert.pub", elsewhere)
            await self.open(
                host.address, lab.ssh_config(host, keys=[key], extra=f"CertificateFile {elsewhere}")
            )
            with lab.agent(key) as agent:
                extra = f"CertificateFile {elsewhere}\nIdentityAgent {agent}\nIdentityFile none"
                await self.open(host.address, lab.ssh_config(host, keys=[], extra=extra))
            os.rename(elsewhere, f"{key}-cert.pub")
            with lab.agent(key) as agent:  # takes the certificate as well
                extra = f"IdentityAgent {agent}\nIdentityFile none"
                await self.open(host.address, lab.ssh_config(host, keys=[], extra=extra))
        await self.close()

    async def test_a_host_that_trusts_this_machine(self) -> None:
        """As computers of a cluster do; ssh signs with this machine's key."""
        host = lab.sshd(
            "127.0.0.79",
            extra="PubkeyAuthentication no\nHostbasedAuthentication yes\n"
            "HostbasedUsesNameFromPacketOnly yes\nIgnoreRhosts no\nIgnoreUserKnownHosts no",
        )
        etc = Path(tempfile.mkdtemp(dir=lab.folder))
        (etc / "ssh_config").write_text("EnableSSHKeysign yes\n")
        key = make_key(etc / "ssh_host_ed25519_key", "ed25519").with_suffix(".pub").read_text()
        (host.home / ".ssh").mkdir()
        (host.home / ".ssh" / "known_hosts").write_text(f"* {key}")
        names = {"localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn("127.0.0.1")}
        (host.home / ".shosts").write_text("".join(f"{name} root\n" for name in names))
        for path in host.home.rglob("*"):
            os.chown(path, host.user.uid, host.user.gid)
        command = etc / "ssh"
        script = f'mount --bind {etc} /etc/ssh && exec /usr/bin/ssh "$@"'
        command.write_text(
            f"#!/bin/sh\nexec unshare --mount --propagation private sh -c '{script}' sh \"$@\"\n"
        )
        command.chmod(0o755)
        self.patch(os, "environ", {**os.environ, "PATH": f"{etc}:{os.environ['PATH']}"})
        config = lab.ssh_config(host, extra="HostbasedAuthentication yes")
        self.assertIsInstance(await self.open(host.address, config), MuxConnection)
        await self.fails(KeysRejectedError, host.address, lab.ssh_config(host))
        await self.close()

    async def test_a_connection_that_the_user_shares(self) -> None:
        users, config = await self.share(inner)
        before = logins(inner)
        connection = await self.open(inner.address, config)
        await self.works(connection, inner.home)
        await connection.close()
        self.assertIsNone(users.poll())
        self.assertEqual(logins(inner), before)

        connection = await self.open(inner.address, config)
        running = connection.run("exec sleep 60", b"", 30)
        await connection.run("true", b"", 20)
        users.kill()
        with self.assertRaises(ConnectionLostError):
            await running
        # the socket is still there, but nobody listens
        await self.fails(KeysRejectedError, inner.address, config)

    async def share(self, host: Sshd) -> tuple[subprocess.Popen[bytes], Path]:
        """A connection of the user's to a host, and settings by which it is found."""
        path = Path(tempfile.mkdtemp(dir=lab.folder)) / "cm"
        command = ["ssh", "-F", str(lab.ssh_config(host)), "-N", "-M", "-S", str(path)]
        users = self.start(*command, "-oControlPersist=no", host.address)
        await becomes_true(path.exists)
        # by itself it would not be let in
        return users, lab.ssh_config(host, extra=f"ControlPath {path}", keys=[Path("/none")])

    # --- ends --------------------------------------------------------------------------------

    async def test_the_server_dies_under_a_command(self) -> None:
        host = lab.sshd("127.0.0.76")
        connection = await self.open(host.address, lab.ssh_config(host, extra=self.BY_SSH))
        self.assertIsInstance(connection, MuxConnection)
        running = connection.run("exec sleep 60", b"", 30)
        await connection.run("true", b"", 20)
        host.drop_connections()
        with self.assertRaises(ConnectionLostError):
            await running
        with self.assertRaises(ConnectionLostError):
            await connection.run("true", b"", 20)
        self.assertIsInstance(await connection.lost, ConnectionLostError)

    async def test_a_server_that_stops_answering(self) -> None:
        host = lab.sshd("127.0.0.77")
        extra = f"{self.BY_SSH}\nServerAliveInterval 1\nServerAliveCountMax 1"
        connection = await self.open(host.address, lab.ssh_config(host, extra=extra))
        await connection.run("true", b"", 20)
        for pid in children(host.process.pid):
            os.kill(pid, signal.SIGSTOP)
        with self.assertRaises(PeerVanishedError):
            await connection.run("true", b"", 20)

    async def test_an_ssh_that_hangs_is_ended_as_well(self) -> None:
        config = lab.ssh_config(inner, extra=self.BY_SSH)
        connection = await self.open(inner.address, config, Deadlines(close=0.2))
        (pid,) = ssh_processes(self.folder)
        os.kill(pid, signal.SIGSTOP)
        await connection.close()

    async def test_cancelled_while_it_logs_in(self) -> None:
        port = self.listen()
        config = lab.ssh_config(extra=self.BY_SSH)
        waiting = Connector(reactor, config).connect(HostSpec("h", "127.0.0.1", port=port))
        await self.connected
        waiting.cancel()
        with self.assertRaises(CancelledError):
            await waiting

    async def test_a_master_that_is_killed_leaves_no_ssh_behind(self) -> None:
        config = lab.ssh_config(inner, extra=self.BY_SSH)
        program = f"""
import os, pathlib, tempfile
from twisted.internet import reactor
from pexecd.jobs.values import HostSpec
from pexecd.ssh import Connector, binary
binary.IDLE = 1
tempfile.tempdir = {str(self.folder)!r}
opened = Connector(reactor, pathlib.Path({str(config)!r})).connect(HostSpec("h", {inner.address!r}))
opened.addBoth(lambda result: os.write(1, str(result).encode()))
reactor.run()
"""
        master = self.start(sys.executable, "-c", program)
        assert master.stdout is not None
        said = await deferToThread(os.read, master.stdout.fileno(), 1000)
        self.assertIn(b"MuxConnection", said)
        self.assertEqual(len(ssh_processes(self.folder)), 1)
        master.kill()
        await becomes_true(lambda: not ssh_processes(self.folder))
        (left,) = self.folder.iterdir()
        for file in left.iterdir():
            file.unlink()
        left.rmdir()

    # --- errors ------------------------------------------------------------------------------

    async def test_errors(self) -> None:
        def config(**kwargs: Any) -> Path:
            return lab.ssh_config(inner, extra=self.BY_SSH, **kwargs)

        key = make_key(Path(tempfile.mkdtemp(dir=lab.folder)) / "id", "ed25519")
        name, own = inner.known_hosts.split(" ", 1)
        for kind, known_hosts in (
            (HostKeyUnknownError, ""),
            (HostKeyChangedError, f"{name} {self.public(key)}"),
            (HostKeyRevokedError, f"{inner.known_hosts}@revoked * {own}"),
        ):
            error = await self.fails(kind, inner.address, config(known_hosts=known_hosts))
            self.assertEqual((error.stage, error.retry), ("key exchange", False))
        await self.fails(KeysRejectedError, inner.address, config(keys=[key]))
        await self.fails(NameUnknownError, "lab.invalid", config())
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            await self.fails(RefusedError, "127.0.0.1", config(), port=bound.getsockname()[1])
        port = self.listen(b"", hang_up=True)
        await self.fails(ThrottledError, "127.0.0.1", config(), port=port)
        port = self.listen(b"220 mail\0\r\n")
        await self.fails(NotSSHError, "127.0.0.1", config(), port=port)
        error = await self.fails(
            TimedOutError, "127.0.0.1", config(), Deadlines(connect=1), port=self.listen()
        )
        self.assertEqual(error.stage, "greeting")

    # --- tunnels -----------------------------------------------------------------------------

    def echo(self) -> Any:
        class Echo(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(data.upper())

        factory = Factory.forProtocol(Echo)
        factory.noisy = False
        return factory

    async def ask(self, kind: int, there: Any) -> socket.socket:
        """Connect to a tunnel's end on the host, which is this machine, and see that it works."""

        def ask() -> socket.socket:
            asking = socket.socket(kind)
            self.addCleanup(asking.close)
            asking.settimeout(LONG)
            asking.connect(there)
            asking.sendall(b"x" * 50_000)
            heard = b""
            while len(heard) < 50_000:
                some = asking.recv(65536)
                if not some:
                    raise ConnectionError("the tunnel is closed")
                heard += some
            assert heard == b"X" * 50_000
            return asking

        asked: socket.socket = await deferToThread(ask)
        return asked

    async def test_tunnels(self) -> None:
        connection = await self.open(hardened.address, lab.ssh_config(hardened))
        place = hardened.home / "tunnel"
        port = await connection.forward(None, self.echo())
        self.assertEqual(await connection.forward(str(place), self.echo()), 0)
        await self.ask(socket.AF_INET, ("127.0.0.1", port))
        await self.ask(socket.AF_UNIX, str(place))
        asking = await self.ask(socket.AF_UNIX, str(place))
        await self.close()
        self.assertEqual(await deferToThread(asking.recv, 1), b"")
        with self.assertRaises(ConnectionError):
            await self.ask(socket.AF_INET, ("127.0.0.1", port))

    async def test_tunnels_through_a_connection_that_the_user_shares(self) -> None:
        _, config = await self.share(inner)
        connection = await self.open(inner.address, config)
        port = await connection.forward(None, self.echo())
        asking = await self.ask(socket.AF_INET, ("127.0.0.1", port))
        await self.close()
        self.assertEqual(await deferToThread(asking.recv, 1), b"")
        with self.assertRaises(ConnectionError):
            await self.ask(socket.AF_INET, ("127.0.0.1", port))

    async def test_tunnels_that_are_not_allowed(self) -> None:
        extra = "AllowTcpForwarding no\nAllowStreamLocalForwarding no"
        host = lab.sshd("127.0.0.78", extra=extra)
        connection = await self.open(host.address, lab.ssh_config(host, extra=self.BY_SSH))
        for place in (None, str(host.home / "tunnel")):
            with self.assertRaises(ForwardRefusedError):
                await connection.forward(place, self.echo())
        await self.close()

    async def test_errors_on_the_way(self) -> None:
        config = lab.ssh_config(inner, extra="ProxyCommand cat /no/way")
        error = await self.fails(ProxyCommandError, inner.address, config)
        self.assertIn("/no/way: No such file or directory", str(error))
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            there = f"127.0.0.1:{bound.getsockname()[1]}"
            extra = f"{self.BY_SSH}\n{jump_to(inner, there)}"
            error = await self.fails(
                RefusedError, inner.address, lab.ssh_config(inner, extra=extra)
            )
            self.assertEqual(error.gate, there)
            extra = f"{self.BY_SSH}\nHost 127.0.0.1\n  ProxyJump {gate.address}"
            error = await self.fails(
                RefusedError,
                "127.0.0.1",
                lab.ssh_config(gate, extra=extra),
                port=bound.getsockname()[1],
            )
            self.assertEqual(error.gate, "")

    async def test_nobody_is_asked(self) -> None:
        """Not even by the ssh to the jump host, which does not know that it is alone."""
        self.assertEqual(binary.SHELLS[0], "sh")
        self.patch(binary, "SHELLS", ())  # so ssh makes its own way
        extra = f"{self.BY_SSH}\nStrictHostKeyChecking ask\n{jump_to(inner, gate.address)}"
        config = lab.ssh_config(gate, inner, extra=extra, known_hosts=inner.known_hosts)
        await self.fails(ProxyCommandError, inner.address, config)


JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
duplicates = 1
[worker]
name = work
command = work $n
executable = work.sh
[collect]
output = table results.txt
[ssh]
config = {config}
"""


def test_a_job_by_all_ways() -> None:
    """Two jump hosts, a hardened host, one behind a jump host; no port is open anywhere."""
    second, behind = lab.sshd("127.0.0.79"), lab.sshd("127.0.0.80", extra=HARDENED)
    hosts = (inner, hardened, behind)
    extra = f"{jump_to(inner, f'{gate.address},{second.address}')}\n"
    extra += jump_to(behind, gate.address)
    config = lab.ssh_config(gate, second, *hosts, extra=extra)
    folder = Path(tempfile.mkdtemp(dir=lab.folder))
    before = [logins(host) for host in (gate, second, *hosts)]
    for name, text in (
        ("job.ini", JOB.format(config=config)),
        ("lab.hosts", "".join(f"{host.address} slots=1\n" for host in hosts)),
        ("table.txt", "n\n1\n2\n3\n"),
        # waits until each host has its task
        (
            "work.sh",
            (
                f"#!/bin/sh\n: > {folder}/$PEXEC_HOST.begun\n"
                f"until [ $(ls {folder} | grep -c begun) = 3 ]; do sleep 0.05; done\necho fine\n"
            ),
        ),
    ):
        (folder / name).write_text(text)
    folder.chmod(0o777)
    done = subprocess.run(
        [*PEXECD, "run", str(folder / "job.ini")], capture_output=True, text=True, timeout=LONG
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results.txt").read_text().count("fine") == 3
    after = [logins(host) for host in (gate, second, *hosts)]
    # the ssh to the hardened host behind it goes through the gate by itself
    assert [one - other for one, other in zip(after, before, strict=True)] == [2, 1, 1, 1, 1]

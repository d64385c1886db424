"""Hosts that let users in by Kerberos: a real KDC, real sshd, and the system's ssh for us."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from pexecd.jobs.values import HostSpec
from pexecd.ssh.connector import Connector
from pexecd.ssh.errors import KeysRejectedError
from pexecd.ssh.mux import MuxConnection
from tests.system.kerberos import Realm
from tests.system.running import PEXECD
from tests.system.sshd import Lab, Sshd
from tests.system.test_tunnelled_jobs import Work
from tests.waiting import LONG

reactor: Any = installed_reactor
#: What users have in their ssh_config.
BY_KERBEROS = "GSSAPIAuthentication yes"
#: What the hosts have in their sshd_config: the keys of an address, not of this machine's name.
TAKES_KERBEROS = f"{BY_KERBEROS}\nGSSAPIStrictAcceptorCheck no\n"

lab: Lab
#: Takes no keys at all.
strict: Sshd
#: Takes keys, too.
both: Sshd
#: The environment of a user with a ticket.
ticket: dict[str, str]


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab, strict, both, ticket  # noqa: PLW0603 - trial's TestCase takes no fixtures
    with Lab() as lab:
        folder = lab.folder / "realm"
        folder.mkdir(mode=0o700)
        with Realm(folder) as realm:
            user = lab.add_user()

            def host(address: str, extra: str) -> Sshd:
                keytab = realm.keytab(f"host/{address}")
                environ = {
                    **realm.environ,
                    "KRB5_KTNAME": str(keytab),
                    "KRB5RCACHENAME": f"file2:{keytab}.replays",  # else in /var/tmp
                }
                within = ["env", *(f"{name}={value}" for name, value in environ.items())]
                return lab.sshd(address, user=user, extra=TAKES_KERBEROS + extra, within=within)

            strict = host("127.0.0.101", "PubkeyAuthentication no")
            both = host("127.0.0.102", "")
            ticket = {**os.environ, **realm.log_in(user.name, realm.keytab(user.name))}
            yield


def accepted(host: Sshd) -> list[str]:
    """By which methods the host has let somebody in."""
    return [line.split()[1] for line in host.log if line.startswith("Accepted ")]


class TestKerberos(TestCase):
    async def connect(
        self, host: Sshd, *more: Sshd, environ: dict[str, str], **config: Any
    ) -> tuple[Any, str]:
        """The connection, and what was said of it."""
        path = lab.ssh_config(host, *more, **{"extra": BY_KERBEROS, **config})
        opener = Connector(reactor, path, environ)
        with capturedLogs() as events:
            connection: Any = await opener.connect(HostSpec("far", host.address))
        self.addCleanup(connection.close)
        result = await connection.run("cat; exit 3", b"given", LONG)
        self.assertEqual((result.status, result.stdout), (3, b"given"))
        said = [formatEvent(e) for e in events if e["log_namespace"] == "pexecd.ssh.connector"]
        return connection, "\n".join(said)

    def test_the_lab_itself(self) -> None:
        """Plain ssh gets in with a ticket, and not without."""
        config = lab.ssh_config(strict, extra=BY_KERBEROS)
        command = ["ssh", "-F", str(config), "-o", "BatchMode=yes", strict.address, "echo hello"]

        no_ticket = {**ticket, "KRB5CCNAME": f"FILE:{lab.folder}/nothing"}

        def status(environ: dict[str, str]) -> int:
            done = subprocess.run(
                command, env=environ, capture_output=True, timeout=LONG, check=False
            )
            return done.returncode

        self.assertEqual((status(ticket), status(no_ticket)), (0, 255))

    async def test_a_host_that_takes_no_keys(self) -> None:
        connection, said = await self.connect(strict, environ=ticket)
        self.assertIsInstance(connection, MuxConnection)
        self.assertIn("far: by the system's ssh, because of GSSAPIAuthentication", said)
        self.assertEqual(set(accepted(strict)), {"gssapi-with-mic"})

    async def test_a_host_that_takes_none_of_the_keys(self) -> None:
        before = len(accepted(both))
        connection, _ = await self.connect(both, environ=ticket, keys=[])
        self.assertIsInstance(connection, MuxConnection)
        self.assertEqual(accepted(both)[before:], ["gssapi-with-mic"])

    async def test_a_key_does_where_it_is_taken(self) -> None:
        """Then no process is needed, though ssh would rather take the ticket."""
        before = len(accepted(both))
        connection, said = await self.connect(both, environ=ticket)
        self.assertNotIsInstance(connection, MuxConnection)
        self.assertEqual((said, accepted(both)[before:]), ("", ["publickey"]))

    async def test_a_key_exchange_by_kerberos(self) -> None:
        """Debian's ssh knows it; others would call the option bad."""
        extra = f"{BY_KERBEROS}\nGSSAPIKeyExchange yes"
        connection, said = await self.connect(strict, environ=ticket, extra=extra)
        self.assertIsInstance(connection, MuxConnection)
        self.assertIn("because of GSSAPIKeyExchange", said)

    async def test_a_jump_host(self) -> None:
        """The host behind it takes keys."""
        extra = f"{BY_KERBEROS}\nHost {both.address}\n  ProxyJump {strict.address}\nHost *"
        before = len(accepted(strict)), len(accepted(both))
        connection, said = await self.connect(both, strict, environ=ticket, extra=extra)
        self.assertNotIsInstance(connection, MuxConnection)
        self.assertIn(f"{strict.address}: by the system's ssh", said)
        self.assertEqual(accepted(strict)[before[0] :], ["gssapi-with-mic"])
        self.assertEqual(accepted(both)[before[1] :], ["publickey"])

    async def test_behind_a_jump_host(self) -> None:
        extra = f"{BY_KERBEROS}\nHost {strict.address}\n  ProxyJump {both.address}\nHost *"
        before = len(accepted(strict))
        connection, _ = await self.connect(strict, both, environ=ticket, extra=extra)
        self.assertIsInstance(connection, MuxConnection)
        self.assertEqual(accepted(strict)[before:], ["gssapi-with-mic"])

    async def test_no_ticket_until_the_user_gets_one(self) -> None:
        cache = Path(tempfile.mkdtemp(dir=lab.folder)) / "ccache"
        environ = {**ticket, "KRB5CCNAME": f"FILE:{cache}"}
        opener = Connector(reactor, lab.ssh_config(strict, extra=BY_KERBEROS), environ)
        with self.assertRaises(KeysRejectedError) as caught:
            await opener.connect(HostSpec("far", strict.address))
        self.assertIn("gssapi-with-mic", str(caught.exception))
        self.assertIn("kinit", str(caught.exception))
        self.assertNotIn("authorized_keys", str(caught.exception))
        self.assertTrue(caught.exception.retry)

        shutil.copy(ticket["KRB5CCNAME"].removeprefix("FILE:"), cache)
        connection: Any = await opener.connect(HostSpec("far", strict.address))
        await connection.close()

    async def test_the_user_does_not_want_it(self) -> None:
        opener = Connector(reactor, lab.ssh_config(strict), ticket)
        with self.assertRaises(KeysRejectedError) as caught:
            await opener.connect(HostSpec("far", strict.address))
        self.assertIn("the host takes no key", str(caught.exception))
        self.assertIn("GSSAPIAuthentication yes", str(caught.exception))


def test_a_job(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A whole one: client and worker copied, a tunnel, results."""
    work = Work(tmp_path_factory.mktemp("kerberos"), lab, [strict], tasks=4)
    config = work.job.path / "ssh_config"
    config.write_text(f"{BY_KERBEROS}\n{config.read_text()}")
    kerberos = [f"{name}={ticket[name]}" for name in ("KRB5_CONFIG", "KRB5CCNAME")]
    before = len(accepted(strict))
    work.finish(work.start(2, "env", *kerberos, *PEXECD, "run", "job.ini"))
    assert accepted(strict)[before:] == ["gssapi-with-mic"]
    assert "GSSAPIAuthentication" in work.job.log()

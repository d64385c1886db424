"""What known_hosts means: ssh and pexecd, side by side, against the same sshd."""

from __future__ import annotations

import base64
import hashlib
import hmac
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import DeferredSemaphore, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.ssh.binary import explain
from pexecd.ssh.connector import Connector
from tests.system.sshd import Lab, Sshd, make_key
from tests.waiting import LONG

reactor: Any = installed_reactor
lab: Lab
#: With all kinds of keys, at a port of its own, and at 22.
odd: Sshd
usual: Sshd
#: Keys by type: the two hosts have the same ones, nobody has the wrong ones.
true: dict[str, str]
wrong: dict[str, str]
KINDS = ("ed25519", "ecdsa", "rsa")


def public(path: Path) -> str:
    return " ".join(path.with_name(f"{path.name}.pub").read_text().split()[:2])


@pytest.fixture(autouse=True, scope="module")
def _lab() -> Iterator[None]:
    global lab, odd, usual, true, wrong  # noqa: PLW0603 - trial's TestCase takes no fixtures
    with Lab() as lab:
        odd = lab.sshd("127.0.0.81", host_keys=KINDS)
        keys = "".join(f"HostKey {key}\n" for key in odd.host_keys)
        usual = lab.sshd("127.0.0.82", port=22, host_keys=(), extra=keys, user=odd.user)
        true = dict(zip(KINDS, map(public, odd.host_keys), strict=True))
        wrong = {kind: public(make_key(lab.folder / f"wrong_{kind}", kind)) for kind in KINDS}
        yield


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in (salt, digest))


def cases() -> list[tuple[Sshd, str, str]]:
    """Host, known_hosts (\\n between lines), more settings."""
    name, bare, port = f"[{odd.address}]:{odd.port}", odd.address, odd.port
    ed, ec, rsa = true["ed25519"], true["ecdsa"], true["rsa"]
    bad, bad_ec = wrong["ed25519"], wrong["ecdsa"]
    new = "StrictHostKeyChecking accept-new"
    return [
        # names
        (odd, f"{name} {ed}", ""),
        (odd, f"{name} {ec}", ""),
        (odd, f"{name} {rsa}", ""),
        (odd, f"{bare} {ed}", ""),
        (odd, f"[{bare}]:22 {ed}", ""),
        (odd, f"[{bare}]:{port + 1} {ed}", ""),
        (odd, f"x,{name},y {ed}", ""),
        (odd, f"x, {name} {ed}", ""),
        (usual, f"{usual.address} {ed}", ""),
        (usual, f"[{usual.address}]:22 {ed}", ""),
        # wildcards and negation
        (odd, f"* {ed}", ""),
        (odd, f"[127.0.0.*]:{port} {ed}", ""),
        (odd, f"[127.0.0.8?]:* {ed}", ""),
        (odd, f"127.0.0.* {ed}", ""),
        (odd, f"*,!{name} {ed}", ""),
        (odd, f"!{name},* {ed}", ""),
        (odd, f"*,!{bare} {ed}", ""),
        (odd, f"!10.* {ed}", ""),
        (usual, f"127.0.0.?2,!127.0.0.83 {ed}", ""),
        (usual, f"127.0.0.?,*.lab {ed}", ""),
        (odd, f"[{bare}]:* {bad}", ""),
        # hashed
        (odd, f"{hashed(name)} {ed}", ""),
        (odd, f"{hashed(bare)} {ed}", ""),
        (odd, f"{hashed(bare)} {bad}", ""),
        (odd, f"{hashed('[127.0.0.*]:' + str(port))} {ed}", ""),
        (usual, f"{hashed(usual.address)} {bad}", ""),
        (odd, f"|1|AAAA|broken {ed}\n{name} {ed}", ""),
        # more than one key
        (odd, f"{name} {bad}\n{name} {ed}", ""),
        (odd, f"{name} {ed}\n{name} {bad}", ""),
        (odd, f"{name} {bad}", ""),
        (odd, f"{name} {bad}\n{name} {ec}", ""),
        (odd, f"{name} {bad_ec}\n{name} {rsa}", ""),
        (odd, f"{name} {bad}\n{bare} {ed}", ""),
        (odd, f"{bare} {bad}", ""),
        # marked
        (odd, f"{name} {ed}\n@revoked * {ed}", ""),
        (odd, f"@revoked {name} {ed}\n{name} {ed}", ""),
        (odd, f"{name} {ed}\n@revoked * {bad}", ""),
        (odd, f"{name} {ed}\n@revoked {hashed(name)} {ed}", ""),
        (odd, f"@revoked * {ed}", new),
        (odd, f"{name} {ec}\n@revoked * {ed}", ""),
        (odd, f"@cert-authority * {ed}", ""),
        (odd, f"@cert-authority * {bad}\n{name} {ed}", ""),
        (odd, f"@strange {name} {ed}", ""),
        # lines
        (odd, f"# {name} {ed}\n\n  {name} {ed} a comment", ""),
        (odd, f"{name}\t{ed}", ""),
        (odd, f"{name} {ed}".replace("ssh-ed25519", "ssh-rsa"), ""),
        (odd, f"{name} {ed[:-9]}", ""),
        (odd, f"{name} {ed}\r", ""),
        # settings
        (odd, f"lab {ed}", "HostKeyAlias lab"),
        (odd, f"{name} {ed}", "HostKeyAlias lab"),
        (odd, f"LAB {ed}", "HostKeyAlias Lab"),
        (odd, "", new),
        (odd, f"{name} {bad}", new),
        (odd, f"{name} {bad_ec}", new),
        (odd, f"{bare} {bad}", new),
        (odd, f"{name} {ec}", "HostKeyAlgorithms ssh-ed25519"),
    ]


def differences() -> list[tuple[tuple[Sshd, str, str], tuple[str, str]]]:
    """Where we are not like ssh, on purpose: what it says, and what we say."""
    name, bare = f"[{odd.address}]:{odd.port}", odd.address
    ed = true["ed25519"]
    revoked = ("accepted", "HostKeyRevokedError")
    return [
        # a key that is revoked for the host's name is revoked at every port
        ((odd, f"{name} {ed}\n@revoked {bare} {ed}", ""), revoked),
        ((odd, f"{name} {ed}\n@revoked *,!{name} {ed}", ""), revoked),
        # the host is asked for the key that is known, whatever the order is
        (
            (odd, f"{name} {ed}", "HostKeyAlgorithms rsa-sha2-512,ssh-ed25519"),
            ("HostKeyChangedError", "accepted"),
        ),
    ]


class TestSideBySide(TestCase):
    timeout = 120

    async def test_all(self) -> None:
        verdicts: Counter[str] = Counter()
        disagreements = []
        turns = DeferredSemaphore(4)
        judged = await gatherResults([turns.run(self.judge, *case) for case in cases()])
        for (_, known_hosts, settings), (ssh, ours) in zip(cases(), judged, strict=True):
            verdicts[ssh] += 1
            if ssh != ours:
                words = "\n".join(line[:60] for line in known_hosts.splitlines())
                disagreements.append(f"{words}\n{settings}\nssh: {ssh}, pexecd: {ours}\n")
        self.assertEqual(len(disagreements), 0, "\n".join(disagreements))
        self.assertGreater(min(verdicts.values()), 3, verdicts)
        self.assertEqual(len(verdicts), 4, verdicts)

    async def test_differences(self) -> None:
        for case, verdicts in differences():
            self.assertEqual(tuple(await self.judge(*case)), verdicts)

    def judge(self, host: Sshd, known_hosts: str, settings: str) -> Any:
        return gatherResults(
            [
                deferToThread(self.by_ssh, host, self.config(host, known_hosts, settings)),
                self.by_us(host, self.config(host, known_hosts, settings)),
            ]
        )

    def config(self, host: Sshd, known_hosts: str, settings: str) -> Path:
        return lab.ssh_config(host, extra=settings, known_hosts=f"{known_hosts}\n")

    def by_ssh(self, host: Sshd, config: Path) -> str:
        log = Path(tempfile.mkdtemp(dir=lab.folder)) / "log"
        command = ["ssh", "-F", str(config), "-o", "BatchMode=yes", "-E", str(log), "-n"]
        done = subprocess.run([*command, host.address, "true"], timeout=LONG, env={"LC_ALL": "C"})
        if done.returncode == 0:
            return "accepted"
        return type(explain("host", log.read_text(), "", "")).__name__

    def by_us(self, host: Sshd, config: Path) -> Any:
        def close(connection: Any) -> Any:
            return connection.close().addCallback(lambda _: "accepted")

        def refused(failure: Any) -> str:
            failure.trap(HostError)
            return type(failure.value).__name__

        opened = Connector(reactor, config).connect(HostSpec("host", host.address))
        return opened.addCallbacks(close, refused)

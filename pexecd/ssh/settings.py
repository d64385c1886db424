"""The user's SSH settings for a host, as ``ssh -G`` tells them.

Only ``ssh`` itself reads ssh_config fully (Include, Match, tokens).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from pexecd.jobs.values import HostSpec
from pexecd.ssh.errors import (
    SettingsError,
    SSHMissingError,
    TimedOutError,
    UnsupportedSettingError,
)
from pexecd.units import Seconds

STAGE = "settings"

#: What Conch, as it is used here, cannot do; to go on without would be wrong.
UNSUPPORTED = {
    "proxyjump": "ProxyJump",
    "proxycommand": "ProxyCommand",
    "certificatefile": "CertificateFile",
    "knownhostscommand": "KnownHostsCommand",
    "revokedhostkeys": "RevokedHostKeys",
    "bindaddress": "BindAddress",
    "bindinterface": "BindInterface",
}

#: Values of AddressFamily; else any.
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Settings:
    """How to reach one host."""

    hostname: str
    port: int
    user: str
    #: Private (or, with an agent, public) key files; they need not exist.
    identity_files: tuple[Path, ...]
    #: Offer no keys of the agent but those that ``identity_files`` name.
    identities_only: bool
    #: The socket of ssh-agent.
    agent: str | None
    #: The user's first: new keys are added to it.
    known_hosts: tuple[Path, ...]
    #: How many of ``known_hosts`` are the user's own.
    own_known_hosts: int
    #: The name in known_hosts instead of host name and port.
    host_key_alias: str | None
    #: Accept a host of which no key is known yet.
    accept_new: bool
    #: Names of new entries in known_hosts are hashed.
    hash_known_hosts: bool
    address_family: socket.AddressFamily
    connect_timeout: Seconds | None
    #: How often a silent host is asked for a sign of life; None: ours.
    alive_interval: Seconds | None
    #: So many questions may stay without an answer, then it is given up.
    alive_count: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of this machine goes into the settings."""

    #: Path of the ssh program.
    ssh: str
    #: As the user database says; like ssh, ``HOME`` is not asked.
    home: str
    user: str
    uid: int
    environ: Mapping[str, str]


def surroundings(host: str, environ: Mapping[str, str]) -> Surroundings:
    """Find them; may ask a name service, so call it in a thread.

    Raises:
        SSHMissingError: there is no ssh.
    """
    ssh = shutil.which("ssh", path=environ.get("PATH"))
    if ssh is None:
        raise SSHMissingError(host, STAGE, "no program `ssh` in PATH")
    entry = pwd.getpwuid(os.getuid())
    return Surroundings(ssh, entry.pw_dir, entry.pw_name, entry.pw_uid, environ)


async def read_settings(
    reactor: Any, host: HostSpec, config: Path | None, environ: Mapping[str, str], limit: Seconds
) -> Settings:
    """Ask ``ssh -G`` about a host.

    Args:
        reactor: spawns the process and has the threads.
        host: what the cluster file says.
        config: as with ``ssh -F``.
        environ: this process's environment.
        limit: how long that may take (``Match exec`` runs the user's commands).

    Raises:
        SSHMissingError, SettingsError, UnsupportedSettingError: these never go away by
            themselves.
        TimedOutError: it took longer.
    """
    if host.address.startswith("-") or (host.user or "").startswith("-"):
        raise SettingsError(host.name, STAGE, "a name that begins with '-' would be an option")
    around = await deferToThreadPool(
        reactor, reactor.getThreadPool(), surroundings, host.name, environ
    )
    arguments = [around.ssh, "-G"]
    if config is not None:
        arguments += ["-F", str(config)]
    if host.port is not None:
        arguments += ["-p", str(host.port)]
    if host.user is not None:
        arguments += ["-l", host.user]
    question = _Question(reactor, [*arguments, "--", host.address], environ)
    try:
        status, out, err = await question.answer.addTimeout(limit, reactor)
    except DeadlinePassedError:
        # not by itself, but by the name service (CanonicalizeHostname) or commands (Match exec)
        raise TimedOutError(host.name, STAGE, f"`ssh -G` took over {limit:g} s") from None
    if status != 0:
        raise SettingsError(host.name, STAGE, "`ssh -G` failed", err.decode("utf-8", "replace"))
    return parse_settings(os.fsdecode(out), host, around)


def parse_settings(text: str, host: HostSpec, around: Surroundings) -> Settings:
    """Make values of the output of ``ssh -G``.

    Raises:
        UnsupportedSettingError: what it asks for cannot be done.
        SettingsError: it is not the output of ``ssh -G``.
    """
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key.lower(), []).append(value.strip())

    def last(key: str, default: str = "") -> str:
        value = values.get(key, [default])[-1]
        return default if value == "none" else value

    for key, name in UNSUPPORTED.items():
        if last(key):
            raise UnsupportedSettingError(
                host.name,
                STAGE,
                f"the SSH configuration asks for {name} ({last(key)}), which pexecd does not "
                "support yet; take it out for this host, or give a configuration of its own by "
                "`[ssh] config =`",
            )
    try:
        hostname, port, user = last("hostname"), int(last("port")), last("user")
    except ValueError:
        raise SettingsError(host.name, STAGE, "`ssh -G` said no port") from None
    if not hostname or not user:
        raise SettingsError(host.name, STAGE, "`ssh -G` said no host name or user")
    alias = last("hostkeyalias") or None
    tokens = {
        "%": "%",
        "d": around.home,
        "h": hostname,
        "i": str(around.uid),
        "k": alias or host.address,
        "n": host.address,
        "p": str(port),
        "r": user,
        "u": around.user,
    }

    def path(name: str) -> Path:
        if name == "~" or name.startswith("~/"):
            name = around.home + name[1:]
        name = re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), name)
        name = re.sub(r"\$\{(\w+)\}", lambda match: around.environ.get(match[1], match[0]), name)
        return Path(name)

    def files(key: str) -> tuple[Path, ...]:
        return tuple(path(name) for name in last(key).split())

    own = files("userknownhostsfile")

    def seconds(key: str) -> Seconds | None:
        return float(last(key)) if last(key).isdecimal() and int(last(key)) else None

    count = last("serveralivecountmax", "3")
    return Settings(
        hostname=hostname,
        port=port,
        user=user,
        identity_files=tuple(path(n) for n in values.get("identityfile", []) if n != "none"),
        identities_only=last("identitiesonly") in ("yes", "true"),
        agent=_agent(values.get("identityagent", ["SSH_AUTH_SOCK"])[-1], path, around.environ),
        known_hosts=own + files("globalknownhostsfile"),
        own_known_hosts=len(own),
        host_key_alias=alias,
        accept_new=last("stricthostkeychecking") in ("accept-new", "no", "false", "off"),
        hash_known_hosts=last("hashknownhosts") in ("yes", "true"),
        address_family=FAMILIES.get(last("addressfamily"), socket.AF_UNSPEC),
        connect_timeout=seconds("connecttimeout"),
        alive_interval=seconds("serveraliveinterval"),
        alive_count=int(count) if count.isdecimal() else 3,
    )


def _agent(value: str, path: Any, environ: Mapping[str, str]) -> str | None:
    if value == "none":
        return None
    if value == "SSH_AUTH_SOCK":
        return environ.get("SSH_AUTH_SOCK") or None
    if value.startswith("$") and not value.startswith("${"):
        return environ.get(value[1:]) or None
    return str(path(value))


class _Question(ProcessProtocol):
    """Runs a program.

    ``answer`` fires with exit status (None: killed), stdout and stderr; cancelling it kills
    the program.
    """

    def __init__(
        self, reactor: IReactorProcess, arguments: list[str], environ: Mapping[str, str]
    ) -> None:
        self.answer: Deferred[tuple[int | None, bytes, bytes]] = Deferred(self._kill)
        self._outputs: dict[int, list[bytes]] = {1: [], 2: []}
        self._process = reactor.spawnProcess(self, arguments[0], arguments, environ)
        self._process.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._outputs[childFD].append(data)

    def processEnded(self, reason: Failure) -> None:
        end: Any = reason.value
        if not self.answer.called:
            out, err = (b"".join(self._outputs[fd]) for fd in (1, 2))
            self.answer.callback((end.exitCode, out, err))

    def _kill(self, _: Deferred[Any]) -> None:
        try:
            self._process.signalProcess("KILL")
        except ProcessExitedAlready:
            return

"""The user's SSH settings for a host, as ``ssh -G`` tells them.

Only ``ssh`` itself reads ssh_config fully (Include, Match, tokens).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.threads import deferToThreadPool

from pexecd.jobs.values import HostSpec
from pexecd.ssh.errors import SettingsError, SSHMissingError, TimedOutError
from pexecd.ssh.process import Program
from pexecd.units import Seconds

STAGE = "settings"

#: What Conch, as it is used here, cannot do, and the system's ssh can.
FOR_SSH_ALONE = {
    "proxycommand": "ProxyCommand",
    "knownhostscommand": "KnownHostsCommand",
    "revokedhostkeys": "RevokedHostKeys",
    "bindaddress": "BindAddress",
    "bindinterface": "BindInterface",
    "pkcs11provider": "PKCS11Provider",
}

#: Values of AddressFamily; else any.
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Algorithms:
    """Which ones the user allows, best first; empty: all that we have."""

    key_exchanges: tuple[bytes, ...] = ()
    host_keys: tuple[bytes, ...] = ()
    ciphers: tuple[bytes, ...] = ()
    macs: tuple[bytes, ...] = ()
    #: With which the user's keys may sign.
    user_keys: tuple[bytes, ...] = ()


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
    #: Files with certificates of the user's keys; none: those beside ``identity_files``.
    certificate_files: tuple[Path, ...] = ()
    #: ProxyJump: ``[user@]host[:port]``, the one to go to first in front.
    jumps: tuple[str, ...] = ()
    #: Where a shared connection of the user's would listen (ControlPath).
    control_path: str | None = None
    #: The user may log in by Kerberos.
    gssapi: bool = False
    #: The user may log in because this machine vouches for who that is.
    hostbased: bool = False
    algorithms: Algorithms = Algorithms()
    #: Why only the system's ssh can do it; empty: Conch can.
    needs_ssh: str = ""
    #: As it is written: ssh fills in its tokens.
    proxy_command: str = ""
    #: The ssh program, how it reads these settings, and what means this host to it.
    command: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    target: tuple[str, ...] = ()


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
    #: The name of this machine.
    machine: str


def surroundings(host: str, environ: Mapping[str, str]) -> Surroundings:
    """Find them; may ask a name service, so call it in a thread.

    Raises:
        SSHMissingError: there is no ssh.
    """
    ssh = shutil.which("ssh", path=environ.get("PATH"))
    if ssh is None:
        raise SSHMissingError(host, STAGE, "no program `ssh` in PATH")
    entry = pwd.getpwuid(os.getuid())
    user = entry.pw_dir, entry.pw_name, entry.pw_uid
    return Surroundings(ssh, *user, environ, socket.gethostname())


async def read_settings(
    reactor: Any,
    host: HostSpec,
    config: Path | None,
    environ: Mapping[str, str],
    limit: Seconds,
    jumps: Sequence[str] = (),
) -> Settings:
    """Ask ``ssh -G`` about a host.

    Args:
        reactor: spawns the process and has the threads.
        host: what the cluster file says.
        config: as with ``ssh -F``.
        environ: this process's environment.
        limit: how long that may take (``Match exec`` runs the user's commands).
        jumps: the jump hosts on the way, whatever the settings say; none: as they say.

    Raises:
        SSHMissingError, SettingsError: these never go away by themselves.
        TimedOutError: it took longer.
    """
    if host.address.startswith("-") or (host.user or "").startswith("-"):
        raise SettingsError(host.name, STAGE, "a name that begins with '-' would be an option")
    around = await deferToThreadPool(
        reactor, reactor.getThreadPool(), surroundings, host.name, environ
    )
    options = ["-F", str(config)] if config is not None else []
    target = ["-J", ",".join(jumps)] if jumps else []
    if host.port is not None:
        target += ["-p", str(host.port)]
    if host.user is not None:
        target += ["-l", host.user]
    target += ["--", host.address]
    question = Program(reactor, [around.ssh, "-G", *options, *target], environ)
    try:
        status, out, err = await question.ended.addTimeout(limit, reactor)
    except DeadlinePassedError:
        # not by itself, but by the name service (CanonicalizeHostname) or commands (Match exec)
        raise TimedOutError(host.name, STAGE, f"`ssh -G` took over {limit:g} s") from None
    if status != 0:
        raise SettingsError(host.name, STAGE, "`ssh -G` failed", err.decode("utf-8", "replace"))
    settings = parse_settings(os.fsdecode(out), host, around)
    return replace(settings, command=(around.ssh,), config=tuple(options), target=tuple(target))


def parse_settings(text: str, host: HostSpec, around: Surroundings) -> Settings:
    """Make values of the output of ``ssh -G``.

    Raises:
        SettingsError: it is not the output of ``ssh -G``.
    """
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        values.setdefault(key.lower(), []).append(value.strip())

    def last(key: str, default: str = "") -> str:
        value = values.get(key, [default])[-1]
        return default if value == "none" else value

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
        "L": around.machine.partition(".")[0],
        "l": around.machine,
        "n": host.address,
        "p": str(port),
        "r": user,
        "u": around.user,
    }

    def filled(text: str) -> str:
        return re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)

    def path(name: str) -> Path:
        if name == "~" or name.startswith("~/"):
            name = around.home + name[1:]
        name = filled(name)
        name = re.sub(r"\$\{(\w+)\}", lambda match: around.environ.get(match[1], match[0]), name)
        return Path(name)

    def files(key: str) -> tuple[Path, ...]:
        # ssh puts blanks between paths, and no quotes around one that has blanks in it
        return tuple(path(name) for name in re.split(r" (?=[/~%$])", last(key)) if name)

    own = files("userknownhostsfile")

    def seconds(key: str) -> Seconds | None:
        return float(last(key)) if last(key).isdecimal() and int(last(key)) else None

    def names(key: str) -> tuple[bytes, ...]:
        return tuple(last(key).encode().split(b",")) if last(key) else ()

    count = last("serveralivecountmax", "3")
    needs_ssh = [name for key, name in FOR_SSH_ALONE.items() if last(key)]
    if last("gssapikeyexchange") in ("yes", "true"):
        needs_ssh.append("GSSAPIKeyExchange")
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
        certificate_files=tuple(path(n) for n in values.get("certificatefile", []) if n != "none"),
        jumps=tuple(filled(last("proxyjump")).split(",")) if last("proxyjump") else (),
        control_path=last("controlpath") or None,
        gssapi=last("gssapiauthentication") in ("yes", "true"),
        hostbased=last("hostbasedauthentication") in ("yes", "true"),
        algorithms=Algorithms(
            key_exchanges=names("kexalgorithms"),
            host_keys=names("hostkeyalgorithms"),
            ciphers=names("ciphers"),
            macs=names("macs"),
            user_keys=names("pubkeyacceptedalgorithms") or names("pubkeyacceptedkeytypes"),
        ),
        needs_ssh=", ".join(needs_ssh),
        proxy_command=last("proxycommand"),
    )


def parse_jump(text: str) -> HostSpec:
    """A jump host of ProxyJump, ``[user@]host[:port]`` or ``ssh://[user@]host[:port]``.

    Raises:
        ValueError: it is none.
    """
    rest = text.removeprefix("ssh://").rstrip("/")
    user, _, place = rest.rpartition("@")
    match = re.fullmatch(r"\[([^]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?|([0-9a-fA-F:]+)", place)
    if match is None:
        raise ValueError(f"no jump host: {text!r}")
    address = match[1] or match[3] or match[5]
    port = match[2] or match[4]
    # `ssh -G` puts brackets around all numbers
    name = f"[{address}]" if ":" in address else address
    name = f"{user}@{name}" if user else name
    name = f"{name}:{port}" if port else name
    return HostSpec(name, address, user=user or None, port=int(port) if port else None)


def _agent(value: str, path: Any, environ: Mapping[str, str]) -> str | None:
    if value == "none":
        return None
    if value == "SSH_AUTH_SOCK":
        return environ.get("SSH_AUTH_SOCK") or None
    if value.startswith("$") and not value.startswith("${"):
        return environ.get(value[1:]) or None
    return str(path(value))


def name_of_jump(text: str) -> str:
    """A jump host as people would write it."""
    try:
        return parse_jump(text).name
    except ValueError:
        return text

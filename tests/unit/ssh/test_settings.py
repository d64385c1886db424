"""What ``ssh -G`` says, as values."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pexecd.jobs.values import HostSpec
from pexecd.ssh.errors import SettingsError, SSHMissingError
from pexecd.ssh.settings import Settings, Surroundings, parse_jump, parse_settings, surroundings

HOST = HostSpec("ann@lab:2222", "lab")
AROUND = Surroundings(
    "/usr/bin/ssh", "/home/ann", "ann", 1000, {"SSH_AUTH_SOCK": "/run/agent"}, "desk.example.org"
)
BASE = """\
host lab
user bob
hostname lab.example.org
port 2222
connecttimeout none
stricthostkeychecking ask
identitiesonly no
identityfile ~/.ssh/id_rsa
identityfile /keys/%h-%r-%p-%d-%u-%n-%%
identityfile ~/.ssh/id on %L of %l
globalknownhostsfile /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2
userknownhostsfile /home/ann/known to me/known_hosts ~/more
"""


def parse(extra: str = "") -> Settings:
    return parse_settings(BASE + extra, HOST, AROUND)


def test_what_is_read() -> None:
    assert parse() == Settings(
        hostname="lab.example.org",
        port=2222,
        user="bob",
        identity_files=(
            Path("/home/ann/.ssh/id_rsa"),
            Path("/keys/lab.example.org-bob-2222-/home/ann-ann-lab-%"),
            Path("/home/ann/.ssh/id on desk of desk.example.org"),
        ),
        identities_only=False,
        agent="/run/agent",
        known_hosts=(
            Path("/home/ann/known to me/known_hosts"),
            Path("/home/ann/more"),
            Path("/etc/ssh/ssh_known_hosts"),
            Path("/etc/ssh/ssh_known_hosts2"),
        ),
        own_known_hosts=2,
        host_key_alias=None,
        accept_new=False,
        hash_known_hosts=False,
        address_family=socket.AF_UNSPEC,
        connect_timeout=None,
        alive_interval=None,
        alive_count=3,
    )


@pytest.mark.parametrize(
    ("word", "accepts"),
    [("true", False), ("yes", False), ("accept-new", True), ("false", True), ("no", True)],
)
def test_unknown_host_keys(word: str, accepts: bool) -> None:
    assert parse(f"stricthostkeychecking {word}\n").accept_new is accepts


@pytest.mark.parametrize(
    ("value", "agent"),
    [
        ("none", None),
        ("SSH_AUTH_SOCK", "/run/agent"),
        ("$SSH_AUTH_SOCK", "/run/agent"),
        ("$NOT_THERE", None),
        ("~/agent", "/home/ann/agent"),
        ("${SSH_AUTH_SOCK}.2", "/run/agent.2"),
    ],
)
def test_agent(value: str, agent: str | None) -> None:
    assert parse(f"identityagent {value}\n").agent == agent


def test_the_rest() -> None:
    settings = parse(
        "connecttimeout 7\nhostkeyalias lab\nhashknownhosts yes\nidentitiesonly yes\n"
        "userknownhostsfile none\nproxycommand none\naddressfamily inet6\n"
        "serveraliveinterval 5\nserveralivecountmax 2\n"
    )
    assert settings.address_family == socket.AF_INET6
    assert (settings.connect_timeout, settings.host_key_alias) == (7.0, "lab")
    assert (settings.alive_interval, settings.alive_count) == (5.0, 2)
    assert (settings.hash_known_hosts, settings.identities_only) == (True, True)
    assert (len(settings.known_hosts), settings.own_known_hosts) == (2, 0)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("", ""),
        ("proxycommand nc %h %p", "ProxyCommand"),
        ("proxycommand none\ngssapiauthentication yes", ""),
        ("gssapikeyexchange yes\nbindaddress 10.0.0.1", "BindAddress, GSSAPIKeyExchange"),
    ],
)
def test_what_needs_the_systems_ssh(lines: str, reason: str) -> None:
    assert parse(f"{lines}\n").needs_ssh == reason


def test_certificates_algorithms_and_ways() -> None:
    settings = parse(
        "certificatefile ~/.ssh/id-cert.pub\nciphers aes256-ctr,aes128-ctr\n"
        "proxyjump a@x:2,%h-gate\ncontrolpath /run/cm-1\ngssapiauthentication yes\n"
        "hostbasedauthentication yes\n"
    )
    assert settings.certificate_files == (Path("/home/ann/.ssh/id-cert.pub"),)
    assert settings.algorithms.ciphers == (b"aes256-ctr", b"aes128-ctr")
    assert settings.algorithms.macs == ()
    assert settings.jumps == ("a@x:2", "lab.example.org-gate")
    assert (settings.control_path, settings.gssapi) == ("/run/cm-1", True)
    assert settings.hostbased


@pytest.mark.parametrize(
    ("text", "name", "address", "user", "port"),
    [
        ("gate", "gate", "gate", None, None),
        ("ann@gate:2222", "ann@gate:2222", "gate", "ann", 2222),
        ("ann@corp@gate", "ann@corp@gate", "gate", "ann@corp", None),
        ("[::1]:22", "[::1]:22", "::1", None, 22),
        ("[10.0.0.1]:22", "10.0.0.1:22", "10.0.0.1", None, 22),
        ("fe80::1", "[fe80::1]", "fe80::1", None, None),
        ("ssh://ann@gate:2222/", "ann@gate:2222", "gate", "ann", 2222),
    ],
)
def test_jump_hosts(text: str, name: str, address: str, user: str | None, port: int | None) -> None:
    assert parse_jump(text) == HostSpec(name, address, user=user, port=port)


@pytest.mark.parametrize("text", ["", "gate:", "gate:x", "a:b:zz"])
def test_no_jump_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="no jump host"):
        parse_jump(text)


def test_output_of_something_else() -> None:
    with pytest.raises(SettingsError):
        parse_settings("usage: ssh\n", HOST, AROUND)


def test_no_ssh() -> None:
    with pytest.raises(SSHMissingError) as caught:
        surroundings("lab", {"PATH": "/nonexistent"})
    assert "install" in str(caught.value)

"""known_hosts with OpenSSH's meaning."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from pathlib import Path

import pytest

from pexecd.ssh.knownhosts import (
    ALGORITHMS,
    KnownKeys,
    Verdict,
    add_known_host,
    fingerprint,
    known_keys,
    parse_known_hosts,
    read_known_hosts,
)


def blob(kind: str, content: bytes) -> bytes:
    return b"".join(struct.pack(">L", len(part)) + part for part in (kind.encode(), content))


def line(hosts: str, key: bytes, kind: str = "ssh-ed25519", marker: str = "") -> str:
    return f"{marker} {hosts} {kind} {base64.b64encode(key).decode()} comment\n".lstrip()


KEY = blob("ssh-ed25519", b"a" * 32)
OTHER = blob("ssh-ed25519", b"b" * 32)
ECDSA = blob("ecdsa-sha2-nistp256", b"c" * 65)
RSA = blob("ssh-rsa", b"d" * 256)


def hashed(name: str) -> str:
    salt = b"salt" * 5
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def known(text: str, name: str = "node7", port: int = 22, alias: str | None = None) -> KnownKeys:
    return known_keys(parse_known_hosts(text, "file"), name, port, alias)


def verdict(hosts: str, name: str = "node7", port: int = 22) -> Verdict:
    return known(line(hosts, KEY), name, port).check(KEY)[0]


@pytest.mark.parametrize(
    ("hosts", "name", "port"),
    [
        ("node7", "node7", 22),
        ("NODE7", "node7", 22),
        ("node7", "Node7", 22),
        ("other,node7", "node7", 22),
        ("node*", "node7", 22),
        ("node?", "node7", 22),
        ("*,!node8", "node7", 22),
        ("[node7]:2222", "node7", 2222),
        ("[node*]:2222", "node7", 2222),
        ("[*]:*", "node7", 2222),
        ("node7", "node7", 2222),  # the bare name is good for every port
        (hashed("node7"), "node7", 22),
        (hashed("[node7]:2222"), "node7", 2222),
        ("10.0.0.*", "10.0.0.17", 22),
        ("2001:db8::1", "2001:db8::1", 22),
    ],
)
def test_names_that_match(hosts: str, name: str, port: int) -> None:
    assert verdict(hosts, name, port) is Verdict.KNOWN


@pytest.mark.parametrize(
    ("hosts", "name", "port"),
    [
        ("node8", "node7", 22),
        ("node", "node7", 22),
        ("node?", "node77", 22),
        ("node*,!node7", "node7", 22),
        ("!node8", "node7", 22),
        ("[node7]:2222", "node7", 22),
        ("[node7]:2222", "node7", 2223),
        ("node.7", "nodex7", 22),
        (hashed("node8"), "node7", 22),
        ("|1|garbage", "node7", 22),
        ("|1|%%|%%", "node7", 22),
    ],
)
def test_names_that_do_not(hosts: str, name: str, port: int) -> None:
    assert verdict(hosts, name, port) is Verdict.UNKNOWN


def test_another_key_of_that_type_means_changed() -> None:
    got, entry = known("\n" + line("node7", OTHER)).check(KEY)
    assert got is Verdict.CHANGED
    assert entry is not None
    assert entry.place == "file:2"


def test_one_of_several_keys_is_enough() -> None:
    text = line("node7", OTHER) + line("node7", KEY)
    assert known(text).check(KEY)[0] is Verdict.KNOWN


def test_a_host_that_is_known_by_another_type_is_no_new_one() -> None:
    text = line("node7", ECDSA, "ecdsa-sha2-nistp256")
    assert known(text).check(KEY)[0] is Verdict.CHANGED
    got, entry = known(text + line("node7", OTHER)).check(KEY)
    assert got is Verdict.CHANGED
    assert entry is not None
    assert entry.place == "file:2"


def test_another_key_of_the_bare_name_proves_nothing_for_a_port() -> None:
    assert known(line("node7", OTHER), port=2222).check(KEY)[0] is Verdict.UNKNOWN


def test_a_changed_key_at_the_port_wins_over_the_bare_name() -> None:
    text = line("[node7]:2222", OTHER) + line("node7", KEY)
    assert known(text, port=2222).check(KEY)[0] is Verdict.CHANGED


@pytest.mark.parametrize("port", [22, 2222])
def test_revoked_at_every_port(port: int) -> None:
    text = line("[node7]:2222,node7", KEY) + line("node7", KEY, marker="@revoked")
    assert known(text, port=port).check(KEY)[0] is Verdict.REVOKED


def test_another_revoked_key_does_no_harm() -> None:
    text = line("node7", KEY) + line("*", OTHER, marker="@revoked")
    assert known(text).check(KEY)[0] is Verdict.KNOWN


def test_certificate_authorities_are_not_keys_of_hosts() -> None:
    assert known(line("*", KEY, marker="@cert-authority")).check(KEY)[0] is Verdict.UNKNOWN


def test_an_alias_stands_for_name_and_port() -> None:
    assert known(line("lab", KEY), port=2222, alias="lab").check(KEY)[0] is Verdict.KNOWN
    assert known(line("[lab]:2222", KEY), port=2222, alias="lab").check(KEY)[0] is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "# " + line("node7", KEY),
        "node7 ssh-ed25519\n",
        "node7 ssh-ed25519 ???\n",
        line("node7", KEY, "ssh-rsa"),
        line("node7", b"\0\0\1"),
        "node7 1024 65537 1234567\n",
    ],
)
def test_lines_that_make_no_sense_are_skipped(text: str) -> None:
    assert known(text).plain == ()


def test_algorithms_that_are_known_come_first() -> None:
    assert known("").algorithms() == list(ALGORITHMS)
    assert known(line("node7", ECDSA, "ecdsa-sha2-nistp256")).algorithms()[0] == (
        b"ecdsa-sha2-nistp256"
    )
    assert known(line("node7", RSA, "ssh-rsa")).algorithms()[:2] == [
        b"rsa-sha2-512",
        b"rsa-sha2-256",
    ]
    bare = known(line("node7", RSA, "ssh-rsa"), port=2222)
    assert bare.algorithms()[0] == b"rsa-sha2-512"


def test_fingerprint() -> None:
    digest = base64.b64encode(hashlib.sha256(KEY).digest()).decode().rstrip("=")
    assert fingerprint(KEY) == f"ED25519 SHA256:{digest}"
    assert fingerprint(ECDSA).startswith("ECDSA SHA256:")


@pytest.mark.parametrize("with_hash", [False, True])
def test_a_new_key_is_appended(tmp_path: Path, with_hash: bool) -> None:
    file = tmp_path / "new" / "known_hosts"
    add_known_host(file, "[node7]:2222", KEY, hashed=with_hash)
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text().rstrip())  # an editor left out the last line feed
    add_known_host(file, "node8", OTHER, hashed=with_hash)

    entries = read_known_hosts([tmp_path / "none", file])

    assert known_keys(entries, "node7", 2222, None).check(KEY)[0] is Verdict.KNOWN
    assert known_keys(entries, "node8", 22, None).check(OTHER)[0] is Verdict.KNOWN
    assert ("node" in file.read_text()) is not with_hash

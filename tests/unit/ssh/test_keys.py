"""Which keys are offered, and how they sign."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448

from pexecd.ssh.agent import AgentClient
from pexecd.ssh.keys import (
    identities,
    load_certificates,
    load_key_files,
    signature_algorithm,
)
from pexecd.ssh.knownhosts import key_type


def make(path: Path, kind: str = "ed25519", *options: str) -> Path:
    command = ["ssh-keygen", "-q", "-t", kind, "-f", str(path), "-N", "", *options]
    subprocess.run(command, check=True)
    return path


def test_kinds_of_keys(tmp_path: Path) -> None:
    files = [make(tmp_path / kind, kind) for kind in ("ed25519", "ecdsa", "rsa")]
    loaded = load_key_files([*files, tmp_path / "missing"])
    assert [key_type(found.blob or b"") for found in loaded] == [
        b"ssh-ed25519",
        b"ecdsa-sha2-nistp256",
        b"ssh-rsa",
    ]
    assert all(found.key for found in loaded)


def test_the_old_format(tmp_path: Path) -> None:
    file = make(tmp_path / "key", "rsa", "-m", "PEM")
    assert load_key_files([file])[0].key
    locked = load_key_files([make(tmp_path / "locked", "rsa", "-m", "PEM", "-N", "secret")])[0]
    assert locked.key is None
    assert "encrypted" in locked.problem
    assert locked.blob  # by its public half


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_encrypted_keys_still_show_their_public_half(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "key", kind, "-N", "secret")
    with_public = load_key_files([tmp_path / "key"])[0]
    (tmp_path / "key.pub").unlink()
    without = load_key_files([tmp_path / "key"])[0]
    assert with_public == without
    assert without.key is None
    assert without.blob is not None
    assert "encrypted" in without.problem


def test_keys_that_no_ssh_uses(tmp_path: Path) -> None:
    """As those of a web server may be; the other keys are of use all the same."""
    plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    for name, key in (
        ("kind", ed448.Ed448PrivateKey.generate()),
        ("curve", ec.generate_private_key(ec.SECP224R1())),
    ):
        pem = key.private_bytes(*plain, serialization.NoEncryption())
        (tmp_path / name).write_bytes(pem)
    files = [tmp_path / "kind", tmp_path / "curve", make(tmp_path / "key")]
    kind, curve, other = load_key_files(files)
    assert (kind.key, curve.key) == (None, None)
    assert "of a kind that SSH has no name for" in kind.problem
    assert curve.problem == kind.problem
    assert other.key


def test_files_that_hold_no_key(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "bad").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END")
    (tmp_path / "folder").mkdir()
    loaded = load_key_files([tmp_path / name for name in ("text", "bad", "folder")])
    assert [found.key for found in loaded] == [None] * 3
    assert all(found.problem for found in loaded)


def test_the_order_of_ssh(tmp_path: Path) -> None:
    first, second = (make(tmp_path / name) for name in ("first", "second"))
    locked = make(tmp_path / "locked", "ed25519", "-N", "secret")
    files = load_key_files([first, locked, second])
    stranger = load_key_files([make(tmp_path / "stranger")])[0].blob
    blobs = [found.blob or b"" for found in files]
    agent = AgentClient()
    held = [(stranger or b"", "stranger"), (blobs[2], "second")]

    offers, useless = identities(files, agent, held, only_files=False)
    assert [key.name for key in offers] == [
        "second (ssh-agent)",
        "stranger (ssh-agent)",
        str(first),
    ]
    assert useless == [f"{locked} is encrypted, and not in ssh-agent"]

    offers, _ = identities(files, agent, [*held, (blobs[1], "locked")], only_files=True)
    assert [key.name for key in offers] == [
        "second (ssh-agent)",
        "locked (ssh-agent)",
        str(first),
    ]

    offers, _ = identities(files, None, [], only_files=False)
    assert [key.name for key in offers] == [str(first), str(second)]


def test_a_public_key_names_one_of_the_agent(tmp_path: Path) -> None:
    key = make(tmp_path / "key")
    key.unlink()
    by_private_name, by_public_name = load_key_files([key, tmp_path / "key.pub"])
    assert by_private_name.blob == by_public_name.blob
    held = [(by_public_name.blob or b"", "mine")]
    offers, useless = identities([by_public_name], AgentClient(), held, only_files=True)
    assert [offer.name for offer in offers] == ["mine (ssh-agent)"]
    assert useless == []


def named(kind: bytes) -> bytes:
    return len(kind).to_bytes(4, "big") + kind


@pytest.mark.parametrize(
    ("kind", "accepted", "algorithm"),
    [
        (b"ssh-ed25519", [], b"ssh-ed25519"),
        (b"ssh-rsa", [], b"rsa-sha2-512"),
        (b"ssh-rsa", [b"ssh-rsa", b"rsa-sha2-256"], b"rsa-sha2-256"),
        (b"ssh-rsa", [b"ssh-rsa"], None),
        (b"ssh-dss", [], None),
        (b"ssh-rsa-cert-v01@openssh.com", [], b"rsa-sha2-512-cert-v01@openssh.com"),
    ],
)
def test_rsa_never_signs_with_sha1(
    kind: bytes, accepted: list[bytes], algorithm: bytes | None
) -> None:
    assert signature_algorithm(named(kind), accepted) == algorithm


def certify(folder: Path, key: Path) -> Path:
    authority = folder / "authority"
    if not authority.exists():
        make(authority)
    command = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", "-n", "ann", f"{key}.pub"]
    subprocess.run(command, check=True)
    return key.with_name(f"{key.name}-cert.pub")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_certificates(tmp_path: Path, kind: str) -> None:
    key, other = make(tmp_path / "key", kind), make(tmp_path / "other")
    file = certify(tmp_path, key)
    (found,) = load_certificates([], [other, key])
    loaded = load_key_files([other, key])
    assert (found.name, found.key) == (str(file), loaded[1].blob)

    beside, _ = identities(loaded, None, [], only_files=False, certificates=[found])
    assert [offer.name for offer in beside] == [str(other), str(key), str(file)]
    named, _ = identities(
        loaded, None, [], only_files=False, certificates=[found], certificates_first=True
    )
    assert [offer.name for offer in named] == [str(file), str(other), str(key)]

    _, useless = identities(loaded[:1], None, [], only_files=False, certificates=[found])
    assert useless == [f"{file} is a certificate of a key that is not there"]


def test_files_that_hold_no_certificate(tmp_path: Path) -> None:
    key = make(tmp_path / "key")
    plain, missing = load_certificates([key.with_name("key.pub"), tmp_path / "missing"], [key])
    assert (plain.key, missing.key) == (b"", b"")
    assert "no certificate" in plain.problem
    assert "cannot be read" in missing.problem
    (tmp_path / "key-cert.pub").write_text("ssh-ed25519-cert-v01@openssh.com AAAA\n")
    assert load_certificates([], [key]) == []


def test_algorithms_that_the_user_does_not_allow() -> None:
    allowed = [b"rsa-sha2-256", b"ssh-ed25519"]
    assert signature_algorithm(named(b"ssh-rsa"), [], allowed) == b"rsa-sha2-256"
    assert signature_algorithm(named(b"ecdsa-sha2-nistp256"), [], allowed) is None
    # servers name no algorithms of certificates
    certificate = named(b"ssh-rsa-cert-v01@openssh.com")
    accepted = [b"rsa-sha2-256"]
    assert signature_algorithm(certificate, accepted) == b"rsa-sha2-256-cert-v01@openssh.com"

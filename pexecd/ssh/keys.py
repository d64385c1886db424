"""The user's keys: which to offer, in which order, and how each signs."""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.keys import Key
from twisted.internet.defer import Deferred, execute

from pexecd.ssh.agent import AgentClient
from pexecd.ssh.knownhosts import fingerprint, key_type

#: A key file is smaller than that.
LARGEST_KEY_FILE = 64 * 1024
CERTIFICATE = b"-cert-v01@openssh.com"
#: How many fields make up a public key, after its type (and in a certificate a nonce).
KEY_FIELDS = {
    b"ssh-ed25519": 1,
    b"ssh-rsa": 2,
    b"ecdsa-sha2-nistp256": 2,
    b"ecdsa-sha2-nistp384": 2,
    b"ecdsa-sha2-nistp521": 2,
}
OPENSSH_MAGIC = b"openssh-key-v1\0"


class Identity(Protocol):
    """A key that can be offered to a server."""

    @property
    def name(self) -> str:
        """For messages: its file, or what the agent calls it."""

    @property
    def blob(self) -> bytes:
        """The public key."""

    def sign(self, data: bytes, algorithm: bytes) -> Deferred[bytes]:
        """Fires with the signature; fails if the agent does not want to."""


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What an identity file holds."""

    name: str
    #: Its public key; None: not known without the passphrase.
    blob: bytes | None
    #: None: encrypted, of a kind that Conch does not know, or a public key only.
    key: Key | None
    #: Why there is no key.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A file that holds a certificate of a key of the user's."""

    name: str
    blob: bytes
    #: The public key that it is for; empty: ``problem`` says what is wrong.
    key: bytes
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A private key that was read from a file."""

    name: str
    blob: bytes
    key: Key

    def sign(self, data: bytes, algorithm: bytes) -> Deferred[bytes]:
        return execute(self.key.sign, data, algorithm)


@dataclass(frozen=True, slots=True)
class AgentIdentity:
    """A key that ssh-agent holds."""

    name: str
    blob: bytes
    agent: AgentClient

    def sign(self, data: bytes, algorithm: bytes) -> Deferred[bytes]:
        return self.agent.sign(self.blob, data, algorithm)


@dataclass(frozen=True, slots=True)
class CertifiedIdentity:
    """A certificate, and the key that it is for."""

    name: str
    blob: bytes
    key: Identity

    def sign(self, data: bytes, algorithm: bytes) -> Deferred[bytes]:
        return self.key.sign(data, algorithm.removesuffix(CERTIFICATE))


def signature_algorithm(
    blob: bytes, accepted: Sequence[bytes], allowed: Sequence[bytes] = ()
) -> bytes | None:
    """How a key signs: Conch by itself would always use SHA-1 for RSA, which servers refuse.

    Args:
        blob: the public key, or its certificate.
        accepted: the server's ``server-sig-algs``; empty if it did not say. It names none of
            certificates: those sign as their keys do.
        allowed: by the user's PubkeyAcceptedAlgorithms; empty: all.

    Returns:
        None if there is none that the key can do without SHA-1.
    """
    kind = key_type(blob)
    if kind.startswith(b"ssh-dss"):
        return None
    choices = [kind]
    if kind.startswith(b"ssh-rsa"):
        suffix = kind.removeprefix(b"ssh-rsa")
        choices = [name + suffix for name in (b"rsa-sha2-512", b"rsa-sha2-256")]
        choices = [c for c in choices if not accepted or c.removesuffix(CERTIFICATE) in accepted]
    return next((name for name in choices if not allowed or name in allowed), None)


def load_key_files(files: Sequence[Path]) -> list[KeyFile]:
    """Read the identity files that are there. Blocks: call it in a thread."""
    return [found for found in map(_load, files) if found is not None]


def load_certificates(named: Sequence[Path], identity_files: Sequence[Path]) -> list[Certificate]:
    """Read the user's certificates. Blocks: call it in a thread.

    Args:
        named: by CertificateFile.
        identity_files: like ssh, only without ``named`` those count that lie beside them.
    """
    if named:
        return [_load_certificate(file) for file in named]
    beside = [file.with_name(f"{file.name}-cert.pub") for file in identity_files]
    found = [_load_certificate(file) for file in beside if file.exists()]
    return [certificate for certificate in found if certificate.key]


def _load_certificate(file: Path) -> Certificate:
    try:
        with file.open("rb") as opened:
            blob = _public_blob(opened.read(LARGEST_KEY_FILE))
    except OSError as error:
        return Certificate(str(file), b"", b"", f"cannot be read: {error.strerror}")
    key = certified_key(blob) if blob else b""
    problem = "" if key else "no certificate of a key that can be used here"
    return Certificate(str(file), blob or b"", key, problem)


def certified_key(blob: bytes) -> bytes:
    """The public key in a certificate; empty if there is none."""
    kind = key_type(blob)
    plain = kind.removesuffix(CERTIFICATE)
    if kind == plain or plain not in KEY_FIELDS:
        return b""
    try:
        fields = getNS(blob, 2 + KEY_FIELDS[plain])[2:-1]
    except struct.error:
        return b""
    return b"".join(map(NS, (plain, *fields)))


def _load(file: Path) -> KeyFile | None:
    try:
        with file.open("rb") as opened:
            text = opened.read(LARGEST_KEY_FILE)
    except FileNotFoundError:
        return _public_half(file)  # its private half may be in the agent
    except OSError as error:
        return KeyFile(str(file), None, None, f"cannot be read: {error.strerror}")
    blob = _public_blob(text)
    if blob is not None:
        return KeyFile(str(file), blob, None, "a public key, and not in ssh-agent")
    try:
        key = _private_key(text)
        blob = key.public().blob()
    except TypeError:  # as cryptography says that a passphrase is missing
        problem = "encrypted, and not in ssh-agent"
    except (ValueError, UnsupportedAlgorithm) as error:
        problem = f"no key that can be used here ({error})"
    except (KeyError, RuntimeError):  # as Conch says that it does not know its curve, or its kind
        problem = "no key that can be used here (of a kind that SSH has no name for)"
    else:
        return KeyFile(str(file), blob, key)
    half = _public_half(file)
    blob = half.blob if half else _openssh_blob(text)
    return KeyFile(str(file), blob, None, problem)


def _private_key(text: bytes) -> Key:
    """A key that needs no passphrase.

    Not by Conch, which checks whether RSA's primes are prime: that takes most of a second
    in which, thread or not, the event loop stands still. ssh does not check its user's keys either.
    """
    is_openssh = b"BEGIN OPENSSH PRIVATE KEY" in text
    load: Any = load_ssh_private_key if is_openssh else load_pem_private_key
    return Key(load(text, None, unsafe_skip_rsa_key_validation=True))


def _public_half(file: Path) -> KeyFile | None:
    try:
        with file.with_name(f"{file.name}.pub").open("rb") as opened:
            blob = _public_blob(opened.read(LARGEST_KEY_FILE))
    except OSError:
        return None
    return KeyFile(str(file), blob, None, "its private half is not there") if blob else None


def _public_blob(text: bytes) -> bytes | None:
    """The blob of a line like ``ssh-ed25519 AAAA... comment``."""
    words = text.split(None, 2)
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError, binascii.Error):
        return None
    return blob if key_type(blob) == words[0] else None


def _openssh_blob(text: bytes) -> bytes | None:
    """The public key, which OpenSSH's format holds in the clear also in encrypted files."""
    body = re.sub(rb"-----[^-]*-----|\s", b"", text)
    try:
        data = base64.b64decode(body, validate=True)
        if not data.startswith(OPENSSH_MAGIC):
            return None
        _cipher, _kdf, _options, rest = getNS(data[len(OPENSSH_MAGIC) :], 3)
        blob = getNS(rest[4:])[0]
    except Exception:  # a damaged file
        return None
    return bytes(blob)


def identities(
    files: Sequence[KeyFile],
    agent: AgentClient | None,
    agent_keys: Sequence[tuple[bytes, str]],
    *,
    only_files: bool,
    certificates: Sequence[Certificate] = (),
    certificates_first: bool = False,
) -> tuple[list[Identity], list[str]]:
    """Put keys in the order in which ssh offers them (a server hears only a few).

    Args:
        files: what the identity files hold.
        agent: the agent that has ``agent_keys`` (blob and comment).
        agent_keys: its keys.
        only_files: IdentitiesOnly: leave out keys of the agent that no file names.
        certificates: of some of these keys.
        certificates_first: offer them before all keys; else each after its key.

    Returns:
        What to offer, and why the other files are of no use.
    """
    named = {found.blob for found in files if found.blob is not None}
    chosen: list[Identity] = []
    if agent is not None:
        held: list[Identity] = [
            AgentIdentity(f"{comment or fingerprint(blob)} (ssh-agent)", blob, agent)
            for blob, comment in agent_keys
        ]
        chosen += [key for key in held if key.blob in named]
        if not only_files:
            chosen += [key for key in held if key.blob not in named]
    offered = {key.blob for key in chosen}
    useless = []
    for found in files:
        if found.blob in offered:
            continue
        if found.key is not None and found.blob is not None:
            chosen.append(FileIdentity(found.name, found.blob, found.key))
            offered.add(found.blob)
        else:
            useless.append(f"{found.name} is {found.problem}")
    for certificate in certificates:
        if not any(key.blob == certificate.key for key in chosen):
            problem = certificate.problem or "a certificate of a key that is not there"
            useless.append(f"{certificate.name} is {problem}")
    certified = {
        certificate.key: CertifiedIdentity(certificate.name, certificate.blob, key)
        for certificate in certificates
        for key in chosen
        if key.blob == certificate.key
    }
    if certificates_first:
        return [*certified.values(), *chosen], useless
    both = [(key, certified.get(key.blob)) for key in chosen]
    return [key for pair in both for key in pair if key is not None], useless

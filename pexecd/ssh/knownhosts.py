"""known_hosts with OpenSSH's meaning; pure but for the two functions at the end.

Conch's own class knows no wildcards and no ``[host]:port``, and accepts revoked keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

DEFAULT_PORT = 22

#: Host key algorithms, best first. Signatures with SHA-1 and DSA are left out.
ALGORITHMS = (
    b"ssh-ed25519",
    b"ecdsa-sha2-nistp256",
    b"ecdsa-sha2-nistp384",
    b"ecdsa-sha2-nistp521",
    b"rsa-sha2-512",
    b"rsa-sha2-256",
)


class Verdict(Enum):
    """What known_hosts says of a key."""

    KNOWN = "known"
    #: No key is known for the host.
    UNKNOWN = "unknown"
    #: Only other keys are known for the host.
    CHANGED = "changed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a known_hosts file."""

    #: ``file:line``, for messages.
    place: str
    #: ``@revoked``, ``@cert-authority`` or empty.
    marker: str
    #: The first field: patterns, or a hash.
    hosts: str
    blob: bytes


@dataclass(frozen=True, slots=True)
class KnownKeys:
    """What is known of one host."""

    #: By the name that ssh looks up first.
    plain: tuple[Entry, ...]
    #: By the bare name of a host at another port than 22.
    bare: tuple[Entry, ...]
    revoked: tuple[Entry, ...]
    #: Keys that sign certificates of the host's keys: only the system's ssh can check those.
    authorities: tuple[Entry, ...] = ()

    def check(self, blob: bytes) -> tuple[Verdict, Entry | None]:
        """Judge a host's key; the entry is the one that decided."""
        for entry in self.revoked:
            if entry.blob == blob:
                return Verdict.REVOKED, entry
        for entry in self.plain:
            if entry.blob == blob:
                return Verdict.KNOWN, entry
        if self.plain:  # the host was asked for keys of their types first
            kind = key_type(blob)
            return Verdict.CHANGED, max(self.plain, key=lambda e: key_type(e.blob) == kind)
        for entry in self.bare:
            if entry.blob == blob:
                return Verdict.KNOWN, entry
        return Verdict.UNKNOWN, None

    def algorithms(self) -> list[bytes]:
        """Host key algorithms to ask for: first those of which a key is known.

        Without that a host known by its ed25519 key alone shows its ecdsa key.
        """
        known = {key_type(entry.blob) for entry in self.plain or self.bare}
        if b"ssh-rsa" in known:
            known |= {b"rsa-sha2-512", b"rsa-sha2-256"}
        return sorted(ALGORITHMS, key=lambda name: name not in known)


def parse_known_hosts(text: str, file: str) -> list[Entry]:
    """Read a file's text; like ssh, lines that make no sense are skipped."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) < 3:
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except (ValueError, binascii.Error):
            continue
        if key_type(blob) == words[1].encode():
            entries.append(Entry(f"{file}:{number}", marker, words[0], blob))
    return entries


def known_keys(entries: Sequence[Entry], hostname: str, port: int, alias: str | None) -> KnownKeys:
    """Pick out what is known of a host.

    A host at another port than 22 is looked for as ``[host]:port``; a key that is known
    for its bare name is good too, but another key there proves nothing. A key that is revoked
    for the bare name is revoked at every port.
    """
    name = lookup_name(hostname, port, alias)
    bare = (alias or hostname).lower()
    matching = [entry for entry in entries if _matches(entry.hosts, name)]
    others = [entry for entry in entries if bare != name and _matches(entry.hosts, bare)]
    return KnownKeys(
        plain=tuple(entry for entry in matching if not entry.marker),
        bare=tuple(entry for entry in others if not entry.marker),
        revoked=tuple(entry for entry in matching + others if entry.marker == "@revoked"),
        authorities=tuple(
            entry for entry in matching + others if entry.marker == "@cert-authority"
        ),
    )


def lookup_name(hostname: str, port: int, alias: str | None) -> str:
    """The name by which known_hosts knows a host."""
    name = (alias or hostname).lower()
    return name if alias or port == DEFAULT_PORT else f"[{name}]:{port}"


def key_type(blob: bytes) -> bytes:
    """The type that a public key's blob begins with; empty for garbage."""
    if len(blob) < 4:
        return b""
    (length,) = struct.unpack(">L", blob[:4])
    return blob[4 : 4 + length] if length <= len(blob) - 4 else b""


def fingerprint(blob: bytes) -> str:
    """A key as people compare it: ``ED25519 SHA256:...``, as ssh shows it."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).rstrip(b"=").decode()
    name = key_type(blob).decode("ascii", "replace").removeprefix("ssh-").split("-sha2-")[0]
    return f"{name.upper()} SHA256:{digest}"


def _matches(field: str, name: str) -> bool:
    if field.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part) for part in field[3:].split("|"))
        except ValueError:
            return False
        return hmac.compare_digest(_hash(salt, name), digest)
    hit = False
    for pattern in field.lower().split(","):
        if pattern.startswith("!"):
            if _glob(pattern[1:], name):
                return False
        elif _glob(pattern, name):
            hit = True
    return hit


def _hash(salt: bytes, name: str) -> bytes:
    return hmac.new(salt, name.encode(), hashlib.sha1).digest()


def _glob(pattern: str, name: str) -> bool:
    """``*`` and ``?`` alone are special: ``[host]:22`` holds brackets."""
    parts = ({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern)
    return re.fullmatch("".join(parts), name) is not None


def read_known_hosts(files: Sequence[Path]) -> list[Entry]:
    """Read the files that are there. Blocks: call it in a thread."""
    entries: list[Entry] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # as ssh does: usually it is just not there
        entries += parse_known_hosts(text, str(file))
    return entries


def add_known_host(file: Path, name: str, blob: bytes, *, hashed: bool) -> None:
    """Append a key, as ssh does for ``accept-new``. Blocks: call it in a thread.

    Raises:
        OSError: it could not be written.
    """
    if hashed:
        salt = os.urandom(20)
        name = "|1|" + "|".join(base64.b64encode(b).decode() for b in (salt, _hash(salt, name)))
    line = b"%s %s %s\n" % (name.encode(), key_type(blob), base64.b64encode(blob))
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size and os.pread(opened.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(opened.fileno(), line)

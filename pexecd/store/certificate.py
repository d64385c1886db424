"""The master's certificate, by which clients know that they talk to it. Blocks."""

# Tests: tests/unit/store/test_certificate.py

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pexecd.errors import StateError
from pexecd.store.files import sync

#: Nobody asks whether it is still valid: clients compare its checksum.
_FROM, _UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A key and the certificate that it has signed itself."""

    #: Both, the key first.
    pem: bytes
    #: The SHA-256 of the certificate, in hex.
    fingerprint: str

    @classmethod
    def keep(cls, path: Path) -> Certificate:
        """Read the one in a file, or make it: clients that go on know it by its checksum.

        Raises:
            StateError: the file holds something else.
            OSError: it cannot be read or made.
        """
        if not path.exists():
            _write(path, _make())
        pem = path.read_bytes()
        try:
            serialization.load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, TypeError):
            raise StateError(
                f"{path}: no key and certificate; delete it, and a new one is made (clients that "
                "still run will not trust that, and end)"
            ) from None
        return cls(pem, certificate.fingerprint(hashes.SHA256()).hex())


def _make() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pexecd")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FROM)
        .not_valid_after(_UNTIL)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    return key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(encoding)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync(path.parent)

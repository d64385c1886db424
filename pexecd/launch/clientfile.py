"""The client, as a file on this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import pexecd
from pexecd.errors import StateError


def client_file() -> Path:
    """Where it is: within the package in a wheel, beside it in a checkout.

    Raises:
        StateError: in neither place.
    """
    package = Path(pexecd.__file__).resolve().parent
    for place in (package / "_client", package.parent / "client"):
        if (place / "pexec_client.py").is_file():
            return place / "pexec_client.py"
    raise StateError(f"no pexec_client.py with {package}: install pexecd again")


class ClientProgram(NamedTuple):
    """The client and its checksum."""

    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path) -> ClientProgram:
        """Read it; some tens of KiB."""
        return cls(path, hashlib.sha256(path.read_bytes()).hexdigest())

    @property
    def remote_name(self) -> str:
        """Its name on hosts: versions do not get into each other's way."""
        return f"pexec_client-{self.sha256[:16]}.py"

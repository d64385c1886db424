from __future__ import annotations

import hashlib
import ssl
import stat
from pathlib import Path

import pytest

from pexecd.errors import StateError
from pexecd.store import StateFolder
from pexecd.store.certificate import Certificate


def test_it_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    made = Certificate.keep(path)
    assert Certificate.keep(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert Certificate.keep(tmp_path / "another.pem").fingerprint != made.fingerprint


def test_the_checksum_is_what_clients_see(tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    made = Certificate.keep(path)
    text = path.read_text()
    der = ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERTIFICATE") :])
    assert hashlib.sha256(der).hexdigest() == made.fingerprint
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)


def test_something_else_in_its_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    path.write_text("no key\n")
    with pytest.raises(StateError, match=r"certificate\.pem: no key and certificate; delete it"):
        Certificate.keep(path)


def test_a_fresh_start_keeps_it(tmp_path: Path) -> None:
    folder = StateFolder.claim(tmp_path / "job.pexecd")
    try:
        made = Certificate.keep(folder.certificate)
        folder.clear()
        assert Certificate.keep(folder.certificate) == made
    finally:
        folder.release()
    StateFolder.claim(folder.path).release()  # such a folder is ours

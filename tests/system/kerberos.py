"""A Kerberos realm of its own: MIT's KDC on a port of loopback, all of its files in one folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.system.daemon import Daemon
from tests.system.sshd import free_port
from tests.waiting import LONG

KDC = "/usr/sbin/krb5kdc"
NAME = "LAB.INVALID"

CLIENT_CONFIG = """\
[libdefaults]
 default_realm = {name}
 rdns = false
 dns_canonicalize_hostname = false
 dns_lookup_realm = false
 dns_lookup_kdc = false
[realms]
 {name} = {{
  kdc = {address}:{port}
 }}
"""

KDC_CONFIG = """\
[kdcdefaults]
 kdc_listen = {address}:{port}
 kdc_tcp_listen = {address}:{port}
[realms]
 {name} = {{
  database_name = {folder}/principal
  key_stash_file = {folder}/stash
  acl_file = {folder}/acl
 }}
[logging]
 kdc = STDERR
"""


class Realm:
    """A realm, while it is entered.

    Attributes:
        environ: what leads a program to this realm and to no other.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        """Make its database.

        Args:
            folder: a new one, for its files.
            address: where the KDC is to listen.
        """
        self.folder = folder
        client, kdc = folder / "krb5.conf", folder / "kdc.conf"
        words = {"name": NAME, "address": address, "port": free_port(address), "folder": folder}
        client.write_text(CLIENT_CONFIG.format(**words))
        kdc.write_text(KDC_CONFIG.format(**words))
        self.environ = {"KRB5_CONFIG": str(client)}
        self._kdc_environ = {**os.environ, **self.environ, "KRB5_KDC_PROFILE": str(kdc)}
        self._run("/usr/sbin/kdb5_util", "create", "-s", "-P", "of the lab")

    def __enter__(self) -> Self:
        self.log: list[str] = []
        self._daemon = Daemon([KDC, "-n"], "commencing operation", self.log, self._kdc_environ)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the KDC."""
        self._daemon.kill()
        self._daemon.join()

    def keytab(self, principal: str) -> Path:
        """The file with the keys of a new principal."""
        path = self.folder / f"{principal.replace('/', '-')}.keytab"
        self._run("/usr/sbin/kadmin.local", "addprinc", "-randkey", principal)
        self._run("/usr/sbin/kadmin.local", "ktadd", "-k", str(path), principal)
        return path

    def log_in(self, principal: str, keytab: Path) -> dict[str, str]:
        """Get a user's ticket; the environment of programs that are to have it."""
        environ = {**self.environ, "KRB5CCNAME": f"FILE:{self.folder}/{principal}.ccache"}
        self._run("kinit", "-k", "-t", str(keytab), principal, **environ)
        return environ

    def _run(self, *command: str, **environ: str) -> None:
        done = subprocess.run(
            command,
            env={**self._kdc_environ, **environ},
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{command[0]}: {done.stdout}{done.stderr}")

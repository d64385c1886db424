"""Real sshd processes on 127.0.0.x, each a host with keys, port, configuration of its own.

Every host belongs to a throwaway Unix user (``pexecd-test-PID-N``) whose home is empty, never to
who runs the tests: their start-up files would count, and sessions that tests kill could leave
something behind. That takes root. Everything is in one temporary folder, outside of pytest's,
which other users cannot enter.

    with Lab() as lab:
        host = lab.sshd("127.0.0.21")
        config = lab.ssh_config(host)         # for ``ssh -F`` and ``[ssh] config``
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.system.daemon import Daemon
from tests.waiting import LONG

SSHD = "/usr/sbin/sshd"
USER_PREFIX = "pexecd-test-"


def free_port(address: str) -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """The living descendants of a process, by ``/proc``."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [pid]
    while todo:
        some = parents.get(todo.pop(), [])
        found += some
        todo += some
    return found


def end_process(pid: int) -> None:
    """Kill a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class User:
    """A throwaway Unix user with an empty home of its own."""

    def __init__(self, homes: Path, shell: str = "/bin/bash") -> None:
        taken = {entry.pw_name for entry in pwd.getpwall()}
        for number in range(1, 1000):
            # useradd does not notice that another one adds the same name at the same moment
            self.name = f"{USER_PREFIX}{os.getpid()}-{number}"
            self.home = homes / self.name
            if self.name in taken:
                continue
            # '*': no password; '!', the default, would be a locked account
            command = ["useradd", "--no-create-home", "--no-user-group", "--password", "*"]
            command += ["--home-dir", str(self.home), "--shell", shell, self.name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
            if done.returncode not in (1, 9):  # 1: the file is locked just now; 9: name taken
                raise AssertionError(f"useradd: {done.stderr}")
        else:
            raise AssertionError(f"no user can be added: {done.stderr}")
        entry = pwd.getpwnam(self.name)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        self.home.mkdir(mode=0o700)
        os.chown(self.home, self.uid, self.gid)

    def processes(self) -> list[int]:
        """What runs in the user's name."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and entry.stat().st_uid == self.uid:
                    found.append(int(entry.name))
        return found

    def remove(self) -> None:
        """End the user's processes, then the user."""
        for pid in self.processes():
            end_process(pid)
        shutil.rmtree(f"/tmp/pexec-{self.uid}", ignore_errors=True)  # a killed client's lock
        for _ in range(100):  # userdel refuses while another one holds the lock
            done = subprocess.run(["userdel", "-f", self.name], capture_output=True, check=False)
            if done.returncode not in (1, 10):
                return
        raise AssertionError(f"userdel {self.name}: {done.stderr!r}")


class Sshd:
    """One host: an sshd that listens on an address and port of its own."""

    def __init__(
        self,
        folder: Path,
        address: str,
        *,
        user: User,
        extra: str = "",
        port: int | None = None,
        host_keys: tuple[str, ...] = ("ed25519",),
        within: Sequence[str] = (),
    ) -> None:
        """Start it; it listens when this returns.

        Args:
            folder: a new one, for its files.
            address: of 127.0.0.0/8, or of where ``within`` leads.
            user: whose host it is.
            extra: lines of sshd_config; they win.
            port: None: a free one.
            host_keys: types.
            within: what goes before the command: it leads into another network, or adds to its
                environment.
        """
        self.folder = folder
        self.address = address
        self._within = within
        self.user = user
        self.login = user.name
        self.port = port or free_port(address)
        self.host_keys = [make_key(folder / f"host_{kind}", kind) for kind in host_keys]
        self.authorized_keys = folder / "authorized_keys"
        self.authorized_keys.touch()
        self.config = folder / "sshd_config"
        lines = [
            *extra.splitlines(),
            f"ListenAddress {address}",
            f"Port {self.port}",
            *(f"HostKey {key}" for key in self.host_keys),
            f"AuthorizedKeysFile {self.authorized_keys}",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PrintMotd no",
            "PrintLastLog no",
        ]
        self.config.write_text("\n".join(lines) + "\n")
        self.log: list[str] = []
        self.start()

    @property
    def home(self) -> Path:
        """The home of the host's user."""
        return self.user.home

    @property
    def known_hosts(self) -> str:
        """Its lines for known_hosts."""
        keys = [key.with_name(key.name + ".pub").read_text() for key in self.host_keys]
        return "".join(f"[{self.address}]:{self.port} {key}" for key in keys)

    def authorize(self, key: Path, options: str = "") -> None:
        """Let who has this key log in."""
        line = key.with_name(key.name + ".pub").read_text()
        with self.authorized_keys.open("a") as file:
            file.write(f"{options} {line}" if options else line)

    def start(self) -> None:
        """Start (again)."""
        command = [*self._within, SSHD, "-D", "-e", "-f", str(self.config)]
        self._daemon = Daemon(command, "Server listening on", self.log)
        self.process = self._daemon.process

    def drop_connections(self) -> None:
        """Kill the processes of its connections, as if the machine had died in between."""
        for pid in children(self.process.pid):
            end_process(pid)

    def stop(self) -> None:
        """End it and its connections."""
        pids = children(self.process.pid)
        self._daemon.kill()
        for pid in pids:
            end_process(pid)
        self._daemon.join()


class Lab:
    """A folder full of hosts; also a key that all of them accept."""

    def __init__(self) -> None:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it
        self.folder = Path(tempfile.mkdtemp(prefix="pexecd-lab-"))
        self.folder.chmod(0o755)
        self.hosts: list[Sshd] = []
        self.users: list[User] = []
        self.key = make_key(self.folder / "id_ed25519", "ed25519")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add_user(self, shell: str = "/bin/bash") -> User:
        """A new Unix user, until the lab closes."""
        user = User(self.folder, shell)
        self.users.append(user)
        return user

    def sshd(
        self,
        address: str,
        *,
        user: User | Literal[True] = True,
        shell: str = "/bin/bash",
        extra: str = "",
        port: int | None = None,
        host_keys: tuple[str, ...] = ("ed25519",),
        within: Sequence[str] = (),
    ) -> Sshd:
        """A new host.

        Args:
            address: of 127.0.0.0/8, or of where ``within`` leads.
            user: True: of a new user of its own.
            shell: the new user's.
            extra: lines for its sshd_config.
            port: None: a free one.
            host_keys: types of its keys.
            within: what goes before the command: it leads into another network, or adds to its
                environment.
        """
        folder = self.folder / f"sshd-{len(self.hosts) + 1}"
        folder.mkdir()
        owner = user if isinstance(user, User) else self.add_user(shell)
        host = Sshd(
            folder,
            address,
            user=owner,
            extra=extra,
            port=port,
            host_keys=host_keys,
            within=within,
        )
        self.hosts.append(host)
        host.authorize(self.key)
        return host

    def ssh_config(
        self,
        *hosts: Sshd,
        extra: str = "",
        keys: Sequence[Path] | None = None,
        known_hosts: str | None = None,
    ) -> Path:
        """A new ssh_config by which these hosts can be reached.

        Args:
            hosts: named by their addresses.
            extra: lines that win.
            keys: to log in with; None: the one that all hosts accept.
            known_hosts: None: the hosts' true keys. The file has ``.known_hosts`` appended.
        """
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "ssh_config"
        known = path.with_name("ssh_config.known_hosts")
        if known_hosts is None:
            known_hosts = "".join(host.known_hosts for host in hosts)
        known.write_text(known_hosts)
        lines = [
            *extra.splitlines(),
            *(f"Host {host.address}\n  Port {host.port}\n  User {host.login}\n" for host in hosts),
            "Host *",
            f"  UserKnownHostsFile {known}",
            "  GlobalKnownHostsFile none",
            *(f"  IdentityFile {key}" for key in ([self.key] if keys is None else keys)),
            "  IdentityAgent none",
            "  StrictHostKeyChecking yes",
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    @contextlib.contextmanager
    def agent(self, *keys: Path) -> Iterator[Path]:
        """An ssh-agent that holds these keys; its socket."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "agent"
        process = subprocess.Popen(
            ["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it says where it listens once it does
            if keys:
                subprocess.run(
                    ["ssh-add", "-q", *map(str, keys)],
                    env={**os.environ, "SSH_AUTH_SOCK": str(path)},
                    check=True,
                    timeout=LONG,
                )
            yield path
        finally:
            process.kill()
            process.communicate()

    def close(self) -> None:
        """End all processes, remove users and folder."""
        for host in self.hosts:
            host.stop()
        for user in self.users:
            user.remove()
        shutil.rmtree(self.folder)


def make_key(path: Path, kind: str, passphrase: str = "") -> Path:
    """A new key pair; the public half has ``.pub`` appended."""
    bits = {"rsa": ["-b", "2048"]}.get(kind, [])
    command = ["ssh-keygen", "-q", "-t", kind, *bits, "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, timeout=LONG)
    return path

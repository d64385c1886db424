"""Jobs whose hosts reach the master through tunnels, or by TLS: real sshd, other users at work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pexecd.store.certificate import Certificate
from tests.system.cable import Network
from tests.system.running import PEXECD, JobFolder, adds_up, interrupt
from tests.system.sshd import Lab, Sshd, User
from tests.waiting import wait_until

NO_SOCKETS = "AllowStreamLocalForwarding no"
#: What sshd may forbid, and whether a tunnel is possible then.
WAYS = {
    "stock": ("", True),
    "no sockets": (NO_SOCKETS, True),
    "no listening": ("PermitListen none", True),
    "no ports": ("AllowTcpForwarding no", False),  # and no sockets that listen
    "nor listening": (f"{NO_SOCKETS}\nPermitListen none", False),
    "disabled": ("DisableForwarding yes", False),
}

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
duplicates = 1
{more}
[worker]
name = work
command = work $n
executable = work.sh
[collect]
output = table results.txt
[client]
ping = 1
[ssh]
config = ssh_config
"""

#: Leaves a line, and waits until it may end.
WORKER = """\
#!/bin/sh
echo "$1 $PEXEC_HOST" >> {folder}/runs
until [ -e {folder}/go ]; do sleep 0.05; done
echo "$(($1 * 2))"
"""


class Work:
    """A job for some hosts, whose workers wait for ``go``."""

    def __init__(self, path: Path, lab: Lab, hosts: list[Sshd], tasks: int, more: str = "") -> None:
        self.lab = lab
        self.hosts = hosts
        self.tasks = tasks
        self.folder = lab.folder / f"work-{path.name}"  # where the hosts' users may write
        self.folder.mkdir()
        self.folder.chmod(0o777)
        (self.folder / "runs").touch()
        (self.folder / "runs").chmod(0o666)
        lines = [f"2/{host.login}@{host.address}:{host.port}\n" for host in hosts]
        self.names = [line[2:].strip() for line in lines]
        self.job = JobFolder(
            path,
            JOB.format(more=more),
            ["n", *map(str, range(1, tasks + 1))],
            {"lab.hosts": "".join(lines), "work.sh": WORKER.format(folder=self.folder)},
        )
        # noticed soon, tried again soon
        extra = "Host *\n  ConnectTimeout 2\n  ServerAliveInterval 1\n  ServerAliveCountMax 2\n"
        lab.ssh_config(*hosts, extra=extra).rename(self.job.path / "ssh_config")

    def runs(self) -> list[tuple[int, str]]:
        """Task and host of each worker that was started."""
        lines = (self.folder / "runs").read_text().splitlines()
        return [(int(task), host) for task, host in map(str.split, lines)]

    def start(self, workers: int, *command: str) -> subprocess.Popen[str]:
        """Start the job, and wait until so many workers run."""
        process = self.job.start(*command)
        wait_until(lambda: len(self.runs()) >= workers, self.job.log)
        return process

    def go(self) -> None:
        (self.folder / "go").touch()

    def finish(self, process: subprocess.Popen[str]) -> str:
        """To the end: every task once, and nothing left on the hosts."""
        self.go()
        printed = self.job.finish(process)
        self.check(printed)
        assert Counter(task for task, _ in self.runs()) == Counter(range(1, self.tasks + 1))
        return printed

    def check(self, printed: str) -> None:
        lines = [f"{n}|{2 * n}" for n in range(1, self.tasks + 1)]
        assert self.job.lines("results.txt") == ["n|output", *lines]
        adds_up(self.job.statistics())
        self.assert_secret_is_kept(printed)
        for host in self.hosts:
            place = Path(f"/tmp/pexec-{host.user.uid}")
            wait_until(lambda: not place.exists(), lambda: f"{list(place.glob('*'))}")  # noqa: B023

    @property
    def secret(self) -> str:
        return str(json.loads((self.job.state / "session.json").read_text())["session"])

    def server(self, host: Sshd) -> str:
        """What the host's client was told of the master."""
        (file,) = Path(f"/tmp/pexec-{host.user.uid}").glob("*.server")
        return file.read_text().strip()

    def assert_secret_is_kept(self, printed: str = "") -> None:
        """It is in no log, output, command line or name (SPEC section 7)."""
        secret = self.secret
        seen = {"printed": printed, "sshd": "\n".join(line for h in self.hosts for line in h.log)}
        for path in [*self.lab.folder.rglob("*"), *Path("/tmp").glob("pexec-*/*")]:
            assert secret not in str(path)
            if path.is_file() and not path.is_symlink():
                seen[str(path)] = path.read_text(errors="replace")
        for path in (self.job.state / "log").iterdir():
            seen[str(path)] = path.read_text(errors="replace")
        for name in ("statistics.json", "joblog.tsv"):
            seen[name] = (self.job.state / name).read_text()
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen[str(process)] = process.read_text(errors="replace")
            except OSError:
                continue
        assert len(secret) >= 32
        assert [place for place, text in seen.items() if secret in text] == []


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_whatever_sshd_forbids_there_is_a_way_or_a_reason(tmp_path: Path, lab: Lab) -> None:
    hosts = [
        lab.sshd(f"127.0.0.{41 + number}", extra=extra)
        for number, (extra, _) in enumerate(WAYS.values())
    ]
    tunnelled = [host for host, (_, possible) in zip(hosts, WAYS.values(), strict=True) if possible]
    forbidden = [host for host in hosts if host not in tunnelled]
    work = Work(tmp_path / "job", lab, hosts, 16)
    process = work.start(2 * len(tunnelled))
    servers = [work.server(host) for host in tunnelled]
    assert [server.partition(":")[0] for server in servers] == ["unix", "https", "unix"]
    assert all(len(server) < 104 for server in servers if server.startswith("unix:"))
    work.assert_secret_is_kept()
    printed = work.finish(process)
    by_host = work.job.statistics()["hosts"]
    for host, name in zip(hosts, work.names, strict=True):
        if host in tunnelled:
            assert by_host[name]["done"] >= 2
        else:
            reason = by_host[name]["reason"]
            assert "the SSH server does not let ports be forwarded" in reason
            assert "by listen = in [job]" in reason
            assert f"{name}: {reason}" in printed

    # with listen they are reached directly, and by TLS if it is asked for
    for number, listen in enumerate(("tcp:0", "ssl:0")):
        (work.folder / "runs").write_text("")
        work = Work(tmp_path / f"direct-{number}", lab, forbidden, 6, f"listen = {listen}")
        process = work.start(2 * len(forbidden))
        url = json.loads((work.job.state / "session.json").read_text())["url"]
        pin = Certificate.keep(work.job.state / "certificate.pem").fingerprint
        assert re.fullmatch(
            r"http://127.0.0.1:\d+" if listen == "tcp:0" else rf"https://127.0.0.1:\d+#{pin}", url
        )
        work.finish(process)


#: How a host's /tmp is mounted, what is done there, and why it has no tunnel then.
USELESS = [
    ("ro", ":", "Read-only file system"),
    ("size=4k", "dd if=/dev/zero of=/tmp/full bs=8k count=1", "No space left on device"),
    ("mode=1777", "touch /tmp/pexec-*", "is another user's"),
]


def test_a_host_that_has_no_place_for_a_tunnel_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")  # each host has a /tmp of its own
    with Lab() as lab:
        hosts = []
        for number, (options, prepare, _) in enumerate(USELESS):
            user = lab.add_user()
            script = f'mount -t tmpfs -o {options} tmpfs /tmp && {{ {prepare}; exec "$@"; }}'
            script = script.replace("*", str(user.uid))
            within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
            hosts.append(lab.sshd(f"127.0.0.{57 + number}", user=user, within=within))
        hosts.append(lab.sshd("127.0.0.60", shell="/usr/sbin/nologin"))
        reasons = [*(reason for _, _, reason in USELESS), "This account is currently not available"]
        work = Work(tmp_path / "job", lab, hosts, 1)
        process = work.job.start()
        wait_until(lambda: all(f"{name}: " in work.job.log() for name in work.names))
        interrupt(process)
        printed = work.job.finish(process, expect=130)
        for name, reason in zip(work.names, reasons, strict=True):
            assert any(f"{name}: " in line and reason in line for line in printed.splitlines())


@pytest.mark.parametrize("extra", ["", NO_SOCKETS], ids=["socket", "port"])
def test_a_tunnel_that_breaks_comes_back(tmp_path: Path, lab: Lab, extra: str) -> None:
    hosts = [lab.sshd(f"127.0.0.{address}", extra=extra) for address in (51, 52)]
    work = Work(tmp_path / "job", lab, hosts, 12)
    process = work.start(4)
    before = [work.server(host) for host in hosts]
    hosts[0].drop_connections()
    started = f"{work.names[0]}: client started"
    wait_until(lambda: work.job.log().count(started) == 2, work.job.log)
    assert work.server(hosts[0]) != before[0]
    assert work.server(hosts[1]) == before[1]
    printed = work.finish(process)
    assert f"{work.names[0]}: connection lost" in printed
    assert set(work.job.statistics()["ends"].values()) == {0, 12}


def test_clients_find_the_next_master_through_its_tunnel(tmp_path: Path, lab: Lab) -> None:
    host = lab.sshd("127.0.0.53", extra=NO_SOCKETS)
    work = Work(tmp_path / "job", lab, [host], 6)
    process = work.start(2)
    process.kill()
    process.communicate()
    work.finish(work.job.start())


def test_the_next_master_by_the_connection_that_the_user_shares(
    tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tunnel of the master that was killed is still in it."""
    monkeypatch.setenv("TMPDIR", str(lab.folder))  # where that one leaves a folder
    host = lab.sshd("127.0.0.56")
    shared = lab.folder / "shared"
    command = ["ssh", "-N", "-M", "-S", str(shared), "-F", str(lab.ssh_config(host)), host.address]
    users = subprocess.Popen(command)
    try:
        wait_until(shared.exists)
        work = Work(tmp_path / "job", lab, [host], 6)
        settings = work.job.path / "ssh_config"
        settings.write_text(f"Host *\n  ControlPath {shared}\n{settings.read_text()}")
        process = work.start(2)
        process.kill()
        process.communicate()
        work.finish(work.job.start())
        assert sum("Accepted publickey" in line for line in host.log) == 1
    finally:
        users.kill()
        users.wait()


def test_a_cut_cable_costs_a_tunnel_nothing_but_time(tmp_path: Path, lab: Lab) -> None:
    with Network() as network:
        master, computer = network.computer(), network.computer()
        host = lab.sshd(computer.address, port=2222, within=computer.command())
        work = Work(tmp_path / "job", lab, [host], 6)
        run = master.command(*PEXECD, "run", "job.ini")
        process = work.start(2, *run)
        with computer.cut("blackhole"):
            wait_until(lambda: "no sign of life" in work.job.log(), work.job.log)
            wait_until(lambda: "no connection to" in work.job.log(), work.job.log)
        printed = work.finish(process)
        assert f"{work.names[0]}: no sign of life" in printed


def test_hosts_say_at_which_address_they_see_the_master(tmp_path: Path, lab: Lab) -> None:
    with Network() as network:
        master, computer = network.computer(), network.computer()
        host = lab.sshd(computer.address, port=2222, within=computer.command())
        work = Work(tmp_path / "job", lab, [host], 4, "listen = ssl:8443")
        renamed = 'hostname localhost && exec "$@"'
        run = master.command(
            "unshare", "--uts", "sh", "-c", renamed, "sh", *PEXECD, "run", "job.ini"
        )
        process = work.start(2, *run)
        work.finish(process)


# --- other users of the host ---------------------------------------------------------------------

#: Listens, as another user, where the tunnel's end was, and notes whatever is said to it.
THIEF = """\
import os, socket, ssl, sys
family, place, pem, loot = sys.argv[1:]
listener = socket.socket(getattr(socket, family))
if family == "AF_UNIX":
    os.makedirs(os.path.dirname(place), mode=0o777, exist_ok=True)
    os.chmod(os.path.dirname(place), 0o777)
    listener.bind(place)
    os.chmod(place, 0o777)
else:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(place)))
listener.listen(9)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pem)
print("ready", flush=True)
while True:
    peer, _ = listener.accept()
    peer.settimeout(5)
    with open(loot, "ab") as file:
        file.write(b"somebody came\\n")
        file.flush()
        try:
            if family == "AF_INET":
                peer = context.wrap_socket(peer, server_side=True)
            file.write(peer.recv(9999))
            peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nPing=0\\n")
        except OSError:
            pass
    peer.close()
"""


class Thief:
    """The process of another user of the host."""

    def __init__(self, lab: Lab, user: User, family: str, place: str) -> None:
        self.loot = user.home / "loot"
        pem = user.home / "thief.pem"
        Certificate.keep(pem)
        os.chown(pem, user.uid, user.gid)
        self.process = subprocess.Popen(
            ["/usr/bin/python3", "-c", THIEF, family, place, str(pem), str(self.loot)],
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline() == "ready\n"

    def visits(self) -> int:
        return self.loot.read_bytes().count(b"somebody came\n") if self.loot.exists() else 0

    def said(self) -> bytes:
        """All that was said to it."""
        return self.loot.read_bytes().replace(b"somebody came\n", b"")

    def end(self) -> str:
        self.process.kill()
        return self.process.communicate()[1]


def test_who_grabs_the_port_of_a_tunnel_learns_nothing(tmp_path: Path, lab: Lab) -> None:
    host, other = lab.sshd("127.0.0.54", extra=NO_SOCKETS), lab.add_user()
    work = Work(tmp_path / "job", lab, [host], 6)
    process = work.start(2)
    port = work.server(host).partition("#")[0].rpartition(":")[2]
    host.stop()
    thief = Thief(lab, other, "AF_INET", port)
    try:
        assert thief.ready
        wait_until(lambda: thief.visits() > 3, work.job.log)
        host.start()
        work.finish(process)
    finally:
        thief.end()
    assert thief.said() == b""


def test_nobody_else_can_take_the_socket_of_a_tunnel(tmp_path: Path, lab: Lab) -> None:
    host, other = lab.sshd("127.0.0.55"), lab.add_user()
    work = Work(tmp_path / "job", lab, [host], 6)
    process = work.start(2)
    place = work.server(host).removeprefix("unix:")
    host.stop()
    thief = Thief(lab, other, "AF_UNIX", place)
    assert not thief.ready
    assert "PermissionError" in thief.end()
    # not even where somebody clears /tmp under it all
    shutil.rmtree(Path(place).parent)
    thief = Thief(lab, other, "AF_UNIX", place)
    try:
        assert thief.ready
        (log,) = host.home.rglob("log")
        seen = log.stat().st_size
        host.start()
        # neither the client nor the next tunnel fall for it
        wait_until(lambda: "the folder of its tunnel cannot be used" in work.job.log())
        assert log.stat().st_size >= seen
    finally:
        thief.end()
    assert thief.visits() == 0
    interrupt(process)
    printed = work.job.finish(process, expect=130)
    assert f"/tmp/pexec-{host.user.uid} is another user's" in printed
    work.assert_secret_is_kept(printed)

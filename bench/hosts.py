"""A job on hundreds of hosts begins: how long until each has a task, and what the event loop pays.

    python bench/hosts.py [--hosts 300]

One sshd with stock settings (MaxStartups included) on as many loopback addresses, each a host with
one slot. Each runs one task, which waits until all hosts have theirs. Printed: seconds until then;
connections that sshd turned away (they are tried again); the longest turns of the master's event
loop in CPU time, until then and at the end, when all hosts are told at once; and the exit status,
which is 0 if no host was given up and no result is missing.
As root: it adds a user for the hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.system.sshd import Lab

JOB = """\
[job]
cluster = hosts
parameters = table.txt
duplicates = 1
timeout = 0
[worker]
name = work
command = work $n
executable = work.sh
[collect]
output = table results.txt
[ssh]
config = ssh_config
"""

#: Says that it runs, then waits for somebody to open the pipe for writing.
WORKER = """\
#!/bin/sh
echo "$PEXEC_HOST" >> {folder}/begun
read nothing < {folder}/go
echo "$1"
"""

SSH_CONFIG = """\
Host *
  Port {port}
  User {user}
  IdentityFile {key}
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
"""


def master(job: str, report: str) -> None:
    """Run the job in this process, and write how long the turns of its event loop took."""
    from twisted.internet import reactor  # noqa: PLC0415 - only the child has one

    from pexecd.cli.main import main  # noqa: PLC0415

    longest: list[tuple[float, float]] = []  # CPU seconds, and when
    last: list[float] = []
    turn = reactor.runUntilCurrent

    def measured() -> None:
        now = time.thread_time()
        if last:  # what came before the first turn was no turn
            longest.append((now - last.pop(), time.monotonic()))
            if len(longest) > 1000:
                longest.sort(reverse=True)
                del longest[100:]
        last.append(now)
        turn()

    reactor.runUntilCurrent = measured
    status = 1
    try:
        main(["run", job, "--fresh"])
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        Path(report).write_text(json.dumps({"longest": longest, "status": status}))
    sys.exit(status)


def begun(folder: Path) -> int:
    """How many hosts run their task."""
    try:
        return len(set((folder / "begun").read_text().split()))
    except FileNotFoundError:
        return 0


def run(hosts: int, limit: float) -> bool:
    """Run the job and print what it took; whether all was well."""
    with Lab() as lab:
        host = lab.sshd("0.0.0.0")
        folder = lab.folder / "work"
        folder.mkdir()
        os.chown(folder, host.user.uid, host.user.gid)
        os.mkfifo(folder / "go")
        (folder / "go").chmod(0o644)
        names = [f"127.0.{1 + n // 250}.{1 + n % 250}" for n in range(hosts)]
        table = "\n".join(map(str, range(hosts)))
        key = host.host_keys[0].with_suffix(".pub").read_text()
        config = SSH_CONFIG.format(port=host.port, user=host.login, key=lab.key, folder=folder)
        for name, text in (
            ("hosts", "\n".join(f"{name} slots=1" for name in names)),
            ("table.txt", f"n\n{table}"),
            ("job.ini", JOB),
            ("work.sh", WORKER.format(folder=folder)),
            ("ssh_config", config),
            ("known_hosts", f"[127.0.*]:{host.port} {key}"),
        ):
            (folder / name).write_text(f"{text}\n")
        report = folder / "report"
        started = time.monotonic()
        with (folder / "printed").open("w") as printed:
            command = [sys.executable, __file__, "--master", str(folder / "job.ini"), str(report)]
            process = subprocess.Popen(command, stdout=printed, stderr=printed)
        while begun(folder) < hosts and process.poll() is None:
            if time.monotonic() - started > limit:
                break
            time.sleep(0.1)
        took, ready = time.monotonic() - started, begun(folder)
        turned_away = (folder / "printed").read_text().count("too busy")
        print(f"{ready} of {hosts} hosts have a task after {took:.1f} s")
        print(f"{turned_away} connections were turned away by sshd")
        if process.poll() is None:
            descriptor = os.open(folder / "go", os.O_RDWR | os.O_NONBLOCK)
            # one that is late does not wait in vain while this end is open
            while process.poll() is None and time.monotonic() - started < 2 * limit:
                os.write(descriptor, b"\n" * 5)  # not all at once: the start is what is measured
                time.sleep(0.1)
            os.close(descriptor)
        if process.poll() is None:
            process.kill()
            print((folder / "printed").read_text()[-2000:])
        process.wait()
        told = json.loads(report.read_text()) if report.exists() else {"longest": [], "status": 9}
        starting = [cpu for cpu, when in told["longest"] if when < started + took]
        rest = [cpu for cpu, when in told["longest"] if when >= started + took]
        for turns, phase in ((starting, "until then"), (rest, "afterwards")):
            longest = ", ".join(f"{cpu * 1000:.0f}" for cpu in sorted(turns, reverse=True)[:5])
            print(f"longest turns of the event loop {phase}: {longest} ms of CPU")
        print(f"exit status {told['status']}")
        return ready == hosts and max(starting, default=9) < 0.1 and told["status"] == 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--master"]:
        master(*sys.argv[2:4])
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=300)
    parser.add_argument("--limit", type=float, default=300, help="seconds")
    options = parser.parse_args()
    sys.exit(0 if run(options.hosts, options.limit) else 1)

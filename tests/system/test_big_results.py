"""Results of a gigabyte pass through master and client without being held in memory."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.system.running import JobFolder
from tests.system.test_foreign_clients import served
from tests.waiting import LONG

#: The size of one result in bytes; two are sent at once.
SIZE = 1 << 30

#: The most memory that master and client may ever have held, in kB (VmHWM).
MOST_KB = 150 * 1024

JOB = """\
[job]
cluster = lab.hosts
parameters = table.txt
[worker]
name = big
command = big $n
executable = big.sh
[result]
data = data.bin
[client]
ping = 1
"""

WORKER = f"""\
#!/bin/sh
truncate -s {SIZE} data.bin
printf "begin $1" | dd of=data.bin conv=notrunc status=none
"""


class Peak(threading.Thread):
    """Watches the peak memory of processes that carry a mark, until they are gone."""

    def __init__(self, job: JobFolder) -> None:
        super().__init__(daemon=True)
        self._job = job
        self._over = threading.Event()
        self.peaks: dict[str, int] = {}

    def run(self) -> None:
        while not self._over.wait(0.1):
            for pid, command in self._job.processes().items():
                kind = "client" if "pexec_client" in command else "master"
                if "pexec" in command:
                    self.peaks[kind] = max(self.peaks.get(kind, 0), peak_kb(pid))

    def stop(self) -> dict[str, int]:
        self._over.set()
        self.join()
        return self.peaks


def peak_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def check(job: JobFolder) -> None:
    kept = sorted((job.state / "spool").iterdir())
    assert [path.stat().st_size for path in kept] == [SIZE, SIZE]
    beginnings = set()
    for path in kept:
        with path.open("rb") as file:
            beginnings.add(file.read(7))
            file.seek(-1, os.SEEK_END)
            assert file.read() == b"\0"
    assert beginnings == {b"begin 1", b"begin 2"}


@pytest.mark.slow
def test_our_client_posts_two_gigabytes_at_once(tmp_path: Path) -> None:
    job = JobFolder(
        tmp_path / "job", JOB, ["n", "1", "2"], {"lab.hosts": "2/:\n", "big.sh": WORKER}
    )
    process = job.start()
    peak = Peak(job)
    peak.start()
    job.finish(process)
    peaks = peak.stop()
    print(f"peak memory in kB: {peaks}")
    assert set(peaks) == {"master", "client"}
    assert max(peaks.values()) < MOST_KB
    check(job)


def post_form(url: str, data: Path, _body: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["curl", "-fsS", "-F", f"data=@{data}", url])


def post_body(url: str, data: Path, body: Path) -> subprocess.Popen[bytes]:
    with body.open("wb") as file:
        file.write(b"[Result]\nName=data\n--begin content--\n")
        file.flush()
        subprocess.run(["cat", data], stdout=file, check=True)
        file.write(b"\n--end content--\n")
    return subprocess.Popen(["curl", "-fsS", "-H", "Content-Type:", "-T", body, "-X", "POST", url])


@pytest.mark.slow
@pytest.mark.parametrize("post", [post_form, post_body])
def test_foreign_clients_post_two_gigabytes_at_once(tmp_path: Path, post) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "big.sh").write_text(WORKER)
    (tmp_path / "job" / "big.sh").chmod(0o755)
    with served(tmp_path, JOB, ["n", "1", "2"]) as master:
        peak = Peak(master.job)
        peak.start()
        posts = []
        for n in (1, 2):
            taken = subprocess.run(
                ["curl", "-fsS", f"{master.url}/task?sessionID={master.session}"],
                capture_output=True,
                text=True,
                check=True,
            )
            ticket = taken.stdout.splitlines()[0].removeprefix("Ticket=")
            folder = tmp_path / str(n)
            folder.mkdir()
            subprocess.run([tmp_path / "job" / "big.sh", str(n)], cwd=folder, check=True)
            url = f"{master.url}/complete?sessionID={master.session}&ticket={ticket}"
            posts.append(post(url, folder / "data.bin", folder / "body"))
        assert [one.wait(LONG) for one in posts] == [0, 0]
        master.job.finish(master.process)
        peaks = peak.stop()
        print(f"peak memory in kB: {peaks}")
        assert peaks["master"] < MOST_KB
        check(master.job)

"""The master may have many files open; what it starts may have as many as ever."""

from __future__ import annotations

import resource
from pathlib import Path

from pexecd.openfiles import MOST_OPEN
from tests.system.running import PEXECD, JobFolder

JOB = """\
[job]
parameters = table.txt
[worker]
command = ulimit -S -n
shell = yes
[validate]
function = checks.py:validate
[collect]
output = table results.txt
"""

#: It runs in a process that the master has started.
CHECKS = """\
import os, resource
from pathlib import Path

def validate(parameters, result):
    limits = Path(f"/proc/{os.getppid()}/limits").read_text().splitlines()
    of_master = next(line for line in limits if line.startswith("Max open files")).split()[3]
    print(*resource.getrlimit(resource.RLIMIT_NOFILE), of_master, file=open("seen", "w"))
    return True
"""


def test_the_limit_is_raised_for_the_master_alone(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", JOB, ["n", "1"], {"checks.py": CHECKS})
    job.finish(
        job.start("/bin/sh", "-c", 'ulimit -S -n 900; exec "$@"', "sh", *PEXECD, "run", "job.ini")
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    assert (job.path / "seen").read_text().split() == ["900", str(hard), str(most)]
    assert job.lines("results.txt") == ["n|output", "1|900"]
    job.assert_nothing_left()

"""How many cores a client may use: affinity, and quotas of control groups, real ones too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.conftest import CLIENT, load_client

client = load_client()

V1 = Path("/sys/fs/cgroup/cpu")
V2 = Path("/sys/fs/cgroup")

#: Prints what the client says, when it has joined a control group (or none).
SAY = f"""
import importlib.util, os, sys
if sys.argv[1:]:
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[:2]))
spec = importlib.util.spec_from_file_location("pexec_client", {str(CLIENT)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.usable_cores())
"""


def say(python: str, *arguments: str) -> int:
    command = [python, "-c", SAY, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group within another one that may use a core and a half."""
    root = V1 if V1.is_dir() else V2
    outer = root / f"pexecd-test-{os.getpid()}"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    try:
        if root == V1:
            (outer / "cpu.cfs_quota_us").write_text("50000")
        else:
            (V2 / "cgroup.subtree_control").write_text("+cpu")
            (outer / "cpu.max").write_text("50000 100000")
        yield inner
    finally:
        inner.rmdir()
        outer.rmdir()


@pytest.mark.skipif(
    not (V1.is_dir() or (V2 / "cgroup.controllers").is_file()) or os.getuid() != 0,
    reason="no control groups to make here",
)
def test_a_real_quota_of_the_group_above(python: str, group: Path) -> None:
    cores = min(2, len(os.sched_getaffinity(0)))
    assert say(python) == cores
    assert say(python, str(group / "cgroup.procs")) == 1
    (group.parent / ("cpu.cfs_quota_us" if group.is_relative_to(V1) else "cpu.max")).write_text(
        "150000"
    )
    assert say(python, str(group / "cgroup.procs")) == cores


def make(tmp_path: Path, groups: str, mounts: str, files: dict[str, str]) -> str:
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "mountinfo").write_text(mounts.format(top=tmp_path / "top"))
    for name, text in files.items():
        path = tmp_path / "top" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


UNIFIED = "30 23 0:26 / {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "cores"),
    [
        # version 2: the lowest limit on the way up counts
        (
            "0::/user.slice/job\n",
            UNIFIED,
            {"user.slice/job/cpu.max": "max 100000\n", "user.slice/cpu.max": "250000 100000\n"},
            2.5,
        ),
        ("0::/a\n", UNIFIED, {"a/cpu.max": "max 100000\n"}, None),
        # a container sees its own group as the root, whatever the path says
        ("0::/\n", UNIFIED, {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/../../elsewhere\n", UNIFIED, {"cpu.max": "50000 100000\n"}, 0.5),
        # version 1, mounted from within: docker
        (
            "4:cpu,cpuacct:/docker/0123\n",
            "40 30 0:30 /docker/0123 {top} ro - cgroup cgroup rw,cpu,cpuacct\n",
            {"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        (
            "4:cpu,cpuacct:/\n",
            "40 30 0:30 / {top} ro - cgroup cgroup rw,cpu,cpuacct\n",
            {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"},
            None,
        ),
        # another controller's mount
        (
            "4:memory:/\n5:cpu:/\n",
            "40 30 0:30 / {top} ro - cgroup cgroup rw,memory\n",
            {"cpu.max": "100000 100000\n"},
            None,
        ),
        ("nonsense\n", UNIFIED, {}, None),
    ],
)
def test_limits(
    tmp_path: Path, groups: str, mounts: str, files: dict[str, str], cores: float | None
) -> None:
    assert client.cpu_quota(make(tmp_path, groups, mounts, files)) == cores


def test_a_system_without_control_groups(tmp_path: Path) -> None:
    assert client.cpu_quota(str(tmp_path)) is None

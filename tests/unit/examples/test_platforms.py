"""The compiled worker and its fallback do the same."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pexecd.jobs import read_job
from tests.unit.examples.jobs import EXAMPLES, tasks

PLATFORMS = EXAMPLES / "platforms"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program, compiled in a copy of the example for the platform of this machine."""
    folder = tmp_path_factory.mktemp("platforms") / "copy"
    shutil.copytree(PLATFORMS, folder, ignore=shutil.ignore_patterns("build"))
    subprocess.run(["make"], cwd=folder, check=True, capture_output=True)
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return folder / "build" / f"primes.{platform.system().lower()}-{machine}"


def count(command: list[str], first: int, end: int) -> str:
    command = [*command, str(first), str(end)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("first", "end", "primes"),
    [(0, 2, 0), (0, 10, 4), (2, 3, 1), (3, 5, 1), (0, 10000, 1229), (1990000, 2000000, None)],
)
def test_both_versions_count_the_same(
    compiled: Path, first: int, end: int, primes: int | None
) -> None:
    in_c = count([str(compiled)], first, end)
    in_python = count([sys.executable, str(PLATFORMS / "primes.py")], first, end)

    assert in_c == in_python
    if primes is not None:
        assert in_c == f"{primes}\n"


def test_the_job_covers_what_the_readme_sums_up(compiled: Path) -> None:
    job_file = compiled.parents[1] / "primes.ini"
    own = compiled.suffix.removeprefix(".")
    job_file.write_text(job_file.read_text().replace("linux-x86_64", own))
    job = read_job(job_file)

    total = sum(
        int(count([str(job.worker.executables[own])], *map(int, task.arguments[1:])))
        for _, task in tasks(job)
    )

    assert total == 148933
    assert f"Their sum is {total}" in (PLATFORMS / "README.md").read_text()
    assert job.worker.executables["any"].name == "primes.py"


def test_another_platform_can_be_named_for_a_cross_compiler(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(PLATFORMS, folder, ignore=shutil.ignore_patterns("build"))
    subprocess.run(
        ["make", "PLATFORM=linux-riscv64", "CC=cc"], cwd=folder, check=True, capture_output=True
    )

    assert os.listdir(folder / "build") == ["primes.linux-riscv64"]

"""The examples do what their READMEs say, from a copy of their folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.running import PEXECD
from tests.waiting import LONG

EXAMPLES = Path(__file__).parents[2] / "examples"

#: Of the two-dimensional Ising model, by Onsager: 2 / ln(1 + sqrt(2)).
CRITICAL = 2.269


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=3 * LONG, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pexecd(folder: Path, job: str) -> list[str]:
    """Run a job of an example; the lines of its table of results."""
    assert "0 failed" in run(folder, *PEXECD, "run", job)
    match = re.search(r"^output = table (.*)$", (folder / job).read_text(), re.MULTILINE)
    return (folder / match[1]).read_text().splitlines() if match else []


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    copy: Path = tmp_path / request.param
    shutil.copytree(
        EXAMPLES / request.param,
        copy,
        ignore=shutil.ignore_patterns("*.pexecd", "results*", "__pycache__"),
    )
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("example", ["ising"], indirect=True)
def test_the_magnetisation_falls_at_the_critical_temperature(example: Path) -> None:
    lines = pexecd(example, "ising.ini")
    assert len(lines) == 1 + 288
    shown = run(example, sys.executable, "show.py", "results.txt")
    crossing = re.search(r"crosses: ([0-9.]+)", shown)
    assert crossing, shown
    assert abs(float(crossing[1]) - CRITICAL) < 0.03


@pytest.mark.parametrize("example", ["on-the-hosts"], indirect=True)
def test_a_program_on_the_hosts_with_and_without_shell(example: Path) -> None:
    plain, shell = pexecd(example, "bessel.ini"), pexecd(example, "shell.ini")
    assert plain == shell
    assert len(plain) == 1 + 24


@pytest.mark.parametrize("example", ["templates"], indirect=True)
def test_templates_inputs_and_functions(example: Path) -> None:
    assert len(pexecd(example, "pendulum.ini")) == 1 + 30
    spectra = (example / "spectra.txt").read_text()
    assert re.findall(r"^# task ([0-9]+):", spectra, re.MULTILINE) == [*map(str, range(1, 31))]


@pytest.mark.parametrize("example", ["platforms"], indirect=True)
def test_workers_for_platforms(example: Path) -> None:
    run(example, "make")
    lines = pexecd(example, "primes.ini")
    assert sum(int(line.split("|")[-1]) for line in lines[1:]) == 148933

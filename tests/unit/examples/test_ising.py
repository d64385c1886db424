"""The Ising worker's physics, its table, and the script that reads its results."""

import math
import runpy
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from pexecd.jobs import read_job
from tests.unit.examples.jobs import EXAMPLES, run, tasks

ISING = EXAMPLES / "ising"
WORKER = runpy.run_path(str(ISING / "ising.py"))
SHOW = runpy.run_path(str(ISING / "show.py"))


@pytest.mark.parametrize("temperature", [1.6, 2.0])
def test_the_cold_lattice_has_the_exact_magnetisation_of_an_infinite_one(
    temperature: float,
) -> None:
    exact = (1 - math.sinh(2 / temperature) ** -4) ** (1 / 8)

    assert WORKER["magnetisation"](32, temperature, seed=1) == pytest.approx(exact, abs=0.015)


def test_the_hot_lattice_is_disordered() -> None:
    assert WORKER["magnetisation"](32, 3.5, seed=1) < 0.08


@pytest.mark.parametrize("temperature", [1.8, 2.5, 4.0])
def test_a_small_lattice_agrees_with_the_sum_over_all_its_states(temperature: float) -> None:
    size = 3
    neighbours = WORKER["neighbours_on_torus"](size)
    weights = total = 0.0
    for spins in product((-1, 1), repeat=size**2):
        bonds = sum(spins[site] * spins[other] for site in range(9) for other in neighbours[site])
        weight = math.exp(bonds / 2 / temperature)
        weights += weight
        total += weight * abs(sum(spins)) / size**2

    assert WORKER["magnetisation"](size, temperature, seed=1) == pytest.approx(
        total / weights, abs=0.01
    )


def test_the_job_has_a_run_for_every_line_of_the_table(tmp_path: Path) -> None:
    job = read_job(ISING / "ising.ini")
    commands = [" ".join(task.arguments) for _, task in tasks(job)]

    assert len(set(commands)) == job.tasks == 288
    assert commands[0] == "ising -L 8 -T 1.60 --seed 1"
    first = next(task for _, task in tasks(job))
    assert float(run(job, first, tmp_path)["output"]) == pytest.approx(0.98, abs=0.005)


def test_the_same_seed_gives_the_same_line_and_another_seed_another() -> None:
    def line(seed: int) -> str:
        command = [sys.executable, str(ISING / "ising.py"), "-L8", "-T2.3", f"--seed={seed}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert line(1) == line(1) != line(2)
    assert 0 < float(line(1)) < 1
    assert line(1).count("\n") == 1


def test_the_table_is_what_its_script_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ISING / "make_sweep.py")], check=True, cwd=tmp_path)

    assert (tmp_path / "sweep.txt").read_bytes() == (ISING / "sweep.txt").read_bytes()


@pytest.mark.parametrize("critical", [2.169, 2.269])
def test_show_finds_where_the_scaled_curves_cross(tmp_path: Path, critical: float) -> None:
    results = tmp_path / "results.txt"
    with results.open("w", encoding="utf-8") as table:
        table.write("L|T|seed|output\n")
        for size, temperature in product([8, 16, 32], [2.0, 2.1, 2.2, 2.3, 2.4, 2.5]):
            scaled = 1 / (1 + math.exp((temperature - critical) * size / 4))
            for seed, noise in enumerate([-0.01, 0.01]):
                magnetisation = scaled * size ** (-1 / 8) + noise
                table.write(f"{size}|{temperature:.2f}|{seed}|{magnetisation:.6f}\n")

    shown = subprocess.run(
        [sys.executable, str(ISING / "show.py"), str(results)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    found = float(shown.split("crosses: ")[1].split()[0])
    assert found == pytest.approx(critical, abs=0.01)
    plot = [line for line in shown.splitlines() if line[5:7] == " |"]
    assert [line.count("c") for line in plot] == [1] * 6


def test_show_names_the_temperatures_between_which_a_curve_falls_fastest() -> None:
    assert SHOW["steepest"]({1.0: 0.9, 2.0: 0.7, 2.1: 0.6, 2.2: 0.3, 3.0: 0.1}) == (2.1, 2.2)


def test_show_can_do_with_a_single_size(tmp_path: Path) -> None:
    (tmp_path / "results.txt").write_text("L|T|seed|output\n8|2.0|1|0.9\n8|2.5|1|0.6\n")
    shutil.copy(ISING / "show.py", tmp_path)

    shown = subprocess.run(
        [sys.executable, "show.py"], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout

    assert "between T = 2.00 and 2.50" in shown
    assert "crosses" not in shown

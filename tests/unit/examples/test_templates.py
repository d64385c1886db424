"""The pendulum's physics, and the functions that look at its results and collect them."""

import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest

from pexecd.jobs import Renderer, read_job
from tests.unit.examples.jobs import EXAMPLES, run

FOLDER = EXAMPLES / "templates"
JOB = read_job(FOLDER / "pendulum.ini")
VALIDATE = runpy.run_path(str(FOLDER / "checks.py"))["validate"]
COLLECT = runpy.run_path(str(FOLDER / "collect.py"))["collect"]


@dataclass
class Content:
    """What the functions use of a result's content."""

    content: str

    def text(self) -> str:
        return self.content


Result = dict[str, Content]


def swing(folder: Path, **parameters: str) -> Result:
    """Run the task with these parameters in a folder of its own."""
    folder.mkdir()
    task = Renderer(JOB).render([parameters[name] for name in JOB.columns])
    return {name: Content(text) for name, text in run(JOB, task, folder).items()}


def peaks(result: Result) -> list[str]:
    """The frequencies, strongest first."""
    lines = [line.split() for line in result["spectrum"].text().splitlines()]
    return [line[0] for line in sorted(lines, key=lambda line: -float(line[1]))]


def test_a_weak_force_gives_the_swing_that_linear_theory_says(tmp_path: Path) -> None:
    result = swing(tmp_path / "weak", drive="sine", strength="0.05", seed="1")

    damping, frequency = 0.5, 0.6667
    resonance = (1 - frequency**2) ** 2 + (damping * frequency) ** 2
    expected = (0.05 * frequency) ** 2 / resonance / 2
    assert float(result["output"].text()) == pytest.approx(expected, rel=0.01)
    assert peaks(result)[0] == "1.0000"


def test_a_strong_force_brings_frequencies_between_those_of_the_drive(tmp_path: Path) -> None:
    regular = swing(tmp_path / "regular", drive="sine", strength="0.90", seed="1")
    chaotic = swing(tmp_path / "chaotic", drive="sine", strength="1.15", seed="1")

    assert all(frequency.endswith(".0000") for frequency in peaks(regular)[:3])
    assert any(not frequency.endswith(".0000") for frequency in peaks(chaotic)[:3])


@pytest.mark.parametrize("drive", ["sine", "square", "kick"])
def test_the_results_of_the_worker_are_valid(tmp_path: Path, drive: str) -> None:
    parameters = {"drive": drive, "strength": "1.50", "seed": "1"}

    assert VALIDATE(parameters, swing(tmp_path / "run", **parameters))


def test_the_start_matters_for_a_chaotic_swing_alone(tmp_path: Path) -> None:
    def mean_square(strength: str, seed: str, name: str) -> float:
        result = swing(tmp_path / name, drive="sine", strength=strength, seed=seed)
        return float(result["output"].text())

    assert mean_square("0.90", "1", "a") == pytest.approx(mean_square("0.90", "2", "b"), rel=1e-3)
    assert mean_square("1.15", "1", "c") == mean_square("1.15", "1", "d")
    assert mean_square("1.15", "1", "e") != pytest.approx(mean_square("1.15", "2", "f"), rel=1e-3)


def test_a_spectrum_that_does_not_belong_to_the_swing_is_not_valid(tmp_path: Path) -> None:
    result = swing(tmp_path / "run", drive="sine", strength="0.90", seed="1")
    spectrum = result["spectrum"].text()

    for wrong in [spectrum.replace("e+00", "e-01", 1), spectrum[:-20], "no numbers\n", ""]:
        assert wrong != spectrum
        assert not VALIDATE({}, {**result, "spectrum": Content(wrong)})
    assert not VALIDATE({}, {**result, "output": Content("nan\n")})
    assert not VALIDATE({}, {**result, "output": Content("oops\n")})


def test_peaks_are_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = {"spectrum": Content("0.0000 1e-9\n0.0625 2e-3\n1.0000 9e-4\n")}

    for seed in ["1", "2", "1"]:
        COLLECT({"drive": "sine", "strength": "1.50", "seed": seed}, result)

    assert (tmp_path / "peaks.txt").read_text() == (
        "sine | 1.50 | 1 | 0.0625\nsine | 1.50 | 2 | 0.0625\n"
    )

"""The two command lines compute Bessel's function, one without a shell, one with."""

import math
from pathlib import Path

import pytest

from pexecd.jobs import read_job
from tests.unit.examples.jobs import EXAMPLES, run, tasks


def bessel(n: int, x: float) -> float:
    """The function's power series."""
    return math.fsum(
        (-1) ** m / math.factorial(m) / math.factorial(m + n) * (x / 2) ** (2 * m + n)
        for m in range(60)
    )


@pytest.mark.parametrize("name", ["bessel.ini", "shell.ini"])
def test_every_task_computes_the_function(tmp_path: Path, name: str) -> None:
    job = read_job(EXAMPLES / "on-the-hosts" / name)

    computed = {
        (int(parameters["n"]), float(parameters["x"])): run(job, task, tmp_path)["output"]
        for parameters, task in tasks(job)
    }

    assert len(computed) == 24
    for (n, x), output in computed.items():
        assert float(output) == pytest.approx(bessel(n, x), abs=2e-9)

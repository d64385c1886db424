"""What every worker that is copied to hosts must be."""

import ast
import os

import pytest

from tests.unit.examples.jobs import EXAMPLES


@pytest.mark.parametrize(
    "worker", ["ising/ising.py", "templates/pendulum.py", "platforms/primes.py"]
)
def test_a_python_worker_starts_by_itself_on_python_3_6(worker: str) -> None:
    path = EXAMPLES / worker

    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env python3\n")
    ast.parse(path.read_text(), feature_version=(3, 6))

"""The foreign clients can be read by their interpreters."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "command",
    [["perl", "-cw", "client.pl"], ["sh", "-n", "client.sh"], [sys.executable, "odd.py", "--help"]],
)
def test_a_client_can_be_read(command: list[str]) -> None:
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr

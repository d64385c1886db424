"""What every test has."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a current folder of its own: trial's ``mktemp`` writes there."""
    monkeypatch.chdir(tmp_path)

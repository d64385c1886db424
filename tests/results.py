"""What the tests of validation and collection have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pexecd.jobs.templates import CommandPattern
from pexecd.jobs.values import Job, WorkerRule
from pexecd.ports import StoredResult


def a_job(folder: Path, **settings: Any) -> Job:
    """A job of two parameters, ``L`` and ``T``, that says no more than the settings."""
    return Job(
        path=folder / "job.ini",
        folder=folder,
        name="job",
        parameters=folder / "table",
        columns=("L", "T"),
        worker=WorkerRule("w", cast("CommandPattern", None)),
        hosts=(),
        state=folder / "job.pexecd",
        **settings,
    )


def inline(data: bytes, name: str = "output") -> StoredResult:
    """A small result."""
    return StoredResult(name, len(data), data, None)

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from pexecd.errors import BadInputError
from pexecd.jobs import read_job
from pexecd.jobs.values import Job

#: The least a job file can say.
LEAST = """\
[job]
parameters = sweep.txt
[worker]
command = echo $L $T
"""


class Folder:
    """A folder with a good parameter table, for job files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("sweep.txt", "L | T | seed\n16 | 2.2 | 1\n32 | 2.3 | 2\n")

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())
        return path

    def job(self, text: str = LEAST, name: str = "job.ini") -> Job:
        return read_job(self.write(name, text))

    def mistakes(self, text: str | bytes, name: str = "job.ini") -> list[str]:
        """What is said of a job file, each as ``FILE:LINE: TEXT`` without the folder."""
        try:
            read_job(self.write(name, text))
        except BadInputError as error:
            return [str(one).replace(f"{self.path}/", "") for one in error.mistakes]
        return []


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)

"""What a task is: decided by what runs, not by its place in the table (SPEC section 4)."""

# Tests: tests/unit/jobs/test_identity.py

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pexecd.jobs.render import Renderer
from pexecd.jobs.values import FileContent, Job

#: Bytes of a digest: two of a million different tasks share one with a chance of 10 ** -27.
SIZE = 16
#: Digests of input files that are remembered, so that a file of many tasks is read once.
_REMEMBERED = 10_000
#: Arguments, names and values hold no NUL: this ends each of them.
_END = "\0"


class Identity:
    """Tells the tasks of a job by what they run: arguments, environment and inputs.

    Worker, results and validation are the recipe, the same for all tasks: not in here.
    Reads input files, so it blocks.
    """

    def __init__(self, job: Job) -> None:
        self._renderer = Renderer(job)
        self._files: dict[Path, bytes] = {}
        self._begin = hashlib.blake2b(digest_size=SIZE)
        for name, value in sorted(job.env.items()):
            self._begin.update(_words((name, value)))
        self._begin.update(b"\0")

    def digest(self, cells: Sequence[str]) -> bytes:
        """A digest of the task of one line of the table.

        Raises:
            OSError: an input file cannot be read.
        """
        rendered = self._renderer.render(cells)
        digest = self._begin.copy()
        digest.update(_words(rendered.arguments))
        for name, value in rendered.environment.items():
            digest.update(_words(("", name, value)))
        for name, content in rendered.inputs:
            held = self._of_file(content) if isinstance(content, FileContent) else content
            digest.update(_words(("", "", name, str(len(held)))))
            digest.update(held)
        return digest.digest()

    def _of_file(self, content: FileContent) -> bytes:
        """A digest of a file, which stands for its content."""
        found = self._files.get(content.path)
        if found is None:
            with content.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
            if len(self._files) >= _REMEMBERED:
                self._files.clear()
            self._files[content.path] = found
        return found


def _words(words: Sequence[str]) -> bytes:
    return (_END.join(words) + _END).encode("utf-8", "surrogateescape")

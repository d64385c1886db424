"""What a task is: decided by what runs, not by its place in the table (SPEC section 4)."""

# Tests: tests/unit/jobs/test_identity.py

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from pexecd.jobs.templates import Pattern
from pexecd.jobs.values import InputKind, InputRule, Job

#: Bytes of a digest: two of a million different tasks share one with a chance of 10 ** -27.
SIZE = 16
#: Digests of input files that are remembered, so that a file of many tasks is read once.
_REMEMBERED = 10_000
#: Arguments, names and values hold no NUL: this ends each of them.
_END = "\0"

#: A text to fill in: literal texts, and places of cells in their line.
_Parts: TypeAlias = list[str | int]


class Identity:
    """Tells the tasks of a job by what they run: arguments, environment and inputs.

    Worker, results and validation are the recipe, the same for all tasks: not in here.
    Reads input files, so it blocks.

    Args:
        form: what decides, with the cells of a line, what its task is; see ``of``.
        folder: of the job: where the paths of input files count from.

    Attributes:
        form: the same, to be kept: with it the digests of the same lines can be made again.
        reads_files: they depend on files, too, whose content may change: the digests
            themselves must be kept.
    """

    def __init__(self, form: str, folder: Path) -> None:
        words, inputs = json.loads(form)
        self.form = form
        self.reads_files = any(is_file for _, is_file, _ in inputs)
        self._folder = folder
        self._words = _Text(words)
        # In which order the job file names them decides nothing.
        self._inputs = [(name, is_file, _Text(parts)) for name, is_file, parts in sorted(inputs)]
        self._files: dict[Path, bytes] = {}

    @classmethod
    def of(cls, job: Job) -> Identity:
        """The identity of a job's tasks."""
        words: _Parts = []
        for name, value in sorted(job.env.items()):
            words += (name, _END, value, _END)
        words.append(_END)
        for argument in job.worker.command.compiled(job.columns):
            words += (*argument, _END)
        if job.worker.shell:
            for place, name in enumerate(job.columns):
                words += (_END, name, _END, place, _END)
        inputs = [
            (rule.file, rule.kind is InputKind.FILE, _content_of(rule, job.columns))
            for rule in job.inputs
        ]
        return cls(json.dumps([words, inputs]), job.folder)

    def digest(self, cells: Sequence[str]) -> bytes:
        """A digest of the task of one line of the table.

        Raises:
            OSError: an input file cannot be read.
        """
        content = self._words.fill(cells)
        for name, is_file, text in self._inputs:
            held = text.fill(cells)
            if is_file:
                held = self._of_file(self._folder / held.decode("utf-8", "surrogateescape"))
            content += _bytes(f"{_END}{_END}{name}{_END}{len(held)}{_END}") + held
        return hashlib.blake2b(content, digest_size=SIZE).digest()

    def _of_file(self, path: Path) -> bytes:
        """A digest of a file, which stands for its content."""
        found = self._files.get(path)
        if found is None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
            if len(self._files) >= _REMEMBERED:
                self._files.clear()
            self._files[path] = found
        return found


class _Text:
    """A text made to be filled in very often."""

    def __init__(self, parts: Iterable[str | int]) -> None:
        #: Literal texts in a row joined; empty where a cell belongs.
        self._parts: list[str] = [""]
        #: Where a cell belongs, and which.
        self._holes: list[tuple[int, int]] = []
        for part in parts:
            if isinstance(part, int):
                self._holes.append((len(self._parts), part))
                self._parts += ("", "")
            else:
                self._parts[-1] += part

    def fill(self, cells: Sequence[str]) -> bytes:
        parts = self._parts.copy()
        for place, cell in self._holes:
            parts[place] = cells[cell]
        return _bytes("".join(parts))


def _content_of(rule: InputRule, columns: Sequence[str]) -> _Parts:
    source = rule.source
    return source.compiled(columns) if isinstance(source, Pattern) else [columns.index(source)]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

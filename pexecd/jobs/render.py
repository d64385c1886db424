"""One line of the table put into a job's patterns: what a worker is run with."""

# Tests: tests/unit/jobs/test_render.py

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pexecd.jobs.templates import Pattern
from pexecd.jobs.values import FileContent, InputKind, InputRule, Job, Rendered

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Renderer:
    """Fills in a job's command and inputs, once for each task."""

    def __init__(self, job: Job) -> None:
        self._columns = job.columns
        self._command = job.worker.command
        #: A line's command, in POSIX shell quoting, of its cells.
        self.line = job.worker.command.line_of_cells(job.columns)
        self._shell = job.worker.shell
        self._inputs = [(rule.file, _content_of(rule, job.folder)) for rule in job.inputs]

    def parameters(self, cells: Sequence[str]) -> dict[str, str]:
        """The names of a line's cells, and the cells."""
        return dict(zip(self._columns, cells, strict=True))

    def environment(self, cells: Sequence[str]) -> Mapping[str, str]:
        """Variables beyond the job's ``[env]``: the parameters, with ``shell = yes``."""
        return self.parameters(cells) if self._shell else _NOTHING

    def inputs(self, cells: Sequence[str]) -> Sequence[tuple[str, bytes | FileContent]]:
        """File name (or ``stdin``) and content of each input."""
        if not self._inputs:
            return ()
        values = self.parameters(cells)
        return [(file, content(values)) for file, content in self._inputs]

    def render(self, cells: Sequence[str]) -> Rendered:
        """What the task of a line is run with."""
        return Rendered(
            arguments=tuple(self._command.words(self.parameters(cells))),
            environment=self.environment(cells),
            inputs=tuple(self.inputs(cells)),
        )


def _content_of(
    rule: InputRule, folder: Path
) -> Callable[[Mapping[str, str]], bytes | FileContent]:
    """The way from parameters to the content of an input."""
    source = rule.source
    if not isinstance(source, Pattern):
        return lambda values: values[source].encode()
    if rule.kind is InputKind.TEMPLATE:
        return lambda values: source.fill(values).encode(errors="surrogateescape")
    return lambda values: FileContent(folder / source.fill(values))

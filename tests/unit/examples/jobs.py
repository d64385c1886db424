"""The examples' jobs, read as pexecd reads them, and their tasks, run by hand."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pexecd.jobs import Renderer, read_table
from pexecd.jobs.values import FileContent, Job, Rendered

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def tasks(job: Job) -> Iterator[tuple[dict[str, str], Rendered]]:
    """Each line of the job's table: its parameters, and what is run with them."""
    renderer = Renderer(job)
    for cells in read_table(job):
        yield renderer.parameters(cells), renderer.render(cells)


def run(job: Job, task: Rendered, folder: Path) -> dict[str, str]:
    """Run a task in a folder, as a client does; the text of each result."""
    stdin = b""
    for name, content in task.inputs:
        found = content.path.read_bytes() if isinstance(content, FileContent) else content
        if name == "stdin":
            stdin = found
        else:
            (folder / name).write_bytes(found)
    program, *arguments = task.arguments
    if job.worker.executables and program == job.worker.name:
        program = str(job.worker.executables["any"])
    stdout = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env={**os.environ, **task.environment},
        input=stdin,
        check=True,
        capture_output=True,
    ).stdout.decode()
    return {
        rule.name: stdout if rule.source == "stdout" else (folder / rule.source).read_text()
        for rule in job.results
    }

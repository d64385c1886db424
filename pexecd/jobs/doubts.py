"""What is right by the rules, but hardly what somebody meant: a night's work would be wrong."""

# Tests: tests/unit/jobs/test_doubts.py

from __future__ import annotations

import re
from collections.abc import Iterator

from pexecd.jobs.values import Job

#: Words that are something to a shell. One in quotes, or with a backslash, is meant as it is.
_SHELLS = re.compile(r"[|&;]+|[0-9]*(?:<|>>?)[^'\"\\]*|~/[^'\"\\]*|[^'\"\\]*(?:;|`[^'\"\\]*)")
#: GNU parallel's replacement strings.
_BRACES = re.compile(r"(?<![$\\])\{(?:[#%./]*|[0-9]+[./]*)\}")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_INTERPRETER = re.compile(r"(?:.*/)?(?:python|perl|ruby|node|julia|Rscript|sh|bash)[0-9.]*")


def doubts(job: Job) -> Iterator[str]:
    """One line for each; each says how to write what may be meant, or how to silence it."""
    yield from _command(job)
    yield from _executable(job)
    yield from _env(job)


def _command(job: Job) -> Iterator[str]:
    for word in job.worker.command.written:
        braces = "'" not in word and '"' not in word and _BRACES.search(word)
        if braces:
            yield (
                f"command: {braces[0]} goes to the program as it is; parameters are written "
                f"{', '.join(f'${name}' for name in job.columns)} (put it in quotes if it is meant)"
            )
        elif _SHELLS.fullmatch(word):
            yield (
                f"command: {word} goes to the program as it is, for there is no shell; give "
                "[worker] shell = yes (or put it in quotes if it is meant)"
            )


def _executable(job: Job) -> Iterator[str]:
    """It is never run, as far as can be told: scripts among the inputs may call it, too."""
    worker = job.worker
    if not worker.executables or job.inputs:
        return
    name = re.escape(worker.name)
    named = re.search(rf"(?<![\w./-]){name}(?![\w.-])", worker.command.text)
    words = worker.command.written
    given_away = (
        len(words) > 1 and words[1] == worker.name and _INTERPRETER.fullmatch(words[0]) is not None
    )
    if not named or given_away:
        yield (
            f"command: it does not run the executable, which is not in the task's folder; begin "
            f"the command with {worker.name}, the worker's name, or leave the executable out"
        )


def _env(job: Job) -> Iterator[str]:
    for key, value in job.env.items():
        for found in _VARIABLE.finditer(value):
            name = found[1] or found[2]
            if name in {key, "HOME", "PATH", *job.columns}:
                yield (
                    f"[env] {key}: {found[0]} is not filled in, values are as they are written; "
                    f"a command with shell = yes can set {key} itself"
                )

"""Typed access to the keys of a job file; what is wrong is noted, and a default returned."""

# Tests: tests/unit/jobs/test_jobfile.py

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pexecd.errors import BadInputError, Mistake
from pexecd.jobs.mistakes import closest, did_you_mean, one_of, unreadable
from pexecd.jobs.reader import Entry, Section, read_sections

D = TypeVar("D")

_WHOLE = re.compile(r"[+-]?[0-9]+")
#: No limit has more digits; Python would refuse to read some thousands of them.
_MOST_DIGITS = 19
_SYSTEM_MACHINE = re.compile(r"[a-z0-9]+-[a-z0-9_]+")
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

#: So alike must keys of two sections be: 'user' is no mistake for 'cluster'.
_LIKENESS = 0.75
_JOB_FILE_EXPECTED = ", a job file was expected"


class JobText:
    """A job file that is being read: its sections, and all mistakes found so far.

    Raises:
        BadInputError: there is no such file, it cannot be read, or it is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = str(path)
        self.folder = path.absolute().parent
        self.mistakes: list[Mistake] = []
        #: Files that the job reads, by normalised path, and who names them.
        self.sources = {Path(os.path.normpath(path.absolute())): "the job file itself"}
        problem = unreadable(path)
        if problem:
            self.mistake(0, problem.removesuffix(", a file was expected") + _JOB_FILE_EXPECTED)
            raise BadInputError(self.mistakes)
        self.sections = read_sections(path.read_bytes(), self.file, self.mistakes)
        if self.mistakes and not self.sections:
            # The table, perhaps, which may have a million lines: each of them is wrong.
            self.mistakes = []
            self.mistake(
                0,
                f"has no section such as [job]{_JOB_FILE_EXPECTED}, which names the parameter "
                "table (parameters = FILE)",
            )
            raise BadInputError(self.mistakes)

    def mistake(self, line: int, text: str) -> None:
        self.mistakes.append(Mistake(self.file, line, text))

    def fields(self, name: str) -> Fields:
        return Fields(self, self.sections.get(name, Section(name, 0)))

    def resolve(self, name: str) -> Path:
        """The absolute path of a file that the job names: it counts from the job's folder."""
        return self.folder / os.path.expanduser(name) if _at_home(name) else self.folder / name

    def shown(self, name: str) -> str:
        """A file that the job names, as the user would name it from where they stand."""
        return os.path.expanduser(name) if _at_home(name) else str(self.path.parent / name)


class Fields:
    """The keys of one section."""

    def __init__(self, text: JobText, section: Section) -> None:
        self.text = text
        self.entries = section.entries
        self.name = section.name
        self.line = section.line

    def mistake(self, entry: Entry, problem: str) -> None:
        """Note a mistake in a line: ``key: problem``."""
        self.text.mistake(entry.line, f"{entry.key}: {problem}")

    def string(self, key: str) -> Entry | None:
        """The entry, if it is there; an empty value is a mistake."""
        entry = self.entries.get(key)
        if entry is not None and not entry.value:
            self.mistake(entry, "is empty, a value was expected (or leave the line out)")
            return None
        return entry

    def required(self, key: str, expected: str) -> Entry | None:
        """The entry; it is a mistake if it is not there."""
        if key not in self.entries:
            self.text.mistake(self.line, f"[{self.name}] has no '{key}', {expected} expected")
            return None
        return self.string(key)

    def whole(
        self, key: str, default: D, least: int = 0, most: int = 10**9, unit: str = ""
    ) -> int | D:
        """A whole number within limits; ``unit`` is what it counts, for those who wrote ``1h``."""
        entry = self.string(key)
        if entry is None:
            return default
        expected = f"{least} to {most}{f' {unit}' if unit else ''} expected"
        if not _WHOLE.fullmatch(entry.value):
            self.mistake(entry, f"'{entry.value}' is no whole number, {expected}")
        elif len(entry.value) > _MOST_DIGITS or not least <= int(entry.value) <= most:
            self.mistake(entry, f"{entry.value} is out of range, {expected}")
        else:
            return int(entry.value)
        return default

    def yes_no(self, key: str, default: bool) -> bool:
        return self.choice(key, {"yes": True, "no": False}, default)

    def choice(self, key: str, words: dict[str, D], default: D) -> D:
        """One of some words."""
        entry = self.string(key)
        if entry is None:
            return default
        if entry.value not in words:
            self.mistake(entry, f"'{entry.value}': {' or '.join(words)} expected")
        return words.get(entry.value, default)

    def matching(self, key: str, problem_of: Callable[[str], str | None]) -> str | None:
        """A value that ``problem_of`` finds nothing wrong with."""
        entry = self.string(key)
        if entry is None:
            return None
        problem = problem_of(entry.value)
        if problem:
            self.mistake(entry, problem)
            return None
        return entry.value

    def file(self, entry: Entry | None, name: str | None = None) -> Path | None:
        """The path of a file that must be there to be read; ``name`` if not the whole value."""
        if entry is None:
            return None
        name = entry.value if name is None else name
        path = self.text.resolve(name)
        problem = unreadable(path)
        if problem:
            self.mistake(entry, f"{name} {problem}")
            return None
        self.text.sources[Path(os.path.normpath(path))] = f"[{self.name}] {entry.key}"
        return path

    def only(
        self,
        known: Collection[str],
        free: str | None = None,
        elsewhere: Mapping[str, str] = MappingProxyType({}),
        expected: str | None = None,
    ) -> None:
        """Every other key is a mistake.

        Args:
            known: the keys there are.
            free: keys that begin with this are checked by somebody else.
            elsewhere: keys of other sections, and which.
            expected: what is said of the known keys to one who is not near any; default: all.
        """
        for entry in self.entries.values():
            if entry.key in known or (free and entry.key.startswith(free)):
                continue
            hint = did_you_mean(entry.key, known)
            if not hint and entry.key in elsewhere:
                hint = f", it belongs to [{elsewhere[entry.key]}]"
            hint = hint or f", {expected or one_of(known)} expected{_other(entry.key, elsewhere)}"
            self.text.mistake(entry.line, f"[{self.name}] has no key '{entry.key}'{hint}")


def _other(key: str, elsewhere: Mapping[str, str]) -> str:
    """A key of another section that this may be."""
    close = closest(key, elsewhere, _LIKENESS)
    return f" (or did you mean '{close}' of [{elsewhere[close]}]?)" if close else ""


def platform_word(word: str) -> str | None:
    """``linux-x86_64`` for ``linux-amd64`` (SPEC section 1); None if it is no platform."""
    if not _SYSTEM_MACHINE.fullmatch(word):
        return None
    system, _, machine = word.partition("-")
    return f"{system}-{_MACHINES.get(machine, machine)}"


def _at_home(name: str) -> bool:
    """A folder that is called ``~`` is never meant."""
    return name == "~" or name.startswith("~/")

"""The job file's text: sections of ``key = value`` lines, with their line numbers.

``configparser`` knows no line numbers, changes the case of keys and gives ``%`` a meaning.
"""

# Tests: tests/unit/jobs/test_reader.py

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pexecd.errors import Mistake


@dataclass(frozen=True, slots=True)
class Entry:
    """A ``key = value`` line; blanks around either are gone."""

    key: str
    value: str
    line: int


@dataclass(frozen=True, slots=True)
class Section:
    """What stands below a ``[name]`` heading."""

    name: str
    #: The line of its heading.
    line: int
    entries: dict[str, Entry] = field(default_factory=dict)


def read_sections(data: bytes, file: str, mistakes: list[Mistake]) -> dict[str, Section]:
    """Read the sections of a file.

    Args:
        data: the file's content.
        file: its name, for the mistakes.
        mistakes: what is wrong is added here; all that is right is returned.
    """
    sections: dict[str, Section] = {}
    current: Section | None = None

    def mistake(line: int, text: str) -> None:
        mistakes.append(Mistake(file, line, text))

    for number, raw in text_lines(data, file, mistakes):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            name = line[1:-1].strip()
            if line[-1] != "]" or not name:
                mistake(number, f"'{line}': a heading like [job] expected, alone on its line")
                # what follows belongs to nothing we know; its keys are no mistakes of their own
                current = Section("", number)
                continue
            current = Section(name, number)
            first = sections.setdefault(name, current)
            if first is not current:
                mistake(number, f"[{name}] is there twice, it began in line {first.line}")
                current = first
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            mistake(number, f"'{line}': a line 'key = value' expected (a value is one line)")
        elif current is None:
            mistake(number, f"'{key}' stands before the first section, [job] expected")
        elif key in current.entries:
            first_line = current.entries[key].line
            mistake(number, f"'{key}' is there twice, it was set in line {first_line}")
        else:
            current.entries[key] = Entry(key, value, number)
    return sections


def text_lines(data: bytes, file: str, mistakes: list[Mistake]) -> Iterator[tuple[int, str]]:
    """The lines of a text file that can be read, numbered from 1.

    UTF-8; a byte order mark at the beginning and CRLF are accepted.
    """
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        problem = bad_bytes(raw := raw.removesuffix(b"\r"))
        if problem:
            mistakes.append(Mistake(file, number, problem))
        else:
            yield number, raw.decode()


def bad_bytes(line: bytes) -> str | None:
    """What keeps these bytes from being a line of text, or None."""
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8, UTF-8 expected"
    # neither could be passed on: to a program as an argument, in one line of the protocol
    if b"\0" in line:
        return "a NUL byte, text expected"
    if b"\r" in line:
        return "a carriage return within the line, lines end with LF or CRLF"
    return None

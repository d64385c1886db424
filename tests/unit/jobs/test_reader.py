from __future__ import annotations

import pytest

from pexecd.errors import Mistake
from pexecd.jobs.reader import Section, read_sections


def read(data: bytes) -> tuple[dict[str, Section], list[str]]:
    mistakes: list[Mistake] = []
    sections = read_sections(data, "job.ini", mistakes)
    return sections, [str(one) for one in mistakes]


def values(data: bytes) -> dict[str, dict[str, str]]:
    sections, mistakes = read(data)
    assert mistakes == []
    return {
        section.name: {entry.key: entry.value for entry in section.entries.values()}
        for section in sections.values()
    }


def test_keys_and_values_are_kept_as_they_are_written() -> None:
    text = b"""\
# comment
  ; another
[worker]
Command = a; b # c %s %(x)s = d
  executable.linux-x86_64=x y
empty =

[ job ]
"""

    assert values(text) == {
        "worker": {
            "Command": "a; b # c %s %(x)s = d",
            "executable.linux-x86_64": "x y",
            "empty": "",
        },
        "job": {},
    }


def test_sections_and_entries_know_their_lines() -> None:
    sections, _ = read(b"\n[job]\n\nname = x\n")

    assert sections["job"].line == 2
    assert sections["job"].entries["name"].line == 4


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_mark_and_crlf_are_accepted(end: bytes) -> None:
    data = b"\xef\xbb\xbf[job]" + end + "name = grün".encode() + end

    assert values(data) == {"job": {"name": "grün"}}


def test_a_last_line_needs_no_line_feed() -> None:
    assert values(b"[job]\nname = x") == {"job": {"name": "x"}}


def test_every_line_that_is_wrong_is_named_and_the_others_are_read() -> None:
    sections, mistakes = read(
        b"before = 1\n"
        b"[job]\n"
        b"name = x\n"
        b"nonsense\n"
        b" = 3\n"
        b"name = y\n"
        b"bad = \xe4\n"
        b"nul = \0\n"
        b"cr = a\rb\n"
        b"[job]\n"
        b"timeout = 3\n"
        b"name = z\n"
        b"[worker] # comment\n"
        b"below = a bad heading\n"
        b"[]\n"
    )

    assert mistakes == [
        "job.ini:1: 'before' stands before the first section, [job] expected",
        "job.ini:4: 'nonsense': a line 'key = value' expected (a value is one line)",
        "job.ini:5: '= 3': a line 'key = value' expected (a value is one line)",
        "job.ini:6: 'name' is there twice, it was set in line 3",
        "job.ini:7: byte 7 (0xe4) is not UTF-8, UTF-8 expected",
        "job.ini:8: a NUL byte, text expected",
        "job.ini:9: a carriage return within the line, lines end with LF or CRLF",
        "job.ini:10: [job] is there twice, it began in line 2",
        "job.ini:12: 'name' is there twice, it was set in line 3",
        "job.ini:13: '[worker] # comment': a heading like [job] expected, alone on its line",
        "job.ini:15: '[]': a heading like [job] expected, alone on its line",
    ]
    assert list(sections) == ["job"]
    assert [(one.key, one.value) for one in sections["job"].entries.values()] == [
        ("name", "x"),
        ("timeout", "3"),
    ]

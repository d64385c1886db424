from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pexecd.errors import BadInputError
from pexecd.jobs import Table, check_table, read_columns, table
from pexecd.jobs.templates import Pattern

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes) -> Path:
        path = tmp_path / "sweep.txt"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(params=[1 << 20, 1, 7])
def any_block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the file falls into blocks, the same is read."""
    monkeypatch.setattr(table, "_BLOCK_BYTES", request.param)


def mistakes(path: Path, files: dict[str, Pattern] | None = None) -> list[str]:
    with pytest.raises(BadInputError) as caught:
        check_table(path, path.parent, files or {}, "sweep.txt")
    return [str(one) for one in caught.value.mistakes]


@pytest.mark.usefixtures("any_block")
@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"a|b\n1|2\n3|4\n", [("1", "2"), ("3", "4")]),
        (b"a|b\n1|2", [("1", "2")]),
        (b"\xef\xbb\xbfa|b\r\n1|2\r\n3|4\r\n", [("1", "2"), ("3", "4")]),
        (b" a |\tb\n  1  |2\t\n3 4\t|  5  6 \n", [("1", "2"), ("3 4", "5  6")]),
        (b"a|b\n 1|2\n3|4 \n", [("1", "2"), ("3", "4")]),
        (b"a|b\n1|2 ", [("1", "2")]),
        (b"a|b|c\n1 |  | 2\n | | \n||\n", [("1", "", "2"), ("", "", ""), ("", "", "")]),
        (b"# x\n\na|b\n\n1|2\n#3|4\n  \n5|6\n\n\n", [("1", "2"), ("5", "6")]),
        (b"a|b\n\\#1|\\#2\n1|#2\n \\#1|2\n #1|2\n", [
            ("#1", "\\#2"), ("1", "#2"), ("\\#1", "2"), ("#1", "2"),
        ]),
        (b"a\n1\n1\n\n2\n", [("1",), ("1",), ("2",)]),
        ("a|b\ngrün|\u00a0\u2028x\u0085\n".encode(), [("grün", "\u00a0\u2028x\u0085")]),
        (b"a|b\n$(id); x|'\"\\n\n", [("$(id); x", "'\"\\n")]),
    ],
)  # fmt: skip
def test_cells_are_read_as_they_are_meant(
    write: Write, data: bytes, rows: list[tuple[str, ...]]
) -> None:
    path = write(data)
    columns = read_columns(path)

    assert list(Table(path, columns)) == rows
    lines = ["|".join(row) for row in rows]
    assert list(chain.from_iterable(Table(path, columns).batches())) == lines
    sha256 = hashlib.sha256(data).hexdigest()
    assert check_table(path, path.parent, {}) == (len(rows), sha256)


CELLS = st.sampled_from(["#", "\\#x", "\\", "a b"]) | st.text(
    st.characters(exclude_characters="\0\r\n|", exclude_categories=["Cs"]), max_size=5
).map(lambda cell: cell.strip(" \t"))
PADS = st.sampled_from(["", " ", "\t", "  ", " \t "])


@settings(max_examples=200)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1),
    pad=PADS,
    between=st.sampled_from(["", "\n", "# c|d\n", "#\n\n"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    pad: str,
    between: str,
    end: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    text = f"a|b{end}"
    for one, two in rows:
        line = f"{one}{pad}|{pad}{two}{pad}"
        lead = "\\" if line.startswith("#") else " " if line.startswith("\\#") else ""
        text += between + lead + line + end
    path.write_bytes(text.encode())

    assert list(Table(path, ("a", "b"))) == rows


@pytest.mark.usefixtures("any_block")
def test_every_mistake_is_named_with_its_line(write: Write) -> None:
    path = write(
        b"# sweep\r\n"
        b"a | b | c\r\n"
        b"1 | 2 | 3\r\n"
        b"1 | 2\r\n"
        b"\r\n"
        b"1|2|3|4\n"
        b"1|\xe4|3\n"
        b"1|\0|3\n"
        b"1\r|2|3\n"
        b"alone\n"
        b"1|2|3\n"
    )

    assert mistakes(path) == [
        "sweep.txt:4: 2 cells, 3 expected as in the headline (line 2)",
        "sweep.txt:6: 4 cells, 3 expected as in the headline (line 2)",
        "sweep.txt:7: byte 3 (0xe4) is not UTF-8, UTF-8 expected",
        "sweep.txt:8: a NUL byte, text expected",
        "sweep.txt:9: a carriage return within the line, lines end with LF or CRLF",
        "sweep.txt:10: 1 cell, 3 expected as in the headline (line 2)",
    ]


def test_line_numbers_hold_beyond_the_first_blocks(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_BLOCK_BYTES", 64)
    lines = [b"a|b", *[b"%d|x" % number for number in range(2, 1000)]]
    for number, bad in ((300, b"# comment"), (400, b""), (500, b"bad"), (800, b"\xff|1")):
        lines[number - 1] = bad

    assert mistakes(write(b"\n".join(lines))) == [
        "sweep.txt:500: 1 cell, 2 expected as in the headline (line 1)",
        "sweep.txt:800: byte 1 (0xff) is not UTF-8, UTF-8 expected",
    ]


def test_of_a_million_mistakes_the_first_are_listed(write: Write) -> None:
    said = mistakes(write(b"a|b\n" + b"1\n" * 100))

    assert len(said) == 21
    assert said[-1] == "sweep.txt:21: and 80 more like these in this file"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "sweep.txt: has no headline"),
        (b"# a|b\n\n", "sweep.txt: has no headline"),
        (b"a|b\n# 1|2\n", "sweep.txt:1: no parameter set follows the headline"),
        (b"\n1|b\n", "sweep.txt:2: '1' in the headline is no name of a parameter"),
        (b"a||b\n1|2|3\n", "sweep.txt:1: '' in the headline is no name of a parameter"),
        ("a|größe\n".encode(), "sweep.txt:1: 'größe' in the headline is no name of a parameter"),
        (b"a|b|a\n1|2|3\n", "sweep.txt:1: 'a' is in the headline twice"),
    ],
)
def test_a_bad_headline_is_a_mistake(write: Write, data: bytes, said: str) -> None:
    assert [one[: len(said)] for one in mistakes(write(data))] == [said]


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (
            b"#a|b\n1e-3|b\n",
            "the headline is the first line that is neither empty nor begins with '#'",
        ),
        (b"a, b\n1, 2\n", "cells are separated by '|'"),
        (b"a\tb\n1\t2\n", "cells are separated by '|'"),
        (b"|a|b\n|1|2\n", "before and after each '|' is one"),
    ],
)
def test_what_other_tables_look_like_is_answered_with_how_this_one_does(
    write: Write, data: bytes, hint: str
) -> None:
    [said] = mistakes(write(data))

    assert said.endswith(f"expected; {hint}")


def test_below_a_bad_headline_the_lines_are_checked_too(write: Write) -> None:
    assert mistakes(write(b"a|1\n1|2\n3\n"))[1:] == [
        "sweep.txt:3: 1 cell, 2 expected as in the headline (line 1)"
    ]


def test_a_headline_that_is_no_text_is_the_headline_all_the_same(write: Write) -> None:
    assert mistakes(write(b"# \xe4\ngr\xf6\xdfe|T\n1|2\n3\n")) == [
        "sweep.txt:1: byte 3 (0xe4) is not UTF-8, UTF-8 expected",
        "sweep.txt:2: byte 3 (0xf6) is not UTF-8, UTF-8 expected",
        "sweep.txt:4: 1 cell, 2 expected as in the headline (line 2)",
    ]


def test_the_headline_alone_can_be_read(write: Write) -> None:
    assert read_columns(write(b"a | b\nbad line\n")) == ("a", "b")
    assert read_columns(write(b"a\n")) == ("a",)
    for bad in (b"", b"a|a\n1|2\n"):
        with pytest.raises(BadInputError):
            read_columns(write(bad))


def test_a_table_that_is_no_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is a folder"):
        check_table(tmp_path, tmp_path, {})
    with pytest.raises(BadInputError, match="does not exist"):
        read_columns(tmp_path / "none")


def test_input_files_of_every_line_must_be_there(write: Write, tmp_path: Path) -> None:
    (tmp_path / "fields").mkdir()
    (tmp_path / "fields" / "16.dat").write_text("")
    path = write(b"L|T\n16|1\n32|1\n16|2\n32|2\n64|1\n")

    assert mistakes(path, {"field.dat": Pattern.parse("fields/$L.dat")}) == [
        "sweep.txt:3: fields/32.dat, for the input field.dat, does not exist",
        "sweep.txt:6: fields/64.dat, for the input field.dat, does not exist",
    ]
    for name in ("32", "64"):
        (tmp_path / "fields" / f"{name}.dat").write_text("")
    assert check_table(path, tmp_path, {"field.dat": Pattern.parse("fields/$L.dat")})[0] == 5
    absolute = Pattern.parse(f"{tmp_path}/fields/$L.dat")
    assert check_table(path, Path("/nowhere"), {"field.dat": absolute})[0] == 5


def test_files_already_looked_at_are_forgotten_in_time(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_MOST_SEEN", 2)
    path = write(b"L\n" + b"1\n1\n2\n3\n1\n")

    assert len(mistakes(path, {"x": Pattern.parse("none/$L")})) == 4


def test_a_table_that_has_changed_since_it_was_checked_is_a_mistake(write: Write) -> None:
    path = write(b"a|b\n1|2\n")
    rows = Table(path, ("a", "b"))
    assert list(rows) == [("1", "2")]

    write(b"b|a\n1|2\n")
    with pytest.raises(BadInputError, match="headline has changed"):
        list(rows)
    write(b"a|b\n1|2\n3\n")
    with pytest.raises(BadInputError, match=r"sweep\.txt:3: 1 cell, 2 expected"):
        list(rows)


@pytest.mark.usefixtures("any_block")
def test_a_table_whose_content_has_changed_does_not_come_to_its_end(write: Write) -> None:
    path = write(b"a|b\n1|2\n3|4\n")
    tasks, digest = check_table(path, path.parent, {})
    rows = Table(path, ("a", "b"), digest)
    assert len(list(rows)) == tasks == 2

    write(b"a|b\n1|2\n3|5\n")
    seen: list[tuple[str, ...]] = []
    with pytest.raises(BadInputError, match=r"sweep\.txt: has changed since it was checked, start"):
        seen.extend(rows)  # what comes before the error stays in it
    assert seen in ([], [("1", "2")])

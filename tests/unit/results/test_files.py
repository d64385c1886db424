from __future__ import annotations

import os
from pathlib import Path

import pytest

from pexecd.jobs.table import Table
from pexecd.jobs.values import CollectKind, CollectRule
from pexecd.ports import StoredResult
from pexecd.results.files import (
    Entry,
    Layout,
    Mark,
    OutputLostError,
    headline,
    reason_line,
    row,
)
from tests.results import inline


def layout(kind: CollectKind) -> Layout:
    return Layout(CollectRule("output", kind, Path("unused")), ("L", "T"))


def entry(data: bytes, task: int = 1, cells: tuple[str, ...] = ("32", "2.2")) -> Entry:
    return Entry(task, cells, inline(data), None)


def spooled(path: Path, data: bytes, task: int = 2) -> Entry:
    path.write_bytes(data)
    return Entry(task, ("64", ""), StoredResult("output", len(data), None, "spool/x"), path)


def test_concat_is_the_bytes_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    entries = [entry(b"a\n"), entry(b""), spooled(tmp_path / "x", b"\xff" * 3_000_000), entry(b"b")]
    written = layout(CollectKind.CONCAT).append(out, Mark(), entries)
    assert out.read_bytes() == b"a\n" + b"\xff" * 3_000_000 + b"b"
    assert written.mark.length == 3_000_003


def test_a_table_is_a_parameter_table(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [
        entry(b"0.6\n"),
        entry(b"0.7", cells=("", "")),
        entry(b" \r\n 0.8 \r\n\n"),
        entry(b"", cells=("ü", "x y")),
        spooled(tmp_path / "x", b"z" * 100_000 + b"\n"),
        entry(b"1|2", cells=("#32", "a#b")),
    ]
    written = layout(CollectKind.TABLE).append(out, Mark(), entries)
    assert out.read_text().splitlines() == [
        "L|T|output",
        "32|2.2|0.6",
        "||0.7",
        "32|2.2|0.8",
        "ü|x y|",
        f"64||{'z' * 100_000}",
        "\\#32|a#b|1|2",
    ]
    assert (written.cut, written.mark.length) == (0, out.stat().st_size)


def test_of_more_lines_a_table_has_the_first_and_that_is_counted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [entry(b"first\nsecond\n"), spooled(tmp_path / "x", b"y\n" * 2_000_000)]
    written = layout(CollectKind.TABLE).append(out, Mark(), entries)
    assert out.read_text() == "L|T|output\n32|2.2|first\n64||y\n"
    assert written.cut == 2


def test_a_block_has_a_heading_and_ends_its_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    entries = [
        entry(b"a\nb"),
        spooled(tmp_path / "x", b"c" * 20_000),
        entry(b"", 3),
        entry(b"\n", 4),
    ]
    layout(CollectKind.BLOCK).append(out, Mark(), entries)
    assert out.read_text() == (
        "# task 1: L = 32 | T = 2.2\na\nb\n"
        f"# task 2: L = 64 | T = \n{'c' * 20_000}\n"
        "# task 3: L = 32 | T = 2.2\n"
        "# task 4: L = 32 | T = 2.2\n\n"
    )


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = layout(CollectKind.TABLE)
    mark = table.append(out, Mark(), [entry(b"1")]).mark
    table.append(out, mark, [entry(b"never committed")])
    assert table.append(out, mark, [entry(b"2")]).mark.length == out.stat().st_size
    assert out.read_text() == "L|T|output\n32|2.2|1\n32|2.2|2\n"


def test_a_file_from_another_time_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"old" * 1000)
    layout(CollectKind.CONCAT).append(out, Mark(), [entry(b"new")])
    assert out.read_bytes() == b"new"


@pytest.mark.parametrize("content", [None, b"", b"1234"])
def test_a_file_that_is_shorter_than_it_was_is_lost(tmp_path: Path, content: bytes | None) -> None:
    out = tmp_path / "out"
    if content is not None:
        out.write_bytes(content)
    with pytest.raises(OutputLostError):
        layout(CollectKind.CONCAT).append(out, Mark(5), [entry(b"x")])
    assert content is None or out.read_bytes() == content


def test_a_result_that_is_gone_is_counted(tmp_path: Path) -> None:
    gone = Entry(1, ("1", "2"), StoredResult("output", 9, None, "spool/x"), tmp_path / "gone")
    for kind in CollectKind:
        out = tmp_path / kind.value
        written = layout(kind).append(out, Mark(), [gone, entry(b"there\n")])
        assert written.unreadable == 1
        assert out.read_bytes().endswith(b"there\n")
        assert b"gone" not in out.read_bytes()


def test_a_spooled_result_that_became_empty(tmp_path: Path) -> None:
    out = tmp_path / "out"
    layout(CollectKind.BLOCK).append(out, Mark(), [spooled(tmp_path / "x", b"")])
    assert out.read_text() == "# task 2: L = 64 | T = \n"


def test_lines_of_the_failed_table() -> None:
    assert reason_line(17, "exit\nstatus  3\udcff") == b"# task 17: exit status 3?\n"
    assert row(("# no comment", "")) == b"\\# no comment|\n"


@pytest.mark.parametrize("cell", ["# x", "\\# x", "\\\\# x", "\\", "x # y"])
def test_a_line_of_a_table_is_read_as_it_was_meant(tmp_path: Path, cell: str) -> None:
    table = tmp_path / "table"
    table.write_bytes(headline(["a", "b"]) + row((cell, cell)))
    assert list(Table(table, ["a", "b"])) == [(cell, cell)]


@pytest.mark.parametrize("change", [b"1234", b"12x45", b"x2345behind"])
def test_a_file_that_somebody_changed_is_lost(tmp_path: Path, change: bytes) -> None:
    out = tmp_path / "out"
    concat = layout(CollectKind.CONCAT)
    mark = concat.append(out, Mark(), [entry(b"123"), entry(b"45")]).mark
    out.write_bytes(b"12345behind")
    assert concat.append(out, mark, []).mark == mark
    assert out.read_bytes() == b"12345"
    more = concat.append(out, mark, [entry(b"6")]).mark
    assert concat.append(out, Mark(), [entry(b"123456")]).mark == more
    out.write_bytes(change)
    with pytest.raises(OutputLostError):
        concat.append(out, mark, [])


def test_a_file_that_is_as_we_left_it_is_not_read_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    concat = layout(CollectKind.CONCAT)
    written = concat.append(out, Mark(), [entry(b"12345")])
    wrong = Mark(written.mark.length, written.mark.crc ^ 1)
    concat.append(out, wrong, [], written.left)
    with pytest.raises(OutputLostError):
        concat.append(out, wrong, [])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    with pytest.raises(OSError, match="not a regular file"):
        layout(CollectKind.CONCAT).append(tmp_path / "out", Mark(), [entry(b"1")])

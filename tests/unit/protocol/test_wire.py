from __future__ import annotations

import base64
import itertools
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pexecd.core.values import End, Failure
from pexecd.protocol.sections import (
    MAX_LINE,
    AmbiguousBodyError,
    Data,
    MalformedBodyError,
    Pair,
    Sections,
)
from pexecd.protocol.wire import (
    MAX_REASON,
    MAX_RESULTS,
    InputFile,
    ResultBegun,
    ResultEnded,
    ResultFile,
    TaskMessage,
    UploadParser,
    decode_failure,
    decode_seconds,
    encode_pairs,
    encode_task,
    holds_closing_line,
)
from tests.unit.protocol.vectors import decode_task, examples, task_from_index

Results = list[tuple[str, int | None, bytes]]


def parse(pieces: Iterable[bytes]) -> Results:
    """All results of an upload that comes in these pieces."""
    parser = UploadParser()
    results: Results = []
    ended = True

    def take(events: Iterable[ResultBegun | Data | ResultEnded]) -> None:
        nonlocal ended
        for event in events:
            match event:
                case ResultBegun(name, length):
                    assert ended
                    results.append((name, length, b""))
                    ended = False
                case Data(data):
                    assert data
                    assert not ended
                    name, length, before = results[-1]
                    results[-1] = (name, length, before + data)
                case ResultEnded():
                    ended = True

    for piece in pieces:
        take(parser.feed(piece))
    take(parser.finish())
    assert ended
    return results


def outcome(pieces: Iterable[bytes]) -> Results | type[Exception]:
    try:
        return parse(pieces)
    except (MalformedBodyError, AmbiguousBodyError) as error:
        return type(error)


def cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


# --- the examples that client and master share -----------------------------------------------

UPLOADS = [pytest.param(body, entry, id=file) for file, body, entry in examples("uploads")]


def expected(entry: dict[str, Any]) -> Results | type[Exception]:
    if verdict := entry.get("verdict"):
        return {"malformed": MalformedBodyError, "ambiguous": AmbiguousBodyError}[verdict]
    return [
        (item["name"], item["length"], base64.b64decode(item["content"])) for item in entry["value"]
    ]


@pytest.mark.parametrize(("body", "entry"), UPLOADS)
def test_uploads_whole(body: bytes, entry: dict[str, Any]) -> None:
    assert outcome([body]) == expected(entry)


@pytest.mark.parametrize(("body", "entry"), UPLOADS)
def test_uploads_byte_by_byte(body: bytes, entry: dict[str, Any]) -> None:
    assert outcome(body[i : i + 1] for i in range(len(body))) == expected(entry)


@pytest.mark.parametrize(
    ("body", "entry"), [pytest.param(b, e, id=f) for f, b, e in examples("tasks")]
)
def test_tasks(body: bytes, entry: dict[str, Any]) -> None:
    if "verdict" in entry:
        with pytest.raises((MalformedBodyError, AmbiguousBodyError)):
            decode_task(body)
        return
    message = task_from_index(entry["value"])
    assert decode_task(body) == message
    if entry["canonical"]:
        assert encode_task(message, framed=entry["framed"]) == [body]


@pytest.mark.parametrize(
    ("body", "entry"), [pytest.param(b, e, id=f) for f, b, e in examples("failures")]
)
def test_failures(body: bytes, entry: dict[str, Any]) -> None:
    value = entry["value"]
    assert decode_failure(body) == Failure(
        reason=value["reason"],
        end=End(value["end"]),
        exit_status=value["exit_status"],
        signal=value["signal"],
        seconds=value["seconds"],
        stderr=base64.b64decode(value["stderr"]),
    )


@pytest.mark.parametrize(
    ("body", "entry"), [pytest.param(b, e, id=f) for f, b, e in examples("config")]
)
def test_config(body: bytes, entry: dict[str, Any]) -> None:
    pairs = [(key, value) for key, value in entry["value"]]
    reader = Sections()
    assert [*reader.feed(body), *reader.finish()] == [Pair(key, value) for key, value in pairs]
    if entry["canonical"]:
        assert encode_pairs(pairs) == body


# --- any bytes in any pieces -----------------------------------------------------------------

# Pieces of what matters to the reader, so that Hypothesis soon finds the awkward neighbours.
SCRAPS = st.lists(
    st.sampled_from(
        [
            b"[Result]", b"Name=", b"Length=", b"output", b"spectrum", b"0", b"1", b"3", b"=",
            b"--begin content--", b"--end content--", b"--end", b" content--", b"-",
            b"\n", b"\n", b"\n", b"\r\n", b"\r", b" ", b"x",
            b"[Result]\nName=output\n--begin content--\n",
            b"[Result]\r\nName=spectrum\r\n--begin content--\r\n",
            b"\n--end content--\n", b"\r\n--end content--\r\n",
            b"[Result]\nName=output\nLength=1\n--begin content--\nx\n--end content--\n",
            b"[Result]\nName=spectrum\nLength=0\n--begin content--\n",
        ]
    ),
    max_size=20,
).map(b"".join)  # fmt: skip
CUTS = st.lists(st.integers(0, 10_000), max_size=12)
CONTENT = st.one_of(st.binary(max_size=60), SCRAPS)
NAMES = st.lists(st.text("abcü._-", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)


@given(st.one_of(SCRAPS, st.binary(max_size=200)), CUTS)
def test_the_division_into_pieces_makes_no_difference(body: bytes, places: list[int]) -> None:
    assert outcome(cut(body, places)) == outcome([body])


@given(NAMES, st.data(), CUTS, st.sampled_from([b"\n", b"\r\n"]))
def test_with_length_every_content_survives(
    names: list[str], data: st.DataObject, places: list[int], eol: bytes
) -> None:
    contents = [data.draw(CONTENT) for _ in names]
    body = b"".join(
        b"[Result]%sName=%s%sLength=%d%s--begin content--%s%s%s--end content--%s"
        % (eol, name.encode(), eol, len(content), eol, eol, content, eol, eol)
        for name, content in zip(names, contents, strict=True)
    )
    assert parse(cut(body, places)) == [
        (name, len(content), content) for name, content in zip(names, contents, strict=True)
    ]


@given(NAMES, st.data(), CUTS, st.sampled_from([b"\n", b"\r\n"]))
def test_without_length_a_content_survives_or_is_refused(
    names: list[str], data: st.DataObject, places: list[int], eol: bytes
) -> None:
    contents = [data.draw(CONTENT) for _ in names]
    body = b"".join(
        b"[Result]%sName=%s%s--begin content--%s%s%s--end content--%s"
        % (eol, name.encode(), eol, eol, content, eol, eol)
        for name, content in zip(names, contents, strict=True)
    )
    got = outcome(cut(body, places))
    if not any(holds_closing_line(content) for content in contents):
        assert got == [(n, None, c) for n, c in zip(names, contents, strict=True)]


@given(st.data())
def test_two_results_forged_into_one_content_are_never_taken_for_it(data: st.DataObject) -> None:
    """The one content that can be mistaken holds whole sections; with our names that is found."""
    content = data.draw(CONTENT)
    body = b"[Result]\nName=output\n--begin content--\n" + content + b"\n--end content--\n"
    got = outcome([body])
    if isinstance(got, list) and got != [("output", None, content)]:
        assert holds_closing_line(content)
        assert len(got) > 1


@given(
    st.integers(1, 10**12),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30),
    st.lists(st.tuples(st.text("ab/.-", min_size=1), CONTENT), max_size=3),
)
@example(1, "x", [("a", b"--end content--")])
def test_a_framed_task_comes_back(
    ticket: int, command: str, files: list[tuple[str, bytes]]
) -> None:
    message = TaskMessage(
        ticket,
        60,
        command.strip(" \t\r"),
        tuple(InputFile(name, content) for name, content in files),
        (ResultFile("output", "stdout"), ResultFile("errors", "stderr")),
        7,
        (("A", "b=c"),),
    )
    (body,) = encode_task(message, framed=True)
    assert isinstance(body, bytes)
    again = decode_task(body)
    assert again == message


@given(st.lists(CONTENT, max_size=3))
def test_a_plain_task_comes_back(contents: list[bytes]) -> None:
    assume(not any(holds_closing_line(content) for content in contents))
    message = TaskMessage(
        10000,
        60,
        "true",
        tuple(InputFile(f"f{number}", content) for number, content in enumerate(contents)),
        (ResultFile("output", "stdout"),),
    )
    (body,) = encode_task(message, framed=False)
    assert isinstance(body, bytes)
    assert decode_task(body) == message


# --- bounds ----------------------------------------------------------------------------------


def test_a_content_is_handed_on_at_once() -> None:
    parser = UploadParser()
    list(parser.feed(b"[Result]\nName=output\n--begin content--\n"))
    block = b"x" * 1_000_000
    assert list(parser.feed(block)) == [Data(block)]
    assert list(parser.feed(b"\n--end content")) == []
    assert list(parser.feed(block)) == [Data(b"\n--end content" + block)]


def test_a_line_of_the_frame_is_refused_before_it_is_complete() -> None:
    parser = UploadParser()
    list(parser.feed(b"[Result]\nName=" + b"x" * (MAX_LINE - 5)))
    with pytest.raises(MalformedBodyError, match="over 8192 bytes"):
        list(parser.feed(b"x"))


def test_a_long_line_behind_a_content_is_ambiguous() -> None:
    body = b"[Result]\nName=a\n--begin content--\n1\n--end content--\n" + b"x" * (MAX_LINE + 1)
    assert outcome([body]) is AmbiguousBodyError


def test_an_unknown_section_behind_a_content_is_ambiguous() -> None:
    body = b"[Result]\nName=a\n--begin content--\n1\n--end content--\n[Part]\n"
    assert outcome([body]) is AmbiguousBodyError


def test_there_are_only_so_many_results() -> None:
    def body(count: int) -> list[bytes]:
        return [
            b"[Result]\nName=r%d\n--begin content--\n--end content--\n" % number
            for number in range(count)
        ]

    assert len(parse(body(MAX_RESULTS))) == MAX_RESULTS
    assert outcome(body(MAX_RESULTS + 1)) is MalformedBodyError


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"--end content--",
        b"a\n--end content--",
        b"--end content--\nb",
        b"a\n--end content--\nb",
        b"a\r\n--end content--\r\nb",
        b" --end content-- \n",
    ],
)
def test_contents_that_hold_the_closing_line(content: bytes) -> None:
    assert holds_closing_line(content)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"--end content", b"x--end content--", b"--end content--x", b"-" * 99]
)
def test_contents_that_do_not(content: bytes) -> None:
    assert not holds_closing_line(content)


def test_a_mapped_file_is_looked_through(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(b"x\n" * 10_000 + b"--end content--\n")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert holds_closing_line(memoryview(mapped).toreadonly()[:100]) is False
        assert holds_closing_line(memoryview(mapped))


def task(content: bytes | Path) -> TaskMessage:
    return TaskMessage(
        10000,
        60,
        "true",
        (InputFile("a", content), InputFile("b", b"2")),
        (ResultFile("output", "stdout"),),
    )


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("content", [b"", b"1", b"1\n"])
def test_a_file_stands_where_its_bytes_would(content: bytes, framed: bool) -> None:
    path = Path("field.dat")
    pieces = encode_task(task(path), framed=framed, sizes={path: len(content)})
    assert [piece for piece in pieces if isinstance(piece, Path)] == [path]
    joined = b"".join(content if isinstance(piece, Path) else piece for piece in pieces)
    assert [joined] == encode_task(task(content), framed=framed)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        encode_pairs([("Session", "a\nPing=0")])


# --- failures --------------------------------------------------------------------------------


def test_a_reason_is_one_line_of_bounded_length() -> None:
    reason = decode_failure(b"\x1b[31mred\x00\n" + b"x" * 5000).reason
    assert reason.startswith("[31mred xxx")
    assert len(reason) == MAX_REASON


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1e9"])
def test_seconds_are_a_time(number: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        decode_seconds(number)
    assert decode_failure(f"Kind=exit\nReason=r\nSeconds={number}\n".encode()).seconds is None


def test_numbers_fit_the_database() -> None:
    assert decode_failure(b"Kind=exit\nExit=2147483648\n").exit_status == -1

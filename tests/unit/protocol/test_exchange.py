"""Bodies of the exchange: bytes to values and back."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pexecd.core.values import End, Failure
from pexecd.protocol.exchange import (
    REPORT_MOST,
    Posted,
    _read_any_results,
    _read_results,
    decode_exchange,
    encode_supply,
)
from pexecd.protocol.sections import MAX_LINE, AmbiguousBodyError, MalformedBodyError
from pexecd.protocol.wire import MAX_RESULTS, InputFile, ResultFile, TaskMessage, decode_failure
from tests.unit.protocol.vectors import FOLDER, decode_task, examples, task_from_index

NAMES = frozenset({"output"})
TASKS = {file: entry for file, _, entry in examples("tasks")}


def result(content: bytes, name: str = "output") -> bytes:
    head = b"[Result]\nName=%s\nLength=%d\n" % (name.encode(), len(content))
    return head + b"--begin content--\n" + content + b"\n--end content--\n"


def complete(ticket: int, body: bytes, seconds: object = 1.5) -> bytes:
    return b"complete %d %s %d\n%s\n" % (ticket, str(seconds).encode(), len(body), body)


def failed(ticket: int, body: bytes) -> bytes:
    return b"failed %d %d\n%s\n" % (ticket, len(body), body)


def read_supply(body: bytes) -> tuple[list[int], list[TaskMessage], str]:
    """Read an answer as a client does."""
    over: list[int] = []
    tasks: list[TaskMessage] = []
    left = ""
    at = 0
    while at < len(body):
        end = body.index(b"\n", at)
        match body[at:end].split(b" "):
            case [b"over", ticket]:
                over.append(int(ticket))
            case [b"task", length]:
                at, end = end + 1, end + 1 + int(length)
                assert body[end : end + 1] == b"\n"
                tasks.append(decode_task(body[at:end]))
            case [(b"none" | b"end") as word]:
                left = word.decode()
            case words:
                raise AssertionError(words)
        at = end + 1
    return over, tasks, left


# --- the examples that client and master share -----------------------------------------------


def as_in_index(posted: Posted) -> dict[str, Any]:
    return {
        "complete": [
            [ticket, seconds, {n: base64.b64encode(c).decode() for n, c in results.items()}]
            for ticket, seconds, results in posted.complete
        ],
        "failed": [[ticket, failure.reason] for ticket, failure in posted.failed],
        "running": [list(one) for one in posted.running],
        "waiting": posted.waiting,
        "back": posted.back,
    }


@pytest.mark.parametrize(
    ("body", "entry"), [pytest.param(b, e, id=f) for f, b, e in examples("exchanges")]
)
def test_exchanges(body: bytes, entry: dict[str, Any]) -> None:
    if "verdict" in entry:
        with pytest.raises(MalformedBodyError):
            decode_exchange(body, NAMES)
    else:
        assert as_in_index(decode_exchange(body, NAMES)) == entry["value"]


@pytest.mark.parametrize(
    ("body", "entry"), [pytest.param(b, e, id=f) for f, b, e in examples("supplies")]
)
def test_supplies(body: bytes, entry: dict[str, Any]) -> None:
    value = entry["value"]
    tasks = [task_from_index(TASKS[file]["value"]) for file in value["tasks"]]
    assert encode_supply(tasks, value["over"], value["left"], {}) == [body]
    assert read_supply(body) == (value["over"], tasks, value["left"])


# --- what a body says --------------------------------------------------------------------------

CONTENT = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"\n", b"\r\n", b"\n--end content--\n", b"back 10000\n", b"[Result]\n"]),
)
TICKETS = st.integers(0, 10**18 - 1)
SECONDS = st.floats(0, 3e8)


@given(st.data(), st.sets(st.text("abcü._-", min_size=1, max_size=4), min_size=1, max_size=3))
def test_all_that_is_told_arrives(data: st.DataObject, names: set[str]) -> None:
    tickets = data.draw(st.lists(TICKETS, unique=True, max_size=12))
    body = b""
    wanted = Posted()
    for ticket in tickets:
        seconds = data.draw(SECONDS)
        match data.draw(st.integers(0, 4)):
            case 0:
                results = {name: data.draw(CONTENT) for name in names}
                inner = b"".join(result(content, name) for name, content in results.items())
                body += complete(ticket, inner, seconds)
                wanted.complete.append((ticket, seconds, results))
            case 1:
                report = data.draw(CONTENT)
                body += failed(ticket, report)
                wanted.failed.append((ticket, decode_failure(report)))
            case 2:
                body += b"running %d %s\n" % (ticket, str(seconds).encode())
                wanted.running.append((ticket, seconds))
            case 3:
                body += b"waiting %d\n" % ticket
                wanted.waiting.append(ticket)
            case _:
                body += b"back %d\n" % ticket
                wanted.back.append(ticket)
    assert decode_exchange(body, names) == wanted


@given(st.integers(0, 400))
def test_a_body_that_breaks_off_is_read_to_the_end_of_an_entry_or_refused(place: int) -> None:
    entries = [
        complete(10016, result(b"back 1\n")),
        failed(10017, b"Kind=exit\nReason=no\n"),
        b"running 10018 1.5\n",
        b"waiting 10019\n",
        b"back 10020\n",
    ]
    body = b"".join(entries)
    part = body[:place]
    ends = {sum(map(len, entries[:count])) for count in range(len(entries) + 1)}
    if place in ends or place >= len(body):
        decode_exchange(part, NAMES)
        return
    try:
        posted = decode_exchange(part, NAMES)
    except MalformedBodyError:
        return
    # The last line alone may lack its line feed, and digits of its last word with it.
    assert b"\n" not in part[sum(map(len, entries[:2])) :][-1:]
    assert len(posted.complete) == len(posted.failed) == 1


SCRAPS = st.lists(
    st.sampled_from(
        [
            b"complete ", b"failed ", b"running ", b"waiting ", b"back ", b"10000", b"10001", b" ",
            b"0", b"1", b"0.5", b"-1", b"nan", b"\n", b"\n", b"\r\n", b"x", b"\xff",
            complete(10000, result(b"1")), complete(10001, result(b"")), failed(10002, b"no"),
            b"running 10003 1\n", b"waiting 10004\n", b"back 10005\n", b"back 10000\n",
            complete(10006, b"[Result]\nName=output\n--begin content--\n1\n--end content--\n"),
            complete(10007, b""), result(b"1"),
        ]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(st.one_of(SCRAPS, st.binary(max_size=80)))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    """And no ticket ends twice in what is read."""
    try:
        posted = decode_exchange(body, NAMES)
    except MalformedBodyError:
        return
    ended = [ticket for ticket, _, _ in posted.complete]
    ended += [ticket for ticket, _ in posted.failed] + posted.back
    assert len(ended) == len(set(ended))
    assert all(results.keys() == NAMES for _, _, results in posted.complete)


def test_the_message_says_what_is_wrong() -> None:
    for body, words in {
        b"done 10000\n": "no such entry of an exchange: 'done 10000'",
        b"x" * 99: "no such entry of an exchange: " + ascii("x" * 60),
        b"back ten\n": "expected a number, not 'ten'",
        b"back \xd9\xa1\n": "expected a number, not '\\xd9\\xa1'",
        b"running 1 soon\n": "expected seconds, not 'soon'",
        b"failed 1 9\nabc\n": "an entry is not as long as it says",
        b"back 7\nback 7\n": "ticket 7 ends twice in one exchange",
        complete(1, b"0.5"): "expected Key=Value or a section, not '0.5'",
        complete(1, b""): "the body is empty, expected [Result] sections",
    }.items():
        with pytest.raises(MalformedBodyError) as caught:
            decode_exchange(body, NAMES)
        assert str(caught.value) == words


# --- results -----------------------------------------------------------------------------------

RESULT_SCRAPS = st.lists(
    st.sampled_from(
        [
            b"[Result]\n", b"Name=output\n", b"Length=1\n", b"Length=01\n", b"Length=0\n", b"1",
            b"--begin content--\n", b"--end content--", b"\n", b"\n", b"\r\n", b" ",
            result(b"1"), result(b""), result(b"\n--end content--\n"), result(b"2", "other"),
            result(b"1", "a=b"), result(b"1", " a "), result(b"1", "x" * (MAX_LINE + 1)),
            result(b"1", "\x85"), result(b"1").replace(b"output", b"\xff"),
            result(b"12").replace(b"Length=2", b"Length=1"),
            result(b"12").replace(b"Length=2", b"Length=3"),
            b"[Result]\nName=plain\n--begin content--\n1\n--end content--\n",
            b"[Result]\r\nName=crlf\r\nLength=1\r\n--begin content--\r\n1\r\n--end content--\r\n",
        ]
    ),
    max_size=6,
).map(b"".join)  # fmt: skip


@given(RESULT_SCRAPS)
@example(result(b"1").replace(b"output", b"\xff"))
@example(result(b"1", "x" * (MAX_LINE + 1)))
@example(result(b"1", "x" * (MAX_LINE - 5)))
@example(b"".join(result(b"", str(number)) for number in range(MAX_RESULTS)))
@example(b"".join(result(b"", str(number)) for number in range(MAX_RESULTS + 1)))
@example(result(b"1") * 2)
@example(result(b"1") + b"\n")
@example(result(b"1")[:-1])
@example(b"\n" + result(b"1"))
def test_the_fast_reader_and_the_general_one_agree(body: bytes) -> None:
    def outcome(read: Any) -> Any:
        try:
            return read(body)
        except (MalformedBodyError, AmbiguousBodyError) as error:
            return type(error), str(error)

    assert outcome(_read_results) == outcome(_read_any_results)


@given(st.one_of(RESULT_SCRAPS, CONTENT.map(result)), st.sampled_from([None, 60]))
@example(result(b"1"), None)
@example(result(b"1" * 60), 60)
@example(result(b"1", "other"), None)
@example(result(b"1") + b"\n", None)
def test_an_entry_that_is_read_at_once_says_the_same(body: bytes, most: int | None) -> None:
    """Only seconds with three digits behind the point are looked at for that."""
    slow = complete(10000, body) + b"back 10001\n"
    fast = slow.replace(b" 1.5 ", b" 1.500 ", 1)
    assert fast != slow

    def outcome(exchange: bytes) -> Any:
        try:
            return decode_exchange(exchange, NAMES, most)
        except MalformedBodyError as error:
            return str(error)

    assert outcome(fast) == outcome(slow)


UPLOADS = [pytest.param(body, entry, id=file) for file, body, entry in examples("uploads")]


@pytest.mark.parametrize(("body", "entry"), UPLOADS)
def test_every_body_of_complete_may_come_in_an_exchange(body: bytes, entry: dict[str, Any]) -> None:
    exchange = b"back 10001\n" + complete(10000, body) + b"back 10002\n"
    if entry.get("verdict") == "malformed":
        with pytest.raises(MalformedBodyError):
            decode_exchange(exchange, NAMES)
        return
    if entry.get("verdict") == "ambiguous":
        posted = decode_exchange(exchange, NAMES)
        assert posted.complete == []
        assert [ticket for ticket, _ in posted.failed] == [10000]
    else:
        contents = {item["name"]: base64.b64decode(item["content"]) for item in entry["value"]}
        posted = decode_exchange(exchange, contents.keys())
        assert posted.complete == [(10000, 1.5, contents)]
    assert posted.back == [10001, 10002]


def test_several_results_in_any_order() -> None:
    body = complete(10000, result(b"2", "b") + result(b"1", "a"))
    for names in ({"a", "b"}, {"a"}, {"b"}):
        ((_, _, results),) = decode_exchange(body, names).complete
        assert results == {
            name: content for name, content in (("b", b"2"), ("a", b"1")) if name in names
        }


def test_a_missing_or_ambiguous_result_fails_its_attempt_only() -> None:
    body = (
        complete(10000, result(b"1", "other"), 0.5)
        + complete(10001, result(b"12").replace(b"Length=2", b"Length=1"), 2)
        + complete(10002, result(b"3"))
    )
    posted = decode_exchange(body, NAMES)
    assert [ticket for ticket, _, _ in posted.complete] == [10002]
    (_, missing), (_, ambiguous) = posted.failed
    assert missing == Failure("the upload lacks the result output", seconds=0.5)
    assert ambiguous.reason.startswith("something other than a section follows")
    assert (ambiguous.end, ambiguous.seconds) == (End.FAILED, 2.0)


def test_a_result_over_max_result_fails_its_attempt_only() -> None:
    small, large = result(b"1"), result(b"12")
    body = complete(10000, small) + complete(10001, large)
    posted = decode_exchange(body, NAMES, len(small))
    assert [ticket for ticket, _, _ in posted.complete] == [10000]
    assert posted.failed == [
        (10001, Failure(f"the upload is over max_result, {len(small)} bytes", seconds=1.5))
    ]
    assert len(decode_exchange(body, NAMES, len(large)).complete) == 2


def test_a_report_that_is_too_long_is_a_failure_without_it() -> None:
    """As for ``/failed``."""
    report = b"Kind=exit\nReason=no\nLength=%d\n--begin content--\n%s\n--end content--\n"
    whole = report % (60_000, b"x" * 60_000)
    (_, failure), (_, longer) = decode_exchange(
        failed(10000, whole) + failed(10001, whole + b"\n" * REPORT_MOST), NAMES
    ).failed
    assert (failure.reason, len(failure.stderr)) == ("no", 60_000)
    assert longer == Failure("a failure with a report that is too long")


# --- answers -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(10000, 99999), st.lists(CONTENT, max_size=3)), max_size=4),
    st.lists(TICKETS, max_size=4),
    st.sampled_from(["", "none", "end"]),
)
def test_an_answer_arrives(
    given_out: list[tuple[int, list[bytes]]], over: list[int], left: str
) -> None:
    tasks = [
        TaskMessage(
            ticket,
            600,
            "echo 'ü'",
            tuple(InputFile(f"in{n}", content) for n, content in enumerate(contents)),
            (ResultFile("output", "stdout"),),
            task=7,
            environment=(("A", "b=c"),),
        )
        for ticket, contents in given_out
    ]
    (body,) = encode_supply(tasks, over, left, {})
    assert isinstance(body, bytes)
    assert read_supply(body) == (over, tasks, left)


def test_files_are_not_read_into_an_answer() -> None:
    first, second = Path("/data/first"), Path("/data/second")
    contents = {first: b"from a file\n--end content--\n", second: b""}
    sizes = {path: len(content) for path, content in contents.items()}
    results = (ResultFile("output", "stdout"),)
    tasks = [
        TaskMessage(10000, 1, "a", (InputFile("x", first), InputFile("y", b"as it is")), results),
        TaskMessage(10001, 1, "b", (), results),
        TaskMessage(10002, 1, "c", (InputFile("x", second), InputFile("y", first)), results),
    ]
    pieces = encode_supply(tasks, [9], "none", sizes)
    assert [piece for piece in pieces if isinstance(piece, Path)] == [first, second, first]
    body = b"".join(contents[piece] if isinstance(piece, Path) else piece for piece in pieces)
    over, told, left = read_supply(body)
    assert (over, left) == ([9], "none")
    assert [[item.content for item in task.inputs] for task in told] == [
        [contents[first], b"as it is"],
        [],
        [b"", contents[first]],
    ]


def test_the_examples_are_all_there() -> None:
    files = {file for group in ("exchanges", "supplies") for file, _, _ in examples(group)}
    assert files == {
        f"{folder}/{path.name}"
        for folder in ("exchanges", "supplies")
        for path in (FOLDER / folder).iterdir()
    }

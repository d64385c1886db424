"""The exchange: many tickets in a round trip (docs/protocol.md). Bytes to values and back, no I/O.

A body is a row of entries; each begins with a line of words, and says how long what follows is.
What stands in there is the very body that the single request would have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from pexecd.core.values import Failure
from pexecd.protocol.sections import AmbiguousBodyError, Data, MalformedBodyError
from pexecd.protocol.wire import (
    CLOSING,
    MAX_RESULTS,
    RESULT,
    ResultBegun,
    TaskMessage,
    UploadParser,
    decode_failure,
    decode_seconds,
    encode_task,
)
from pexecd.units import Seconds

#: The longest body of an exchange, in bytes; ``ExchangeMost`` in config.
EXCHANGE_MOST = 1024 * 1024
#: The most tasks that one exchange gets.
MOST_WANTED = 1024
#: The longest report of one failure, in bytes, as in ``/failed``.
REPORT_MOST = 65536

_TICKET = re.compile(rb"[0-9]{1,18}")

#: The end of an entry with a result.
_CLOSED = CLOSING + b"\n"


@dataclass(slots=True)
class Posted:
    """What a client tells in one exchange."""

    #: Ticket, how long its worker ran, and its results by name.
    complete: list[tuple[int, Seconds, Mapping[str, bytes]]] = field(default_factory=list)
    #: Tickets that failed; also those whose results could be read in two ways.
    failed: list[tuple[int, Failure]] = field(default_factory=list)
    running: list[tuple[int, Seconds]] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    back: list[int] = field(default_factory=list)


def decode_exchange(body: bytes, names: AbstractSet[str], most: int | None = None) -> Posted:
    """Read the body of a request.

    Args:
        body: all of it.
        names: of the session's results: others are ignored, and one that is missing fails
            the attempt.
        most: bytes of results that one attempt may have; one that has more has failed.

    Raises:
        MalformedBodyError: something in it is not as it must be.
    """
    posted = Posted()
    ended: set[int] = set()
    name = next(iter(names)) if len(names) == 1 else ""
    usual = _usual(name) if name else None
    limit = len(body) if most is None else most
    at = 0
    while at < len(body):
        if usual is not None and (head := usual.match(body, at)):
            start, told = head.end(), int(head[3])
            end = start + int(head[4])
            if (
                told <= limit
                and told == end + len(CLOSING) - head.end(3) - 1
                and body.startswith(_CLOSED, end)
            ):
                number = _once(int(head[1]), ended)
                posted.complete.append((number, float(head[2]), {name: body[start:end]}))
                at = end + len(_CLOSED)
                continue
        end = body.find(b"\n", at)
        words = body[at : end if end >= 0 else len(body)].split()
        at = end + 1 if end >= 0 else len(body)
        match words:
            case [b"complete", ticket, seconds, length]:
                inner, at = _inner(body, at, length)
                number = _once(_number(ticket), ended)
                ran = _seconds(seconds)
                try:
                    results = _results(inner, names, most)
                except _AttemptFailedError as error:
                    posted.failed.append((number, Failure(str(error), seconds=ran)))
                else:
                    posted.complete.append((number, ran, results))
            case [b"failed", ticket, length]:
                inner, at = _inner(body, at, length)
                posted.failed.append((_once(_number(ticket), ended), _failure(inner)))
            case [b"running", ticket, seconds]:
                posted.running.append((_number(ticket), _seconds(seconds)))
            case [b"waiting", ticket]:
                posted.waiting.append(_number(ticket))
            case [b"back", ticket]:
                posted.back.append(_once(_number(ticket), ended))
            case _:
                shown = b" ".join(words)[:60].decode("utf-8", "replace")
                raise MalformedBodyError(f"no such entry of an exchange: {shown!a}")
    return posted


@lru_cache(maxsize=64)
def _usual(name: str) -> re.Pattern[bytes] | None:
    """The head of an attempt that has this result and no other: most entries are these.

    None: for one of that name they are to be read with more care.
    """
    told = name.encode("utf-8", "surrogateescape")
    if RESULT.fullmatch(b"[Result]\nName=%b\nLength=0\n--begin content--\n" % told) is None:
        return None
    ran = rb"complete ([0-9]{1,18}) ([0-9]{1,8}\.[0-9]{3}) ([0-9]{1,9})\n"
    result = rb"\[Result\]\nName=%b\nLength=([0-9]{1,9})\n--begin content--\n"
    return re.compile(ran + result % re.escape(told))


def _inner(body: bytes, at: int, length: bytes) -> tuple[bytes, int]:
    """What follows an entry's line, and where the next entry begins."""
    end = at + _number(length)
    if body[end : end + 1] != b"\n":
        raise MalformedBodyError("an entry is not as long as it says")
    return body[at:end], end + 1


def _once(ticket: int, ended: set[int]) -> int:
    if ticket in ended:
        raise MalformedBodyError(f"ticket {ticket} ends twice in one exchange")
    ended.add(ticket)
    return ticket


def _number(word: bytes) -> int:
    if _TICKET.fullmatch(word) is None:
        raise MalformedBodyError(f"expected a number, not {word[:60].decode('latin-1')!a}")
    return int(word)


def _seconds(word: bytes) -> Seconds:
    try:
        return decode_seconds(word.decode("latin-1"))
    except ValueError:
        shown = word[:60].decode("latin-1")
        raise MalformedBodyError(f"expected seconds, not {shown!a}") from None


def _failure(report: bytes) -> Failure:
    if len(report) > REPORT_MOST:
        return Failure("a failure with a report that is too long")
    return decode_failure(report)


class _AttemptFailedError(Exception):
    """These results fail their attempt, and nothing else."""


def _results(body: bytes, names: AbstractSet[str], most: int | None) -> Mapping[str, bytes]:
    """The session's results in a body of ``/complete``."""
    if most is not None and len(body) > most:
        raise _AttemptFailedError(f"the upload is over max_result, {most} bytes")
    try:
        results = _read_results(body)
    except AmbiguousBodyError as error:
        raise _AttemptFailedError(str(error)) from None
    if results.keys() != names:
        for name in names:
            if name not in results:
                raise _AttemptFailedError(f"the upload lacks the result {name}")
        results = {name: results[name] for name in names}
    return results


def _read_results(body: bytes) -> Mapping[str, bytes]:
    results: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        head = RESULT.match(body, at)
        if head is None:
            return _read_any_results(body)
        end = head.end() + int(head[2])
        try:
            name = head[1].decode()
        except UnicodeDecodeError:
            return _read_any_results(body)
        if not body.startswith(CLOSING, end) or name in results:
            return _read_any_results(body)
        results[name] = body[head.end() : end]
        at = end + len(CLOSING)
    if not 0 < len(results) <= MAX_RESULTS:
        return _read_any_results(body)
    return results


def _read_any_results(body: bytes) -> Mapping[str, bytes]:
    """The same in any form that ``/complete`` takes."""
    results: dict[str, bytearray] = {}
    content = bytearray()
    parser = UploadParser()
    for events in (parser.feed(body), parser.finish()):
        for event in events:
            match event:
                case ResultBegun(name, _):
                    content = results[name] = bytearray()
                case Data(data):
                    content += data
    return {name: bytes(data) for name, data in results.items()}


def encode_supply(
    tasks: Sequence[TaskMessage], over: Sequence[int], left: str, sizes: Mapping[Path, int]
) -> list[bytes | Path]:
    """The body of an answer, as pieces (see ``encode_task``).

    Args:
        tasks: the new tickets.
        over: tickets whose workers may be stopped.
        left: ``none`` or ``end`` where tasks are wanted and there is none; else empty.
        sizes: the size in bytes of every file among the inputs.
    """
    pieces: list[bytes | Path] = []
    text = bytearray(b"".join([b"over %d\n" % ticket for ticket in over]))
    for message in tasks:
        parts = encode_task(message, framed=True, sizes=sizes)
        if len(parts) == 1 and isinstance(whole := parts[0], bytes):  # no file, as in most jobs
            text += b"task %d\n%b\n" % (len(whole), whole)
            continue
        length = sum(sizes[part] if isinstance(part, Path) else len(part) for part in parts)
        text += b"task %d\n" % length
        for part in parts:
            if isinstance(part, Path):
                pieces += (bytes(text), part)
                text = bytearray()
            else:
                text += part
        text += b"\n"
    if left:
        text += left.encode() + b"\n"
    pieces.append(bytes(text))
    return pieces

"""What is logged of attempts, and how much of it is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from pexecd import attempts
from pexecd.attempts import Attempts


class Books:
    """Journal, log and teller in one: a row is a ticket's number."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.told: list[int] = []

    def ended(self, tickets: Sequence[int]) -> Deferred[list[tuple[int, int]]]:
        self.asked.append(len(tickets))
        return succeed([(ticket, ticket) for ticket in tickets])

    def command(self, task: int) -> str:
        return f"work {task}"

    def add(self, rows: Sequence[tuple[int, str]]) -> None:
        self.told += [ticket for ticket, _ in rows]

    def rewrite(self, rows: Iterator[tuple[int, str]]) -> None:
        self.told += [ticket for ticket, _ in rows]

    def close(self) -> Deferred[None]:
        return succeed(None)


def test_what_waited_for_long_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "TOGETHER", 10)
    books: Any = Books()
    begin: list[Callable[[], None]] = []
    written: Deferred[None] = Deferred()

    def in_thread(work: Callable[[], None]) -> Deferred[None]:
        begin.append(work)
        return written

    logged = Attempts(books, [books], books, Clock())
    earlier: list[Any] = [(ticket, ticket) for ticket in range(250)]
    logged.begin(lambda: [iter(earlier)], in_thread, lambda call: call())
    logged.ended(range(250, 285))
    closed = logged.close()
    assert books.told == []
    begin[0]()
    written.callback(None)
    assert closed.called
    assert books.told == list(range(285)), "each once, the earlier ones first"
    assert books.asked == [10, 10, 10, 5]


def test_few_wait_for_others_but_many_do_not() -> None:
    books: Any = Books()
    clock = Clock()
    logged = Attempts(books, [books], books, clock)
    logged.ended(range(attempts.MANY - 1))
    clock.advance(attempts.GATHERED / 2)
    assert books.told == []
    logged.ended([attempts.MANY])
    assert books.told == [], "not before what is done now"
    clock.advance(0)
    assert len(books.told) == attempts.MANY
    logged.ended([0])
    clock.advance(attempts.GATHERED / 2)
    assert len(books.told) == attempts.MANY
    clock.advance(attempts.GATHERED / 2)
    assert len(books.told) == attempts.MANY + 1

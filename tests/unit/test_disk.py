"""Work pauses while the disk is full, and goes on by itself."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import TestCase

from pexecd.disk import TRIED, Disk
from pexecd.errors import JournalError


class DiskTests(TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.probed = "still full"
        self.said: list[str] = []

        def observe(event: dict[str, Any]) -> None:
            self.said.append(str(event["log_format"]))

        log = Logger(observer=observe)  # type: ignore[arg-type]
        self.disk = Disk(self.clock, lambda: succeed(self.probed), log)
        self.addCleanup(self.disk.close)

    def test_with_room_nobody_waits(self) -> None:
        self.successResultOf(self.disk.room(30))
        self.successResultOf(self.disk.confirmed(succeed(None)))
        assert self.said == []

    def test_who_waits_goes_on_when_there_is_room(self) -> None:
        self.disk.journal_changed("disk full")
        assert self.disk.full == "disk full"
        waiting = [self.disk.room(30), self.disk.room(30)]
        self.clock.advance(29)
        for one in waiting:
            self.assertNoResult(one)
        self.disk.journal_changed("")
        for one in waiting:
            self.successResultOf(one)
        assert len(self.said) == 2

    def test_who_waits_too_long_is_told(self) -> None:
        self.disk.journal_changed("disk full")
        waiting = self.disk.room(30)
        self.clock.advance(30)
        assert "disk full" in str(self.failureResultOf(waiting, JournalError).value)
        self.disk.journal_changed("")

    def test_who_leaves_is_forgotten(self) -> None:
        self.disk.journal_changed("disk full")
        waiting = self.disk.room(30)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.disk.journal_changed("")

    def test_after_the_spool_failed_it_is_tried_until_there_is_room(self) -> None:
        self.disk.spool_failed("no space left")
        waiting = self.disk.room(1000)
        for _ in range(3):
            self.clock.advance(TRIED)
            self.assertNoResult(waiting)
        self.probed = ""
        self.clock.advance(TRIED)
        self.successResultOf(waiting)
        assert len(self.said) == 2

    def test_both_must_have_room(self) -> None:
        self.disk.journal_changed("disk full")
        self.disk.spool_failed("no space left")
        waiting = self.disk.room(1000)
        self.disk.journal_changed("")
        self.assertNoResult(waiting)
        self.probed = ""
        self.clock.advance(TRIED)
        self.successResultOf(waiting)

    def test_who_waits_for_a_commit_hears_at_once_that_the_disk_is_full(self) -> None:
        writing: Deferred[None] = Deferred()
        answer = self.disk.confirmed(writing)
        self.assertNoResult(answer)
        self.disk.journal_changed("disk full")
        self.failureResultOf(answer, JournalError)
        late = self.disk.confirmed(Deferred())
        self.failureResultOf(late, JournalError)
        writing.callback(None)  # it was written all the same
        self.disk.journal_changed("")

    def test_a_commit_that_comes_is_confirmed(self) -> None:
        writing: Deferred[None] = Deferred()
        answer = self.disk.confirmed(writing)
        writing.callback(None)
        self.successResultOf(answer)
        self.disk.journal_changed("disk full")

from __future__ import annotations

import contextlib
import dataclasses
import io
import os

import pytest

from pexecd.cli import progress
from pexecd.cli.progress import Progress
from pexecd.core.values import Totals

NUMBERS = Totals(tasks=9, done=1, failed=0, running=2, pending=6, tickets=3)


def test_nobody_reads_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    shown = Progress(stream)
    shown.show(NUMBERS)
    shown.show(NUMBERS)
    shown.say("something")
    shown.close()
    with contextlib.suppress(BrokenPipeError):  # of what it could not write
        stream.close()


def test_what_waits_for_a_slow_validator_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    stream = io.StringIO()
    shown = Progress(stream)
    shown.show(NUMBERS)
    shown.show(dataclasses.replace(NUMBERS, running=8, pending=0, judging=6))
    assert stream.getvalue() == "1/9 tasks, 1 done, 8 running (6 to be validated)\n"


def test_there_is_no_stream() -> None:
    shown = Progress(None)
    shown.show(NUMBERS)
    shown.say("something")
    shown.close()


def test_what_takes_long_before_the_beginning_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    shown = Progress(stream)
    shown.show(None, "storing 9 lines of the table")
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    shown.show(None, "storing 9 lines of the table")
    shown.show(None, "storing 9 lines of the table")
    assert stream.getvalue() == "storing 9 lines of the table\n"

from __future__ import annotations

import os
from pathlib import Path

from pexecd.errors import Mistake
from pexecd.jobs.mistakes import MOST_LISTED, Tally, did_you_mean, unreadable


def test_the_closest_word_is_offered() -> None:
    assert did_you_mean("Timeout", ["name", "timeout"]) == " (did you mean 'timeout'?)"
    assert did_you_mean("xyz", ["name", "timeout"]) == ""


def test_the_first_mistakes_are_listed_and_the_others_counted() -> None:
    tally = Tally("sweep.txt")
    assert not tally
    for line in range(1, MOST_LISTED + 4):
        tally.add(line, "wrong")

    *listed, last = tally
    assert listed == [Mistake("sweep.txt", line, "wrong") for line in range(1, MOST_LISTED + 1)]
    assert str(last) == "sweep.txt:20: and 3 more like these in this file"


def test_as_many_as_can_be_listed_have_no_line_that_counts() -> None:
    tally = Tally("sweep.txt")
    for line in range(MOST_LISTED):
        tally.add(line, "wrong")

    assert len(list(tally)) == MOST_LISTED


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text("")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    assert unreadable(good) is None
    assert unreadable(tmp_path / "none") == "does not exist"
    assert unreadable(tmp_path) == "is a folder, a file was expected"
    assert unreadable(fifo) == "is not a regular file"
    assert unreadable(good / "below") == "cannot be read: not a directory"
    assert unreadable(tmp_path / ("x" * 300)) == "cannot be read: file name too long"
    assert unreadable(tmp_path / "nul\0") == "is no name of a file"

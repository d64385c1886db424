from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher

from pexecd.errors import StateError
from pexecd.ports import JoblogRow
from pexecd.store.batches import RETRIED
from pexecd.store.reports import FailureLog, Joblog, StatisticsFile, write_json
from pexecd.store.thread import Each, gently
from tests.pump import Pump
from tests.unit.store.conftest import Limit

ROW = JoblogRow(10016, 17, "lab1", 1.5e9, 0.1234, "failed", 3, 0, 0, 12, "exit\tstatus\n3")


def test_the_joblog_is_gnu_parallels_with_more_columns(tmp_path: Path, pump: Pump) -> None:
    path = tmp_path / "joblog.tsv"
    joblog = Joblog(path, pump)
    joblog.rewrite([(ROW, "ising -L 32")])
    joblog.add([(ROW, "echo 'a\tb'")])
    joblog.add([(ROW, "third")])
    pump.wait(joblog.close())
    head, *lines = path.read_text().splitlines()
    assert head == (
        "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"
        "\tTicket\tEnd\tReason"
    )
    assert lines == [
        f"17\tlab1\t1500000000.000\t0.123\t0\t12\t3\t0\t{command}\t10016\tfailed\texit status 3"
        for command in ("ising -L 32", "echo 'a b'", "third")
    ]


def test_the_failure_log_says_how_a_worker_ended_where_that_is_known(
    tmp_path: Path, pump: Pump
) -> None:
    path = tmp_path / "failures.log"
    failures = FailureLog(path, pump)
    failures.add([(ROW._replace(stderr=b"no such\nlattice\n"), "ising -L 32")])
    failures.add([(ROW._replace(ticket=10017, signal=9), "ising")])
    failures.add([(ROW._replace(ticket=10018, end="lost", reason="gone", exit_status=-1), "ising")])
    failures.add([(ROW._replace(end="done"), "ising")])
    pump.wait(failures.close())
    began = "  began 2017-07-14 02:40:00+00:00, took 0.123 s\n"
    assert path.read_text() == (
        f"task 17, ticket 10016, on lab1: failed: exit status 3\n{began}"
        "  exit status 3\n  ising -L 32\n  | no such\n  | lattice\n\n"
        f"task 17, ticket 10017, on lab1: failed: exit status 3\n{began}"
        "  signal 9\n  ising\n\n"
        f"task 17, ticket 10018, on lab1: lost: gone\n{began}  ising\n\n"
    )


def test_an_old_joblog_is_replaced(tmp_path: Path, pump: Pump) -> None:
    path = tmp_path / "joblog.tsv"
    path.write_text("old")
    Joblog(path, pump).rewrite([])
    assert path.read_text().startswith("Seq\tHost")
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_latest_statistics_count(tmp_path: Path, pump: Pump) -> None:
    path = tmp_path / "statistics.json"
    statistics = StatisticsFile(path, pump)
    taken = []

    def numbers(done: int, _: Each) -> dict[str, object]:
        taken.append(done)
        return {"done": done, "name": "Größe"}

    for done in range(100):
        statistics.write(partial(numbers, done))
    pump.wait(statistics.close())
    assert taken == [0, 99], "what nobody reads is not put into words"
    assert statistics.cost > 0
    assert json.loads(path.read_text()) == {"done": 99, "name": "Größe"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"hosts": {}, "failed_tasks": []},
        {"name": "Größe", "hosts": {":": {"done": 1}, 'a\n"b': {}}, "list": [{"a": 1}]},
    ],
)
def test_statistics_are_json_with_a_line_for_each_host(
    tmp_path: Path, pump: Pump, numbers: dict[str, object]
) -> None:
    path = tmp_path / "statistics.json"
    statistics = StatisticsFile(path, pump)
    statistics.write(lambda _: numbers)
    pump.wait(statistics.close())
    assert json.loads(path.read_text()) == numbers
    if numbers.get("hosts"):
        assert '\n    ":": {"done": 1},\n' in path.read_text()


def test_a_long_loop_in_a_thread_pauses_until_somebody_waits_for_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert list(gently(range(2000), lambda: len(pauses) == 4)) == list(range(2000))
    assert len(pauses) == 4
    assert min(pauses) > 0


@pytest.fixture
def logged() -> Iterator[list[LogEvent]]:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(cast("ILogObserver", events.append))
    yield events
    globalLogPublisher.removeObserver(cast("ILogObserver", events.append))


def test_a_report_that_cannot_be_written_is_logged_and_no_more(
    tmp_path: Path, pump: Pump, logged: list[LogEvent]
) -> None:
    statistics = StatisticsFile(tmp_path / "gone" / "statistics.json", pump)
    statistics.write(lambda _: {})
    pump.wait(statistics.close())
    assert [event["doing"] for event in logged] == [f"writing {tmp_path}/gone/statistics.json"]


def test_on_a_full_disk_lines_wait_and_people_are_told_once(
    tmp_path: Path, pump: Pump, largest_file: Limit, logged: list[LogEvent]
) -> None:
    path = tmp_path / "joblog.tsv"
    joblog = Joblog(path, pump)
    joblog.rewrite([])
    head = path.read_bytes()
    with largest_file(len(head) + 50):
        for number in range(20):
            joblog.add([(ROW, f"{number} {'x' * 100}")])
            pump.advance(RETRIED)
            while not pump.getDelayedCalls():
                pump.step()
            assert path.read_bytes() == head, "no line stands there in half"
    assert [event["log_level"].name for event in logged] == ["warn"]
    assert f"writing {path}: " in formatEvent(logged[0])
    pump.advance(RETRIED)
    pump.wait(joblog.close())
    assert len(path.read_text().splitlines()) == 21
    assert [event["log_level"].name for event in logged] == ["warn", "info"]


def test_who_closes_on_a_full_disk_is_not_kept_waiting(
    tmp_path: Path, pump: Pump, largest_file: Limit, logged: list[LogEvent]
) -> None:
    statistics = StatisticsFile(tmp_path / "statistics.json", pump)
    with largest_file(10):
        statistics.write(lambda _: {"done": 1})
        pump.wait(statistics.close())
    assert list(tmp_path.iterdir()) == []
    assert pump.getDelayedCalls() == []
    assert len(logged) == 1


def test_a_last_try_is_made_after_the_end_was_asked_for(
    tmp_path: Path, pump: Pump, largest_file: Limit, logged: list[LogEvent]
) -> None:
    joblog = Joblog(tmp_path / "joblog.tsv", pump)
    with largest_file(10):
        joblog.add([(ROW, "work")])  # a thread is at it, and will fail
        tried = pump._calls.get()
    closed = joblog.close()
    tried()
    pump.wait(closed)
    assert len((tmp_path / "joblog.tsv").read_text().splitlines()) == 1


def test_a_file_that_cannot_be_replaced_is_named(tmp_path: Path, largest_file: Limit) -> None:
    path = tmp_path / "session.json"
    write_json(path, {"old": True})
    with (
        largest_file(10),
        pytest.raises(StateError, match=r"session\.json: cannot be written: File too large"),
    ):
        write_json(path, {"new": "x" * 100})
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, 0o644])
def test_the_session_file_is_secret_from_the_start(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "session.json"
    if before is not None:
        path.touch(before)
    write_json(path, {"session": "s3cret"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {"session": "s3cret"}

"""The benches work: tiny runs of each. What they measure is for people, not for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
#: All are started at once, for most of their time is start-up, and nothing depends on how fast.
BENCHES = {
    "master": ["bench.master", "--rounds", "1", "--scale", "0.01", "--rows", "function;16 clients"],
    "instructions": ["bench.instructions", "--scale", "0.05", "--rows", "exchanges of 64"],
    "table": ["bench.scale", "table", "--tasks", "2000", "--clients", "2", "--size", "2"],
    "clients": ["bench.scale", "clients", "--clients", "30", "--seconds", "1", "--ping", "0.3"],
    "result": ["bench.scale", "result", "--bytes", "5000001"],
    "peers": [
        *("bench.peers", "--rounds", "1", "--tasks", "40", "--workloads", "W2,W4"),
        *("--peers", "pexecd", "--slow-fsync", "20"),
    ],
    "first": ["bench.first", "--rounds", "1"],
}
#: For each bench what it prints with ``--json``, once it has ended.
Printed = dict[str, Callable[[], dict[str, Any]]]


@pytest.fixture(scope="module")
def printed() -> Iterator[Printed]:
    with ExitStack() as stack:

        def start(words: list[str]) -> Callable[[], dict[str, Any]]:
            process = subprocess.Popen(
                [sys.executable, "-m", *words, "--json"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.terminate)

            def wait() -> dict[str, Any]:
                output, errors = process.communicate(timeout=LONG)
                assert process.returncode == 0, output + errors
                found: dict[str, Any] = json.loads(output.splitlines()[-1])
                assert found["about"]["kernel"] == os.uname().release
                return found

            return wait

        yield {name: start(words) for name, words in BENCHES.items()}


def test_the_masters_cpu_for_a_task(printed: Printed) -> None:
    rows = printed["master"]()["rows"]
    assert set(rows) == {"of 16, function", "pair, 16 clients"}
    for row in rows.values():
        parts = ("reactor", "journal", "other threads", "processes")
        assert row["us"] > 0
        assert all(row[part] >= 0 for part in parts)
        assert row["us"] >= row["reactor"] > 0
    exchange, pair = rows["of 16, function"], rows["pair, 16 clients"]
    assert exchange["processes"] > pair["processes"] == 0
    # config, every 16 tasks, and the last one; config, a task, its result
    assert exchange["requests"] < 1 / 8
    assert pair["requests"] > 2


def test_the_masters_instructions_for_a_task(printed: Printed) -> None:
    row = printed["instructions"]()["rows"]["exchanges of 64"]
    assert row["thousands"] > row["bare"] > 0


def test_a_long_table_goes_on_after_a_crash(printed: Printed) -> None:
    found = printed["table"]()  # it looks at every result itself
    assert found["lost_connections"] >= 1  # it was killed while they worked
    assert found["stored"] > 0
    assert found["ready"] > 0
    assert found["restart"] > 0
    assert found["rate_first"] > 0
    assert found["rate_last"] > 0
    assert found["peak_before"] > 10


def test_clients_hold_requests_and_ping(printed: Printed) -> None:
    found = printed["clients"]()
    assert (found["held"], found["over"]) == (30, 0)
    assert found["pings"] >= 30
    assert 0 < found["ping"]["median"] <= found["ping"]["p99"] <= found["ping"]["most"]
    assert found["share"] > 0
    assert found["resident"] > 10


def test_a_big_result(printed: Printed) -> None:
    found = printed["result"]()
    assert (found["status"], found["bytes"]) == (200, 5000001)
    assert found["peak"] >= found["idle"] > 10


def test_pexecd_beside_a_peer(printed: Printed) -> None:
    runs = printed["peers"]()["runs"]
    slow = "pexecd, fsync +20 ms"
    for rows in runs.values():
        assert set(rows) == {"xargs", "pexecd", slow}
        assert all(run["figure"] > 0 for one in rows.values() for run in one)
    assert [run["tasks"] for run in runs["W2"]["pexecd"]] == [40]


def test_the_shim_makes_syncs_slow_and_spares_what_the_process_starts(tmp_path: Path) -> None:
    from bench.peers import slow_syncs  # noqa: PLC0415

    sync = "import os, time; a = time.monotonic(); os.fdatasync(1); print(time.monotonic() - a)"
    child = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {sync!r}])"
    for text, slow in ((sync, True), (child, False)):
        with (tmp_path / "out").open("w") as out:
            subprocess.run(
                [sys.executable, "-c", text],
                env={**os.environ, **slow_syncs(tmp_path, 3000)},
                stdout=out,
                check=True,
                timeout=LONG,
            )
        assert (float((tmp_path / "out").read_text()) >= 3) is slow


def test_what_the_first_result_waits_for(printed: Printed) -> None:
    found = printed["first"]()
    happened = [what for _, what in found["story"]]
    marks = ["THE WORKER RUNS", "THE RESULT IS IN ITS FILE", "THE COMMAND HAS ENDED"]
    assert [what for what in happened if what in marks] == marks
    assert any("listens at" in what for what in happened)
    assert {"twisted", "pexecd"} <= {name for _, name in found["imports"]}


def test_too_few_open_files_are_named() -> None:
    from bench.machine import raise_open_files  # noqa: PLC0415

    assert "open files are needed" in raise_open_files(2**40)

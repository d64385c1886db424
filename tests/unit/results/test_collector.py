from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from pexecd.core.effects import TaskDone, TaskFailed, TaskReopened
from pexecd.jobs.values import CollectKind, CollectRule, Job
from pexecd.ports import CollectReport, ICollector, JournalRecord, ResultDropped, ResultKept
from pexecd.results import outputs
from pexecd.results.collector import GATHERED, Collector
from pexecd.store import Journal, Spool
from tests.pump import Pump
from tests.results import a_job, inline

TASKS = 12
LARGE = b"large " * 5000 + b"\n"


class Scene:
    """A job's journal and spool, and a collector that can be started again."""

    def __init__(self, folder: Path, pump: Pump, **settings: Any) -> None:
        self.folder = folder
        self.pump = pump
        (folder / "state").mkdir(exist_ok=True)
        self.job: Job = a_job(folder, **settings)
        self.journal = Journal.open(folder / "state" / "session.db", pump)
        if not self.journal.loaded:
            self.journal.load(((f"{task}|t{task}", None) for task in range(1, TASKS + 1)), {})
        self.spool = Spool(folder / "state" / "spool", pump)
        self.collector = self._collector()

    def _collector(self) -> Collector:
        return Collector(
            self.job,
            self.journal,
            self.journal.recovery(),
            self.spool,
            self.folder / "state",
            cast("Any", self.pump),
        )

    def done(self, task: int, data: bytes | None = None) -> None:
        ticket = 10000 + task
        upload = self.spool.upload(ticket)
        upload.begin("output", None)
        upload.write(f"r{task}\n".encode() if data is None else data)
        results = self.pump.wait(upload.finish())
        self._settle([ResultKept(ticket, task, results), TaskDone(task, ticket)], task, ticket)

    def failed(self, task: int, reason: str = "exit status 3") -> None:
        self._settle([TaskFailed(task, reason)], task, None)

    def _settle(self, records: list[JournalRecord], task: int, ticket: int | None) -> None:
        self.pump.wait(self.journal.append(records))
        self.collector.settle(task, ticket)

    def gathered(self, seconds: float = GATHERED) -> None:
        """What the collector does by itself when time has passed, once it has begun."""
        self.pump.wait(self.collector._opening)
        self.pump.advance(seconds)
        for lock in self.collector._locks.values():
            self.pump.wait(lock.run(lambda: None))

    def finish(self) -> CollectReport:
        return self.pump.wait(self.collector.finish())

    def stop(self) -> None:
        self.pump.wait(self.collector.close())
        self.pump.wait(self.spool.close())
        self.pump.wait(self.journal.close())

    def again(self, **settings: Any) -> Scene:
        """Stop, and go on with a new process' eyes."""
        self.stop()
        return Scene(self.folder, self.pump, **settings)

    @property
    def out(self) -> Path:
        return self.folder / "out" / "results"


def rules(folder: Path, kind: CollectKind = CollectKind.CONCAT, **more: Any) -> dict[str, Any]:
    rule = CollectRule("output", kind, folder / "out" / "results")
    return {"collect": (rule,), "tasks": TASKS, **more}


@pytest.fixture
def scene(tmp_path: Path, pump: Pump) -> Iterator[Scene]:
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    yield scene
    scene.stop()


def expected(*tasks: int) -> str:
    return "".join(f"r{task}\n" for task in tasks)


def test_it_provides_the_port(scene: Scene) -> None:
    verifyObject(ICollector, scene.collector)
    scene.finish()


def test_a_file_grows_as_far_as_its_order_allows(scene: Scene) -> None:
    scene.gathered()
    scene.done(2)
    scene.done(4)
    scene.gathered()
    assert not scene.out.exists()
    scene.done(1)
    scene.failed(3)
    scene.gathered()
    assert scene.out.read_text() == expected(1, 2, 4)
    scene.done(6)
    scene.gathered()
    assert scene.out.read_text() == expected(1, 2, 4)


def test_the_first_is_there_at_once_and_those_that_follow_are_gathered(scene: Scene) -> None:
    scene.gathered(0)
    scene.done(1)
    scene.gathered(0)
    assert scene.out.read_text() == expected(1)
    scene.done(2)
    scene.gathered(GATHERED / 2)
    scene.done(3)
    assert scene.out.read_text() == expected(1)
    scene.gathered(GATHERED / 2)
    assert scene.out.read_text() == expected(1, 2, 3)


def test_everything_is_there_in_the_end(scene: Scene) -> None:
    order = list(range(1, TASKS + 1))
    random.Random(1).shuffle(order)
    for task in order:
        scene.done(task)
    assert scene.finish() == CollectReport(TASKS)
    assert scene.out.read_text() == expected(*range(1, TASKS + 1))


def test_an_interrupted_run_has_all_that_is_done_and_goes_on(scene: Scene, tmp_path: Path) -> None:
    for task in (1, 2, 5, 7):
        scene.done(task)
    report = scene.finish()
    assert scene.out.read_text() == expected(1, 2, 5, 7)
    assert report == CollectReport(4, warnings=("8 of 12 sets have no result and are left out",))
    again = scene.again(**rules(tmp_path))
    again.gathered()
    for task in (3, 4, 6):
        again.done(task)
    again.gathered()
    assert scene.out.read_text() == expected(*range(1, 8))
    again.stop()


def test_a_set_that_succeeds_after_all_gets_its_place(scene: Scene, tmp_path: Path) -> None:
    for task in (1, 3):
        scene.done(task)
    scene.failed(2)
    scene.gathered()
    assert scene.out.read_text() == expected(1, 3)
    scene.done(2)
    before = scene.out.stat().st_ino
    assert scene.finish().collected == 3
    assert scene.out.read_text() == expected(1, 2, 3)
    assert scene.out.stat().st_ino != before  # a new file, renamed: no reader saw it half done
    assert os.listdir(tmp_path / "out") == ["results"]
    scene.done(4)
    scene.finish()
    assert scene.out.read_text() == expected(1, 2, 3, 4)


def test_that_it_succeeded_after_all_is_not_forgotten(scene: Scene, tmp_path: Path) -> None:
    scene.failed(1)
    scene.done(2)
    scene.gathered()
    scene.done(1)
    again = scene.again(**rules(tmp_path))
    again.finish()
    assert scene.out.read_text() == expected(1, 2)
    again.stop()


def test_by_completion_it_is_as_they_come(tmp_path: Path, pump: Pump) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path, by_completion=True))
    scene.gathered()
    scene.done(7)
    scene.failed(1)
    scene.gathered()
    scene.done(2)
    scene.done(1)
    scene.gathered()
    assert scene.out.read_text() == expected(7, 2, 1)
    scene = scene.again(**rules(tmp_path, by_completion=True))
    scene.done(5)
    assert scene.finish().collected == 4
    assert scene.out.read_text() == expected(7, 2, 1, 5)
    scene.stop()


@pytest.mark.parametrize("by_completion", [False, True])
def test_a_task_whose_result_was_gone_runs_again_and_is_in_the_file_once(
    tmp_path: Path, pump: Pump, by_completion: bool
) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path, by_completion=by_completion))
    for task in (1, 2, 3):
        scene.done(task)
    scene.finish()
    pump.wait(scene.journal.append([ResultDropped(10002), TaskReopened(2, 10004)]))
    scene = scene.again(**rules(tmp_path, by_completion=by_completion))
    scene.done(4)
    scene.done(2)
    assert scene.finish().collected == 4
    assert scene.out.read_text() == expected(1, 2, 3, 4)
    scene.stop()


@pytest.mark.parametrize("kind", CollectKind)
def test_large_and_small_results_by_every_rule(
    tmp_path: Path, pump: Pump, kind: CollectKind
) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path, kind))
    scene.done(1)
    scene.done(2, LARGE)
    scene.finish()
    result = LARGE.decode()
    assert (
        scene.out.read_text()
        == {
            CollectKind.CONCAT: "r1\n" + result,
            CollectKind.TABLE: f"L|T|output\n1|t1|r1\n2|t2|{result.rstrip()}\n",
            CollectKind.BLOCK: f"# task 1: L = 1 | T = t1\nr1\n# task 2: L = 2 | T = t2\n{result}",
        }[kind]
    )
    scene.stop()


def test_without_any_result_a_table_has_its_headline(tmp_path: Path, pump: Pump) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path, CollectKind.TABLE))
    report = scene.finish()
    assert scene.out.read_text() == "L|T|output\n"
    assert report.warnings == ("12 of 12 sets have no result and are left out",)
    scene.stop()


def test_several_files_from_one_job(tmp_path: Path, pump: Pump) -> None:
    files = [tmp_path / kind.value for kind in CollectKind]
    collect = tuple(
        CollectRule("output", kind, file) for kind, file in zip(CollectKind, files, strict=True)
    )
    scene = Scene(tmp_path, pump, collect=collect)
    for task in range(1, 4):
        scene.done(task)
    assert scene.finish().collected == 3
    assert all(file.read_text().count("r2\n") == 1 for file in files)
    scene.stop()


def test_results_are_read_in_pieces(tmp_path: Path, pump: Pump) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    scene.pump.wait(
        scene.journal.append(
            [
                record
                for task in range(1, 1001)
                for record in (
                    ResultKept(task, task, (inline(b"%d\n" % task),)),
                    TaskDone(task, task),
                )
            ]
        )
    )
    scene = scene.again(**rules(tmp_path))  # what was settled before is found in the journal
    assert scene.finish().collected == 1000
    assert scene.out.read_text() == "".join(f"{task}\n" for task in range(1, 1001))
    scene.stop()


def test_pieces_are_as_large_as_the_results_of_the_last_one_let_expect(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "PIECE", 100)
    monkeypatch.setattr(scene.collector._files[0], "_together", 2)
    pieces: list[int] = []
    results = scene.journal.results

    def seen(tickets: Sequence[int]) -> Any:
        pieces.append(len(tickets))
        return results(tickets)

    monkeypatch.setattr(scene.journal, "results", seen)
    for task in range(1, TASKS + 1):
        scene.done(task, b"%030d\n" % task)
    scene.finish()
    assert [count for count in pieces if count] == [2, 3, 3, 3, 1]
    assert scene.out.read_text() == "".join(f"{task:030}\n" for task in range(1, TASKS + 1))


# --- what goes wrong ---------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_is_told_and_tried_again(
    scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "out").touch()
    scene.done(1)
    report = scene.finish()
    assert report.errors == (f"{scene.out}: cannot be written: Not a directory",)
    assert report.collected == 0
    (tmp_path / "out").unlink()
    scene.done(2)
    scene.gathered()
    assert scene.out.read_text() == expected(1, 2)
    assert scene.finish().errors == ()


def test_one_file_that_cannot_be_written_does_not_stop_the_others(
    tmp_path: Path, pump: Pump
) -> None:
    (tmp_path / "file").touch()
    bad = CollectRule("output", CollectKind.CONCAT, tmp_path / "file" / "x")
    good = CollectRule("output", CollectKind.CONCAT, tmp_path / "good")
    scene = Scene(tmp_path, pump, collect=(bad, good))
    scene.done(1)
    assert len(scene.finish().errors) == 1
    assert (tmp_path / "good").read_text() == expected(1)
    scene.stop()


@pytest.mark.parametrize("content", [None, "x"])
def test_a_file_that_somebody_deleted_or_cut_is_made_anew(
    scene: Scene, content: str | None
) -> None:
    scene.done(1)
    scene.done(2)
    scene.finish()
    scene.out.unlink() if content is None else scene.out.write_text(content)
    scene.done(3)
    scene.finish()
    assert scene.out.read_text() == expected(1, 2, 3)
    scene.out.unlink()
    assert scene.finish().collected == 3
    assert scene.out.read_text() == expected(1, 2, 3)


@pytest.mark.parametrize("content", ["r1\nXX\n", "r1\nlonger than it was\n"])
def test_a_file_that_somebody_edits_while_we_work_is_made_anew(scene: Scene, content: str) -> None:
    scene.done(1)
    scene.done(2)
    scene.finish()
    edited = scene.out.with_name("edited")  # as editors do it
    edited.write_text(content)
    edited.rename(scene.out)
    scene.done(3)
    scene.finish()
    assert scene.out.read_text() == expected(1, 2, 3)


def test_a_new_file_that_somebody_deletes_before_it_is_whole(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.collector._files[0], "_together", 2)
    monkeypatch.setattr(outputs, "TOGETHER", 2)
    scene.failed(1)
    for task in range(2, 9):
        scene.done(task)
    scene.finish()
    scene.done(1)
    results, part = scene.journal.results, scene.out.with_name("results.part")

    def deleting(tickets: Sequence[int]) -> Any:
        if 10003 in tickets:
            part.unlink(missing_ok=True)
        return results(tickets)

    monkeypatch.setattr(scene.journal, "results", deleting)
    assert scene.finish().collected == 8
    assert scene.out.read_text() == expected(*range(1, 9))


def test_another_rule_makes_the_file_anew(scene: Scene, tmp_path: Path) -> None:
    scene.done(1)
    scene.done(2)
    scene.finish()
    again = scene.again(**rules(tmp_path, CollectKind.TABLE))
    again.finish()
    assert scene.out.read_text() == "L|T|output\n1|t1|r1\n2|t2|r2\n"
    again.stop()


def test_a_result_that_is_gone_is_warned_of(scene: Scene, tmp_path: Path) -> None:
    scene.done(1, LARGE)
    scene.done(2)
    for file in (tmp_path / "state" / "spool").iterdir():
        file.unlink()
    report = scene.finish()
    assert scene.out.read_text() == expected(2)
    assert report.warnings[-1] == (
        f"{scene.out}: results that are gone from the state folder: 1; left out"
    )


def test_lines_that_a_table_leaves_out_are_warned_of(tmp_path: Path, pump: Pump) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path, CollectKind.TABLE))
    scene.done(1, b"a\nb\n")
    report = scene.finish()
    assert report.warnings[-1] == (
        f"{scene.out}: results of more than one line: 1; the table has their first lines"
    )
    scene.stop()


def test_a_damaged_journal_is_an_error_in_the_report(tmp_path: Path, pump: Pump) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    scene.finish()
    scene.stop()
    (tmp_path / "state" / "session.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 9000)
    collector = scene._collector()
    collector.settle(1, 10001)
    report = pump.wait(collector.finish())
    assert report.errors[0].startswith("nothing was collected: ")
    pump.wait(collector.close())


def test_closing_in_the_middle_loses_nothing(scene: Scene, tmp_path: Path) -> None:
    for task in range(1, 7):
        scene.done(task)
    finish = scene.collector.finish()
    scene.pump.wait(scene.collector.close())
    report = scene.pump.wait(finish)
    assert report.errors == (f"{scene.out}: collecting was stopped",)
    again = scene.again(**rules(tmp_path))
    assert again.finish().collected == 6
    assert scene.out.read_text() == expected(*range(1, 7))
    again.stop()


@pytest.mark.parametrize("moment", ["results", "append"])
def test_who_closes_does_not_wait_for_a_journal_that_is_stalled(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    scene.done(1)
    closed: list[Deferred[None]] = []

    def close() -> None:
        closed.append(scene.collector.close())

    results, append = scene.journal.results, scene.journal.append

    def asked(tickets: Sequence[int]) -> Any:
        if moment == "results":
            close()
        return results(tickets)

    def stalled(records: Sequence[JournalRecord]) -> Deferred[None]:
        append(records)
        if moment == "append":
            scene.pump.callFromThread(close)  # when it is waited for
        return Deferred()

    monkeypatch.setattr(scene.journal, "results", asked)
    monkeypatch.setattr(scene.journal, "append", stalled)
    report = scene.finish()
    assert report.errors == (f"{scene.out}: collecting was stopped",)
    scene.pump.wait(closed[0])
    monkeypatch.undo()
    again = scene.again(**rules(tmp_path))
    assert again.finish().collected == 1
    assert scene.out.read_text() == expected(1)
    again.stop()


def test_a_crash_between_writing_and_committing(tmp_path: Path, pump: Pump) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    for task in (1, 2):
        scene.done(task)
    scene.finish()
    scene.stop()
    script = """
import os, sys
from pathlib import Path
from pexecd.ports import Collected
from pexecd.store import Journal
from tests.pump import Pump
from tests.unit.results.test_collector import Scene, rules
folder = Path(sys.argv[1])
scene = Scene(folder, Pump(), **rules(folder))
append = scene.journal.append
def crash(records):
    if any(isinstance(record, Collected) for record in records):
        os._exit(9)
    return append(records)
scene.journal.append = crash
for task in (3, 4):
    scene.done(task)
scene.finish()
"""
    crashed = subprocess.run([sys.executable, "-c", script, tmp_path])
    assert crashed.returncode == 9
    assert scene.out.read_text() == expected(1, 2, 3, 4)  # written, and not committed
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    scene.done(5)
    assert scene.finish().collected == 5
    assert scene.out.read_text() == expected(1, 2, 3, 4, 5)
    scene.stop()


@pytest.mark.parametrize("moment", [1, 2])
def test_a_crash_around_the_renaming_of_a_new_file(tmp_path: Path, pump: Pump, moment: int) -> None:
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    scene.failed(1)
    scene.done(2)
    scene.done(3)
    scene.finish()
    scene.stop()
    script = """
import os, sys
from pathlib import Path
from pexecd.ports import Collected
from tests.pump import Pump
from tests.unit.results.test_collector import Scene, rules
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
scene = Scene(folder, Pump(), **rules(folder))
append, seen = scene.journal.append, []
def crash(records):
    seen.extend(record for record in records if isinstance(record, Collected))
    if len(seen) == moment:
        os._exit(9)
    return append(records)
scene.journal.append = crash
scene.done(1, b"a much longer line than was there before\\n")
scene.finish()
"""
    crashed = subprocess.run([sys.executable, "-c", script, tmp_path, str(moment)])
    assert crashed.returncode == 9
    scene = Scene(tmp_path, pump, **rules(tmp_path))
    scene.done(4)
    assert scene.finish().collected == 4
    assert scene.out.read_text() == (
        "a much longer line than was there before\n" + expected(2, 3, 4)
    )
    scene.stop()


# --- the failed sets ---------------------------------------------------------------------------


def test_the_failed_sets_are_the_next_jobs_table(tmp_path: Path, pump: Pump) -> None:
    failed = tmp_path / "failed.txt"
    scene = Scene(tmp_path, pump, **rules(tmp_path, failed=failed))
    scene.failed(11, "exit status 3\n(core dumped)")
    scene.failed(2, "timed out")
    scene.done(3)
    scene.finish()
    assert failed.read_text() == (
        "L|T\n# task 2: timed out\n2|t2\n# task 11: exit status 3 (core dumped)\n11|t11\n"
    )
    scene.done(2)
    scene.done(11)
    scene.finish()
    assert failed.read_text() == "L|T\n"
    scene.stop()


def test_a_failed_file_that_cannot_be_written(tmp_path: Path, pump: Pump) -> None:
    (tmp_path / "file").touch()
    scene = Scene(tmp_path, pump, failed=tmp_path / "file" / "failed.txt")
    scene.failed(1)
    report = scene.finish()
    assert report.errors == (f"{tmp_path}/file/failed.txt: cannot be written: Not a directory",)
    scene.stop()


# --- memory ------------------------------------------------------------------------------------


def test_a_result_of_200_mb_is_never_in_memory(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from tests.pump import Pump
from tests.unit.results.test_collector import Scene, rules
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
folder, pump = Path(sys.argv[1]), Pump()
scene = Scene(folder, pump, **rules(folder))
before = peak()
upload = scene.spool.upload(10001)
upload.begin("output", None)
for _ in range(3200):
    pause = upload.write(b"x" * 65536)
    if pause is not None:
        pump.wait(pause)
results = pump.wait(upload.finish())
from pexecd.core.effects import TaskDone
from pexecd.ports import ResultKept
scene._settle([ResultKept(10001, 1, results), TaskDone(1, 10001)], 1, 10001)
scene.finish()
scene.stop()
pump.stop()
print(scene.out.stat().st_size, peak() - before)
"""
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True)
    size, grown_mb = map(int, ran.stdout.split())
    assert size == 3200 * 65536
    assert grown_mb < 20, f"{grown_mb} MB"
    for file in (*tmp_path.glob("out/*"), *tmp_path.glob("state/spool/*")):
        file.unlink()  # pytest keeps folders

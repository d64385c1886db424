"""The user's collect function, in a real process, with a real journal."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from pexecd.core.effects import TaskDone, TaskFailed
from pexecd.jobs.values import CollectKind, CollectRule, FunctionRef
from pexecd.ports import CollectReport, JournalRecord, ResultKept
from pexecd.results.collector import Collector
from pexecd.store import Journal, Spool
from tests.results import a_job, inline

APPEND = """\
def collect(parameters, result):
    with open("collected", "a") as file:
        file.write(f"{parameters['L']} {result['output'].text()}")
"""
PICKY = """\
import os
def collect(parameters, result):
    if parameters["L"] == "2" and not os.path.exists("now"):
        raise ValueError("not yet")
    with open("collected", "a") as file:
        file.write(parameters["L"] + "\\n")
"""


class CollectFunctionTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.state = self.folder / "job.pexecd"
        self.state.mkdir()
        self.reactor = cast("Any", reactor)
        self.journal = Journal.open(self.state / "session.db", self.reactor)
        self.addCleanup(self.journal.close)
        self.journal.load(((f"{task}|t{task}", None) for task in range(1, 10)), {})
        self.spool = Spool(self.state / "spool", self.reactor)

    def collector(self, source: str, *, recollect: bool = False, **settings: Any) -> Collector:
        (self.folder / "collect.py").write_text(dedent(source))
        function = FunctionRef(self.folder / "collect.py", "collect")
        job = a_job(self.folder, collect_function=function, **settings)
        collector = Collector(
            job,
            self.journal,
            self.journal.recovery(),
            self.spool,
            self.state,
            self.reactor,
            recollect=recollect,
        )
        self.addCleanup(collector.close)
        return collector

    async def done(self, collector: Collector, *tasks: int) -> None:
        """Tasks that are done at the same moment: the collector sees all of them, or none."""
        records: list[JournalRecord] = []
        for task in tasks:
            records += [
                ResultKept(10000 + task, task, (inline(f"r{task}\n".encode()),)),
                TaskDone(task, 10000 + task),
            ]
        await self.journal.append(records)
        for task in tasks:
            collector.settle(task, 10000 + task)

    async def failed(self, collector: Collector, task: int) -> None:
        await self.journal.append([TaskFailed(task, "no")])
        collector.settle(task, None)

    @property
    def collected(self) -> list[str]:
        return (self.folder / "collected").read_text().splitlines()

    async def test_it_is_called_for_each_done_task_in_order(self) -> None:
        collector = self.collector(APPEND)
        await self.done(collector, 3, 1)
        await self.failed(collector, 2)
        assert await collector.finish() == CollectReport(
            2, warnings=("1 of 3 sets have no result and are left out",)
        )
        assert self.collected == ["1 r1", "3 r3"]

    async def test_by_completion_it_is_as_they_come(self) -> None:
        collector = self.collector(APPEND, by_completion=True)
        await self.done(collector, 3)
        await collector.finish()
        await self.done(collector, 1, 2)
        assert (await collector.finish()).collected == 3
        assert self.collected == ["3 r3", "1 r1", "2 r2"]

    async def test_nothing_is_collected_twice_by_the_next_run(self) -> None:
        collector = self.collector(APPEND)
        await self.done(collector, 1, 2)
        await collector.finish()
        await collector.close()
        collector = self.collector(APPEND)
        await self.done(collector, 3)
        await collector.finish()
        assert self.collected == ["1 r1", "2 r2", "3 r3"]

    async def test_another_order_gives_it_nothing_twice(self) -> None:
        collector = self.collector(APPEND)
        await self.done(collector, 1, 3)
        await self.failed(collector, 2)
        await collector.finish()
        await collector.close()
        collector = self.collector(APPEND, by_completion=True)
        await self.done(collector, 5)
        assert (await collector.finish()).collected == 3
        await self.done(collector, 4)
        await collector.finish()
        await collector.close()
        collector = self.collector(APPEND)
        await self.done(collector, 6, 2)
        assert (await collector.finish()).collected == 6
        await collector.close()
        collector = self.collector(APPEND)
        assert (await collector.finish()).collected == 6
        assert self.collected == ["1 r1", "3 r3", "5 r5", "4 r4", "2 r2", "6 r6"]

    async def test_one_that_succeeds_after_all_comes_late(self) -> None:
        collector = self.collector(APPEND)
        await self.failed(collector, 1)
        await self.failed(collector, 2)
        await self.done(collector, 3)
        await collector.finish()
        await self.done(collector, 2)
        assert (await collector.finish()).collected == 2
        await collector.close()
        collector = self.collector(APPEND)
        await self.done(collector, 1)
        assert (await collector.finish()).collected == 3
        await collector.close()
        collector = self.collector(APPEND)
        assert (await collector.finish()).collected == 3
        assert self.collected == ["3 r3", "2 r2", "1 r1"]

    async def test_a_collector_that_raises_goes_on_and_can_be_asked_again(self) -> None:
        collector = self.collector(PICKY)
        await self.done(collector, 1, 2, 3)
        report = await collector.finish()
        assert report.collected == 2
        assert report.not_collected == ((2, "collect.py:collect raised ValueError: not yet"),)
        assert report.errors == ()
        await collector.close()

        collector = self.collector(PICKY)  # not asked again: it is remembered
        assert (await collector.finish()).not_collected == report.not_collected
        await collector.close()

        (self.folder / "now").touch()
        collector = self.collector(PICKY, recollect=True)
        assert await collector.finish() == CollectReport(3)
        await collector.close()
        assert self.journal.recovery().not_collected() == {}
        assert self.collected == ["1", "3", "2"]
        self.flushLoggedErrors()

    async def test_a_collector_that_ends_its_process_goes_on(self) -> None:
        collector = self.collector(
            """\
            import os
            def collect(parameters, result):
                if parameters["L"] == "1":
                    os._exit(5)
                open("collected", "a").write(parameters["L"])
            """
        )
        await self.done(collector, 1, 2)
        report = await collector.finish()
        assert report.not_collected == (
            (1, "the process of collect.py:collect ended: exit status 5"),
        )
        assert self.collected == ["2"]

    async def test_files_do_not_wait_for_the_function(self) -> None:
        collector = self.collector(
            """\
            import time
            def collect(parameters, result):
                print("begun")
                time.sleep(1000)
            """,
            collect=(CollectRule("output", CollectKind.CONCAT, self.folder / "out"),),
        )
        await self.done(collector, 1, 2)
        finish = collector.finish()
        written: Deferred[None] = Deferred()
        append = self.journal.append

        def watch(records: Any) -> Deferred[None]:
            if any(getattr(record, "length", 0) for record in records):
                written.callback(None)
            return append(records)

        self.patch(self.journal, "append", watch)
        await written
        assert (self.folder / "out").read_text() == "r1\nr2\n"
        await collector.close()
        report = await finish
        assert report.not_collected == ()  # it was not its fault
        assert report.errors[-1] == f"{self.folder}/collect.py:collect: collecting was stopped"
        assert self.journal.recovery().not_collected() == {}

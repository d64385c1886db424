"""The judge with real processes: what users' functions do, and what becomes of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from pexecd.jobs import values
from pexecd.ports import IJudge, StoredResult, Verdict
from pexecd.results import runner as runner_module
from pexecd.results.judge import LIMIT, Judge
from tests.results import a_job, inline

PARAMETERS = {"L": "32", "T": "2.2"}
NON_EMPTY = values.Test("output", values.TestKind.NON_EMPTY)
ONE_LINE = values.Test("output", values.TestKind.ONE_LINE)
NUMBER = values.Test("output", values.TestKind.NUMBER)


class Timed(Clock):
    """Real processes; time passes as the test says."""

    def spawnProcess(self, *args: Any, **kwargs: Any) -> Any:
        return cast("Any", reactor).spawnProcess(*args, **kwargs)


class JudgeTests(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.state = self.folder / "job.pexecd"
        (self.state / "spool").mkdir(parents=True)
        self.clock = Timed()
        self.events: list[LogEvent] = []
        observer = cast("Any", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def judge(self, source: str = "", *tests: values.Test, processes: int = 2) -> Judge:
        function = None
        if source:
            (self.folder / "checks.py").write_text(dedent(source))
            function = values.FunctionRef(self.folder / "checks.py", "validate")
        job = a_job(self.folder, tests=tests, validate=function)
        judge = Judge(job, self.state, cast("Any", self.clock), processes)
        self.addCleanup(judge.close)
        return judge

    def begun(self) -> Deferred[None]:
        """Fires when a function prints ``begun``."""
        begun: Deferred[None] = Deferred()

        def observe(event: LogEvent) -> None:
            if event.get("line") == "begun":
                begun.callback(None)

        observer = cast("Any", observe)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return begun

    def verdict(self, judge: Judge, *results: StoredResult) -> Deferred[Verdict]:
        return judge.judge(17, PARAMETERS, results or (inline(b"0.6\n"),))

    def logged(self, text: str) -> bool:
        return any(text in event["log_format"].format(**event) for event in self.events)

    def spooled(self, data: bytes, name: str = "output") -> StoredResult:
        (self.state / "spool" / "10000-x").write_bytes(data)
        return StoredResult(name, len(data), None, "spool/10000-x")

    def test_it_provides_the_port(self) -> None:
        verifyObject(IJudge, self.judge())

    # --- ready-made tests

    def test_quick_tests_of_small_results_are_done_at_once(self) -> None:
        judge = self.judge(
            "",
            values.Test("output", values.TestKind.NON_EMPTY),
            values.Test("output", values.TestKind.NUMBER),
        )
        assert self.successResultOf(self.verdict(judge)) == Verdict(True)
        assert self.successResultOf(self.verdict(judge, inline(b"no\n"))) == Verdict(
            False, "output is not a number: 'no'"
        )

    async def test_a_large_result_is_tested_elsewhere(self) -> None:
        judge = self.judge(
            "",
            values.Test("output", values.TestKind.ONE_LINE),
            values.Test("output", values.TestKind.NON_EMPTY),
        )
        verdict = self.verdict(judge, self.spooled(b"x" * 100_000))
        self.assertNoResult(verdict)
        assert await verdict == Verdict(True)
        assert await self.verdict(judge, self.spooled(b"x\n" * 50_000)) == Verdict(
            False, "output has more than one line"
        )

    async def test_a_regular_expression_that_never_ends_is_no_verdict(self) -> None:
        judge = self.judge("", values.Test("output", values.TestKind.MATCH, "(a+)+$"))
        verdict = self.verdict(judge, inline(b"a" * 60 + b"b"))
        self.clock.advance(LIMIT)
        assert await verdict == Verdict(
            None, "a ready-made test took longer than 60 s and was stopped"
        )

    # --- functions

    async def test_a_function_sees_parameters_and_results_in_the_jobs_folder(self) -> None:
        judge = self.judge(
            """\
            import os, helper
            def validate(parameters, result):
                assert parameters == {"L": "32", "T": "2.2"}, parameters
                assert os.getcwd() == os.path.dirname(os.path.realpath(__file__)), os.getcwd()
                assert sorted(result) == ["big", "output"]
                assert result["output"].text() == "0.6\\ufffd\\n"
                assert result["output"].open("rb").read() == b"0.6\\xff\\n"
                assert [line for line in result["output"].open()] == ["0.6\\ufffd\\n"]
                assert result["output"].path.read_bytes() == b"0.6\\xff\\n"
                assert result["big"].path.stat().st_size == 100_000
                assert result["big"].text() == "y" * 100_000
                return helper.GOOD
            """
        )
        (self.folder / "helper.py").write_text("GOOD = True")
        results = (inline(b"0.6\xff\n"), self.spooled(b"y" * 100_000, "big"))
        assert await self.verdict(judge, *results) == Verdict(True)
        assert os.listdir(self.state / "scratch" / "validate") == []

    async def test_results_with_similar_names_have_files_of_their_own(self) -> None:
        judge = self.judge(
            """\
            def validate(parameters, result):
                paths = [result[name].path for name in sorted(result)]
                return [path.read_text() for path in paths] == ["1", "2", "3"]
            """
        )
        results = (inline(b"1", "a-1"), inline(b"2", "a.1"), inline(b"3", "a_1"))
        assert await self.verdict(judge, *results) == Verdict(True)

    async def test_no_is_no(self) -> None:
        judge = self.judge("def validate(parameters, result): return 0")
        assert await self.verdict(judge) == Verdict(False, "checks.py:validate said no")

    async def test_a_ready_made_test_comes_first(self) -> None:
        judge = self.judge(
            "def validate(parameters, result): raise KeyError",
            values.Test("output", values.TestKind.MATCH, "x"),
        )
        assert await self.verdict(judge) == Verdict(False, "output does not match /x/")

    async def test_a_file_is_imported_once_by_each_process(self) -> None:
        judge = self.judge(
            """\
            calls = []
            def validate(parameters, result):
                calls.append(1)
                return len(calls) == int(result["output"].text())
            """,
            processes=1,
        )
        verdicts = [self.verdict(judge, inline(b"%d" % number)) for number in range(1, 6)]
        assert await gatherResults(verdicts) == [Verdict(True)] * 5

    async def test_no_more_processes_than_allowed(self) -> None:
        judge = self.judge(
            """\
            import os
            def validate(parameters, result):
                open(f"pid-{os.getpid()}", "w").close()
                return True
            """
        )
        assert set(await gatherResults([self.verdict(judge) for _ in range(20)])) == {Verdict(True)}
        assert 1 <= len(list(self.folder.glob("pid-*"))) <= 2

    async def test_the_process_imports_little(self) -> None:
        judge = self.judge(
            """\
            import sys
            def validate(parameters, result):
                heavy = {"pexecd", "twisted", "zope", "sqlite3", "dataclasses", "asyncio"}
                return not heavy & set(sys.modules)
            """
        )
        assert await self.verdict(judge) == Verdict(True)

    async def test_what_a_function_prints_goes_to_the_log(self) -> None:
        judge = self.judge(
            """\
            import os, subprocess, sys
            def validate(parameters, result):
                print("printed")
                print("complained", file=sys.stderr)
                subprocess.run(["echo", "child"])
                os.write(1, b"raw")
                assert sys.stdin.read() == ""
                return True
            """
        )
        assert await self.verdict(judge) == Verdict(True)
        await judge.close()
        for said in ("printed", "complained", "child", "raw"):
            assert self.logged(f"checks.py:validate printed: {said}"), said

    async def test_a_flood_of_prints_is_cut(self) -> None:
        judge = self.judge(
            """\
            def validate(parameters, result):
                for number in range(100_000):
                    print("line", number)
                return True
            """
        )
        assert await self.verdict(judge) == Verdict(True)
        await judge.close()
        assert self.logged("what else it prints")
        assert len(self.events) < 10_000

    # --- what goes wrong

    async def test_a_function_that_raises_is_no_verdict(self) -> None:
        judge = self.judge(
            """\
            def validate(parameters, result):
                return inner()
            def inner():
                raise ValueError("first line\\nsecond")
            """
        )
        assert await self.verdict(judge) == Verdict(
            None, "checks.py:validate raised ValueError: first line"
        )
        assert self.logged('checks.py", line 4, in inner\n    raise ValueError')

    async def test_each_kind_of_mistake_has_its_reason(self) -> None:
        for source, reason in (
            ("def validate(p, r): pass", "checks.py:validate returned None, not True or False"),
            ("def validate(p, r): exit(3)", "checks.py:validate raised SystemExit: 3"),
            ("def validate(p, r): raise KeyboardInterrupt", "raised KeyboardInterrupt"),
            ("def other(p, r): pass", "raised AttributeError: module 'checks' has no"),
            ("import nonsense_module", "raised ModuleNotFoundError: No module named 'nonsense"),
            ("def validate(:", "raised SyntaxError: invalid syntax"),
            ("def validate(p, r): r['output'].open('w')", "raised ValueError: a result can only"),
            ("def validate(p, r): raise ValueError('\\udcff')", "raised ValueError: ?"),
        ):
            verdict = await self.verdict(self.judge(source))
            assert verdict.valid is None, source
            assert reason in verdict.reason

    async def test_a_function_that_hangs_is_stopped_and_replaced(self) -> None:
        judge = self.judge(
            """\
            import os, subprocess, time
            def validate(parameters, result):
                if result["output"].text() == "hang":
                    child = subprocess.Popen(["sleep", "1000"])
                    open("pids", "w").write(f"{os.getpid()} {child.pid}")
                    print("begun")
                    time.sleep(1000)
                return True
            """,
            processes=1,
        )
        begun = self.begun()
        hanging, next_one = self.verdict(judge, inline(b"hang")), self.verdict(judge)
        await begun
        self.clock.advance(LIMIT - 1)
        self.assertNoResult(hanging)
        self.clock.advance(1)
        assert await hanging == Verdict(
            None, "checks.py:validate took longer than 60 s and was stopped"
        )
        assert await next_one == Verdict(True)
        for pid in (self.folder / "pids").read_text().split():
            assert not alive(int(pid))

    async def test_a_process_that_ends_is_no_verdict_and_is_replaced(self) -> None:
        judge = self.judge(
            """\
            import os, signal
            def validate(parameters, result):
                text = result["output"].text()
                if text == "exit":
                    os._exit(7)
                if text == "signal":
                    os.kill(os.getpid(), signal.SIGSEGV)
                return True
            """,
            processes=1,
        )
        ends = [self.verdict(judge, inline(text)) for text in (b"exit", b"signal", b"")]
        assert await gatherResults(ends) == [
            Verdict(None, "the process of checks.py:validate ended: exit status 7"),
            Verdict(
                None,
                f"the process of checks.py:validate ended: killed by signal {int(signal.SIGSEGV)}",
            ),
            Verdict(True),
        ]

    async def test_a_result_that_is_gone_is_no_verdict(self) -> None:
        judge = self.judge("", NUMBER)
        gone = StoredResult("output", 100_000, None, "spool/gone")
        verdict = await self.verdict(judge, gone)
        assert verdict.valid is None
        assert "No such file" in verdict.reason

    async def test_without_a_python_there_is_no_verdict(self) -> None:
        self.patch(sys, "executable", str(self.folder / "no-python"))
        judge = self.judge("def validate(p, r): return True")
        verdict = await self.verdict(judge)
        assert verdict.valid is None
        assert verdict.reason.startswith(
            "the process of checks.py:validate ended: exit status "
        ) or (verdict.reason.startswith("no process can be started for checks.py:validate"))

    async def test_close_ends_what_runs_and_what_waits(self) -> None:
        judge = self.judge(
            """\
            import os, time
            def validate(parameters, result):
                print("begun", flush=True)
                time.sleep(1000)
            """,
            processes=1,
        )
        begun = self.begun()
        running, waiting = self.verdict(judge), self.verdict(judge)
        await begun
        await judge.close()
        assert await running == Verdict(None, "not validated: closed")
        assert await waiting == Verdict(None, "not validated: closed")
        assert await self.verdict(judge) == Verdict(None, "not validated: closed")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_process_whose_master_is_gone_ends(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text(
        "import time\ndef validate(p, r):\n    print('begun')\n    time.sleep(1000)\n"
    )
    (tmp_path / "scratch").mkdir()
    runner = subprocess.Popen(
        [sys.executable, "-P", runner_module.__file__, tmp_path, tmp_path / "scratch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with runner:
        assert runner.stdin is not None
        assert runner.stderr is not None
        function = [str(tmp_path / "checks.py"), "validate", "validate"]
        request = {"parameters": {}, "results": {}, "tests": [], "function": function}
        runner.stdin.write(json.dumps(request).encode() + b"\n")
        runner.stdin.flush()
        assert runner.stderr.readline() == b"begun\n"
        runner.stdin.close()
        assert runner.wait(60) == -signal.SIGKILL

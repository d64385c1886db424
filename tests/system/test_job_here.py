"""Whole jobs on this computer, through the command that users type."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.system.running import PEXECD, JobFolder, adds_up, interrupt
from tests.waiting import LONG, wait_until

ECHO = """\
[job]
parameters = table.txt
[worker]
command = echo $n
[collect]
output = table results.txt
failed = failed.txt
"""


def numbers(count: int) -> list[str]:
    return ["n", *map(str, range(1, count + 1))]


def test_every_result_comes_once_and_in_order(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(300))
    printed = job.run()
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, 301))]
    assert "300 done, 0 failed" in printed
    assert "failures.log" not in printed
    statistics = job.statistics()
    assert statistics["done"] == statistics["tasks"] == statistics["tickets"] == 300
    adds_up(statistics)
    joblog = [line.split("\t") for line in job.lines("job.pexecd/joblog.tsv")]
    assert joblog[0][:9] == [
        "Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command",
    ]  # fmt: skip
    assert sorted(int(line[0]) for line in joblog[1:]) == list(range(1, 301))
    card = job.path / "job.pexecd" / "session.json"
    assert card.stat().st_mode & 0o777 == 0o600
    secret = json.loads(card.read_text())["session"]
    assert secret.isalnum()
    assert secret not in job.log()
    assert job.state.stat().st_mode & 0o777 == 0o700
    job.assert_nothing_left()


def test_the_same_command_again_finds_all_done(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(5))
    job.run()
    before = job.lines("results.txt")
    assert "5 done, 0 failed" in job.run()
    assert job.lines("results.txt") == before
    assert job.statistics()["tickets"] == 5


def test_a_pilot_runs_a_few_and_estimates_the_others(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(40))
    printed = job.run("--pilot", "4")
    assert job.lines("results.txt") == ["n|output", "6|6", "16|16", "26|26", "36|36"]
    assert "pilot    4 tasks took " in printed
    assert "whole    36 tasks are left: about " in printed
    assert "results  about 99 bytes more; " in printed
    assert "again    without --pilot the tasks that are left run" in printed
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["tasks"] == statistics["done"] == statistics["tickets"] == 4
    pilot = statistics["pilot"]
    assert (pilot["ran"], pilot["left"]) == (4, 36)
    assert pilot["slots"] == len(os.sched_getaffinity(0))
    job.assert_nothing_left()

    assert "whole    36 tasks are left" in job.run("--pilot", "4")
    assert job.statistics()["tickets"] == 4, "the same tasks, which are done"
    printed = job.run()
    assert "40 done, 0 failed" in printed
    assert "pilot" not in printed
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, 41))]
    assert job.statistics()["tickets"] == 40


def test_a_pilot_that_is_killed_goes_on(tmp_path: Path) -> None:
    go = tmp_path / "job" / "go"
    waits = f'sh -c "until test -e {go}; do sleep 0.02; done; echo $n"'
    text = "[client]\nping = 1\n" + ECHO.replace("echo $n", waits)
    job = JobFolder(tmp_path / "job", text, numbers(30))
    first = job.start(*PEXECD, "run", "job.ini", "--pilot", "3")
    wait_until(lambda: any("until test" in one for one in job.processes().values()))
    first.kill()
    first.communicate()
    go.touch()
    assert "3 done, 0 failed" in job.run("--pilot", "3")
    assert job.lines("results.txt") == ["n|output", "6|6", "16|16", "26|26"]
    assert job.statistics()["tickets"] == 3
    job.assert_nothing_left()


def test_a_pilot_whose_tasks_fail_says_so(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace("echo $n", "test $n = 2"), numbers(6))
    printed = job.run("--pilot", "3", expect=1)  # 2, 4 and 6
    assert "3: 1 done, 2 failed" in printed
    assert "pilot    1 tasks took" in printed
    assert job.lines("failed.txt")[0] == "n"
    assert [line for line in job.lines("failed.txt")[1:] if line[0] != "#"] == ["4", "6"]


FAILING = """\
[job]
parameters = table.txt
timeout = 1
attempts = 2
[worker]
name = work
command = work $how $n
executable = work.sh
[result]
output = stdout
file = out/file
[validate]
output = non_empty one_line number
[collect]
output = table results.txt
failed = failed.txt
[client]
ping = 1
"""

WORKER = """\
#!/bin/sh
mkdir out
case $1 in
  good) echo $2; echo $2 > out/file;;
  exits) echo "cannot go on" >&2; exit 3;;
  hangs) sleep 1000 & sleep 1000;;
  nofile) echo $2;;
  garbage) echo "not a number"; echo x > out/file;;
  signal) kill -9 $$;;
esac
"""


def test_whatever_fails_is_tried_again_and_named(tmp_path: Path) -> None:
    hows = ["good", "exits", "good", "hangs", "nofile", "good", "garbage", "signal", "good"]
    table = ["how | n", *(f"{how} | {n}" for n, how in enumerate(hows, 1))]
    job = JobFolder(tmp_path / "job", FAILING, table, {"work.sh": WORKER})
    printed = job.run(expect=1)
    assert f"see      {job.state}/log/failures.log" in printed
    good = [f"good|{n}|{n}" for n, how in enumerate(hows, 1) if how == "good"]
    assert job.lines("results.txt") == ["how|n|output", *good]
    failed = job.lines("failed.txt")
    assert [line for line in failed if not line.startswith("#")] == [
        "how|n", "exits|2", "hangs|4", "nofile|5", "garbage|7", "signal|8",
    ]  # fmt: skip
    reasons = {one["task"]: one["reason"] for one in job.statistics()["failed_tasks"]}
    assert "3" in reasons[2]
    assert "time" in reasons[4]
    assert "file" in reasons[5]
    assert "number" in reasons[7]
    assert "9" in reasons[8]
    for reason in reasons.values():
        assert any(reason in line for line in failed if line.startswith("#"))
    told = (job.state / "log" / "failures.log").read_text()
    assert told.count("cannot go on") == 2
    assert told.count("task 4, ") == 2
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["ends"]["failed"] == 6
    assert statistics["ends"]["timed out"] == 2
    assert statistics["ends"]["invalid"] == 2
    job.assert_nothing_left()


def test_the_failed_sets_are_a_table_again(tmp_path: Path) -> None:
    job = JobFolder(
        tmp_path / "job", FAILING, ["how | n", "exits | 1", "good | 2"], {"work.sh": WORKER}
    )
    job.run(expect=1)
    again = JobFolder(
        tmp_path / "again",
        FAILING,
        job.lines("failed.txt"),
        {"work.sh": WORKER.replace("exits)", "exits) echo 1; echo 1 > out/file;; never)")},
    )
    again.run()
    assert again.lines("results.txt") == ["how|n|output", "exits|1|1"]


NASTY = [
    "; touch hacked; $(id)",
    'it\'s "quoted"  twice',
    "größe ∂x/∂t √2",
    "`id`",
    "-n",
    "\\",
    "*",
]

SHOW = """\
#!{python}
import os, sys
print(len(sys.argv) - 1, ascii(sys.argv[1]), ascii(os.environ.get("v")))
"""


def test_a_value_reaches_the_worker_unaltered(tmp_path: Path) -> None:
    job = JobFolder(
        tmp_path / "job",
        "[job]\nparameters = table.txt\n[worker]\nname = show\ncommand = show $v\n"
        "executable = show.py\n[collect]\noutput = concat out.txt\n",
        ["v", *NASTY],
        {"show.py": SHOW.format(python=sys.executable)},
    )
    job.run()
    assert job.lines("out.txt") == [f"1 {value!a} None" for value in NASTY]
    assert not list(tmp_path.rglob("hacked"))


def test_a_value_reaches_the_shell_as_a_variable(tmp_path: Path) -> None:
    job = JobFolder(
        tmp_path / "job",
        "[job]\nparameters = table.txt\n[worker]\nname = show\n"
        'command = show "$v" && printf "%s\\n" "<$v>" && printf "%s\\n" $v | wc -l\n'
        "executable = show.py\nshell = yes\n[collect]\noutput = concat out.txt\n",
        ["v", *NASTY[:3]],
        {"show.py": SHOW.format(python=sys.executable)},
    )
    job.run()
    words = [4, 3, 3]  # outside the quotes the shell splits, as it does
    expected = []
    for value, count in zip(NASTY[:3], words, strict=True):
        expected += [f"1 {value!a} {value!a}", f"<{value}>", str(count)]
    assert job.lines("out.txt") == expected
    assert not list(tmp_path.rglob("hacked"))


SLEEPY = """\
[job]
parameters = table.txt
[worker]
command = sleep $n
[collect]
output = table results.txt
[client]
ping = 1
"""


def sleepers(job: JobFolder) -> list[int]:
    return [pid for pid, command in job.processes().items() if command.startswith("sleep ")]


def clients(job: JobFolder) -> list[int]:
    return [pid for pid, command in job.processes().items() if "pexec_client" in command]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_killed_client_takes_its_workers_along_and_is_replaced(
    tmp_path: Path, rounds: int
) -> None:
    gate = tmp_path / "gate"
    job = JobFolder(
        tmp_path / "job",
        f"[job]\nparameters = table.txt\n[worker]\nname = nap\nshell = yes\n"
        f"command = test -e {gate} || sleep 1000; echo $n\n"
        "[collect]\noutput = table results.txt\n[client]\nping = 1\n",
        numbers(4),
    )
    process = job.start()
    for _ in range(rounds):
        wait_until(lambda: sleepers(job) and clients(job), lambda: f"{job.processes()} {job.log()}")
        old = sleepers(job)
        for pid in clients(job):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda old=old: not set(old) & set(sleepers(job)))  # type: ignore[misc]
    gate.touch()
    for pid in sleepers(job):
        os.kill(pid, signal.SIGKILL)
    job.finish(process)
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, 5))]
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["ends"]["lost"] >= rounds
    job.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_everything_and_goes_on_later(
    tmp_path: Path, number: signal.Signals
) -> None:
    gate = tmp_path / "gate"
    job = JobFolder(
        tmp_path / "job",
        "[job]\nparameters = table.txt\n[worker]\nname = nap\nshell = yes\n"
        f"command = test $n -le 2 -o -e {gate} || sleep 1000; echo $n\n"
        "[collect]\noutput = table results.txt\n[client]\nping = 1\n",
        numbers(6),
    )
    process = job.start()
    wait_until(lambda: len(sleepers(job)) >= 1, lambda: f"{job.processes()} {job.log()}")
    if number == signal.SIGINT:
        interrupt(process)
    else:
        process.send_signal(number)
    job.finish(process, expect=130)
    job.assert_nothing_left()
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["done"] >= 2
    gate.touch()
    job.run()
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, 7))]
    job.assert_nothing_left()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_no_ping(tmp_path: Path, times: int) -> None:
    text = ECHO.replace("echo $n", "sleep 6000") + "[client]\nping = 6000\n"
    job = JobFolder(tmp_path / "job", text, numbers(3))
    process = job.start()
    wait_until(lambda: any("sleep 6000" in one for one in job.processes().values()))
    interrupt(process)
    if times == 2:
        assert process.stdout is not None
        assert "once more leaves at once" in process.stdout.readline()
        with contextlib.suppress(ProcessLookupError):  # the first was enough
            interrupt(process)
    job.finish(process, expect=process.wait() if times == 2 else 130)
    job.assert_nothing_left()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_run_ends_also_when_nobody_reads_what_it_prints(
    tmp_path: Path, options: list[str]
) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(3))
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PEXECD, "run", "job.ini", "--verbose", *options],
        cwd=job.path,
        env=job.environment,
        stdout=writer,
        stderr=writer,
        timeout=LONG,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert job.statistics()["outcome"] == "succeeded"
    job.assert_nothing_left()


@pytest.mark.parametrize("verb", ["run", "check"])
def test_ctrl_c_while_the_files_are_read_is_an_interruption_too(tmp_path: Path, verb: str) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(400_000))
    process = job.start(*PEXECD, verb, "job.ini")

    def reading() -> bool:
        with contextlib.suppress(FileNotFoundError):  # one that was just closed
            opened = Path(f"/proc/{process.pid}/fd").iterdir()
            return any(os.readlink(one) == str(job.path / "table.txt") for one in opened)
        return False

    wait_until(reading)
    interrupt(process)
    assert "Aborted" not in job.finish(process, expect=130)
    job.assert_nothing_left()


def test_ctrl_c_while_the_table_is_stored_ends_that_and_the_next_run_stores_it(
    tmp_path: Path,
) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace("echo $n", "echo $x"), ["x", *["1"] * 300_000])
    process = job.start()
    wait_until((job.state / "session.db").exists)
    interrupt(process)
    job.finish(process, expect=130)
    (job.path / "table.txt").write_text("x\n1\n2\n")
    job.run()
    assert job.lines("results.txt") == ["x|output", "1|1", "2|2"]
    job.assert_nothing_left()


def test_a_typo_does_not_cost_a_night(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace("echo $n", "no-such-program $n"), numbers(500))
    printed = job.run(expect=1)
    assert "no-such-program" in printed
    assert job.statistics()["ends"]["failed"] == 20
    job.assert_nothing_left()


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (("parameters = table.txt", "parameters = tabel.txt"), "job.ini:2", "tabel.txt"),
        (("[collect]", "[colect]"), "job.ini:5", "did you mean"),
        (("echo $n", "echo $m"), "job.ini:4", "'$m'"),
    ],
)
def test_mistakes_are_named_with_their_line_and_nothing_starts(
    tmp_path: Path, change: tuple[str, str], place: str, words: str
) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace(*change), numbers(3))
    for verb in ("run", "check"):
        printed = job.finish(job.start(*PEXECD, verb, "job.ini"), expect=2)
        assert place in printed
        assert words in printed
    assert not job.state.exists()


def test_a_job_without_a_verb_is_answered_with_the_verbs(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(3))
    printed = job.finish(job.start(*PEXECD, "job.ini"), expect=2)
    assert "pexecd run job.ini, or pexecd check job.ini" in printed


def test_check_shows_commands_and_settings_and_starts_nothing(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(3))
    printed = job.finish(job.start(*PEXECD, "check", "job.ini"))
    assert "3 tasks" in printed
    assert "echo 1" in printed
    assert "attempts = 3" in printed
    assert not job.state.exists()


def test_a_terminal_that_knows_few_characters_gets_them_written_out(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, ["n", "größe"])
    coding = f"PYTHONIOENCODING=ascii exec {shlex.join(PEXECD)}"
    assert r"gr\xf6\xdfe" in job.finish(job.start("/bin/sh", "-c", f"{coding} check job.ini"))


def test_check_shows_a_shell_command_that_can_be_tried(tmp_path: Path) -> None:
    text = ECHO.replace("echo $n", 'echo "<$n>" | tr a b\nshell = yes') + "[input]\nstdin = n\n"
    text = text.replace("[worker]", "listen = tcp:0\n[worker]")
    job = JobFolder(tmp_path / "job", text, ["n", "it's $a"])
    printed = job.finish(job.start(*PEXECD, "check", "job.ini")).splitlines()
    command = printed[printed.index("Settings in force:") - 1]
    assert subprocess.check_output(command, shell=True, text=True) == "<it's $b>\n"
    assert "  hosts = this computer" in printed
    assert "  input stdin = n" in printed
    assert "plain HTTP" in printed[-1] + printed[0]


@pytest.mark.parametrize("arguments", [[], ["--jobs", "job.ini"], ["job.ini"]])
def test_twistd_calls_bad_usage_what_pexecd_calls_it(tmp_path: Path, arguments: list[str]) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(3))
    twistd = str(Path(sys.executable).with_name("twistd"))
    job.finish(job.start(twistd, "-n", "--pidfile=", "pexecd", *arguments), expect=2)
    assert not job.state.exists()


@pytest.mark.parametrize(("command", "status"), [("echo $n", 0), ("test $n = 1", 1)])
def test_twistd_ends_with_the_same_status(tmp_path: Path, command: str, status: int) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace("echo $n", command), numbers(3))
    twistd = str(Path(sys.executable).with_name("twistd"))
    process = job.start(twistd, "-n", "--pidfile=", "pexecd", "--job", "job.ini")
    printed = job.finish(process, expect=status)
    assert "3 tasks" in printed or "tasks    3" in printed
    adds_up(job.statistics())
    job.assert_nothing_left()


def test_a_changed_recipe_is_refused_until_told_otherwise(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(3))
    job.run()
    (job.path / "job.ini").write_text(ECHO + "[validate]\noutput = number\n")
    assert "the results of 3 tasks" in job.run(expect=2)
    (job.path / "table.txt").write_text("n\n1\n2\n3\n4\n")
    job.run("--keep-old")
    assert job.lines("results.txt") == ["n|output", "1|1", "2|2", "3|3", "4|4"]
    assert job.statistics()["tickets"] == 4
    job.run()
    assert job.statistics()["tickets"] == 4
    (job.path / "job.ini").write_text(ECHO)
    assert "--keep-old" in job.run(expect=2)
    job.run("--fresh")
    assert job.statistics()["done"] == job.statistics()["tickets"] == 4


def test_a_changed_recipe_is_fine_while_no_task_has_come_to_anything(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace("echo $n", "sleep 6000"), numbers(3))
    process = job.start()
    wait_until(lambda: any("sleep 6000" in one for one in job.processes().values()))
    interrupt(process)
    job.finish(process, expect=130)
    (job.path / "job.ini").write_text(ECHO + "[validate]\noutput = number\n")
    job.run()
    assert job.lines("results.txt") == ["n|output", "1|1", "2|2", "3|3"]


def test_what_failed_earlier_is_still_named(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO.replace("echo $n", "test $n = 1"), numbers(3))
    job.run(expect=1)
    told = job.statistics()["failed_tasks"]
    assert [one["task"] for one in told] == [2, 3]
    printed = job.run(expect=1)
    assert job.statistics()["failed_tasks"] == told
    assert "failed   task 3: exit status 1" in printed
    (job.path / "job.ini").write_text(
        ECHO.replace("echo $n", "test $n = 1") + "[validate]\noutput = non_empty\n"
    )
    assert "the results of 1 tasks, 2 failed tasks" in job.run(expect=2)


def test_only_what_is_new_in_the_table_runs(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(5))
    job.run()
    (job.path / "table.txt").write_text("n\n7\n5\n1\n1\n3\n")
    assert "3 tasks keep what they have, 2 are new, 2 are in the table no more" in job.run()
    assert job.lines("results.txt") == ["n|output", "7|7", "5|5", "1|1", "1|1", "3|3"]
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["ends"]["done"] == 5
    # 2 and 4 come back with their results; the same command, written otherwise, is the same
    (job.path / "table.txt").write_text("\n".join(numbers(5)))
    (job.path / "job.ini").write_text(ECHO.replace("echo $n", 'echo "${n}"'))
    job.run()
    assert job.lines("results.txt") == ["n|output", *(f"{n}|{n}" for n in range(1, 6))]
    joblog = job.lines("job.pexecd/joblog.tsv")
    assert len(joblog) == 1 + 5
    # another command is another task
    (job.path / "job.ini").write_text(ECHO.replace("echo $n", "echo n$n"))
    job.run()
    assert job.lines("results.txt") == ["n|output", *(f"{n}|n{n}" for n in range(1, 6))]


def test_a_collected_file_that_somebody_changed_is_made_anew(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", ECHO, numbers(5))
    job.run()
    collected = job.path / "results.txt"
    before = collected.read_text()
    collected.write_text(before.replace("3|3", "3|7"))
    assert "was changed by somebody else" in job.run()
    assert collected.read_text() == before
    collected.unlink()
    job.run()
    assert collected.read_text() == before


def test_a_result_whose_file_is_gone_is_made_again(tmp_path: Path) -> None:
    job = JobFolder(
        tmp_path / "job",
        ECHO.replace("echo $n", 'sh -c \'printf "%030000d" "$0"\' $n').replace(
            "table results", "concat results"
        ),
        numbers(3),
    )
    job.run()
    before = (job.path / "results.txt").read_bytes()
    (victim,) = (job.state / "spool").glob("10001-*")
    victim.unlink()
    (job.path / "results.txt").unlink()
    printed = job.run()
    assert "task 2: its result is gone" in printed
    assert (job.path / "results.txt").read_bytes() == before
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["ends"]["lost"] == 1


def test_what_failed_is_tried_again_when_told_to(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = JobFolder(
        tmp_path / "job",
        ECHO.replace("echo $n", f"test $n != 2 -o -e {gate} && echo $n").replace(
            "[worker]", "[worker]\nshell = yes"
        ),
        numbers(3),
    )
    job.run(expect=1)
    assert job.lines("results.txt") == ["n|output", "1|1", "3|3"]
    assert job.statistics()["ends"]["failed"] == 3
    job.run(expect=1)
    assert job.statistics()["ends"]["failed"] == 3
    gate.touch()
    job.run("--retry-failed")
    assert job.lines("results.txt") == ["n|output", "1|1", "2|2", "3|3"]
    assert job.lines("failed.txt") == ["n"]
    statistics = job.statistics()
    adds_up(statistics)
    assert statistics["tickets"] == 6


def test_what_was_not_collected_is_no_success_and_is_collected_when_asked(tmp_path: Path) -> None:
    collect = """\
import pathlib

def collect(parameters, result):
    if parameters["n"] == "2" and not pathlib.Path("mended").exists():
        raise ValueError("not yet")
    with open("seen", "a") as seen:
        seen.write(result["output"].text())
"""
    text = ECHO + "function = collect.py:collect\n"
    job = JobFolder(tmp_path / "job", text, numbers(3), {"collect.py": collect})
    for _ in range(2):
        printed = job.run(expect=1)
        assert "task 2: collect.py:collect raised ValueError: not yet" in printed
        assert "--recollect" in printed
        statistics = job.statistics()
        assert statistics["outcome"] == "some failed"
        assert [one["task"] for one in statistics["not_collected"]] == [2]
        assert job.lines("seen") == ["1", "3"]
        (job.path / "mended").touch()
    job.run("--recollect")
    assert job.lines("seen") == ["1", "3", "2"]
    assert job.statistics()["outcome"] == "succeeded"


def test_a_fresh_start_sends_the_clients_of_the_run_before_away(tmp_path: Path) -> None:
    text = ECHO + "[client]\nping = 1\n"
    job = JobFolder(tmp_path / "job", text.replace("echo $n", "sleep 6000"), numbers(3))

    def sleeping() -> bool:
        return any("sleep 6000" in command for command in job.processes().values())

    process = job.start()
    wait_until(sleeping)
    process.kill()
    process.communicate()
    wait = f'sh -c \'until test -e "$1"; do sleep 0.1; done\' sh "{job.path}/go"'
    (job.path / "job.ini").write_text(text.replace("echo $n", wait))
    process = job.start(*PEXECD, "run", "job.ini", "--fresh")
    wait_until(lambda: not sleeping())
    (job.path / "go").touch()
    job.finish(process)
    job.assert_nothing_left()


def test_a_second_master_says_who_holds_the_state(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job", SLEEPY, ["n", "1000"])
    process = job.start()
    wait_until(lambda: sleepers(job))
    second = job.run(expect=2)
    assert f"process {process.pid}" in second
    interrupt(process)
    job.finish(process, expect=130)
    job.assert_nothing_left()


@contextlib.contextmanager
def waiting_for_its_port(folder: Path) -> Iterator[tuple[JobFolder, subprocess.Popen[str]]]:
    """A run whose port another program has until the block ends."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listen = f"listen = tcp:{port}:interface=127.0.0.1\n[worker]"
        job = JobFolder(folder / "job", ECHO.replace("[worker]", listen), numbers(2))
        process = job.start()
        wait_until(lambda: "it is in use" in job.log())
        yield job, process


def test_a_port_that_is_in_use_is_waited_for(tmp_path: Path) -> None:
    with waiting_for_its_port(tmp_path) as (job, process):
        pass
    job.finish(process)
    assert job.lines("results.txt") == ["n|output", "1|1", "2|2"]


def test_a_late_result_of_the_last_failed_task_makes_the_run_a_success(tmp_path: Path) -> None:
    text = ECHO.replace("[worker]", "cluster = hosts\nattempts = 1\n[worker]")
    job = JobFolder(tmp_path / "job", text, numbers(1), {"hosts": "localhost start=no\n"})
    process = job.start()
    card = job.path / "job.pexecd" / "session.json"
    wait_until(card.exists)
    about = json.loads(card.read_bytes())

    def send(path: str, body: bytes | None = None) -> bytes:
        url = f"{about['url']}{path}sessionID={about['session']}"
        with urlopen(url, body, LONG) as answer:
            return bytes(answer.read())

    ticket = send("/task?").split(b"\n")[0].removeprefix(b"Ticket=").decode()
    send(f"/failed?ticket={ticket}&")
    result = b"[Result]\nName=output\n--begin content--\n1\n--end content--\n"
    send(f"/complete?ticket={ticket}&", result)
    with pytest.raises(HTTPError, match="503"):
        send("/task?")
    job.finish(process)
    assert job.statistics()["outcome"] == "succeeded"
    assert job.lines("results.txt") == ["n|output", "1|1"]


def test_a_run_that_waits_for_its_port_can_be_interrupted(tmp_path: Path) -> None:
    with waiting_for_its_port(tmp_path) as (job, process):
        interrupt(process)
        job.finish(process, expect=130)
    job.run()
    assert job.lines("results.txt") == ["n|output", "1|1", "2|2"]

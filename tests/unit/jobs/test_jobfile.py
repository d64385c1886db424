from __future__ import annotations

from pathlib import Path

import pytest

from pexecd.errors import BadInputError
from pexecd.jobs import cluster, jobfile, read_job
from pexecd.jobs.cluster import HERE
from pexecd.jobs.values import HostSpec
from tests.unit.jobs.conftest import LEAST, Folder

WHOLE = """\
[job]
name = ising
cluster = lab.hosts
parameters = sweep.txt
listen = tcp:8080
advertise = http://master:8080
timeout = 600
attempts = 4
duplicates = 1
stop_after = 0
give_up = 60
max_result = 1000000
state = /var/tmp/ising.pexecd

[worker]
name = ising
command = ising -L $L -T ${T} --seed $seed
executable.linux-amd64 = ising.x86
executable.any = ising.py
shell = no
nice = 5

[env]
OMP_NUM_THREADS = 1
RATE = 100% $L

[client]
ping = 0
patience = 60
delete_worker = no
delete_client = no
keep_failed = yes

[ssh]
config = ssh_config
"""


def test_the_least_job_file_has_the_documented_defaults(folder: Folder) -> None:
    job = folder.job(name="echo.ini")

    assert job.path == folder.path / "echo.ini"
    assert job.folder == folder.path
    assert (job.name, job.worker.name) == ("echo", "echo")
    assert job.parameters == folder.path / "sweep.txt"
    assert (job.columns, job.tasks) == (("L", "T", "seed"), 2)
    assert job.hosts == (HERE,)
    assert job.state == folder.path / "echo.pexecd"
    assert (job.cluster, job.listen, job.advertise, job.ssh_config) == (None,) * 4
    assert (job.timeout, job.attempts, job.duplicates) == (0, 3, 2)
    assert (job.stop_after, job.give_up, job.max_result) == (20, 600, None)
    assert (job.worker.executables, job.worker.shell, job.worker.nice) == ({}, False, 10)
    assert (job.env, job.inputs, job.tests, job.collect) == ({}, (), (), ())
    assert (job.validate, job.collect_function, job.failed) == (None, None, None)
    assert job.by_completion is False
    assert (job.ping, job.patience) == (10, 3600)
    assert (job.delete_worker, job.delete_client, job.keep_failed) == (True, True, False)


def test_every_setting_is_read(folder: Folder) -> None:
    for name in ("ising.x86", "ising.py", "ssh_config"):
        folder.write(name, "x")
    folder.write("lab.hosts", "4/lab1\n")

    job = folder.job(WHOLE)

    assert job.name == "ising"
    assert job.cluster == folder.path / "lab.hosts"
    assert job.hosts == (HostSpec("lab1", "lab1", slots=4, line=1),)
    assert (job.listen, job.advertise) == ("tcp:8080", "http://master:8080")
    assert (job.timeout, job.attempts, job.duplicates) == (600, 4, 1)
    assert (job.stop_after, job.give_up, job.max_result) == (0, 60, 1000000)
    assert job.state == Path("/var/tmp/ising.pexecd")
    assert job.worker.executables == {
        "linux-x86_64": folder.path / "ising.x86",
        "any": folder.path / "ising.py",
    }
    assert (job.worker.name, job.worker.nice) == ("ising", 5)
    assert job.env == {"OMP_NUM_THREADS": "1", "RATE": "100% $L"}
    assert (job.ping, job.patience) == (0, 60)
    assert (job.delete_worker, job.delete_client, job.keep_failed) == (False, False, True)
    assert job.ssh_config == folder.path / "ssh_config"


def test_all_mistakes_of_all_files_are_told_at_once_in_order(folder: Folder) -> None:
    folder.write("lab.hosts", "lab1\nlab1\n-x\n")
    folder.write("sweep.txt", "L|T\n1|2\n3\n")

    assert folder.mistakes(
        "[jbo]\n"
        "x = 1\n"
        "[job]\n"
        "Timeout = 5\n"
        "ping = 5\n"
        "cluster = lab.hosts\n"
        "parameters = sweep.txt\n"
        "attempts = 0\n"
        "duplicates = two\n"
        "give_up = 1e3\n"
        "timeout = 31536001\n"
        "listen = 8080\n"
        "advertise = master\n"
        "name = a/b\n"
        "[worker]\n"
        "command = run $L $K\n"
        "executabel = x\n"
        "shell = maybe\n"
        "nice = 20\n"
        "[client]\n"
        "keep_failed = True\n"
        "[env]\n"
        "A B = 1\n"
        "PEXEC_TASK = 1\n"
        "[ssh]\n"
        "config = none\n"
        "[collect]\n"
        "failed =\n"
    ) == [
        (
            "job.ini:1: unknown section [jbo] (did you mean 'job'?), [job], [worker], [env], "
            "[input], [result], [validate], [collect], [client], [ssh] expected"
        ),
        "job.ini:4: [job] has no key 'Timeout' (did you mean 'timeout'?)",
        "job.ini:5: [job] has no key 'ping', it belongs to [client]",
        "job.ini:8: attempts: 0 is out of range, 1 to 1000000000 expected",
        "job.ini:9: duplicates: 'two' is no whole number, 1 to 1000000000 expected",
        "job.ini:10: give_up: '1e3' is no whole number, 1 to 1000000000 seconds expected",
        "job.ini:11: timeout: 31536001 is out of range, 0 to 31536000 seconds expected",
        "job.ini:12: listen: '8080' is no Twisted server endpoint, one like tcp:8080 expected",
        "job.ini:13: advertise: 'master': an address like http://master:8080 expected",
        "job.ini:14: name: 'a/b' is no name of a job, letters, digits, '.', '_' and '-' expected",
        "job.ini:16: command: unknown variable '$K', a column of the parameter table expected",
        "job.ini:17: [worker] has no key 'executabel' (did you mean 'executable'?)",
        "job.ini:18: shell: 'maybe': yes or no expected",
        "job.ini:19: nice: 20 is out of range, -20 to 19 expected",
        "job.ini:21: keep_failed: 'True': yes or no expected",
        "job.ini:23: A B: is no name of a variable, letters, digits and '_' expected",
        "job.ini:24: PEXEC_TASK: names that begin with PEXEC_ are set by pexecd itself",
        "job.ini:26: config: none does not exist",
        "job.ini:28: failed: is empty, a value was expected (or leave the line out)",
        "lab.hosts:2: host lab1 is there twice, it was named in line 1",
        "lab.hosts:3: '-x' is no name or address of a host",
        "sweep.txt:3: 1 cell, 2 expected as in the headline (line 1)",
    ]


def test_a_key_like_no_other_is_answered_with_those_there_are(folder: Folder) -> None:
    said = folder.mistakes(LEAST + "[client]\nretries = 3\n[ssh]\nuser = ann\ntime_out = 1\n")

    assert said == [
        (
            "job.ini:6: [client] has no key 'retries', ping, patience, delete_worker, "
            "delete_client or keep_failed expected"
        ),
        (
            "job.ini:8: [ssh] has no key 'user', config = FILE (an ssh_config, where users, ports "
            "and keys stand) expected"
        ),
        (
            "job.ini:9: [ssh] has no key 'time_out', config = FILE (an ssh_config, where users, "
            "ports and keys stand) expected (or did you mean 'timeout' of [job]?)"
        ),
    ]


@pytest.mark.parametrize("number", ["9" * 20, "-" + "9" * 20, "9" * 5000])
def test_a_number_that_is_far_too_large_is_a_number(folder: Folder, number: str) -> None:
    said = folder.mistakes(LEAST + f"[client]\nping = {number}\n")

    assert said == [f"job.ini:6: ping: {number} is out of range, 0 to 31536000 seconds expected"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty, a program was expected"),
        (
            b"#!/bin/sh\r\necho 1\r\n",
            "has Windows line ends (CRLF), so its #! interpreter is not found, LF expected",
        ),
        (b"\xef\xbb\xbf#!/bin/sh\n", "begins with a byte order mark, '#!' expected first"),
    ],
)
def test_an_executable_that_cannot_start_anywhere_is_a_mistake(
    folder: Folder, content: bytes, said: str
) -> None:
    folder.write("w.sh", content)
    text = LEAST.replace("echo", "w") + "name = w\nexecutable = w.sh\n"

    assert folder.mistakes(text) == [f"job.ini:6: executable: w.sh {said}"]


def test_what_must_be_there_is_asked_for(folder: Folder) -> None:
    assert folder.mistakes("") == [
        "job.ini: [job] has no 'parameters', the file of the parameter table expected",
        "job.ini: [worker] has no 'command', what to run expected",
    ]
    assert folder.mistakes("[job]\n\n[worker]\ncommand =\n") == [
        "job.ini:1: [job] has no 'parameters', the file of the parameter table expected",
        "job.ini:4: command: is empty, a value was expected (or leave the line out)",
    ]


def test_a_job_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        read_job(tmp_path / "none.ini")

    assert str(caught.value) == f"{tmp_path}/none.ini: does not exist, a job file was expected"
    with pytest.raises(BadInputError) as caught:
        read_job(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder, a job file was expected"


def test_a_table_in_place_of_a_job_file_is_one_mistake(folder: Folder) -> None:
    said = folder.mistakes("L | T\n" + "16 | 2.0\n" * 1000, "sweep.txt")

    assert said == [
        (
            "sweep.txt: has no section such as [job], a job file was expected, which names the "
            "parameter table (parameters = FILE)"
        )
    ]


def test_files_that_are_missing_are_named(folder: Folder) -> None:
    assert (
        folder.mistakes(
            "[job]\nparameters = none.txt\ncluster = none.hosts\n[worker]\ncommand = w $x '$y\n"
            "name = w\nexecutable = none\n"
        )
        == [
            "job.ini:2: parameters: none.txt does not exist",
            "job.ini:3: cluster: none.hosts does not exist",
            "job.ini:5: command: a single quote is not closed",
            "job.ini:7: executable: none does not exist",
            "job.ini:6: x",
        ][:4]
    )


def test_bytes_that_are_no_text_are_named_by_line(folder: Folder) -> None:
    assert folder.mistakes(LEAST.encode() + b"[env]\nA = \xe4\n") == [
        "job.ini:6: byte 5 (0xe4) is not UTF-8, UTF-8 expected"
    ]


def test_the_default_name_must_be_one(folder: Folder) -> None:
    assert folder.mistakes(LEAST, "my job.ini") == [
        (
            "my job.ini: 'my job' is no name of a job, letters, digits, '.', '_' and '-' expected: "
            "give [job] a name"
        )
    ]
    assert folder.job(LEAST, "sweep.v2").name == "sweep.v2"


def test_paths_count_from_the_job_s_folder_not_from_ours(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder.write("sub/job.ini", LEAST.replace("sweep.txt", "../sweep.txt"))
    monkeypatch.chdir(folder.path)

    job = read_job(Path("sub/job.ini"))

    assert job.folder == folder.path / "sub"
    assert job.parameters == folder.path / "sub" / ".." / "sweep.txt"
    assert job.state == folder.path / "sub" / "job.pexecd"


def test_mistakes_name_files_as_the_user_would(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("sub/job.ini", LEAST)
    folder.write("sub/sweep.txt", "L|T\n1\n")
    monkeypatch.chdir(folder.path)

    with pytest.raises(BadInputError) as caught:
        read_job(Path("sub/job.ini"))

    assert str(caught.value).startswith("sub/sweep.txt:2: ")


def test_a_tilde_is_the_home_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.path / "home"))
    folder.write("home/ssh_config", "")

    job = folder.job(
        LEAST.replace("[worker]", "state = ~/x.pexecd\n[worker]") + "[ssh]\nconfig = ~/ssh_config\n"
    )

    assert job.state == folder.path / "home" / "x.pexecd"
    assert job.ssh_config == folder.path / "home" / "ssh_config"


def test_the_state_must_be_a_folder_or_nothing_yet(folder: Folder) -> None:
    folder.write("job.pexecd", "")

    assert folder.mistakes(LEAST) == [
        "job.ini: state: job.pexecd is a file, a folder (or nothing yet) was expected"
    ]


@pytest.mark.parametrize(
    ("worker", "said"),
    [
        ("name = w\ncommand = w $L", "[worker] has no 'executable', but its command begins with"),
        (
            "name = w\nshell = yes\ncommand = w $L | sort",
            "[worker] has no 'executable', but its command begins with",
        ),
        ("command = w $L\nexecutable = sweep.txt", "[worker] has no 'name'"),
        ("name = -w\ncommand = x", "name: '-w' is no name of a worker"),
        ("name = a/b\ncommand = x", "name: 'a/b' is no name of a worker"),
        ("command = x\nshell = 1", "shell: '1': yes or no expected"),
        ("name = w\ncommand = w\nexecutable =", "executable: is empty"),
        ("command = w\nexecutable =", "[worker] has no 'name'"),
        (
            "name = w\ncommand = w\nexecutable.Linux = sweep.txt",
            "executable.Linux: 'Linux' is no platform, any or a word like linux-x86_64 expected",
        ),
        (
            "name = w\ncommand = w\nexecutable = sweep.txt\nexecutable.any = sweep.txt",
            "executable.any: the executable for any was given in line 6",
        ),
        (
            (
                "name = w\ncommand = w\n"
                "executable.linux-arm64 = sweep.txt\nexecutable.linux-aarch64 = sweep.txt"
            ),
            "executable.linux-aarch64: the executable for linux-aarch64 was given in line 6",
        ),
        ("name = w\ncommand = w\nexecutable = .", "executable: . is a folder"),
    ],
)
def test_a_worker_that_makes_no_sense_is_a_mistake(folder: Folder, worker: str, said: str) -> None:
    found = folder.mistakes(f"[job]\nparameters = sweep.txt\n[worker]\n{worker}\n")

    assert said in found[0]


def test_a_program_that_is_on_the_hosts_needs_no_executable(folder: Folder) -> None:
    for worker in ("command = job $L", "name = w\ncommand = echo w", "name = w\ncommand = w$L"):
        job = folder.job(f"[job]\nparameters = sweep.txt\n[worker]\n{worker}\n")
        assert job.worker.executables == {}


def test_a_shell_command_is_not_filled_in(folder: Folder) -> None:
    job = folder.job(
        "[job]\nparameters = sweep.txt\n[worker]\nshell = yes\ncommand = echo $L '$ $1 ${#\n"
    )

    assert job.worker.shell
    assert job.worker.command.text == "echo $L '$ $1 ${#"


def test_with_a_shell_a_variable_cannot_be_a_parameter_too(folder: Folder) -> None:
    text = "[job]\nparameters = sweep.txt\n[worker]\ncommand = x\nshell = {}\n[env]\nL = 1\n"

    assert folder.job(text.format("no")).env == {"L": "1"}
    assert folder.mistakes(text.format("yes")) == [
        "job.ini:7: L: is a parameter, too, and with shell = yes both are variables"
    ]


def test_with_a_shell_no_parameter_may_hide_a_variable_of_pexecd(folder: Folder) -> None:
    folder.write("sweep.txt", "PEXEC_TASK\n7\n")
    text = "[job]\nparameters = sweep.txt\n[worker]\ncommand = x\nshell = {}\n"

    assert folder.job(text.format("no")).columns == ("PEXEC_TASK",)
    [mistake] = folder.mistakes(text.format("yes"))
    assert mistake.startswith("job.ini:5: shell = yes makes the parameter PEXEC_TASK a variable")


def test_variables_are_not_checked_against_a_table_that_is_wrong(folder: Folder) -> None:
    folder.write("sweep.txt", "L|L\n1|2\n")

    assert folder.mistakes(LEAST + "[input]\nx = T\n") == [
        "sweep.txt:1: 'L' is in the headline twice"
    ]


def test_only_hosts_that_are_started_by_hand_need_listen(folder: Folder) -> None:
    folder.write("lab.hosts", ":\nlab1\n127.0.0.21 start=no\n")
    text = LEAST.replace("[worker]", "cluster = lab.hosts\n[worker]")

    assert len(folder.job(text).hosts) == 3
    folder.write("lab.hosts", ":\nlab1 start=no\n")
    assert folder.mistakes(text) == [
        (
            "lab.hosts:2: host lab1 cannot reach the master: with start=no there is no tunnel, and "
            "it listens on this computer alone; listen = ssl:PORT expected in [job]"
        )
    ]
    for more in ("listen = tcp:0", "listen = ssl:8443", "advertise = http://gate:80"):
        assert len(folder.job(text.replace("[worker]", f"{more}\n[worker]")).hosts) == 2


def test_the_address_that_hosts_are_told_speaks_as_the_master_does(folder: Folder) -> None:
    text = LEAST.replace("[worker]", "listen = ssl:8443\nadvertise = http://master:8443\n[worker]")

    assert folder.mistakes(text) == [
        ("job.ini:4: advertise: 'http://master:8443': an address like https://master:8080 expected")
    ]
    assert folder.job(text.replace("http:", "https:")).advertise == "https://master:8443"


def test_every_key_and_section_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "files.md").read_text()

    for section in jobfile._SECTIONS:
        assert f"### `[{section}]`" in text
    for keys in (*jobfile._KEYS.values(), cluster._KEYS):
        for key in keys:
            assert f"`{key}`" in text

"""What runs on a host before the client does; on the oldest Python, too."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from pexecd.jobs.values import HostSpec
from pexecd.launch import errors, onhost
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.start import check_input
from tests.client.conftest import PYTHONS, find_python

SOURCE = Path(onhost.__file__).read_text()


@pytest.fixture(scope="module", params=sorted(PYTHONS))
def python(request: pytest.FixtureRequest) -> str:
    return find_python(request.param, PYTHONS[request.param])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir(mode=0o700)
    return path


def run(python: str, *arguments: str, stdin: bytes = b"") -> tuple[int, dict[str, Any], str]:
    done = subprocess.run([python, "-c", SOURCE, *arguments], input=stdin, capture_output=True)
    facts = {}
    for line in done.stdout.decode().splitlines():
        assert line.startswith(onhost.MARK)
        facts = json.loads(line.removeprefix(onhost.MARK))
    return done.returncode, facts, done.stderr.decode()


def test_its_statuses_are_those_of_the_launcher() -> None:
    assert (onhost.NOT_THERE, onhost.FOLDER) == (errors.NOT_THERE, errors.FOLDER)


def test_not_there_then_there(python: str, folder: Path) -> None:
    wanted = hashlib.sha256(b"client").hexdigest()
    first = ("start", str(folder), "client.py", wanted, "run", "node1")
    other = (*first[:-1], "node2")
    assert run(python, *first) == (61, {"holder": "node1"}, "")
    assert run(python, *other) == (61, {"holder": "node1"}, "")
    (folder / "client.py").write_bytes(b"clie")
    assert run(python, *other) == (61, {"holder": "node1"}, "")
    (folder / "client.py").write_bytes(b"client")
    assert run(python, *other) == (0, {"ends_at_logout": False}, "")
    assert os.listdir(folder) == ["client.py"]


def test_a_note_of_long_ago_goes(folder: Path) -> None:
    (folder / "client.py").write_bytes(b"client")
    for name, age in (("old", 2 * 86400), ("other-run", 60)):
        note = folder / f"{onhost.NOTE}{name}"
        note.touch()
        when = os.stat(note).st_mtime - age
        os.utime(note, (when, when))
    wanted = hashlib.sha256(b"client").hexdigest()
    assert onhost.start(str(folder), "client.py", wanted, "run", "node1") == 0
    assert sorted(os.listdir(folder)) == [f"{onhost.NOTE}other-run", "client.py"]


def test_exactly_one_of_many_writes_the_note(folder: Path) -> None:
    begin = threading.Barrier(8)
    seen: list[str] = []

    def write(name: str) -> None:
        begin.wait()
        seen.append(onhost.write_note(str(folder), "run", name))

    threads = [threading.Thread(target=write, args=(f"node{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1


def test_folders_that_others_could_change(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.chmod(0o770)
    assert onhost.start(str(folder), "client.py", "", "run", "node1") == 63
    assert "chmod go-w" in capsys.readouterr().err


def test_what_a_host_is(python: str, folder: Path) -> None:
    source = client_file().read_bytes()
    inner = folder / "a" / "b"
    status, facts, said = run(python, "check", str(inner), "run", "node1", stdin=source)
    assert (status, said) == (0, "")
    version = "3.6." if "3.6" in facts["python"] else "3.13."
    assert facts["python"].startswith(version)
    assert facts["platform"].startswith("linux-")
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert facts["free"] > 0
    assert facts["holder"] == "node1"
    assert facts["made"] == [str(inner), str(inner.parent)]
    assert os.listdir(inner) == [f"{onhost.NOTE}run"]
    made = json.dumps(facts["made"])
    assert run(python, "clean", str(inner), "run", made) == (0, {}, "")
    assert os.listdir(folder) == []


def test_a_folder_that_cannot_be_made(python: str) -> None:
    source = client_file().read_bytes()
    status, facts, said = run(python, "check", "/proc/a/b", "run", "node1", stdin=source)
    assert (status, facts) == (63, {})
    assert "/proc/a/b" in said


def test_the_program_is_one_line_of_its_script() -> None:
    program = ClientProgram(Path("x"), "0" * 64)
    lines = check_input(HostSpec("n", "n"), program, b"source\n", "run").splitlines()
    assert len(lines) == 1 + 7 + 1


SESSION = "0::/user.slice/user-1000.slice/session-7.scope\n"


@pytest.mark.parametrize(
    ("files", "cgroup", "expected"),
    [
        ({"etc/systemd/logind.conf": "KillUserProcesses=yes"}, SESSION, True),
        ({"etc/systemd/logind.conf": "[Login]\nKillUserProcesses = 1\n"}, SESSION, True),
        ({"etc/systemd/logind.conf": "#KillUserProcesses=yes"}, SESSION, False),
        ({}, SESSION, False),
        # not in a session of logind's: without PAM, or a service
        ({"etc/systemd/logind.conf": "KillUserProcesses=yes"}, "0::/system.slice/ssh\n", False),
        ({"etc/systemd/logind.conf": "KillUserProcesses=yes"}, None, False),
        # drop-ins: the last name wins, /etc hides the same name elsewhere
        (
            {
                "etc/systemd/logind.conf": "KillUserProcesses=no",
                "usr/lib/systemd/logind.conf.d/10-kill.conf": "KillUserProcesses=yes",
            },
            SESSION,
            True,
        ),
        (
            {
                "etc/systemd/logind.conf.d/10-kill.conf": "",
                "usr/lib/systemd/logind.conf.d/10-kill.conf": "KillUserProcesses=yes",
            },
            SESSION,
            False,
        ),
        (
            {"etc/systemd/logind.conf": "KillUserProcesses=yes\nKillExcludeUsers=ME\n"},
            SESSION,
            False,
        ),
        ({"etc/systemd/logind.conf": "KillUserProcesses=yes\nKillOnlyUsers=x\n"}, SESSION, False),
        (
            {"etc/systemd/logind.conf": "KillUserProcesses=yes\nKillOnlyUsers=x ME\n"},
            "1:name=systemd:/user.slice/user-0.slice/session-c1.scope\n",
            True,
        ),
    ],
)
def test_kill_user_processes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    cgroup: str | None,
    expected: bool,
) -> None:
    me = pwd.getpwuid(65534)
    monkeypatch.setattr(os, "getuid", lambda: 65534)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("ME", me.pw_name))
    if cgroup is not None:
        (tmp_path / "cgroup").write_text(cgroup)
    assert onhost.ends_at_logout(str(tmp_path), str(tmp_path / "cgroup")) is expected

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pexecd.errors import StateError
from pexecd.store.folder import StateFolder


def test_the_folder_is_made_and_private(tmp_path: Path) -> None:
    folder = StateFolder.claim(tmp_path / "a" / "ising.pexecd")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.release()


def test_a_folder_that_others_may_read_becomes_private(tmp_path: Path) -> None:
    StateFolder.claim(tmp_path / "state").release()
    (tmp_path / "state").chmod(0o755)
    StateFolder.claim(tmp_path / "state").release()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_only_one_master_has_it(tmp_path: Path) -> None:
    held = StateFolder.claim(tmp_path / "state")
    with pytest.raises(StateError, match=rf"state: held by process {os.getpid()} on \S+, which w"):
        StateFolder.claim(tmp_path / "state")
    held.release()
    StateFolder.claim(tmp_path / "state").release()


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pexecd.store.folder import StateFolder\n"
        "StateFolder.claim(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "state"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=f"held by process {other.pid} on "):
            StateFolder.claim(tmp_path / "state")
        other.kill()
    StateFolder.claim(tmp_path / "state").release()


def test_a_lock_beside_other_files_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / "log").mkdir()
    StateFolder.claim(tmp_path).release()
    (tmp_path / "notes").touch()
    with pytest.raises(StateError, match="holds other files"):
        StateFolder.claim(tmp_path)
    (tmp_path / "session.db").touch()
    StateFolder.claim(tmp_path).release()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StateError, match="holds other files; name another place with state ="):
        StateFolder.claim(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=re.escape(f"{tmp_path}/file/state: cannot be used")):
        StateFolder.claim(tmp_path / "file" / "state")


def test_a_fresh_start_deletes_what_was_stored_and_nothing_else(tmp_path: Path) -> None:
    folder = StateFolder.claim(tmp_path / "state")
    for file in (folder.database, folder.session, folder.joblog, folder.path / "notes.txt"):
        file.touch()
    folder.spool.mkdir()
    (folder.spool / "10000-x").touch()
    folder.clear()
    assert sorted(os.listdir(folder.path)) == ["lock", "notes.txt"]
    (folder.path / "notes.txt").unlink()
    with pytest.raises(StateError, match="held by"):
        StateFolder.claim(folder.path)
    folder.release()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StateError, match="state is a file, not a folder; name another place with"):
        StateFolder.claim(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_somebody_elses_folder(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 12345, 12345)
    with pytest.raises(StateError, match="belongs to another user; name another place with"):
        StateFolder.claim(tmp_path / "state")


def test_a_fresh_start_deletes_logs_and_copies_of_the_database_too(tmp_path: Path) -> None:
    folder = StateFolder.claim(tmp_path / "state")
    for name in ("session.db-wal", "session.db-journal", "session.db.before-v3", "session.db.mine"):
        (folder.path / name).touch()
    folder.clear()
    assert sorted(os.listdir(folder.path)) == ["lock", "session.db.mine"]
    folder.release()


def test_two_claims_at_the_same_moment(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pexecd.store.folder import StateFolder\n"
        "from pexecd.errors import StateError\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    StateFolder.claim(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()\n"
        "except StateError as error:\n"
        "    print(error, flush=True)\n"
    )
    claims = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path / "state"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for claim in claims:
        assert claim.stdin is not None
        claim.stdin.write("go\n")
        claim.stdin.flush()
    said = []
    for claim in claims:
        assert claim.stdout is not None
        said.append(claim.stdout.readline().strip())
    for claim in claims:
        claim.communicate()
    assert said.count("held") == 1
    assert all("held by " in words for words in said if words != "held")

"""However pexecd is installed, it works: command, plugin, client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LONG

ROOT = Path(__file__).parents[2]
#: What git would clone.
TREE = ("pyproject.toml", "README.md", "LICENSE", "pexecd", "twisted", "client")

JOB = "[job]\nparameters = t\n[worker]\ncommand = echo $n\n[collect]\noutput = concat out.txt\n"


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=3 * LONG, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source, so that building leaves nothing in ours."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folder", "editable", "wheel"])
def test_an_installed_pexecd_works_from_any_folder(tmp_path: Path, tree: Path, way: str) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(venv), cwd=tmp_path)
    python = str(venv / "bin" / "python")
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    if way == "folder":
        run(*pip, "install", ".", cwd=tree)
    elif way == "editable":
        run(*pip, "install", "-e", ".", cwd=tree)
    else:
        run(*pip, "wheel", "--no-deps", "-w", "dist", ".", cwd=tree)
        run(*pip, "install", str(next((tree / "dist").glob("*.whl"))), cwd=tree)
    if way != "editable":
        shutil.rmtree(tree)  # nothing of it is needed any more
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "--job" in run(str(venv / "bin" / "twistd"), "pexecd", "--help", cwd=elsewhere)
    assert "check" in run(str(venv / "bin" / "pexecd"), "--help", cwd=elsewhere)
    where = "from pexecd.launch.clientfile import client_file; print(client_file())"
    found = run(python, "-c", where, cwd=elsewhere)
    assert "usage" in run(sys.executable, found.strip(), "--help", cwd=elsewhere)
    (elsewhere / "j.ini").write_text(JOB)
    (elsewhere / "t").write_text("n\n1\n2\n")
    run(str(venv / "bin" / "pexecd"), "run", "j.ini", cwd=elsewhere)
    assert (elsewhere / "out.txt").read_text() == "1\n2\n"


def test_the_plugin_is_found_by_twistd() -> None:
    twistd = str(Path(sys.executable).with_name("twistd"))
    assert "pexecd" in run(twistd, "--help", cwd=Path(os.sep))

"""The units in ``contrib/systemd`` mean what they should, as systemd's own tools read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "contrib" / "systemd"
NAMES = ["system/pexecd.service", "system/pexecd@.service", "user/pexecd@.service"]


def analyze(*arguments: str, folder: Path) -> str:
    """Run systemd-analyze; it needs no running systemd, but with ``--user`` a folder."""
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def settings(name: str) -> dict[str, str]:
    lines = (UNITS / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and line[0] not in "#;")


@pytest.mark.parametrize("name", NAMES)
def test_the_unit_is_understood(tmp_path: Path, name: str) -> None:
    unit = tmp_path / Path(name).name
    # where pexecd is installed here; for a template, any instance will do
    twistd = str(Path(sys.executable).with_name("twistd"))
    text = (UNITS / name).read_text()
    for assumed in ("/opt/pexecd/bin/twistd", "%h/pexecd/bin/twistd"):
        text = text.replace(assumed, twistd)
    assert twistd in text
    unit.write_text(text)
    scope = "--user" if name.startswith("user") else "--system"
    said = analyze("verify", scope, "--man=no", str(unit), folder=tmp_path)
    assert unit.name not in said


@pytest.mark.parametrize("name", NAMES)
def test_a_restart_goes_on_and_an_end_is_the_end(name: str) -> None:
    unit = settings(name)
    assert unit["Type"] == "notify"
    assert unit["Restart"] == "on-failure"
    assert unit["RestartPreventExitStatus"] == "1 2 3 130"
    assert "--pidfile= " in unit["ExecStart"]


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_clients_of_this_computer_carry_on_over_a_restart(name: str) -> None:
    unit = settings(name)
    assert unit["KillMode"] == "process"
    assert unit["OOMPolicy"] == "continue"
    assert not unit.keys() & {"PrivateTmp", "RemoveIPC", "DynamicUser"}


def test_a_master_without_local_workers_is_well_confined(tmp_path: Path) -> None:
    # in tenths: exposure of less than 3, of 10
    unit = str(UNITS / NAMES[0])
    analyze("security", "--offline=true", "--threshold=29", unit, folder=tmp_path)

from __future__ import annotations

from pathlib import Path

import pytest

from pexecd.store.mounts import TRUNCATE, WAL, Mount, find_mount, journal_mode, mount_of

MOUNTINFO = r"""
21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
22 21 0:20 / /proc rw,nosuid - proc proc rw
60 21 0:50 /export/home /home rw,relatime shared:30 - nfs4 server:/export/home rw,vers=4.2
61 60 0:51 / /home/anna/big\040disk rw - xfs /dev/vdb1 rw,attr2
62 21 0:52 / /data rw - ext4 /dev/vdc1 rw
63 62 0:53 / /data rw - nfs server:/data rw,vers=3,nolock,local_lock=none
64 21 0:54 / /mnt/sshfs rw,nosuid master:2 - fuse.sshfs lab1: rw,user_id=0
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/tmp/job.pexecd", "ext4"),
        ("/", "ext4"),
        ("/home/anna/job.pexecd", "nfs4"),
        ("/homestead", "ext4"),
        ("/home/anna/big disk/job.pexecd", "xfs"),
        ("/data/x", "nfs"),  # the later one covers the earlier one
        ("/mnt/sshfs/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    mount = find_mount(MOUNTINFO, Path(path))
    assert mount is not None
    assert mount.kind == kind


def test_options_of_mount_and_file_system_are_both_seen() -> None:
    mount = find_mount(MOUNTINFO, Path("/data"))
    assert mount is not None
    assert {"rw", "nolock", "vers=3"} <= mount.options


def test_nothing_is_known_without_mounts() -> None:
    assert find_mount("", Path("/")) is None


@pytest.mark.parametrize(
    ("mount", "mode"),
    [
        (None, WAL),
        (Mount("ext4"), WAL),
        (Mount("tmpfs"), WAL),
        (Mount("overlay"), WAL),
        (Mount("fuseblk"), WAL),
        (Mount("nfs4", frozenset({"rw", "vers=4.2", "local_lock=none"})), TRUNCATE),
        (Mount("nfs", frozenset({"rw", "vers=3", "nolock"})), ""),
        (Mount("nfs", frozenset({"local_lock=all"})), ""),
        (Mount("nfs", frozenset({"local_lock=flock"})), ""),
        (Mount("cifs", frozenset({"rw"})), TRUNCATE),
        (Mount("cifs", frozenset({"nobrl"})), ""),
        (Mount("lustre"), TRUNCATE),
        (Mount("fuse.glusterfs"), TRUNCATE),
        (Mount("fuse"), TRUNCATE),
        (Mount("fuse.sshfs"), ""),
    ],
)
def test_how_sqlite_works_there(mount: Mount | None, mode: str) -> None:
    assert journal_mode(mount) == mode


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="not on this system")
def test_this_system_says_what_is_mounted() -> None:
    mount = mount_of(Path("/proc"))
    assert mount is not None
    assert mount.kind == "proc"

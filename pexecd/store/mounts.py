"""Which file system a folder is on, and how SQLite can work there.

SQLite's write-ahead log needs memory shared by all who have the database open, which network
file systems do not give. There a rollback journal works, as long as locks do: Linux turns
``flock`` on NFS (since 2.6.12) and SMB into locks that the server knows, unless the mount says
otherwise. A server that forgets its locks when it restarts can still let in a second master;
a local disk is the better place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

#: Where Linux lists what is mounted; other systems have no such file.
_MOUNTS = Path("/proc/self/mountinfo")

#: Journal modes of SQLite.
WAL = "wal"
TRUNCATE = "truncate"

_NETWORK = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fhgfs", "gfs2", "glusterfs"),
        *("gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2"),
        *("smb2", "smb3", "smbfs"),
    }
)
#: Of file systems in user space ("fuse.NAME") nobody knows what they do, but these are disks.
_DISKS = frozenset({"fuseblk", "fuse.ext2", "fuse.ntfs-3g", "fuse.fuse-overlayfs"})
#: They keep locks to themselves, and cannot promise that anything is on disk.
_HOPELESS = frozenset({"davfs", "fuse.davfs2", "fuse.s3fs", "fuse.sshfs", "fuse.rclone"})
#: Mount options by which locks are not the server's.
_LOCAL_LOCKS = frozenset(
    {"nolock", "nobrl", "local_lock=all", "local_lock=flock", "local_lock=posix"}
)


class Mount(NamedTuple):
    """What is mounted where a folder is."""

    #: Such as ``ext4``, ``nfs4``, ``fuse.sshfs``.
    kind: str
    options: frozenset[str] = frozenset()


def mount_of(path: Path) -> Mount | None:
    """What this path is on; None where the system does not say. Blocks."""
    try:
        return find_mount(_MOUNTS.read_text("utf-8", "surrogateescape"), path.resolve())
    except OSError:
        return None


def find_mount(mountinfo: str, path: Path) -> Mount | None:
    """What a path is on.

    Args:
        mountinfo: lines as in proc(5): ``36 35 98:0 /root /mnt OPTIONS ... - ext4 DEVICE
            OPTIONS``.
        path: absolute, without links.
    """
    found, depth = None, -1
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        mounted, system = before.split(" "), after.split(" ")
        if len(mounted) < 6 or len(system) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mounted[4]))
        # Of two at one place the later one covers the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            options = frozenset(f"{mounted[5]},{system[2]}".split(","))
            found, depth = Mount(system[0], options), len(point.parts)
    return found


def journal_mode(mount: Mount | None) -> str:
    """How SQLite keeps a database there whole: ``WAL``, ``TRUNCATE``, or empty for not at all."""
    if mount is None:
        return WAL
    fuse = mount.kind.startswith("fuse") and mount.kind not in _DISKS
    if not fuse and mount.kind not in _NETWORK:
        return WAL
    if mount.kind in _HOPELESS or mount.options & _LOCAL_LOCKS:
        return ""
    return TRUNCATE

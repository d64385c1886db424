"""How a host reaches the master: through a tunnel of its SSH connection, or directly."""

# Tests: tests/system/test_tunnelled_jobs.py, tests/unit/launch/test_launcher.py

from __future__ import annotations

import hashlib
import secrets

from pexecd.errors import ForwardRefusedError, HostError
from pexecd.jobs.values import HostSpec
from pexecd.launch.errors import LoginUnusableError
from pexecd.ports import CommandResult, IConnection, TunnelEnd
from pexecd.shell import RUN_SCRIPT, script_input
from pexecd.units import Seconds

TUNNEL = "tunnel"

#: For each of the small scripts in here.
SCRIPT_LIMIT: Seconds = 30.0
#: For tidying up, which nobody should wait for long.
REMOVE_LIMIT: Seconds = 5.0

# The client's own folder for what must be local to the host; it checks it likewise. Nobody can
# put anything into it, or in its place while it is there.
_FOLDER = """
umask 077;
folder=/tmp/pexec-$(id -u);
"""

# Sockets that earlier connections left are of no use any more.
_PREPARE = f"""
echo "$name begins";
{_FOLDER}
made=$(LC_ALL=C mkdir "$folder" 2>&1) || [ -e "$folder" ] || {{ echo "$made" >&2; exit 1; }};
ours=$(find "$folder" -prune -type d -user "$(id -u)" ! -perm -020 ! -perm -002) || exit 1;
[ -n "$ours" ] || {{ echo "$folder is another user's, or others may write to it" >&2; exit 1; }};
rm -f "$folder/$name"*.socket || exit 1;
echo "$name is in $folder";
"""

# By rename, for a client may be reading it. Not every shell can say that the disk is full.
_TELL = f"""
{_FOLDER}
echo "$server" | LC_ALL=C cat >"$folder/$name.new" &&
mv -f "$folder/$name.new" "$folder/$name.server" &&
echo "$name is told";
"""

_REMOVE = f"""
{_FOLDER}
rm -f "$folder/$name"*;
rmdir "$folder" 2>/dev/null;
"""

_SEEN = """
echo "$name is seen from $SSH_CONNECTION";
"""


class TunnelFailedError(HostError):
    """The host has no place for a tunnel's end."""

    least_pause = 10.0
    advice = "mend that folder on the host, which is for what must be local to it"


class Tunnel:
    """One host's way to the master through its SSH connection.

    A file there says where it begins, and has the same name for every connection, and for every
    master that works with the same state folder: a client that goes on finds the new one. Each has
    a socket of its own, for a connection that the user shares may still have one of a master that
    was killed: its ssh would lead whoever connects to a socket of that name to that master.
    """

    def __init__(self, host: HostSpec, end: TunnelEnd) -> None:
        """Prepare.

        Args:
            host: where it begins.
            end: where it leads.
        """
        self._host = host.name
        self._end = end
        words = f"{end.fingerprint}\0{host.name}"
        self._name = hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:24]

    async def open(self, connection: IConnection) -> str:
        """Set it up anew, as long as the connection lives.

        Returns:
            What a client there is told as ``Server``.

        Raises:
            HostError: the server forbids it, no place for it, connection lost.
        """
        said = await self._run(connection, _PREPARE)
        if not _after(f"{self._name} begins", said):
            words = _words(said.stderr or said.stdout)
            raise LoginUnusableError(self._host, TUNNEL, "it runs no commands", words)
        folder = _after(f"{self._name} is in ", said)
        if not folder:
            what = "the folder of its tunnel cannot be used"
            raise TunnelFailedError(self._host, TUNNEL, what, _words(said.stderr))
        socket = f"{folder}/{self._name}-{secrets.token_hex(4)}.socket"
        try:
            await connection.forward(socket, self._end.plain)
            server = f"unix:{socket}"
        except ForwardRefusedError:
            port = await connection.forward(None, self._end.pinned)
            server = f"https://127.0.0.1:{port}#{self._end.fingerprint}"
        # in a file, where a client that runs already looks again when the place has changed
        said = await self._run(connection, _TELL, server=server)
        if not _after(f"{self._name} is told", said):
            what = "the place of its tunnel cannot be noted"
            raise TunnelFailedError(self._host, TUNNEL, what, _words(said.stderr))
        return f"file:{folder}/{self._name}.server"

    async def remove(self, connection: IConnection) -> None:
        """Leave nothing behind."""
        await self._run(connection, _REMOVE, REMOVE_LIMIT)

    async def _run(
        self, connection: IConnection, script: str, limit: Seconds = SCRIPT_LIMIT, **more: str
    ) -> CommandResult:
        stdin = script_input(script, {"name": self._name, **more})
        return await connection.run(RUN_SCRIPT, stdin, limit)


async def address_seen(connection: IConnection) -> str:
    """The address from which the host thinks that the connection comes; '' if it does not say."""
    mark = "pexecd"
    said = await connection.run(RUN_SCRIPT, script_input(_SEEN, {"name": mark}), SCRIPT_LIMIT)
    return _after(f"{mark} is seen from ", said).partition(" ")[0]


def _after(mark: str, said: CommandResult) -> str:
    """What the line says after the mark, or the mark if that is nothing; '' if it is not there.

    Start-up files of the login shell may say anything before, and need not end their last line.
    """
    _, found, rest = said.stdout.decode("utf-8", "surrogateescape").partition(mark)
    return rest.partition("\n")[0] or found


def _words(said: bytes) -> str:
    return said.decode("utf-8", "replace")

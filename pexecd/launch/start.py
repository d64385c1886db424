"""How a client is told what it needs, and how it is started on a host. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from pexecd.jobs.values import HostSpec
from pexecd.launch import onhost
from pexecd.launch.clientfile import ClientProgram
from pexecd.launch.errors import FOLDER, NO_PYTHON
from pexecd.ports import ClientOrder
from pexecd.shell import expand_tilde, script_input

#: Under which names a Python is looked for, after the host's ``python=``.
PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(13, 5, -1)), "python")

#: The program that looks at a host, as one line.
_ON_HOST = f"exec({Path(onhost.__file__).read_text(encoding='utf-8')!r})"

_OLD_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 6))"

#: Sets ``found`` to the first Python that will do, or ends.
_FIND_PYTHON = f"""
case $python in "~/"*) python=$HOME/${{python#"~/"}};; esac;
found=;
for one in "$python" {" ".join(PYTHONS)}; do
  if [ -n "$one" ] && "$one" -c '{_OLD_ENOUGH}' </dev/null >/dev/null 2>&1; then
    found=$one; break;
  fi;
done;
[ -n "$found" ] || {{ echo "none of these is Python 3.6 or newer:" $python {" ".join(PYTHONS)} >&2;
  exit {NO_PYTHON}; }};
"""

# The checksum on standard output says that the script ran: a start-up file of the login shell
# may exit with any status. Python is looked for first: without one a copy would be of no use.
# What follows on standard input is the client's.
_START = f"""
echo "$sum";
umask 077;
{expand_tilde("folder")}
{_FIND_PYTHON}
LC_ALL=C mkdir -p "$folder" || exit {FOLDER};
"$found" -c "$look" start "$folder" "$file" "$sum" "$run" "$name" </dev/null || exit;
exec "$found" "$folder/$file" --from - --background --copied;
"""

# For ``pexecd check --hosts``: nothing is copied or started.
_LOOK = f"""
echo "$sum";
umask 077;
{expand_tilde("folder")}
{_FIND_PYTHON}
exec "$found" -c "$look" "$what" "$folder" "$run" "$name";
"""


def client_lines(host: HostSpec, order: ClientOrder) -> bytes:
    """What the client reads from its standard input (``--from -``)."""
    pairs = {
        "Session": order.session,
        "Server": order.server,
        "Public": order.public,
        "Host": host.name,
        "Dir": host.dir,
        "Slots": str(host.slots or ""),
        "Platform": host.platform or "",
    }
    lines = [f"{key}={value}\n" for key, value in pairs.items() if value]
    return "".join(lines).encode("utf-8", "surrogateescape")


def start_input(host: HostSpec, order: ClientOrder, program: ClientProgram, run: str) -> bytes:
    """What ``RUN_SCRIPT`` reads from its standard input to start the client on a host.

    Its exit status is one of those in ``launch.errors``, if its output has the checksum.

    Args:
        host: the host.
        order: what its client is told.
        program: the client.
        run: a word of this master's, by which hosts that share the folder are found.
    """
    arguments = {
        **_arguments(host, program, run),
        "file": program.remote_name,
        "name": host.name,
    }
    return script_input(_START, arguments, client_lines(host, order))


def check_input(host: HostSpec, program: ClientProgram, source: bytes, run: str) -> bytes:
    """The same, to see whether the client (its ``source``) could be started."""
    arguments = {**_arguments(host, program, run), "what": "check", "name": host.name}
    return script_input(_LOOK, arguments, source)


def clean_input(host: HostSpec, program: ClientProgram, made: Sequence[str], run: str) -> bytes:
    """The same, to remove what a check has left, and the folders that it ``made``."""
    arguments = {**_arguments(host, program, run), "what": "clean", "name": json.dumps(made)}
    return script_input(_LOOK, arguments)


def _arguments(host: HostSpec, program: ClientProgram, run: str) -> dict[str, str]:
    return {
        "folder": host.dir,
        "python": host.python or "",
        "look": _ON_HOST,
        "sum": program.sha256,
        "run": run,
    }


def remote_path(host: HostSpec, program: ClientProgram) -> str:
    """Where the client is copied to."""
    return f"{host.dir}/{program.remote_name}"


def command_by_hand(host: HostSpec, order: ClientOrder, client: Path) -> str:
    """What to do on a host with ``start=no``; the secret is not in it."""
    command = [host.python or "python3", client.name, "--host", host.name]
    if host.slots:
        command += ["--slots", str(host.slots)]
    if host.platform:
        command += ["--platform", host.platform]
    command += ["--dir", host.dir, "--background", "--from", "-"]
    return (
        f"start its client by hand: copy {client} there and run\n"
        f"    {shlex.join(command)}\n"
        f"with two lines on its standard input: Session=... (`session` in session.json of the "
        f"state folder) and Server={order.server}"
    )

"""How a client is told what it needs, and how it is started on a host. Pure."""

from __future__ import annotations

import shlex
from pathlib import Path

from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram
from pexecd.launch.errors import FOLDER, NO_PYTHON, NOT_THERE
from pexecd.ports import ClientOrder
from pexecd.shell import expand_tilde, script_input

#: Under which names a Python is looked for, after the host's ``python=``.
PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(13, 5, -1)), "python")

_OLD_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 6))"

# The folder first: nothing is copied into one that others could change.
_VERIFY = (
    "import hashlib, os, sys; folder, file, wanted = sys.argv[1:]; about = os.stat(folder); "
    f"sys.exit({FOLDER} if about.st_uid != os.getuid() or about.st_mode & 0o022 else {NOT_THERE} "
    "if not os.path.isfile(file) "
    'or hashlib.sha256(open(file, "rb").read()).hexdigest() != wanted else 0)'
)

# The checksum on standard output says that the script ran: a start-up file of the login shell
# may exit with any status. Python is looked for first: without one a copy would be of no use.
# What follows on standard input is the client's.
_START = f"""
echo "$sum";
umask 077;
{expand_tilde("folder")}
case $python in "~/"*) python=$HOME/${{python#"~/"}};; esac;
found=;
for name in "$python" {" ".join(PYTHONS)}; do
  if [ -n "$name" ] && "$name" -c '{_OLD_ENOUGH}' </dev/null >/dev/null 2>&1; then
    found=$name; break;
  fi;
done;
[ -n "$found" ] || {{ echo "none of these is Python 3.6 or newer:" $python {" ".join(PYTHONS)} >&2;
  exit {NO_PYTHON}; }};
mkdir -p "$folder" || exit {FOLDER};
[ -w "$folder" ] || {{ echo "$folder cannot be written to" >&2; exit {FOLDER}; }};
"$found" -c '{_VERIFY}' "$folder" "$folder/$file" "$sum" </dev/null;
status=$?;
[ "$status" != {FOLDER} ] ||
  echo "$folder is another user's, or others may write to it" >&2;
[ "$status" = 0 ] || exit "$status";
exec "$found" "$folder/$file" --from - --background --copied;
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


def start_input(host: HostSpec, order: ClientOrder, program: ClientProgram) -> bytes:
    """What ``RUN_SCRIPT`` reads from its standard input to start the client on a host.

    Its exit status is one of those in ``launch.errors``, if its output has the checksum.
    """
    arguments = {
        "folder": host.dir,
        "python": host.python or "",
        "file": program.remote_name,
        "sum": program.sha256,
    }
    return script_input(_START, arguments, client_lines(host, order))


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

"""What ``pexecd run`` does before it loads the rest of itself, so that a short job begins soon.

The job is read, so that its mistakes are told at once, and a client on this computer is started: it
loads on another core meanwhile. ``bench/first.py`` shows what takes how long.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pexecd.errors import StateError
from pexecd.jobs import read_job
from pexecd.jobs.values import Job

if TYPE_CHECKING:
    from pexecd.launch.local import Spare


class Early(NamedTuple):
    """What is there already."""

    job: Job
    reactor: Any
    #: None where no client is to be started here.
    spare: Spare | None


def begin(path: Path) -> Early:
    """Read a job, and start a client if one is to run on this computer.

    Raises:
        BadInputError: something in the job's files is wrong.
    """
    job = read_job(path)
    reactor = import_reactor()
    spare = None
    for host in job.hosts:
        if host.local and host.start:
            spare = _start_client(reactor, host.python or sys.executable)
            break
    return Early(job, reactor, spare)


def import_reactor() -> Any:
    """The global reactor, loaded without TLS of its own.

    OpenSSL and what belongs to it would take a fifth of the time to the first task. Nothing here
    needs it in the reactor: TLS is a protocol around a plain connection (``faraway``), which
    loads it when the first one is there. Twisted does without where there is none, and so do
    asyncio and http.client, which Twisted loads.
    """
    for name in _TLS - sys.modules.keys():  # what is loaded is loaded
        sys.modules[name] = None  # type: ignore[assignment]  # Python: there is no such module
    try:
        from twisted.internet import reactor  # noqa: PLC0415
    finally:
        for name in _TLS:
            if sys.modules.get(name, sys) is None:
                del sys.modules[name]
    return reactor


_TLS = {"OpenSSL", "ssl"}


def _start_client(reactor: Any, python: str) -> Spare | None:
    from pexecd.launch.clientfile import client_file  # noqa: PLC0415 - it needs the reactor's parts
    from pexecd.launch.local import Spare  # noqa: PLC0415

    with suppress(OSError, StateError):  # whoever needs it will say so
        return Spare(reactor, python, client_file())
    return None

"""What is done on a host over its connection: start the client, and find out why it did not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pexecd.errors import HostError, spoken
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram
from pexecd.launch.errors import NOT_THERE, START, LoginUnusableError, StartFailedError, explain
from pexecd.launch.onhost import MARK
from pexecd.launch.shared import Copies
from pexecd.launch.start import remote_path, start_input
from pexecd.ports import ClientOrder, CommandResult, IConnection
from pexecd.shell import RUN_SCRIPT
from pexecd.units import Seconds

#: For the start script; the client itself gives up after 20 s.
START_LIMIT: Seconds = 60.0
COPY_LIMIT: Seconds = 300.0
DUMMY_LIMIT: Seconds = 30.0

#: Pauses in which a file that another host has copied to a shared folder is looked for again: NFS
#: clients remember for 30 s, by default, what was not there.
SEEN_AFTER: tuple[Seconds, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)

_log = Logger()

#: Makes words for messages of what a host said.
Words = Callable[[bytes], str]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a script ended."""

    #: Its exit status, or in words how else it went.
    status: int | str
    #: What it said on standard error.
    words: str
    #: What ``launch.onhost`` told.
    facts: dict[str, Any] = field(default_factory=dict)


async def run_script(connection: IConnection, stdin: bytes, mark: str, words: Words) -> Ended:
    """Run one of the scripts of ``launch.start``.

    Args:
        connection: to the host.
        stdin: the script.
        mark: what it says first: a login shell's start-up file may exit with any status.
        words: cleans what the host said.

    Raises:
        HostError: the connection was lost, or it took too long.
    """
    result = await connection.run(RUN_SCRIPT, stdin, START_LIMIT)
    return read_end(result, mark, words)


def read_end(result: CommandResult, mark: str, words: Words) -> Ended:
    """Understand how one of the scripts ended."""
    said = words(result.stderr)
    if result.status is None:
        return Ended(f"signal {result.signal}", said)
    if mark.encode() not in result.stdout:
        return Ended(f"exit status {result.status} before the script began", said)
    facts: dict[str, Any] = {}
    for line in result.stdout.decode("utf-8", "surrogateescape").splitlines():
        if line.startswith(MARK):
            facts = json.loads(line.removeprefix(MARK))
    return Ended(result.status, said, facts)


async def start_client(
    connection: IConnection,
    host: HostSpec,
    order: ClientOrder,
    program: ClientProgram,
    copies: Copies,
    clock: IReactorTime,
    words: Words,
) -> Ended:
    """Start the client, after a copy where it is not there.

    Raises:
        HostError: as ``run_script``, or it could not be copied.
    """
    stdin = start_input(host, order, program, copies.run)

    def start() -> Deferred[Ended]:
        return Deferred.fromCoroutine(run_script(connection, stdin, program.sha256, words))

    def copy() -> Deferred[None]:
        copied = connection.copy(program.path, remote_path(host, program), 0o700, COPY_LIMIT)
        return copied.addCallback(
            lambda _: _log.info("{host}: client copied", host=spoken(host.name))
        )

    since = copies.finished
    ended = await start()
    if ended.status != NOT_THERE:
        return ended
    copied = await copies.share(shared_folder(host, ended.facts), since, copy)
    ended = await start()
    if not copied:
        for pause in SEEN_AFTER:
            if ended.status != NOT_THERE:
                return ended
            await deferLater(clock, pause)
            ended = await start()
        if ended.status == NOT_THERE:  # it does not share the folder after all
            await copy()
            ended = await start()
    return ended


def shared_folder(host: HostSpec, facts: dict[str, Any]) -> str:
    """What hosts that share their folder have in common: as they are told to, or as was found."""
    if host.shared:
        return f"told: {host.shared} {host.dir}"
    return f"found: {holder(host, facts)}"


def holder(host: HostSpec, facts: dict[str, Any]) -> str:
    """The host whose note was found in the folder."""
    name = str(facts.get("holder", host.name))
    # a Python of the C locale may have taken it to pieces
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


async def why_not(
    connection: IConnection, host: HostSpec, ended: Ended, words: Words, what: str = "the client"
) -> HostError:
    """Why a script did not end well; by a dummy command where it does not say so itself."""
    status = ended.status
    known = explain(host.name, status, ended.words) if isinstance(status, int) else None
    if known is not None:
        return known
    dummy = await connection.run("echo pexecd", b"", DUMMY_LIMIT)
    if dummy.status != 0 or b"pexecd" not in dummy.stdout:
        said = words(dummy.stderr or dummy.stdout)
        return LoginUnusableError(host.name, START, "it runs no commands", said)
    if status == NOT_THERE:
        reason = "the client was copied, but is not there"
        return StartFailedError(host.name, START, reason, ended.words)
    how = f"exit status {status}" if isinstance(status, int) else status
    return StartFailedError(host.name, START, f"starting {what} ended with {how}", ended.words)

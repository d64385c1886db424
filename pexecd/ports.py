"""Where the packages of floor 4 meet: interfaces, and the values that pass through them.

``protocol`` talks to ``IDirectory`` and ``ISession`` (the master implements them);
the master talks to ``IJournal``, ``ISpool``, ``IJudge``, ``ICollector`` and ``ILauncher``.
All Deferreds fire in the reactor thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from zope.interface import Attribute, Interface

from pexecd.core.effects import Record
from pexecd.core.values import Caller, Failure
from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.protocol.exchange import Posted
from pexecd.protocol.wire import TaskMessage
from pexecd.units import Seconds

# --- results on disk -----------------------------------------------------------------------


class StoredResult(NamedTuple):
    """One result of one ticket, as it was kept."""

    name: str
    size: int
    #: The bytes of a small one, else None.
    data: bytes | None
    #: A larger one's file, relative to the state folder, else None.
    spool: str | None


class ResultKept(NamedTuple):
    """Record: a ticket's results are in the spool or in this record."""

    ticket: int
    task: int
    results: tuple[StoredResult, ...]


class ResultDropped(NamedTuple):
    """Record: the results of a ticket are gone (they were no use)."""

    ticket: int


class Collected(NamedTuple):
    """Record: how far an output file was written."""

    #: The file's path, seen from the job's folder where it is in there: a job that was moved
    #: goes on. For the collect function its file and name.
    file: str
    #: Bytes that are its committed content.
    length: int
    #: By parameters: all tasks up to this number are settled in it. By completion: see ``tasks``.
    upto: int
    #: By completion: the tasks that were added to it. By parameters: those up to ``upto``
    #: that were left out, for they had no result.
    tasks: tuple[int, ...] = ()
    #: What it was made by; an output whose rule was changed is made anew. For the collect
    #: function the order alone: ``parameters`` or ``completion``.
    rule: str = ""
    #: It was begun anew: ``tasks`` replaces what earlier records said.
    anew: bool = False
    #: Tasks that are to be taken out of what earlier records said.
    without: tuple[int, ...] = ()
    #: CRC-32 of these bytes: somebody may change the file between two runs.
    crc: int = 0


class NotCollected(NamedTuple):
    """Record: the user's collect function raised for this task; None: it worked after all."""

    task: int
    reason: str | None


JournalRecord: TypeAlias = Record | ResultKept | ResultDropped | Collected | NotCollected


class TaskRow(NamedTuple):
    """A line of the parameter table."""

    number: int
    #: In the order of the job's columns.
    cells: tuple[str, ...]


class JoblogRow(NamedTuple):
    """One ended ticket with all that joblog.tsv says of it."""

    ticket: int
    task: int
    host: str
    #: Wall clock.
    given: float
    seconds: Seconds
    end: str
    exit_status: int
    signal: int
    sent_bytes: int
    received_bytes: int
    reason: str
    #: The tail of the worker's standard error, where the client sent it.
    stderr: bytes = b""


class IJournal(Interface):
    """The durable memory of one session: facts in, in order; queries for what is on disk.

    Every query sees all records whose ``append`` was called before it, but while the journal
    is stalled: then it sees those that were confirmed.

    A disk that refuses for a reason that can pass (full, over quota, read-only, database
    locked by another program) stalls the journal: what was appended is kept, in order, and
    tried again every second until it is written; nobody who waits is told meanwhile.
    """

    stalled = Attribute("str: why nothing can be written just now, in one line; else empty.")

    def append(records: Sequence[JournalRecord]) -> Deferred[None]:
        """Write the records, all or none, and wait until they are on disk.

        Args:
            records: written after those of every earlier call. None at all makes the
                call a barrier: it waits for the earlier ones.

        Returns:
            Fires when a power cut can no longer undo the write. Fails with
            ``JournalError`` if it can never be written: then neither can what was
            appended later, and memory and disk no longer agree.
        """

    def watch(changed: Callable[[str], None]) -> None:
        """Have ``changed`` called whenever the journal is stalled or goes on.

        Args:
            changed: called in the reactor thread, with the reason, and with '' when the
                disk takes what is written again.
        """

    def rows(first: int, count: int) -> Deferred[list[TaskRow]]:
        """Lines ``first`` (from 1) and on, at most ``count`` of them.

        Waits for those that are still to be stored.
        """

    def results(tickets: Sequence[int]) -> Deferred[dict[int, tuple[StoredResult, ...]]]:
        """The kept results of these tickets; a ticket without any is left out."""

    def failures(after: int, count: int) -> Deferred[list[tuple[int, str]]]:
        """Failed tasks with numbers above ``after``, at most ``count``, and the reason of each."""

    def ended(tickets: Sequence[int]) -> Deferred[list[tuple[JoblogRow, TaskRow]]]:
        """Those of these tickets that have ended, and the lines of their tasks."""

    def close() -> Deferred[None]:
        """Write what waits, then let go of the file.

        A stalled journal tries once more; who waits then still fails with ``JournalError``.
        """


class IAttemptLog(Interface):
    """A file that tells people of each attempt."""

    def rewrite(rows: Iterable[tuple[JoblogRow, str]]) -> None:
        """Begin with these attempts and their commands (all that ended before). Blocks."""

    def add(rows: Sequence[tuple[JoblogRow, str]]) -> None:
        """Append attempts and their commands, some time soon.

        After the commit of their ends, so that it is true.
        """

    def close() -> Deferred[None]:
        """Fires when all is written."""


class IUpload(Interface):
    """The results of one ticket while they arrive. Ends with ``finish`` or ``abort``."""

    def begin(name: str, length: int | None) -> None:
        """The bytes that follow are this result's; ``length`` where it was announced."""

    def write(data: bytes) -> Deferred[None] | None:
        """Take some bytes.

        Returns:
            None, or, when the disk is behind, a Deferred that fires when it has caught
            up: stop reading from the peer until then. It never fails.
        """

    def finish() -> Deferred[tuple[StoredResult, ...]]:
        """All has arrived: make it durable (fsync, rename).

        Returns:
            Fires with the results in the order of their ``begin``. Fails with
            ``JournalError`` (disk full, say); then nothing is kept.
        """

    def abort() -> None:
        """Forget it all. May be called at any time, also after ``finish``."""


class ISpool(Interface):
    """The folder of larger results."""

    def upload(ticket: int) -> IUpload:
        """Begin to take the results of a ticket; several at once for one ticket do no harm."""

    def store(
        results: Mapping[int, Mapping[str, bytes]],
    ) -> Deferred[dict[int, tuple[StoredResult, ...]]]:
        """Keep results that are there as a whole, of several tickets together.

        Args:
            results: by ticket and name.

        Returns:
            Fires with the kept results of each ticket when all are durable. Fails with
            ``JournalError`` when there is no room for all: then none is kept.
        """

    def fits(contents: Mapping[str, bytes]) -> bool:
        """Whether results, by name, are small enough for the journal."""

    def path(result: StoredResult) -> Path | None:
        """Where a larger result is, None for one that is inline."""

    def discard(results: Sequence[StoredResult]) -> None:
        """Delete the files of these results, some time."""

    def probe() -> Deferred[str]:
        """Try whether results can be stored, by writing a little.

        Returns:
            Fires with '' or with the reason why not, in one line; never fails.
        """


# --- judging and collecting -----------------------------------------------------------------


class Verdict(NamedTuple):
    """``valid`` None: no verdict, the function raised or hung; ``reason`` says why."""

    valid: bool | None
    reason: str = ""


class IJudge(Interface):
    """Validates results: the ready-made tests, then the user's function."""

    def judge(
        task: int, parameters: Mapping[str, str], results: Sequence[StoredResult]
    ) -> Deferred[Verdict]:
        """Validate one ticket's results. Never fails; a bug in here is no verdict."""

    def close() -> Deferred[None]:
        """End the processes of the user's functions."""


class ICollector(Interface):
    """Makes the collected files from committed results; never holds up anybody else."""

    def settle(task: int, ticket: int | None) -> None:
        """This task is done (its result is ``ticket``'s) or has failed (None); committed.

        A task that had failed may be done later: then what is ordered is written anew.
        """

    def finish() -> Deferred[CollectReport]:
        """Collect all that was settled so far, write the ``failed`` file, and report.

        Returns:
            Fires when all is on disk. Never fails: what went wrong is in the report.
        """

    def close() -> Deferred[None]:
        """Stop at the next safe point."""


class CollectReport(NamedTuple):
    """What a person should know of the collected files."""

    #: Tasks whose result is in the collected files.
    collected: int
    #: Task and reason where the user's collect function raised.
    not_collected: tuple[tuple[int, str], ...] = ()
    #: One-line warnings (sets left out because they have no result, say).
    warnings: tuple[str, ...] = ()
    #: Files that could not be written, and why, a line each: the run was no success.
    errors: tuple[str, ...] = ()


# --- hosts ----------------------------------------------------------------------------------


class ClientOrder(NamedTuple):
    """What a client that the master starts is told (by standard input: it is secret)."""

    #: The secret session ID.
    session: str
    #: The session's public name: for folders and logs.
    public: str
    #: How the host reaches the master: ``http://host:port``, or ``https://host:port#SHA256`` of
    #: its certificate; empty: through a tunnel.
    server: str
    #: Makes that from the address at which the host sees this computer ('' if it does not say);
    #: '' if it is of no use. None: it is known.
    seen_at: Callable[[str], str] | None = None


class TunnelEnd(NamedTuple):
    """Where the tunnels of hosts lead: to the master's HTTP server."""

    #: For connections that only the host's user can have made.
    plain: IProtocolFactory
    #: For those that anybody there can have made: TLS.
    pinned: IProtocolFactory
    #: The SHA-256 of its certificate, in hex.
    fingerprint: str


class IHostWatcher(Interface):
    """Hears how the hosts are; the master implements it."""

    def host_started(host: str) -> None:
        """A client is in the background there and has its config."""

    def host_failed(error: HostError, final: bool) -> None:
        """The host could not be used just now, or (``final``) ever."""

    def client_ended(host: str, status: str) -> None:
        """The client there is known to have ended; ``status`` says how, for the log."""

    def client_outdated(host: str) -> None:
        """The client there was told what is no longer so: it is to end, for another to begin.

        Said again as long as it is there.
        """


class ILauncher(Interface):
    """Keeps a client on every host of a job."""

    def start() -> None:
        """Begin on all hosts at once."""

    def revive(host: str) -> None:
        """The client there was not heard of for too long: start it again if it is gone."""

    def change(hosts: Sequence[HostSpec]) -> None:
        """From now on these are the hosts.

        New ones get a client. Those that are gone get none any more; it is the master's affair
        that the one there ends. Those that changed get a new one, when the one there has ended.
        """

    def wind_down() -> Deferred[None]:
        """Start no more; end clients that are children of ours.

        Tunnels stay: clients on hosts have yet to hear of the end.

        Returns:
            Fires when the children are gone.
        """

    def stop() -> Deferred[None]:
        """Start no more; end connections, and clients that are children of ours.

        Returns:
            Fires when no process or connection of the launcher is left.
        """

    def leave() -> Deferred[None]:
        """Start no more; end connections; clients carry on, for the next master.

        Returns:
            Fires when no connection of the launcher is left.
        """


class IConnection(Interface):
    """One live SSH connection to a host."""

    lost = Attribute("Deferred[HostError]: fires, once, when the connection is gone.")

    def run(command: str, stdin: bytes, timeout: Seconds) -> Deferred[CommandResult]:
        """Run a command there through the user's login shell.

        Returns:
            Fires when it has ended, whatever its status. Fails with ``HostError`` when
            it could not be run, did not end in time, or the connection was lost.
        """

    def copy(source: Path, target: str, mode: int, timeout: Seconds) -> Deferred[None]:
        """Copy a file there with SCP: to a temporary name, then renamed.

        ``~/`` at the start of ``target`` is the home there.

        Returns:
            Fires when it is in place; fails with ``HostError``.
        """

    def forward(socket: str | None, factory: IProtocolFactory) -> Deferred[int]:
        """Let programs on the host connect to ``factory``, as long as the connection is there.

        Args:
            socket: the absolute path of a unix socket to be made on the host, where nothing
                is yet; None: a port of the host's loopback that its SSH server picks, which
                every user of the host can connect to.
            factory: builds a protocol for each connection made there. Their transports can
                be paused, and pause the producers that are registered with them.

        Returns:
            Fires with the port, 0 for a socket, when it can be connected to. Fails with
            ``ForwardRefusedError`` if the server does not allow it, or another ``HostError``.
        """

    def close() -> Deferred[None]:
        """Disconnect; fires when the transport is gone.

        What was written into forwarded connections arrives, if the host takes it soon.
        """


class CommandResult(NamedTuple):
    """How a remote command ended."""

    #: Exit status; None when a signal killed it.
    status: int | None
    signal: str | None
    stdout: bytes
    #: Its beginning and end, at most some KiB.
    stderr: bytes


class IConnector(Interface):
    """Opens SSH connections: by Conch, or by the system's ssh."""

    def connect(host: HostSpec) -> Deferred[IConnection]:
        """Connect and authenticate, as the user's ssh settings say.

        Returns:
            Fires with a provider of ``IConnection``; fails with a ``HostError`` of the
            class that fits, within the stages' deadlines.
        """


# --- what the protocol asks of the master ------------------------------------------------------


class NoTask(NamedTuple):
    """503: come back in ``retry_after`` seconds; None: no task is left, die."""

    retry_after: int | None


class TaskSupply(NamedTuple):
    """What an exchange brings."""

    tasks: Sequence[TaskMessage]
    #: Tickets whose workers may be stopped.
    over: Sequence[int]
    #: ``none`` or ``end`` where tasks are wanted and there is none; else empty.
    left: str


class ISession(Interface):
    """One session, as its clients see it. The session ID was right, or nobody gets here."""

    max_result = Attribute("int | None: the limit of an upload's body in bytes.")
    result_names = Attribute("tuple[str, ...]: the names of the job's results.")

    def config(
        caller: Caller, platform: str | None, slots: int | None
    ) -> Sequence[tuple[str, str]]:
        """The key-value pairs of ``/config``, in order; newer keys only for a caller that speaks.

        ``slots`` is how many workers it runs at once, where it says so.

        Raises:
            WrongPlatformError: ``platform`` is given, and no executable is for it.
        """

    def worker(caller: Caller, name: str, platform: str) -> Path:
        """The executable.

        Raises:
            WrongSessionError: no worker of that name.
            WrongPlatformError: none for that platform.
        """

    def ask(caller: Caller, worker: str | None) -> Deferred[TaskMessage | NoTask]:
        """Wait for a task. Cancelling the Deferred says that the peer has left.

        Returns:
            Fires when the ticket is journalled, or there is no task. Fails with
            ``WrongSessionError`` (another worker's name), ``JournalError`` (cannot store
            just now), or ``CancelledError``.
        """

    def exchange(
        caller: Caller, posted: Posted, want: int, worker: str | None
    ) -> Deferred[TaskSupply]:
        """Note what became of many tickets, and get up to ``want`` tasks, without waiting for any.

        Cancelling the Deferred says that the peer has left.

        Returns:
            Fires when all of it is stored and journalled, the new tickets too. Fails with
            ``WrongSessionError`` (another worker's name), ``JournalError`` (cannot store just
            now; nothing has changed) or ``CancelledError``.
        """

    def undelivered(ticket: int) -> None:
        """The reply with this ticket could not be handed to the peer."""

    def ping(caller: Caller, ticket: int) -> bool:
        """True: keep on. False: the ticket is over (or was never given out)."""

    def upload(caller: Caller, ticket: int) -> IUpload | None:
        """Results of this ticket begin to arrive.

        Returns:
            Where to put them; None when they can no longer be of use (the task has its
            result, or no such ticket was ever given out): read on and throw away.
        """

    def complete(
        caller: Caller, ticket: int, upload: IUpload | None, seconds: Seconds | None
    ) -> Deferred[None]:
        """All results of the job have arrived, in ``upload`` if ``upload()`` wanted them.

        Returns:
            Fires when they are stored and journalled, or what made them useless is: the time
            for 200. Fails with ``JournalError``; then nothing has changed and the client
            should try again.
        """

    def abandon(caller: Caller, ticket: int, upload: IUpload) -> None:
        """The upload broke off, or was malformed (400): the ticket stays as it was."""

    def fail(
        caller: Caller, ticket: int, failure: Failure, upload: IUpload | None
    ) -> Deferred[None]:
        """End an attempt that failed: the client says so, or its upload was no use.

        That is: a result is missing, it could be read in two ways, or is too large.

        Returns:
            Fires when it is journalled; also for a ticket that is over. Fails with
            ``JournalError``.
        """


class IDirectory(Interface):
    """All sessions of a master."""

    def find(session_id: str) -> ISession | None:
        """The session with this secret ID, compared in constant time."""

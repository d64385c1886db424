"""What a run starts from: the table loaded, or what earlier runs did replayed."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

from twisted.internet.defer import Deferred

from pexecd.core.effects import TaskReopened, TicketEnded
from pexecd.core.session import Session
from pexecd.core.values import End, Policy
from pexecd.errors import StateError
from pexecd.jobs import read_table
from pexecd.jobs.identity import Identity
from pexecd.jobs.values import Job
from pexecd.master import FAILURES_TOLD, Executable
from pexecd.pilot import spread
from pexecd.ports import JournalRecord, ResultDropped
from pexecd.store import SEPARATOR, Journal, Line, Recovery, Remapped, StateFolder
from pexecd.units import Instant

#: Lines of the table stored in one piece: what is to be journalled meanwhile waits for it.
PIECE = 5000

#: The bytes read at once where a whole file is looked at.
_CHUNK = 1 << 20

#: Under ``meta``: the form of the ``Identity`` under which lines without digest were stored.
_IDENTITY = "identity"


class Start(NamedTuple):
    """How to begin where earlier runs left results: the flags of ``pexecd run``."""

    #: Throw away what they stored.
    fresh: bool = False
    #: Keep their results though the recipe has changed.
    keep_old: bool = False
    #: Try the tasks again that failed.
    retry_failed: bool = False
    #: Give those results to the collect function again for which it raised.
    recollect: bool = False
    #: Work on so many tasks, spread over the table, and no others; 0: on all.
    pilot: int = 0


class State(NamedTuple):
    """Ready to go on."""

    journal: Journal
    recovery: Recovery
    core: Session
    #: Tickets whose results are stored but were not judged.
    kept: list[int]
    #: The first tasks that have failed, with their reasons.
    failures: dict[int, str]
    executables: Mapping[str, Executable]
    #: The secret.
    session_id: str
    #: The session's public name.
    public: str


class Prepared(NamedTuple):
    """What ``prepare`` did, and what it left."""

    #: Lines of the table that are still to be stored: ``store_rest`` does it.
    rest: Iterator[Line]
    #: What became of the tasks when the table had changed.
    remapped: Remapped | None = None


def prepare(job: Job, start: Start, journal: Journal) -> Prepared:
    """Begin to load the table into a new journal, or bring an old one up to what the job is now.

    Blocks: call it in a thread.

    Args:
        job: the job, read and checked.
        start: how to begin.
        journal: the journal of its state folder.

    Raises:
        StateError: the journal holds results of another recipe; nothing has changed.
        OSError: a file of the job cannot be read any more.
    """
    identity = Identity.of(job)
    made_by = {
        "table": job.table_digest,
        "commands": _commands(job, identity),
        "recipe": _recipe(job),
    }
    lines = _lines(job, identity)
    if not journal.loaded:
        names = {
            # Alphanumeric: it is given on command lines, where a leading "-" begins an option.
            "session": secrets.token_hex(24),
            "public": f"{job.name}-{secrets.token_hex(4)}",
        }
        meta = made_by | names | {_IDENTITY: identity.form}
        journal.load(islice(lines, PIECE), meta, job.tasks)
        return Prepared(lines)
    if journal.meta["recipe"] != made_by["recipe"] and not start.keep_old:
        _refuse_another_recipe(job, journal.recovery())
    same_tasks = all(journal.meta.get(key) == made_by[key] for key in ("table", "commands"))
    if same_tasks and journal.stored < journal.tasks:  # the last master did not come to its end
        same_tasks = journal.begins_with(lines)
    if same_tasks and journal.meta["recipe"] == made_by["recipe"]:
        return Prepared(lines if journal.stored < journal.tasks else iter(()))
    form = journal.meta.get(_IDENTITY)
    before = Identity(form, job.folder) if form is not None else None
    remapped = journal.remap(
        _digested(job, identity),
        made_by | {_IDENTITY: identity.form},
        lambda line: _digest(before, line) if before else None,
    )
    return Prepared(iter(()), None if same_tasks else remapped)


def _digest(identity: Identity, line: str) -> bytes:
    return identity.digest(line.split(SEPARATOR))


def _lines(job: Job, identity: Identity) -> Iterator[Line]:
    """The lines of the table as they are stored.

    A digest that can be made again from the line alone is not stored with it, for most
    tables never change.
    """
    if identity.reads_files:
        yield from _digested(job, identity)
    else:
        for batch in read_table(job).batches():
            yield from zip(batch, repeat(None))


def _digested(job: Job, identity: Identity) -> Iterator[Line]:
    for batch in read_table(job).batches():
        for line in batch:
            yield line, _digest(identity, line)


async def store_rest(
    journal: Journal,
    rest: Iterator[Line],
    in_thread: Callable[[Callable[[], list[Line]]], Deferred[list[Line]]],
) -> None:
    """Store the lines of the table that ``prepare`` left, while the session works.

    Args:
        journal: where to.
        rest: the lines.
        in_thread: runs a blocking function elsewhere.

    Raises:
        BadInputError: the table has changed since it was checked.
        JournalError: it could not be written.
    """

    def read() -> Deferred[list[Line]]:
        return in_thread(lambda: list(islice(rest, PIECE)))

    piece = await read()
    while piece:
        ahead = read()
        try:
            await journal.add(piece)
        except BaseException:
            ahead.addErrback(lambda _: None)
            raise
        piece = await ahead


def repairs(start: Start, recovery: Recovery) -> list[JournalRecord]:
    """What must be journalled before the core is rebuilt. Blocks.

    A result whose file is gone or not whole is no result: its task runs again.
    """
    first = recovery.next_ticket()
    records: list[JournalRecord] = []
    for lost in recovery.lost():
        reason = f"its result is gone: {lost.spool} is missing or not whole"
        records += [
            ResultDropped(lost.ticket),
            TicketEnded(lost.ticket, lost.task, End.LOST, reason),
        ]
        if lost.done:
            records.append(TaskReopened(lost.task, first))
    if start.retry_failed:
        records += [
            TaskReopened(task, first) for task, ticket in recovery.settled() if ticket is None
        ]
    return records


def rebuild(job: Job, start: Start, folder: StateFolder, journal: Journal, now: Instant) -> State:
    """Rebuild the core from the journal. Blocks.

    Args:
        job: the job.
        start: how to begin.
        folder: its state folder.
        journal: the journal in it, prepared and repaired.
        now: the clock of the deadlines.

    Raises:
        StateError: a worker changed just now, or the database is damaged.
    """
    recovery = journal.recovery()
    policy = _policy(job)
    if start.pilot:
        policy = policy._replace(duplicates=1)  # that others are slow is what we want to know
    core = Session(policy, journal.tasks, now)
    core.replay(recovery.replay())
    if start.pilot:
        core.choose(spread(start.pilot, journal.tasks))
    return State(
        journal,
        recovery,
        core,
        recovery.kept(),
        recovery.failures(FAILURES_TOLD),
        _keep_executables(job, folder.worker),
        journal.meta["session"],
        journal.meta["public"],
    )


def _refuse_another_recipe(job: Job, recovery: Recovery) -> None:
    """Results of two recipes are not to be mixed unasked; where none are at stake, all is well."""
    counts = recovery.counts()
    # a ticket whose result waits for its verdict may live, or not
    under_way = max(counts.living, len(recovery.kept()))
    held = [
        text
        for count, text in (
            (counts.done, f"the results of {counts.done} tasks"),
            (counts.failed, f"{counts.failed} failed tasks"),
            (under_way, f"{under_way} tasks under way"),
        )
        if count
    ]
    if held:
        raise StateError(
            f"{job.path}: worker, results or validation have changed since {job.state} was begun, "
            f"and it holds {', '.join(held)}: --fresh throws them away, "
            "--keep-old keeps them and uses what has changed for the others"
        )


def _policy(job: Job) -> Policy:
    return Policy(
        timeout=job.timeout,
        attempts=job.attempts,
        duplicates=job.duplicates,
        stop_after=job.stop_after,
        give_up=job.give_up,
        ping=job.ping,
        patience=job.patience,
        demanding=any(rule.source == "stderr" for rule in job.results),
        validates=bool(job.tests or job.validate),
    )


def _digests(path: Path) -> tuple[str, str]:
    """MD5 and SHA-256 of a file."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


def _keep_executables(job: Job, folder: Path) -> dict[str, Executable]:
    """Copy the workers: what clients get does not change when somebody compiles anew."""
    kept = {}
    for platform, source in job.worker.executables.items():
        folder.mkdir(mode=0o700, exist_ok=True)
        target = folder / platform
        temporary = folder / f"{platform}.part"
        shutil.copyfile(source, temporary)
        temporary.rename(target)
        kept[platform] = Executable(target, *_digests(target))
    return kept


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commands(job: Job, identity: Identity) -> str:
    """A digest of all that decides, with a line of the table, what its task is."""
    inputs = [
        [rule.file, rule.kind.value, getattr(rule.source, "text", rule.source)]
        for rule in job.inputs
    ]
    digest = hashlib.sha256(
        json.dumps(
            [job.worker.command.text, job.worker.shell, dict(job.env), inputs, job.columns]
        ).encode()
    )
    if identity.reads_files:
        for cells in read_table(job):  # their content may have changed, too
            digest.update(identity.digest(cells))
    return digest.hexdigest()


def _recipe(job: Job) -> str:
    """A digest of what is the same for all tasks and decides what their results are."""
    functions = [job.validate] if job.validate else []
    recipe = {
        "executables": {
            platform: _file_digest(path) for platform, path in job.worker.executables.items()
        },
        "results": [[rule.name, rule.source] for rule in job.results],
        "tests": [[test.result, test.kind.value, test.regex] for test in job.tests],
        "validate": [[one.name, _file_digest(one.path)] for one in functions],
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

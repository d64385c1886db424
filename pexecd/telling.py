"""From a number of a task to the message that a client is told: read, fill in, put into words."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from pexecd.errors import PexecdError
from pexecd.jobs.render import Renderer
from pexecd.jobs.values import Job
from pexecd.ports import IJournal, TaskRow
from pexecd.protocol.wire import (
    NO_TIMEOUT,
    InputFile,
    ResultFile,
    TaskMessage,
    holds_closing_line,
)
from pexecd.tuples import by_place

_message = by_place(TaskMessage)


class UntellableError(PexecdError):
    """A task cannot be put into words for a client.

    Attributes:
        demanding: True when a client that announced itself could be told.
    """

    def __init__(self, reason: str, demanding: bool) -> None:
        super().__init__(reason)
        self.demanding = demanding


class TableFeed:
    """Reads the parameter table from the journal ahead of those who ask."""

    #: Lines read at once.
    CHUNK = 256
    #: Chunks kept: the tasks of a retry or of a copy are mostly in one of them.
    KEPT = 16

    def __init__(self, journal: IJournal) -> None:
        self._journal = journal
        self._chunks: dict[int, list[TaskRow]] = {}
        self._waiting: dict[int, list[tuple[int, Deferred[TaskRow]]]] = {}

    def ready(self, task: int) -> TaskRow | None:
        """The line of a task; None: it must be waited for."""
        index, place = divmod(task - 1, self.CHUNK)
        if place == self.CHUNK // 2 and index + 1 not in self._chunks:
            self._read(index + 1)
        chunk = self._chunks.get(index)
        return None if chunk is None else chunk[place]

    def row(self, task: int) -> Deferred[TaskRow]:
        """The line of a task; fails with ``JournalError`` when it cannot be read."""
        row = self.ready(task)
        if row is not None:
            return succeed(row)
        index, place = divmod(task - 1, self.CHUNK)
        mine: Deferred[TaskRow] = Deferred()
        self._read(index, (place, mine))
        return mine

    def _read(self, index: int, *waiter: tuple[int, Deferred[TaskRow]]) -> None:
        """Read a chunk, once for all who wait for it."""
        if index in self._waiting:
            self._waiting[index] += waiter
            return
        self._waiting[index] = list(waiter)

        def arrived(rows: list[TaskRow]) -> None:
            if rows:
                while len(self._chunks) >= self.KEPT:
                    del self._chunks[next(iter(self._chunks))]
                self._chunks[index] = rows
            for place, one in self._waiting.pop(index):
                one.callback(rows[place])

        def lost(why: Failure) -> None:
            for _, one in self._waiting.pop(index):
                one.errback(why)

        self._journal.rows(index * self.CHUNK + 1, self.CHUNK).addCallbacks(arrived, lost)


class Teller:
    """Puts tasks of a job into words.

    Args:
        job: the job.
        renderer: fills in its patterns.
        in_thread: runs a blocking function elsewhere, for input files of unknown size.
    """

    _log = Logger()

    def __init__(
        self,
        job: Job,
        renderer: Renderer,
        in_thread: Callable[[Callable[[], bool]], Deferred[bool]],
    ) -> None:
        self._renderer = renderer
        self._in_thread = in_thread
        self._env = tuple(job.env.items())
        self._timeout = math.ceil(job.timeout) or NO_TIMEOUT
        self._results = tuple(ResultFile(rule.name, rule.source) for rule in job.results)

    def command(self, row: TaskRow) -> str:
        """The command line of a task, as people see it."""
        return self._renderer.line(row.cells)

    def message(self, row: TaskRow, ticket: int) -> TaskMessage:
        """The message for a client that announced itself.

        Raises:
            UntellableError: it cannot be told: an input file is gone. So it is after an error that
                nobody foresaw: others wait to be told theirs.
        """
        try:
            return self._worded(row, ticket)
        except UntellableError:
            raise
        except Exception as bug:
            self._log.failure("telling task {task}", task=row.number)
            reason = f"the master failed to put it into words, see its log: {bug!r}"
            raise UntellableError(reason, demanding=False) from bug

    def _worded(self, row: TaskRow, ticket: int) -> TaskMessage:
        inputs: tuple[InputFile, ...] = ()
        number, cells = row
        renderer = self._renderer
        for name, content in renderer.inputs(cells):
            if isinstance(content, bytes):
                inputs += (InputFile(name, content),)
            else:
                with _readable(name, content.path):
                    content.path.stat()
                inputs += (InputFile(name, content.path),)
        command = renderer.line(cells)
        environment = renderer.environment(cells)
        variables = tuple(environment.items()) if environment else ()
        # by place: this is done for each task
        return _message((ticket, self._timeout, command, inputs, self._results, number, variables))

    async def plain_message(self, row: TaskRow, ticket: int) -> TaskMessage:
        """The message for any other client.

        Raises:
            UntellableError: it cannot be told, or only to a client that announced itself.
        """
        message = self.message(row, ticket)
        for one in message.inputs:
            if await self._ambiguous(one):
                raise UntellableError(_AMBIGUOUS.format(one.file), demanding=True)
        variables = [f"{name}={value}" for name, value in (*self._env, *message.environment)]
        if variables:
            words = shlex.join(["env", *variables])
            message = message._replace(command_line=f"{words} {message.command_line}")
        return message

    async def _ambiguous(self, one: InputFile) -> bool:
        path = one.content
        if isinstance(path, bytes):
            return holds_closing_line(path)
        with _readable(one.file, path):
            return await self._in_thread(lambda: _file_holds_closing_line(path))


@contextmanager
def _readable(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UntellableError(
            f"input {name}: {path} cannot be read: {error.strerror}", demanding=False
        ) from None


_AMBIGUOUS = "input {} holds the line that ends it, which only newer clients can be told"


def _file_holds_closing_line(path: Path) -> bool:
    """Look for the closing line in a file of any size; blocks."""
    overlap = 64
    with path.open("rb") as file:
        tail = b"\n"
        while chunk := file.read(1 << 20):
            if holds_closing_line(tail + chunk):
                return True
            tail = chunk[-overlap:]
    return False

"""The cluster file of a job that runs: whoever changes it need not start the job again."""

# Tests: tests/unit/test_clusterfile.py, tests/system/test_cluster_changes.py

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from pexecd.errors import BadInputError, PexecdError
from pexecd.jobs.jobfile import reread_hosts
from pexecd.jobs.values import HostSpec, Job
from pexecd.units import Seconds

#: How often the file is looked at. It counts when it is the same at two looks: nobody is writing.
LOOK_EVERY: Seconds = 2.0

#: What changes with a file: its inode, size and time.
_State = tuple[int, int, int]


class ClusterFile:
    """Looks at a cluster file every few seconds, and reads it again when it has changed.

    Args:
        job: the job; it has a cluster file.
        clock: tells when to look.
        in_thread: runs a blocking function elsewhere.
        changed: is told the hosts; it fails with a ``PexecdError`` when they cannot be taken.
    """

    _log = Logger()

    def __init__(
        self,
        job: Job,
        clock: IReactorTime,
        in_thread: Callable[..., Deferred[Any]],
        changed: Callable[[Sequence[HostSpec]], Deferred[None]],
    ) -> None:
        assert job.cluster is not None
        self._job = job
        self._path = job.cluster
        self._in_thread = in_thread
        self._changed = changed
        self._seen: _State | None = None
        #: What was read last; at first none, for much may have happened since the job was read.
        self._read: _State | None = (0, 0, 0)
        self._reading = False
        self._looks = LoopingCall(self.look)
        self._looks.clock = clock

    def start(self) -> None:
        """Begin to look."""
        began = self._looks.start(LOOK_EVERY, now=False)
        began.addErrback(lambda why: self._log.failure("the cluster file is not looked at", why))

    def stop(self) -> None:
        """Look no more."""
        if self._looks.running:
            self._looks.stop()

    def look(self, *, at_once: bool = False) -> Deferred[None]:
        """Look at the file; with ``at_once`` read it, changed or not."""
        return Deferred.fromCoroutine(self._look(at_once))

    async def _look(self, at_once: bool) -> None:
        if self._reading:
            return
        self._reading = True
        try:
            state = await self._in_thread(self._state)
            seen, self._seen = self._seen, state
            if at_once or (state != self._read and state == seen):
                self._read = state
                await self._take()
        finally:
            self._reading = False

    def _state(self) -> _State | None:
        try:
            about = self._path.stat()
        except OSError:
            return None
        return (about.st_ino, about.st_size, about.st_mtime_ns)

    async def _take(self) -> None:
        try:
            hosts = await self._in_thread(reread_hosts, self._job)
            if self._looks.running:
                await self._changed(hosts)
        except BadInputError as error:
            for mistake in error.mistakes:
                self._log.warn("{mistake}; the hosts stay as they were", mistake=mistake)
        except PexecdError as error:
            self._log.warn("{error}; the hosts stay as they were", error=error)

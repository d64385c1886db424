"""One copy of the client for all hosts that share a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram
from pexecd.launch.onhost import MARK
from pexecd.launch.remote import SEEN_AFTER, Ended, start_client
from pexecd.launch.shared import Copies
from pexecd.ports import ClientOrder, CommandResult

ORDER = ClientOrder("secret", "public-name", "http://127.0.0.1:8080")
PROGRAM = ClientProgram(Path("/x/pexec_client.py"), "0123456789abcdef" * 4)


class Folder:
    """A folder as its hosts see it."""

    def __init__(self) -> None:
        self.holder = ""
        self.there = False
        self.copies: list[Deferred[None]] = []

    def copy_ends(self, error: HostError | None = None) -> None:
        copy = self.copies.pop(0)
        if error is None:
            self.there = True
            copy.callback(None)
        else:
            copy.errback(error)


class Connection:
    """One host's; ``blind``: how many looks of it miss the client that is there."""

    def __init__(self, name: str, folder: Folder, blind: int = 0) -> None:
        self.name = name
        self.folder = folder
        self.blind = blind
        self.looks = 0
        self.late: Deferred[None] | None = None

    def run(self, command: str, stdin: bytes, timeout: float) -> Deferred[CommandResult]:
        self.looks += 1
        there = self.folder.there and self.blind <= 0
        if self.folder.there:
            self.blind -= 1
        stdout = PROGRAM.sha256 + "\n"
        if not there:
            self.folder.holder = self.folder.holder or self.name
            stdout += MARK + json.dumps({"holder": self.folder.holder}) + "\n"
        result = CommandResult(0 if there else 61, None, stdout.encode(), b"")
        if self.late is not None:  # it was seen now, and is told later
            late, self.late = self.late, None
            return late.addCallback(lambda _: result)
        return succeed(result)

    def copy(self, source: Path, target: str, mode: int, timeout: float) -> Deferred[None]:
        copy: Deferred[None] = Deferred()
        self.folder.copies.append(copy)
        return copy


class TestSharing(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.copies = Copies()

    def start(self, connection: Any, **settings: Any) -> Deferred[Ended]:
        host = HostSpec(connection.name, connection.name, **settings)
        return Deferred.fromCoroutine(
            start_client(
                connection,
                host,
                ORDER,
                PROGRAM,
                self.copies,
                self.clock,
                lambda said: said.decode(),
            )
        )

    def started(self, *starts: Deferred[Ended]) -> None:
        for start in starts:
            self.assertEqual(self.successResultOf(start).status, 0)

    def test_one_copies_and_the_others_start_at_once_afterwards(self) -> None:
        folder = Folder()
        starts = [self.start(Connection(f"node{n}", folder)) for n in range(5)]
        self.assertEqual(len(folder.copies), 1)
        folder.copy_ends()
        self.started(*starts)
        self.assertEqual(folder.copies, [])

    def test_folders_of_their_own_are_copied_to_at_the_same_time(self) -> None:
        folders = [Folder() for _ in range(3)]
        starts = [self.start(Connection(f"node{n}", one)) for n, one in enumerate(folders)]
        for one in folders:
            one.copy_ends()
        self.started(*starts)

    def test_when_the_copy_fails_the_next_one_copies(self) -> None:
        folder = Folder()
        first, second, third = (self.start(Connection(f"node{n}", folder)) for n in range(3))
        folder.copy_ends(HostError("node0", "copy", "the connection was lost"))
        self.failureResultOf(first, HostError)
        self.assertEqual(len(folder.copies), 1)
        folder.copy_ends()
        self.started(second, third)

    def test_one_that_waits_and_is_stopped_keeps_nobody_waiting(self) -> None:
        folder = Folder()
        first, second, third = (self.start(Connection(f"node{n}", folder)) for n in range(3))
        second.cancel()
        self.failureResultOf(second)
        folder.copy_ends()
        self.started(first, third)

    def test_who_copies_and_is_stopped_leaves_it_to_the_next(self) -> None:
        folder = Folder()
        first, second = (self.start(Connection(f"node{n}", folder)) for n in range(2))
        first.cancel()
        self.failureResultOf(first)
        folder.copies.pop(0)
        folder.copy_ends()
        self.started(second)

    def test_a_look_that_is_older_than_the_copy_leads_to_no_second_one(self) -> None:
        folder = Folder()
        slow = Connection("slow", folder)
        late: Deferred[None] = Deferred()
        slow.late = late
        waits = self.start(slow)
        first = self.start(Connection("node0", folder))
        folder.copy_ends()
        self.started(first)
        late.callback(None)
        self.started(waits)
        self.assertEqual(folder.copies, [])

    def test_a_host_that_sees_the_copy_late(self) -> None:
        folder = Folder()
        first = self.start(Connection("node0", folder))
        slow = self.start(Connection("slow", folder, blind=2))
        folder.copy_ends()
        self.started(first)
        self.assertNoResult(slow)
        self.clock.advance(1)
        self.clock.advance(2)
        self.started(slow)
        self.assertEqual(folder.copies, [])

    def test_a_host_that_never_sees_it_copies_by_itself(self) -> None:
        """It was told to share a folder that it does not share, say."""
        folders = [Folder(), Folder()]
        first = self.start(Connection("node0", folders[0]), shared="home")
        other = self.start(Connection("node1", folders[1]), shared="home")
        self.assertEqual(folders[1].copies, [])
        folders[0].copy_ends()
        self.started(first)
        for pause in SEEN_AFTER:
            self.assertEqual(folders[1].copies, [])
            self.clock.advance(pause)
        folders[1].copy_ends()
        self.started(other)

    def test_told_to_share_hosts_need_not_find_it_out(self) -> None:
        folder = Folder()
        one, two = Connection("node0", folder), Connection("node1", folder)
        first = self.start(one, shared="home")
        folder.holder = "node1"  # what is found does not matter
        second = self.start(two, shared="home")
        self.assertEqual(len(folder.copies), 1)
        folder.copy_ends()
        self.started(first, second)

    def test_a_client_that_was_deleted_is_copied_again_once(self) -> None:
        folder = Folder()
        first = self.start(Connection("node0", folder))
        folder.copy_ends()
        self.started(first)
        folder.there = False
        again = [self.start(Connection(f"node{n}", folder)) for n in range(3)]
        self.assertEqual(len(folder.copies), 1)
        folder.copy_ends()
        self.started(*again)

    def test_a_copy_that_fails_at_once(self) -> None:
        folder = Folder()
        connection = Connection("node0", folder)
        error = HostError("node0", "copy", "no scp there")
        connection.copy = lambda *_: fail(error)  # type: ignore[method-assign]
        self.failureResultOf(self.start(connection), HostError)
        second = self.start(Connection("node1", folder))
        folder.copy_ends()
        self.started(second)

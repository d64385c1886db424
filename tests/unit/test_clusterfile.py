"""A cluster file that is looked at while a job runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pexecd.clusterfile import LOOK_EVERY, ClusterFile
from pexecd.errors import StateError
from pexecd.jobs import read_job
from pexecd.jobs.values import HostSpec


class TestClusterFile(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        self.path = folder / "lab.hosts"
        self.path.write_text("127.0.0.1\n")
        (folder / "table.txt").write_text("n\n1\n")
        (folder / "job.ini").write_text(
            "[job]\nparameters = table.txt\ncluster = lab.hosts\n[worker]\ncommand = true\n"
        )
        self.clock = Clock()
        self.told: list[list[str]] = []
        self.answer: Deferred[None] = succeed(None)
        self.warnings: list[str] = []
        self.file = ClusterFile(
            read_job(folder / "job.ini"), self.clock, maybeDeferred, self.changed
        )
        observer: Any = self.note
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.file.start()
        self.addCleanup(self.file.stop)

    def note(self, event: dict[str, Any]) -> None:
        if str(event.get("log_namespace")).startswith("pexecd.clusterfile"):
            self.warnings.append(str(formatEvent(event)))

    def changed(self, hosts: Sequence[HostSpec]) -> Deferred[None]:
        self.told.append([host.name for host in hosts])
        return self.answer

    def looks(self, number: int = 2) -> None:
        for _ in range(number):
            self.clock.advance(LOOK_EVERY)

    def test_once_when_it_begins(self) -> None:
        """It may have changed since the job was read."""
        self.looks(10)
        self.assertEqual(self.told, [["127.0.0.1"]])

    def test_a_change_counts_when_nobody_writes_any_more(self) -> None:
        self.looks()
        for text in ("", "127.0.0.1\n", "127.0.0.1\n127.0.0.2\n"):
            self.path.write_text(text)
            self.looks(1)
        self.assertEqual(len(self.told), 1)
        self.looks(1)
        self.assertEqual(self.told[1:], [["127.0.0.1", "127.0.0.2"]])
        self.assertEqual(self.warnings, [])

    def test_another_file_in_its_place(self) -> None:
        self.looks()
        about = self.path.stat()
        other = self.path.with_name("other")
        other.write_text("127.0.0.9\n")
        os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
        other.rename(self.path)
        self.looks()
        self.assertEqual(self.told[1:], [["127.0.0.9"]])

    def test_one_that_is_wrong_keeps_the_old_hosts_and_is_named_once(self) -> None:
        self.looks()
        self.path.write_text("127.0.0.1\n127.0.0.2 slots=many\n\nno:de\n")
        self.looks(5)
        self.assertEqual(len(self.told), 1)
        first, second = self.warnings
        self.assertTrue(first.startswith(f"{self.path}:2: 'many' slots"), first)
        self.assertTrue(first.endswith("; the hosts stay as they were"))
        self.assertTrue(second.startswith(f"{self.path}:4: "), second)

    def test_an_empty_one_and_none(self) -> None:
        self.looks()
        self.path.write_text("# nobody\n")
        self.looks()
        self.path.unlink()
        self.looks(5)
        self.assertEqual(len(self.told), 1)
        stay = "; the hosts stay as they were"
        empty, gone = self.warnings
        self.assertEqual(empty, f"{self.path}: names no host, one a line expected{stay}")
        self.assertEqual(gone, f"{self.path}: cannot be read: No such file or directory{stay}")
        self.path.write_text("127.0.0.3\n")
        self.looks()
        self.assertEqual(self.told[1:], [["127.0.0.3"]])

    def test_hosts_that_the_job_cannot_use(self) -> None:
        self.looks()
        self.answer = fail(StateError("nobody knows this computer"))
        self.path.write_text("127.0.0.3\n")
        self.looks()
        self.assertEqual(self.warnings, ["nobody knows this computer; the hosts stay as they were"])

    def test_read_at_once(self) -> None:
        self.successResultOf(self.file.look(at_once=True))
        self.successResultOf(self.file.look(at_once=True))
        self.assertEqual(len(self.told), 2)

    def test_not_any_more(self) -> None:
        self.file.stop()
        self.successResultOf(self.file.look(at_once=True))
        self.looks(5)
        self.assertEqual(self.told, [])

"""When a host is tried again, copied to, given up; with a connector of the test."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pexecd.errors import HostError, StateError
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import (
    FolderUnusableError,
    LoginUnusableError,
    NoPlatformError,
    NoPythonError,
    StartFailedError,
)
from pexecd.launch.launcher import Launcher
from pexecd.launch.onhost import MARK
from pexecd.ports import (
    ClientOrder,
    CommandResult,
    IConnection,
    IConnector,
    IHostWatcher,
)
from pexecd.shell import RUN_SCRIPT

PROGRAM = ClientProgram.read(client_file())
ECHO = CommandResult(0, None, b"pexecd\n", b"")


def ended(status: int | None, stderr: bytes = b"", signal: str | None = None) -> CommandResult:
    return CommandResult(status, signal, PROGRAM.sha256.encode() + b"\n", stderr)


@implementer(IConnection)
class ScriptedConnection:
    """Answers commands from a list; notes what was asked."""

    def __init__(self, answers: list[Any]) -> None:
        self.lost: Deferred[HostError] = Deferred()
        self.asked: list[str] = []
        self.closed = False
        self._answers = answers

    def run(self, command: str, stdin: bytes, timeout: float) -> Deferred[CommandResult]:
        self.asked.append("start" if command == RUN_SCRIPT else command)
        answer = self._answers.pop(0)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, HostError) else succeed(answer)

    def copy(self, source: Path, target: str, mode: int, timeout: float) -> Deferred[None]:
        self.asked.append(f"copy {source} {target} {mode:o}")
        return succeed(None)

    def forward(self, socket: str | None, factory: object) -> Deferred[int]:
        self.asked.append(f"forward {socket}")
        answer = self._answers.pop(0)
        return fail(answer) if isinstance(answer, HostError) else succeed(answer)

    def close(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)


@implementer(IConnector)
class ScriptedConnector:
    def __init__(self, connections: list[Any]) -> None:
        self.left = connections

    def connect(self, host: HostSpec) -> Deferred[Any]:
        connection = self.left.pop(0)
        if isinstance(connection, Deferred):
            return connection
        return fail(connection) if isinstance(connection, HostError) else succeed(connection)


@implementer(IHostWatcher)
class Watcher:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.errors: list[HostError] = []
        self.when_told: Any = lambda: None

    def host_started(self, host: str) -> None:
        self._note(f"started {host}")

    def host_failed(self, error: HostError, final: bool) -> None:
        self.errors.append(error)
        self._note(f"failed {error.host}{' for good' if final else ''}")

    def client_ended(self, host: str, status: str) -> None:
        self._note(f"ended {host} {status}")

    def client_outdated(self, host: str) -> None:
        self._note(f"outdated {host}")

    def _note(self, text: str) -> None:
        self.heard.append(text)
        self.when_told()


class Never(HostError):
    retry = False


class Slow(HostError):
    least_pause = 77.0


class TestLauncher(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.watcher = Watcher()

    def launch(self, *connections: Any, client: Path | None = None) -> Launcher:
        self.connector = ScriptedConnector(list(connections))
        verifyObject(IConnector, self.connector)
        self.launcher = Launcher(
            self.clock,
            [HostSpec("node7", "node7", dir="~/dir")],
            lambda _: ClientOrder("secret", "public", "http://master"),
            self.watcher,
            self.connector,
            client=client,
            jitter=lambda: 0.0,
        )
        self.launcher.start()
        return self.launcher

    def tearDown(self) -> None:
        stopped = self.launcher.stop()
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_started_at_once(self) -> None:
        connection = ScriptedConnection([ended(0)])
        verifyObject(IConnection, connection)
        self.launch(connection)
        self.assertEqual(self.watcher.heard, ["started node7"])
        self.assertEqual((connection.asked, connection.closed), (["start"], True))

    def test_a_connection_that_the_client_needs_is_kept(self) -> None:
        """logind would end the client with it, though no tunnel is wanted."""
        stdout = f'{PROGRAM.sha256}\n{MARK}{{"ends_at_logout": true}}\n'.encode()
        first, second = (
            ScriptedConnection([CommandResult(status, None, stdout, b""), ended(65)])
            for status in (0, 0)
        )
        self.launch(first, second)
        self.assertEqual((self.watcher.heard, first.closed), (["started node7"], False))
        first.lost.callback(HostError("node7", "connection", "it is lost"))
        self.assertEqual((self.watcher.heard[1:], first.closed), (["failed node7"], True))
        self.clock.advance(2)
        self.assertEqual((self.watcher.heard[2:], second.closed), (["started node7"], False))

    def test_copied_if_it_is_not_there(self) -> None:
        connection = ScriptedConnection([ended(61), ended(0)])
        self.launch(connection)
        copy = f"copy {PROGRAM.path} ~/dir/{PROGRAM.remote_name} 700"
        self.assertEqual(connection.asked, ["start", copy, "start"])
        self.assertEqual(self.watcher.heard, ["started node7"])

    def test_already_running_counts_as_started(self) -> None:
        self.launch(ScriptedConnection([ended(65)]))
        self.assertEqual(self.watcher.heard, ["started node7"])

    def failed_with(self, kind: type[HostError], *answers: Any) -> ScriptedConnection:
        connection = ScriptedConnection(list(answers))
        self.launch(connection)
        self.assertIsInstance(self.watcher.errors[0], kind)
        self.assertTrue(connection.closed)
        return connection

    def test_nothing_but_not_there_leads_to_a_copy(self) -> None:
        connection = self.failed_with(NoPythonError, ended(62, b"no python"))
        self.assertEqual(connection.asked, ["start"])

    def test_what_nobody_knows_is_checked_by_a_dummy_command(self) -> None:
        connection = self.failed_with(StartFailedError, ended(9, b"odd"), ECHO)
        self.assertEqual(connection.asked, ["start", "echo pexecd"])
        self.assertIn("exit status 9: odd", str(self.watcher.errors[0]))

    def test_a_signal(self) -> None:
        self.failed_with(StartFailedError, ended(None, signal="KILL"), ECHO)
        self.assertIn("signal KILL", str(self.watcher.errors[0]))

    def test_a_login_that_runs_no_commands(self) -> None:
        self.failed_with(LoginUnusableError, ended(1), ended(1, b"This account is locked"))
        self.assertIn("This account is locked", str(self.watcher.errors[0]))

    def test_a_status_that_is_not_of_the_start_script(self) -> None:
        noise = CommandResult(61, None, b"Welcome\n", b"")
        connection = self.failed_with(LoginUnusableError, noise, noise)
        self.assertEqual(connection.asked, ["start", "echo pexecd"])

    def test_success_that_is_not_of_the_start_script(self) -> None:
        self.failed_with(StartFailedError, CommandResult(0, None, b"", b""), ECHO)

    def test_the_secret_is_in_no_reason(self) -> None:
        self.failed_with(StartFailedError, ended(9, b"what is Session=secret?"), ECHO)
        self.assertIn("what is Session=SESSION?", str(self.watcher.errors[0]))

    def test_the_stamp_of_a_client_is_in_no_reason(self) -> None:
        said = b"2026-07-01 15:32:42 pexec_client[28898]: folder /x cannot be used: No space\n"
        self.failed_with(FolderUnusableError, ended(63, said))
        self.assertIn("cannot be used: folder /x cannot", self.watcher.errors[0].reason)

    def test_copied_and_still_not_there(self) -> None:
        self.failed_with(StartFailedError, ended(61), ended(61), ECHO)

    def test_tried_again_with_growing_pauses(self) -> None:
        lost = HostError("node7", "connect", "no")
        self.launch(lost, lost, ScriptedConnection([lost]), ScriptedConnection([ended(0)]))
        for seconds in (1, 2, 4):
            self.clock.advance(seconds - 0.01)
            heard = len(self.watcher.heard)
            self.clock.advance(0.01)
            self.assertEqual(len(self.watcher.heard), heard + 1)
        self.assertEqual(self.watcher.heard, ["failed node7"] * 3 + ["started node7"])

    def test_an_error_may_ask_for_a_longer_pause(self) -> None:
        self.launch(Slow("node7", "connect", "no"), ScriptedConnection([ended(0)]))
        self.clock.advance(76)
        self.assertEqual(self.watcher.heard, ["failed node7"])
        self.clock.advance(1)
        self.assertEqual(self.watcher.heard, ["failed node7", "started node7"])

    def test_a_client_that_is_not_there_just_now(self) -> None:
        """While pexecd is upgraded, say."""
        client = Path(self.mktemp())
        self.launch(ScriptedConnection([ended(0)]), client=client)
        self.assertIn(f"{client} cannot be read", self.watcher.errors[0].reason)
        client.write_bytes(client_file().read_bytes())
        self.clock.advance(1)
        self.assertEqual(self.watcher.heard, ["failed node7", "started node7"])

    def test_this_computer_lacks_something(self) -> None:
        """As a process for ``ssh -G``, when too many files are open; or its state is damaged."""
        full = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        damaged = StateError("certificate.pem: no key and certificate")
        self.launch(fail(full), fail(damaged), ScriptedConnection([ended(0)]))
        self.clock.advance(1)
        self.clock.advance(2)
        self.assertEqual(self.watcher.heard, ["failed node7"] * 2 + ["started node7"])
        one, two = self.watcher.errors
        self.assertIn("this computer could not do its part: [Errno 24] Too many", one.reason)
        self.assertIn("no key and certificate", two.reason)

    def test_a_step_that_ends_as_if_it_was_cancelled(self) -> None:
        self.launch(fail(CancelledError()))
        self.assertEqual(self.watcher.heard, ["failed node7 for good"])
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)

    def test_final_errors(self) -> None:
        launcher = self.launch(Never("node7", "connect", "no"))
        launcher.revive("node7")
        self.clock.advance(10_000)
        self.assertEqual(self.watcher.heard, ["failed node7 for good"])

    def test_no_platform_is_final(self) -> None:
        self.failed_with(NoPlatformError, ended(67))
        self.assertEqual(self.watcher.heard, ["failed node7 for good"])

    def test_revived(self) -> None:
        launcher = self.launch(ScriptedConnection([ended(0)]), ScriptedConnection([ended(65)]))
        self.clock.advance(10_000)
        launcher.revive("node7")
        launcher.revive("nobody")
        self.assertEqual(self.watcher.heard, ["started node7"] * 2)

    def test_revived_by_who_hears_of_its_start(self) -> None:
        self.watcher.when_told = lambda: (
            self.launcher.revive("node7") if len(self.watcher.heard) == 2 else None
        )
        launcher = self.launch(*(ScriptedConnection([ended(0)]) for _ in range(3)))
        launcher.revive("node7")
        self.assertEqual(self.watcher.heard, ["started node7"] * 3)

    def test_revived_while_it_is_being_started_means_nothing(self) -> None:
        answer: Deferred[CommandResult] = Deferred()
        launcher = self.launch(ScriptedConnection([answer]))
        launcher.revive("node7")
        answer.callback(ended(0))
        self.assertEqual(self.watcher.heard, ["started node7"])

    # --- hosts that come, go and change ------------------------------------------------------

    def change(self, *hosts: HostSpec) -> None:
        self.launcher.change(hosts)

    def test_a_new_host(self) -> None:
        old = HostSpec("node7", "node7", dir="~/dir")
        self.launch(*(ScriptedConnection([ended(0)]) for _ in range(2)))
        self.change(old, HostSpec("node8", "node8"))
        self.assertEqual(self.watcher.heard, ["started node7", "started node8"])
        self.change(old, HostSpec("node8", "node8", line=9))
        self.assertEqual(len(self.watcher.heard), 2)

    def test_a_host_that_is_gone_is_left_alone(self) -> None:
        launcher = self.launch(ScriptedConnection([ended(0)]))
        self.change()
        launcher.revive("node7")
        self.clock.advance(10_000)
        self.assertEqual(self.watcher.heard, ["started node7"])

    def test_a_host_that_is_gone_while_it_fails(self) -> None:
        self.launch(HostError("node7", "connect", "no"), HostError("node7", "connect", "no"))
        self.change()
        self.clock.advance(10_000)
        self.assertEqual(self.watcher.heard, ["failed node7"])

    def test_another_client_begins_when_the_old_one_has_ended(self) -> None:
        answers = [ended(0), ended(65), ended(65), ended(0)]
        self.launch(*(ScriptedConnection([answer]) for answer in answers))
        self.change(HostSpec("node7", "node7", slots=3))
        self.clock.advance(1)
        self.clock.advance(2)
        outdated = ["outdated node7"] * 3  # told at once, and at each look
        self.assertEqual(self.watcher.heard, ["started node7", *outdated, "started node7"])
        self.assertEqual(self.connector.left, [])

    def test_it_is_looked_for_at_least_once_a_minute(self) -> None:
        answers = [ended(0), *[ended(65)] * 30, ended(0)]
        self.launch(*(ScriptedConnection([answer]) for answer in answers))
        self.change(HostSpec("node7", "node7", slots=3))
        self.clock.pump([60.0] * 30)
        self.assertEqual(self.watcher.heard[-1], "started node7")

    def test_a_change_ends_a_pause(self) -> None:
        self.launch(Slow("node7", "connect", "no"), ScriptedConnection([ended(0)]))
        self.change(HostSpec("node7", "node7", python="/opt/python3"))
        self.assertEqual(self.watcher.heard, ["failed node7", "outdated node7", "started node7"])

    def test_a_change_is_another_chance_after_a_final_error(self) -> None:
        self.launch(Never("node7", "connect", "no"), ScriptedConnection([ended(0)]))
        self.change(HostSpec("node7", "node7", platform="linux-x86_64"))
        self.assertEqual(self.watcher.heard[-1], "started node7")

    def test_a_change_while_the_client_is_being_started(self) -> None:
        answer: Deferred[CommandResult] = Deferred()
        second = ScriptedConnection([ended(65)])
        self.launch(ScriptedConnection([answer]), second, ScriptedConnection([ended(0)]))
        self.change(HostSpec("node7", "node7", slots=3))
        answer.callback(ended(0))
        self.assertEqual(second.asked, ["start"])
        self.clock.advance(1)
        self.assertEqual(self.watcher.heard[-1], "started node7")
        self.assertEqual(self.connector.left, [])

    def test_a_host_that_is_gone_and_back(self) -> None:
        host = HostSpec("node7", "node7", dir="~/dir")
        self.launch(*(ScriptedConnection([ended(code)]) for code in (0, 65, 0)))
        self.change()
        self.change(host)
        self.clock.advance(1)
        self.assertEqual(self.watcher.heard[-1], "started node7")
        self.assertEqual(self.connector.left, [])

    def test_by_hand_from_now_on_and_not_any_more(self) -> None:
        self.launch(*(ScriptedConnection([ended(code)]) for code in (0, 65, 0)))
        self.change(HostSpec("node7", "node7", start=False))
        self.launcher.revive("node7")
        self.assertEqual(self.watcher.heard, ["started node7", "outdated node7"])
        self.change(HostSpec("node7", "node7"))
        self.clock.advance(1)
        self.assertEqual(self.watcher.heard[-1], "started node7")

    def test_nothing_changes_after_the_end(self) -> None:
        launcher = self.launch(ScriptedConnection([ended(0)]))
        launcher.stop()
        self.clock.advance(0)
        self.change(HostSpec("node8", "node8"))
        self.assertEqual(self.watcher.heard, ["started node7"])

    def test_stopped_by_who_hears_of_a_failure(self) -> None:
        stopped = []
        self.watcher.when_told = lambda: stopped.append(self.launcher.stop())
        self.connector = ScriptedConnector([])
        answer: Deferred[Any] = Deferred()
        self.launch(answer)
        answer.errback(HostError("node7", "connect", "no"))
        self.clock.advance(0)
        self.successResultOf(stopped[0])
        self.clock.advance(10_000)
        self.assertEqual(self.watcher.heard, ["failed node7"])

    def test_stopped_in_the_middle_of_a_command(self) -> None:
        cancelled: list[Any] = []
        connection = ScriptedConnection([Deferred(cancelled.append)])
        launcher = self.launch(connection)
        launcher.stop()
        self.clock.advance(0)
        self.assertEqual((len(cancelled), connection.closed), (1, True))
        self.assertEqual(self.watcher.heard, [])

    def test_stopped_in_a_step_that_fails_with_an_error_of_its_own(self) -> None:
        """Looking up a name does: a cancelled one is a name that was not found."""
        lost = HostError("node7", "connect", "no")
        launcher = self.launch(Deferred(lambda asked: asked.errback(lost)))
        stopped = launcher.stop()
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.clock.advance(10_000)
        self.assertEqual(self.watcher.heard, [])

    def test_stopped_in_a_step_that_is_done_all_the_same(self) -> None:
        answer: Deferred[CommandResult] = Deferred(lambda asked: asked.callback(ended(0)))
        launcher = self.launch(ScriptedConnection([answer]))
        stopped = launcher.stop()
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.watcher.heard, [])

    def test_a_bug_ends_the_host_and_not_the_others(self) -> None:
        self.launch(ScriptedConnection([]))  # pop from empty list
        self.assertEqual(self.watcher.heard, ["failed node7 for good"])
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

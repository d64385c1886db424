"""What comes of trying hosts, with connections of the test."""

from __future__ import annotations

import io
import json
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pexecd.cli.hosts import as_json, print_findings, status_of
from pexecd.errors import HostError
from pexecd.jobs.values import HostSpec
from pexecd.launch.clientfile import ClientProgram, client_file
from pexecd.launch.errors import ENDS_AT_LOGOUT
from pexecd.launch.onhost import MARK
from pexecd.launch.probe import TRIES, Finding, Probe
from pexecd.ports import CommandResult

SUM = ClientProgram.read(client_file()).sha256


class Busy(HostError):
    least_pause = 20.0
    busy = True


class LetsNobodyIn(HostError):
    least_pause = 60.0


def facts(**more: Any) -> dict[str, Any]:
    return {
        "python": "3.9.2",
        "platform": "linux-x86_64",
        "cores": 4,
        "free": 10**9,
        "made": [],
        "ends_at_logout": False,
        **more,
    }


class Connection:
    """Answers the look, and counts the cleaning."""

    def __init__(self, look: dict[str, Any]) -> None:
        self._look = look
        self.runs = 0
        self.closed = False

    def run(self, command: str, stdin: bytes, timeout: float) -> Deferred[CommandResult]:
        self.runs += 1
        text = f"Welcome\n{SUM}\n"
        if self.runs == 1:
            text += f"{MARK}{json.dumps(self._look)}\n"
        return succeed(CommandResult(0, None, text.encode(), b""))

    def close(self) -> Deferred[None]:
        self.closed = True
        return succeed(None)


class TestProbe(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        #: What connecting to each host comes to, one time after the other.
        self.answers: dict[str, list[Any]] = {}

    def connect(self, host: HostSpec) -> Deferred[Any]:
        answer = self.answers[host.name].pop(0)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, HostError) else succeed(answer)

    def probe(self, *hosts: HostSpec, platforms: tuple[str, ...] = ()) -> Deferred[list[Finding]]:
        connector: Any = self
        self.tried = Probe(self.clock, hosts, platforms, connector, jitter=lambda: 0.5)
        return Deferred.fromCoroutine(self.tried.run())

    def test_notes_are_removed_when_all_have_been_looked_at(self) -> None:
        first, second = Connection(facts(holder="a")), Connection(facts(holder="a"))
        late: Deferred[Any] = Deferred()
        self.answers = {"a": [first], "b": [late]}
        running = self.probe(HostSpec("a", "a"), HostSpec("b", "b"))
        self.assertEqual((first.runs, self.tried.left), (1, 1))
        late.callback(second)
        one, two = self.successResultOf(running)
        self.assertEqual((one.shares, two.shares), (("b",), ("a",)))
        self.assertEqual((first.runs, second.runs), (2, 2))
        self.assertTrue(first.closed and second.closed)

    def test_a_server_that_is_too_busy_is_tried_again(self) -> None:
        busy = Busy("a", "connect", "busy")
        self.answers = {"a": [busy, busy, Connection(facts())]}
        running = self.probe(HostSpec("a", "a"))
        self.clock.advance(20)
        self.assertNoResult(running)
        self.clock.advance(20)
        self.assertEqual(self.successResultOf(running)[0].status, "ready")

    def test_but_not_for_ever(self) -> None:
        self.answers = {"a": [Busy("a", "connect", "busy")] * TRIES}
        running = self.probe(HostSpec("a", "a"))
        self.clock.pump([20.0] * TRIES)
        (finding,) = self.successResultOf(running)
        self.assertEqual((finding.status, finding.reason), ("unusable", "busy"))
        self.assertEqual(self.answers, {"a": []})

    def test_one_that_only_a_person_can_mend_is_named_at_once(self) -> None:
        self.answers = {"a": [LetsNobodyIn("a", "authenticate", "no key was accepted")]}
        (finding,) = self.successResultOf(self.probe(HostSpec("a", "a")))
        self.assertEqual((finding.status, finding.reason), ("unusable", "no key was accepted"))

    def test_a_python_here_that_is_not_there(self) -> None:
        running = self.probe(HostSpec(":", ":", local=True, python="/none/python"))
        (finding,) = self.successResultOf(running)
        self.assertEqual(finding.status, "unusable")
        self.assertIn("no usable Python: /none/python: No such file or directory", finding.reason)

    def test_stopped(self) -> None:
        waiting: Deferred[Any] = Deferred()
        connection = Connection(facts(holder="a"))
        self.answers = {"a": [connection], "b": [waiting]}
        running = self.probe(HostSpec("a", "a"), HostSpec("b", "b"))
        self.tried.stop()
        self.assertEqual(
            [one.status for one in self.successResultOf(running)], ["ready", "unusable"]
        )
        self.assertEqual(connection.runs, 2)

    def test_platforms(self) -> None:
        self.answers = {name: [Connection(facts(holder=name))] for name in "abc"}
        hosts = [HostSpec("a", "a"), HostSpec("b", "b", platform="linux-aarch64")]
        running = self.probe(*hosts, platforms=("linux-x86_64",))
        one, two = self.successResultOf(running)
        self.assertEqual((one.status, two.status), ("ready", "unusable"))
        self.assertIn("linux-aarch64, there is linux-x86_64", two.reason)
        (three,) = self.successResultOf(self.probe(HostSpec("c", "c"), platforms=("any",)))
        self.assertEqual(three.status, "ready")

    def test_what_to_know_of_a_host(self) -> None:
        self.answers = {"a": [Connection(facts(ends_at_logout=True, free=5))]}
        (finding,) = self.successResultOf(self.probe(HostSpec("a", "a", slots=9)))
        self.assertEqual(
            finding.warnings, (ENDS_AT_LOGOUT, "there is little room in ~/.cache/pexecd")
        )
        text = io.StringIO()
        print_findings([finding], text)
        ready, logind, room, total = text.getvalue().splitlines()
        self.assertEqual(
            ready, "  a  ready: linux-x86_64, Python 3.9.2, 4 cores, 9 slots, 5 bytes free"
        )
        self.assertEqual(logind, f"     but {ENDS_AT_LOGOUT}")
        self.assertIn("little room", room)
        self.assertEqual(total, "1 of 1 hosts can be used, with 9 slots.")
        self.assertEqual(as_json([finding])[0]["free_bytes"], 5)

    def test_by_hand_alone(self) -> None:
        (finding,) = self.successResultOf(self.probe(HostSpec("a", "a", start=False)))
        self.assertEqual(finding.status, "by hand")
        self.assertEqual(status_of([finding]), 0)
        self.assertEqual(status_of([Finding("a", "unusable")]), 3)

    def test_many_that_share(self) -> None:
        text = io.StringIO()
        print_findings([Finding("a", "ready", shares=tuple("bcdefghi"))], text)
        self.assertIn("the same folder as b, c, d, e, f, 3 more\n", text.getvalue())

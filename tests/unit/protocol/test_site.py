"""Deadlines and garbage, with a clock and a transport in memory."""

from __future__ import annotations

import re
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import ISystemHandle
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from pexecd.core.values import Caller
from pexecd.ports import NoTask
from pexecd.protocol.request import PROGRESS
from pexecd.protocol.site import Channel, Limits, ProtocolSite
from pexecd.protocol.wire import InputFile, ResultFile, TaskMessage
from tests.unit.protocol.fakes import SECRET, Call, FakeDirectory, FakeSession

S = "sessionID=" + quote(SECRET, safe="")
LIMITS = Limits(head=10, body=20, reply=30, idle=40, linger=5, confirm=6)
CONFIG = f"GET /config?{S} HTTP/1.1\r\n\r\n".encode()
POST = f"POST /complete?{S}&ticket=1 HTTP/1.1\r\nContent-Length: 100\r\n\r\n".encode()
OURS = CONFIG.replace(
    b"\r\n\r\n", b"\r\nHost: h\r\nAccept: application/x-pexec; framing=length\r\n\r\n"
)
BODY = b"[Result]\nName=output\n--begin content--\n"


@implementer(ISystemHandle)
class Transport(StringTransport):
    """Knows how it was closed; never sends what was written, unless its peer reads."""

    ended = ""
    half_closed = False
    #: So many bytes may wait until the producer is paused.
    room = 1_000_000
    waits = 0

    def write(self, data: bytes) -> None:
        super().write(data)
        self.waits += len(data)
        if self.waits > self.room and self.producer is not None:
            self.producer.pauseProducing()

    def peer_reads(self) -> None:
        """All that waits is sent."""
        self.waits = 0
        if self.producer is not None:
            self.producer.resumeProducing()

    def getHandle(self) -> None:
        """As tests go, nobody asks."""

    def loseConnection(self) -> None:
        self.ended = self.ended or "closed"
        super().loseConnection()

    def abortConnection(self) -> None:
        self.ended = "aborted"
        super().abortConnection()

    def loseWriteConnection(self) -> None:
        self.half_closed = True


class TunnelTransport(StringTransport):
    """Its end says nothing of what arrived."""


class HeadTests(SynchronousTestCase):
    """The head of a request, as our clients write it or nearly so."""

    ours = "Host: master\r\nAccept: application/x-pexec; framing=length\r\n"

    def told(self, *pieces: bytes) -> tuple[bytes, list[Call], list[Caller]]:
        """What a peer is answered that sends these, and what the session was told."""
        session = FakeSession(over={2})
        site = ProtocolSite(FakeDirectory(session), Clock(), LIMITS)
        channel = site.buildProtocol(None)
        assert isinstance(channel, Channel)
        transport = Transport()
        channel.makeConnection(transport)
        for piece in pieces:
            channel.dataReceived(piece)
        channel.connectionLost(Failure(ConnectionDone()))
        answer = re.sub(rb"Date: [^\r]+\r\n", b"", transport.value())
        return answer, session.calls, session.callers

    def test_it_does_not_matter_how_it_is_cut(self) -> None:
        ping, failed = f"/ping?{S}&ticket=2", f"/failed?{S}&ticket=1&client=c&host=h"
        for number, head in enumerate(
            [
                f"GET {ping} HTTP/1.1\r\n{self.ours}\r\n",
                f"GET {ping} HTTP/1.1\r\n{self.ours}\r\n" * 3,
                f"GET {ping} HTTP/1.0\r\n{self.ours}\r\n",
                f"GET {ping} HTTP/1.1\n{self.ours}\n",
                f"GET http://master{ping} HTTP/1.1\r\n{self.ours}\r\n",
                f"GET {ping} HTTP/1.1\r\n{self.ours}Connection: close\r\n\r\n",
                f"GET {ping} HTTP/1.1\r\n{self.ours} folded\r\n\r\n",
                f"GET {ping}&x={'x' * 16200} HTTP/1.1\r\n{self.ours}\r\n",
                f"GET {ping}&x={'x' * 16000} HTTP/1.1\r\n{self.ours}\r\n",
                f"GET {ping}&x=%20+;y HTTP/1.1\r\n{self.ours}\r\n",
                f"GET {ping}&x=\t HTTP/1.1\r\n{self.ours}\r\n",
                f"HEAD {ping} HTTP/1.1\r\n{self.ours}\r\n",
                f"GET /pin%67?{S}&ticket=2 HTTP/1.1\r\n{self.ours}\r\n",
                f"GET /ping/?{S}&ticket=2 HTTP/1.1\r\n{self.ours}\r\n",
                f"GET /ping HTTP/1.1\r\n{self.ours}\r\n",
                f"POST {failed} HTTP/1.1\r\n{self.ours}Content-Length: 0\r\n\r\n",
                f"POST {failed} HTTP/1.1\r\n{self.ours}Content-Length: 3\r\n\r\nwhyGET",
                f"POST {failed} HTTP/1.1\r\n{self.ours}Content-Length: 70000\r\n\r\n",
                f"POST {failed} HTTP/1.1\r\n{self.ours}Content-Length: 1x\r\n\r\n",
                f"POST {failed} HTTP/1.1\r\n{self.ours}Content-Length: \r\n\r\n",
                f"POST {failed} HTTP/1.1\r\n{self.ours}Content-Length: {'9' * 5000}\r\n\r\n",
                f"POST {failed} HTTP/1.1\r\n{self.ours}\r\n",
                f"GET {ping} HTTP/1.1\r\nno colon\r\n\r\n{'x' * 20000}",
            ]
        ):
            with self.subTest(number):
                wire = head.encode()
                whole = self.told(wire)
                self.assertTrue(whole[0].startswith(b"HTTP/1."))
                self.assertEqual(self.told(*(bytes([byte]) for byte in wire)), whole)


class DeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.session = FakeSession()
        site = ProtocolSite(FakeDirectory(self.session), self.clock, LIMITS)
        channel = site.buildProtocol(None)
        assert isinstance(channel, Channel)
        self.channel = channel
        self.transport = Transport()
        self.channel.makeConnection(self.transport)

    def tearDown(self) -> None:
        lost = ConnectionAborted() if self.transport.ended == "aborted" else ConnectionDone()
        self.channel.connectionLost(Failure(lost))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def ends_after(self, seconds: float, how: str = "closed") -> None:
        """The connection is open just before, and ends now."""
        self.clock.advance(seconds - 0.1)
        self.assertEqual(self.transport.ended, "")
        self.clock.advance(0.1)
        self.assertEqual(self.transport.ended, how)

    def test_a_peer_that_says_nothing(self) -> None:
        self.ends_after(LIMITS.head)

    def test_headers_byte_by_byte(self) -> None:
        self.channel.dataReceived(CONFIG[:1])
        self.clock.advance(LIMITS.head / 2)
        self.channel.dataReceived(CONFIG[1:-1])
        self.ends_after(LIMITS.head / 2)

    def test_between_two_requests(self) -> None:
        self.channel.dataReceived(CONFIG)
        self.clock.advance(LIMITS.idle - 1)
        self.channel.dataReceived(CONFIG)
        self.ends_after(LIMITS.idle)

    def test_many_requests_move_few_timers(self) -> None:
        with patch.object(self.clock, "callLater", wraps=self.clock.callLater) as begun:
            for _ in range(60):
                self.channel.dataReceived(CONFIG)
                self.clock.advance(1)
        self.assertLess(begun.call_count, 2 * 60 / LIMITS.head + 1)
        self.ends_after(LIMITS.idle - 1)

    def test_the_second_request_has_its_deadline(self) -> None:
        self.channel.dataReceived(CONFIG)
        self.clock.advance(LIMITS.idle - 1)
        self.channel.dataReceived(CONFIG[:-1])
        self.ends_after(LIMITS.head)

    def test_a_body_that_makes_no_progress(self) -> None:
        self.channel.dataReceived(POST.replace(b"100", b"100000") + BODY)
        for _ in range(3):
            self.clock.advance(LIMITS.body - 1)
            self.channel.dataReceived(bytes(PROGRESS))
        # Single bytes are no progress.
        self.clock.advance(LIMITS.body - 1)
        self.channel.dataReceived(b"1")
        self.ends_after(1)
        self.assertEqual(self.session.calls, [])
        self.channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual([call.what for call in self.session.calls], ["abandon"])

    def test_nothing_runs_while_the_disk_is_behind(self) -> None:
        disk: Deferred[None] = Deferred()
        self.session.disk = disk
        self.channel.dataReceived(POST + BODY + b"1")
        self.assertEqual(self.transport.producerState, "paused")
        self.clock.advance(1000)
        self.assertEqual(self.transport.ended, "")
        self.session.disk = None
        disk.callback(None)
        self.assertEqual(self.transport.producerState, "producing")
        self.ends_after(LIMITS.body)

    def test_the_disk_catches_up_when_the_peer_has_gone(self) -> None:
        disk: Deferred[None] = Deferred()
        self.session.disk = disk
        self.channel.dataReceived(POST + BODY + b"1")
        self.channel.connectionLost(Failure(ConnectionDone()))
        disk.callback(None)
        self.assertEqual(self.transport.producerState, "paused")

    def test_a_held_request_has_none(self) -> None:
        self.channel.dataReceived(f"GET /task?{S} HTTP/1.1\r\n\r\n".encode())
        self.clock.advance(1000)
        self.channel.dataReceived(CONFIG)
        self.clock.advance(1000)
        self.assertEqual(self.transport.ended, "")

    def test_a_peer_that_does_not_read(self) -> None:
        self.channel.dataReceived(f"GET /task?{S} HTTP/1.1\r\n\r\n".encode())
        self.channel.pauseProducing()
        self.clock.advance(LIMITS.reply - 1)
        self.channel.resumeProducing()
        self.clock.advance(1000)
        self.channel.pauseProducing()
        self.ends_after(LIMITS.reply)

    def send_a_large_task(self, content: bytes | None = None, version: str = "1.1") -> None:
        """Ask for one, of a file or of this, and let it be told as far as there is room."""
        path = Path(self.mktemp())
        path.write_bytes(bytes(1_000_000))
        item = InputFile("a", path if content is None else content)
        self.transport.room = 100_000
        self.channel.dataReceived(f"GET /task?{S} HTTP/{version}\r\n\r\n".encode())
        self.session.asks[0].callback(
            TaskMessage(10016, 60, "true", (item,), (ResultFile("output", "stdout"),))
        )

    def test_a_task_that_is_cut_short_is_given_back(self) -> None:
        self.send_a_large_task()
        self.ends_after(LIMITS.reply)
        self.clock.advance(LIMITS.reply)
        self.assertEqual(self.transport.ended, "aborted")
        self.channel.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.session.lost, [10016])

    def test_a_peer_that_reads_only_the_beginning(self) -> None:
        self.send_a_large_task()
        for _ in range(3):
            self.clock.advance(LIMITS.reply - 1)
            self.transport.peer_reads()
        self.ends_after(LIMITS.reply)

    def test_a_peer_that_reads_slowly(self) -> None:
        """It has the deadline for every part of the reply, wherever that comes from."""
        self.send_a_large_task(bytes(1_000_000), "1.0")
        while not self.transport.ended:
            self.clock.advance(LIMITS.reply - 1)
            self.transport.peer_reads()
        self.assertEqual(self.transport.ended, "closed")
        self.assertGreater(len(self.transport.value()), 1_000_000)
        self.assertGreater(self.clock.seconds(), 3 * LIMITS.reply)

    def test_nothing_more_is_read_from_a_peer_that_does_not_read(self) -> None:
        self.transport.room = 1000
        while self.transport.waits <= self.transport.room:
            self.assertEqual(self.transport.producerState, "producing")
            self.channel.dataReceived(CONFIG)
        self.assertEqual(self.transport.producerState, "paused")
        self.transport.peer_reads()
        self.assertEqual(self.transport.producerState, "producing")

    def test_a_request_that_is_held_is_still_seen_to_be_left(self) -> None:
        self.transport.room = 10
        self.channel.dataReceived(CONFIG + f"GET /task?{S} HTTP/1.1\r\n\r\n".encode())
        self.assertEqual(self.transport.producerState, "paused")
        self.transport.peer_reads()
        self.assertEqual(self.transport.producerState, "producing")

    def test_a_peer_that_is_refused_before_it_has_read_all(self) -> None:
        self.transport.room = 10
        self.channel.dataReceived(CONFIG + b"hello\r\n\r\n")
        self.assertTrue(self.transport.half_closed)
        self.assertEqual(self.transport.producerState, "producing")

    def test_a_peer_that_does_not_read_the_end(self) -> None:
        self.channel.dataReceived(CONFIG.replace(b"1.1", b"1.0"))
        self.assertEqual(self.transport.ended, "closed")
        self.clock.advance(LIMITS.reply)
        self.assertEqual(self.transport.ended, "aborted")

    def test_a_peer_that_does_not_go(self) -> None:
        self.channel.dataReceived(b"hello\r\n\r\n")
        self.assertTrue(self.transport.half_closed)
        self.channel.dataReceived(CONFIG)
        self.assertEqual(self.transport.value().count(b"HTTP/1.1"), 1)
        self.ends_after(LIMITS.linger, "aborted")

    def send_all_ahead(self, rest: bytes) -> None:
        """Six requests and this, and the end; all six are answered, and then it is over."""
        self.channel.dataReceived(f"GET /task?{S} HTTP/1.1\r\n\r\n".encode() * 2)
        self.channel.dataReceived(CONFIG + OURS + OURS + CONFIG + rest)
        self.channel.readConnectionLost()
        self.session.asks[0].callback(NoTask(None))
        self.assertEqual(self.transport.ended, "")
        self.session.asks[1].callback(NoTask(None))
        self.assertEqual(self.transport.value().count(b"HTTP/1.1 503"), 2)
        self.assertEqual(self.transport.value().count(b"HTTP/1.1 200"), 4)
        self.assertEqual(self.transport.ended, "closed")

    def test_a_peer_that_sends_all_ahead_and_closes_its_side(self) -> None:
        self.send_all_ahead(b"")

    def test_a_peer_that_closes_its_side_within_a_request(self) -> None:
        self.send_all_ahead(CONFIG[:-1])

    def test_a_refused_peer_that_goes(self) -> None:
        self.channel.dataReceived(b"hello\r\n\r\n")
        self.channel.readConnectionLost()
        self.assertEqual(self.transport.ended, "closed")

    def test_a_task_that_nobody_acknowledges(self) -> None:
        self.channel.dataReceived(f"GET /task?{S} HTTP/1.0\r\n\r\n".encode())
        self.channel.readConnectionLost()
        self.session.asks[0].callback(
            TaskMessage(10016, 60, "true", (), (ResultFile("output", "stdout"),))
        )
        self.assertTrue(self.transport.half_closed)
        self.ends_after(LIMITS.confirm, "aborted")
        self.channel.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.session.lost, [10016])

    def test_two_tasks_that_were_asked_for_at_once_and_nobody_acknowledges(self) -> None:
        self.channel.dataReceived(f"GET /task?{S} HTTP/1.1\r\n\r\n".encode() * 2)
        for number in range(2):
            self.session.asks[number].callback(
                TaskMessage(10016 + number, 60, "true", (), (ResultFile("output", "stdout"),))
            )
        self.channel.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.session.lost, [10016, 10017])

    def test_a_task_on_a_tunnel_that_breaks(self) -> None:
        channel = ProtocolSite(FakeDirectory(self.session), self.clock, LIMITS).buildProtocol(None)
        assert isinstance(channel, Channel)
        channel.makeConnection(TunnelTransport())
        channel.dataReceived(f"GET /task?{S} HTTP/1.1\r\n\r\n".encode())
        self.session.asks[0].callback(
            TaskMessage(10016, 60, "true", (), (ResultFile("output", "stdout"),))
        )
        channel.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.session.lost, [])


SCRAPS = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                *(b"GET ", b"POST ", b"HEAD ", b"/", b"/task", b"/complete", b"/failed", b"/ping"),
                *(b"?", S.encode(), b"&ticket=1", b" HTTP/1.0", b" HTTP/1.1", b"\r\n", b"\n"),
                *(b"Content-Length: 50", b"Transfer-Encoding: chunked", b"Expect: 100-continue"),
                *(b"Connection: keep-alive", b"Content-Type: multipart/form-data; boundary=XX"),
                *(BODY, b"\n--end content--\n", b"a\r\n", b"0\r\n\r\n", b"--XX\r\n", b"--XX--"),
                *(CONFIG, POST, POST.replace(b"1.1", b"1.0"), CONFIG.replace(b"config", b"task")),
            ]
        ),
    ),
    max_size=25,
)


class GarbageTests(SynchronousTestCase):
    @given(SCRAPS, st.booleans(), st.booleans())
    def test_whatever_is_sent(self, pieces: list[bytes], whole: bool, closes: bool) -> None:
        """Nothing is logged as an error, every answer has a status of the protocol."""
        clock = Clock()
        site = ProtocolSite(FakeDirectory(FakeSession()), clock, LIMITS)
        channel = site.buildProtocol(None)
        assert isinstance(channel, Channel)
        transport = Transport()
        channel.makeConnection(transport)
        for piece in [b"".join(pieces)] if whole else pieces:
            channel.dataReceived(piece)
        if closes:
            channel.readConnectionLost()
        channel.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(clock.getDelayedCalls(), [])
        said = re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", transport.value())
        allowed = {b"100", b"200", b"204", b"205", b"400", b"403", b"404", b"405", b"413", b"415"}
        self.assertLessEqual(set(said), allowed)

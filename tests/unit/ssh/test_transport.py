"""The transport's stages, deadlines and reasons, without a network."""

from __future__ import annotations

from socket import AF_INET

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from pexecd.errors import HostError
from pexecd.ssh.errors import NotSSHError, ThrottledError, TimedOutError
from pexecd.ssh.knownhosts import known_keys
from pexecd.ssh.settings import Settings
from pexecd.ssh.transport import Deadlines, Transport

SETTINGS = Settings(
    *("lab", 22, "ann", (), False, None, (), 0, None, False, False, AF_INET, None, None, 3)
)
VERSION = b"SSH-2.0-Test\r\n"


class Wire(StringTransport):
    """Like a socket: who aborts or closes hears of the loss."""

    def abortConnection(self) -> None:
        super().abortConnection()
        self.protocol.connectionLost(Failure(ConnectionDone()))

    protocol: Transport


class TestTransport(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ssh = Transport(
            self.clock,
            "node7",
            SETTINGS,
            known=known_keys([], "lab", 22, None),
            identities=[],
            useless=[],
            deadlines=Deadlines(greeting=10, key_exchange=20),
        )
        self.wire = Wire()
        self.wire.protocol = self.ssh
        self.ssh.makeConnection(self.wire)
        self.ssh.begin()

    def fails(self, kind: type[HostError]) -> HostError:
        error: HostError = self.failureResultOf(self.ssh.ready, kind).value
        self.assertEqual(error.host, "node7")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return error

    def hang_up(self) -> None:
        self.ssh.connectionLost(Failure(ConnectionDone()))

    def test_deadline_of_the_greeting(self) -> None:
        self.ssh.dataReceived(b"Welcome\r\n")
        self.clock.advance(9)
        self.assertNoResult(self.ssh.ready)
        self.clock.advance(1)
        self.assertEqual(self.fails(TimedOutError).stage, "greeting")

    def test_each_stage_has_a_deadline_of_its_own(self) -> None:
        self.clock.advance(9)
        self.ssh.dataReceived(VERSION)
        self.clock.advance(19)
        self.assertNoResult(self.ssh.ready)
        self.clock.advance(1)
        self.assertEqual(self.fails(TimedOutError).stage, "key exchange")

    def test_text_before_the_version(self) -> None:
        for byte in b"Welcome to SSH-2.0 land\r\nEnjoy\r\n" + VERSION:
            self.ssh.dataReceived(bytes([byte]))
        self.assertTrue(self.ssh.gotVersion)
        self.assertEqual(self.ssh.otherVersionString, VERSION.strip())

    def test_no_version(self) -> None:
        self.ssh.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\x1b[31m")
        self.hang_up()
        self.assertEqual(self.fails(NotSSHError).said, "HTTP/1.1 400 Bad Request [31m")

    def test_text_without_end(self) -> None:
        self.ssh.dataReceived(b"x" * 9000)
        self.assertLess(len(self.fails(NotSSHError).said), 400)

    def test_an_old_version(self) -> None:
        self.ssh.dataReceived(b"SSH-1.5-Old\r\n")
        self.hang_up()
        self.fails(NotSSHError)

    def test_turned_away(self) -> None:
        for words in (b"Exceeded MaxStartups\r\n", b"Not allowed at this time\r\n", b""):
            self.setUp()
            self.ssh.dataReceived(words)
            self.hang_up()
            self.assertGreater(self.fails(ThrottledError).least_pause, 0)

    def test_garbage_after_the_version(self) -> None:
        self.ssh.dataReceived(VERSION + b"\xff" * 100)
        self.hang_up()
        self.assertEqual(self.fails(HostError).stage, "key exchange")

    def test_a_packet_that_makes_no_sense(self) -> None:
        payload = bytes([20]) + b"short"  # KEXINIT
        padding = 16 - (5 + len(payload)) % 8
        packet = (
            (1 + len(payload) + padding).to_bytes(4, "big")
            + bytes([padding])
            + payload
            + b"\0" * padding
        )
        self.ssh.dataReceived(VERSION + packet)
        self.hang_up()
        self.assertIn("protocol was broken", str(self.fails(HostError)))

    def test_close_waits_a_little_for_the_peer(self) -> None:
        self.ssh.dataReceived(VERSION)
        gone = self.ssh.close()
        self.assertNoResult(gone)
        self.clock.advance(Deadlines().close)
        self.successResultOf(gone)
        self.fails(HostError)
        self.successResultOf(self.ssh.close())

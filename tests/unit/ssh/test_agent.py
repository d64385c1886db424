"""The protocol of ssh-agent."""

from __future__ import annotations

import struct

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from pexecd.ssh.agent import AgentClient, AgentError


def message(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data


def string(data: bytes) -> bytes:
    return message(data)


class TestAgent(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = AgentClient()
        self.transport = StringTransport()
        self.client.makeConnection(self.transport)

    def test_answers_in_pieces_and_in_order(self) -> None:
        keys = self.client.identities()
        signed = self.client.sign(b"blob", b"data", b"rsa-sha2-512")
        answer = struct.pack(">BL", 12, 1) + string(b"blob") + string(b"comment")
        data = message(answer) + message(b"\x0e" + string(b"signature"))
        for byte in data[:-1]:
            self.client.dataReceived(bytes([byte]))
        self.assertEqual(self.successResultOf(keys), [(b"blob", "comment")])
        self.assertNoResult(signed)
        self.client.dataReceived(data[-1:])
        self.assertEqual(self.successResultOf(signed), b"signature")

    def flags(self, algorithm: bytes) -> int:
        self.transport.clear()
        self.client.sign(b"blob", b"data", algorithm)
        return int.from_bytes(self.transport.value()[-4:], "big")

    def test_rsa_flags(self) -> None:
        self.assertEqual(self.flags(b"ssh-ed25519"), 0)
        self.assertEqual(self.flags(b"rsa-sha2-256"), 2)
        self.assertEqual(self.flags(b"rsa-sha2-512"), 4)

    def test_no(self) -> None:
        keys, signed = self.client.identities(), self.client.sign(b"b", b"d", b"ssh-ed25519")
        self.client.dataReceived(message(b"\x05") + message(b"\x05"))
        self.failureResultOf(keys, AgentError)
        self.failureResultOf(signed, AgentError)

    def test_nonsense(self) -> None:
        keys = self.client.identities()
        self.client.dataReceived(message(struct.pack(">BL", 12, 1000)))
        self.failureResultOf(keys, AgentError)

    def test_a_message_without_end(self) -> None:
        keys = self.client.identities()
        self.client.dataReceived(b"\xff\xff\xff\xff" + b"x" * 10)
        self.assertTrue(self.transport.disconnecting)
        self.client.connectionLost()
        self.failureResultOf(keys, AgentError)

    def test_gone(self) -> None:
        keys = self.client.identities()
        self.client.connectionLost()
        self.failureResultOf(keys, AgentError)
        self.failureResultOf(self.client.identities(), AgentError)

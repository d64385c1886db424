"""A small client of ssh-agent.

Conch's own signs RSA with SHA-1 only, and never tells those who wait that the agent is gone.
"""

from __future__ import annotations

import struct
from typing import Any

from twisted.conch.ssh.common import NS, getNS
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from pexecd.units import Seconds

REQUEST_IDENTITIES, IDENTITIES_ANSWER = 11, 12
SIGN_REQUEST, SIGN_RESPONSE = 13, 14
RSA_SHA2_256, RSA_SHA2_512 = 2, 4
#: As in OpenSSH's agent.
LONGEST_MESSAGE = 256 * 1024


class AgentError(Exception):
    """The agent said no, or went away."""


class AgentClient(Protocol):
    """One connection to an agent; requests are answered in their order."""

    def __init__(self) -> None:
        self._received = b""
        self._waiting: list[Deferred[bytes]] = []
        self._open = True

    def identities(self) -> Deferred[list[tuple[bytes, str]]]:
        """Fires with public key blob and comment of each key; fails with ``AgentError``."""
        return self._ask(REQUEST_IDENTITIES, b"").addCallback(_read_identities)

    def sign(self, blob: bytes, data: bytes, algorithm: bytes) -> Deferred[bytes]:
        """Fires with a signature by the key ``blob``; fails with ``AgentError``."""
        flags = 0
        if algorithm.startswith(b"rsa-sha2-"):
            flags = RSA_SHA2_256 if algorithm.startswith(b"rsa-sha2-256") else RSA_SHA2_512
        request = NS(blob) + NS(data) + struct.pack(">L", flags)
        return self._ask(SIGN_REQUEST, request).addCallback(_read_signature)

    def close(self) -> None:
        """Hang up."""
        if self.transport is not None:
            self.transport.loseConnection()

    def _ask(self, kind: int, data: bytes) -> Deferred[bytes]:
        answer: Deferred[bytes] = Deferred()
        if self.transport is None or not self._open:
            answer.errback(AgentError("ssh-agent went away"))
            return answer
        self._waiting.append(answer)
        self.transport.write(struct.pack(">LB", len(data) + 1, kind) + data)
        return answer

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        while len(self._received) > 4:
            (length,) = struct.unpack(">L", self._received[:4])
            if not 0 < length <= LONGEST_MESSAGE or not self._waiting:
                self.close()
                return
            if len(self._received) < 4 + length:
                return
            message, self._received = self._received[4 : 4 + length], self._received[4 + length :]
            self._waiting.pop(0).callback(message)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._open = False
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.errback(AgentError("ssh-agent went away"))


def connect_agent(reactor: Any, socket: str, limit: Seconds) -> Deferred[AgentClient]:
    """Fires with a client; fails with one of Twisted's connection errors."""
    factory = Factory.forProtocol(AgentClient)
    factory.noisy = False
    client: Deferred[AgentClient] = UNIXClientEndpoint(reactor, socket, limit).connect(factory)
    return client


def _read_identities(message: bytes) -> list[tuple[bytes, str]]:
    try:
        kind, count = struct.unpack(">BL", message[:5])
        if kind != IDENTITIES_ANSWER:
            raise AgentError("ssh-agent does not list its keys")
        rest = message[5:]
        found = []
        for _ in range(count):
            blob, comment, rest = getNS(rest, 2)
            found.append((blob, comment.decode("utf-8", "replace")))
    except (struct.error, IndexError) as error:
        raise AgentError("ssh-agent talks nonsense") from error
    return found


def _read_signature(message: bytes) -> bytes:
    if message[0] != SIGN_RESPONSE:
        raise AgentError("ssh-agent refused to sign")
    try:
        return bytes(getNS(message[1:])[0])
    except struct.error as error:
        raise AgentError("ssh-agent talks nonsense") from error

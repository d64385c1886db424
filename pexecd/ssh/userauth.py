"""Authentication by public key, and by nothing else: nobody is there to type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.service import SSHService
from twisted.conch.ssh.userauth import MSG_USERAUTH_REQUEST, SSHUserAuthClient
from twisted.python.failure import Failure

from pexecd.ssh.keys import Identity, signature_algorithm
from pexecd.ssh.quiet import QUIET


class PublicKeyAuth(SSHUserAuthClient):
    """Offers keys in turn.

    Unlike Conch's own, RSA keys sign with SHA-2, a server may ask for two keys, and other
    methods are left alone.

    Attributes:
        offered: names of the keys that the server has seen, in order.
        signing: the key that has been asked to sign, and has not yet.
        methods: how the server would let users in.
    """

    _log = QUIET

    def __init__(
        self,
        user: str,
        instance: SSHService,
        identities: Sequence[Identity],
        allowed: Sequence[bytes] = (),
    ) -> None:
        super().__init__(user.encode(), instance)
        self._left = list(identities)
        self._allowed = allowed
        self.offered: list[str] = []
        self.signing = ""
        self.methods = b""

    def ssh_USERAUTH_FAILURE(self, packet: bytes) -> None:
        self.methods = getNS(packet)[0]
        self._offer()

    def ssh_USERAUTH_BANNER(self, packet: bytes) -> None:
        """A text for people who log in: Conch would answer that it is unknown."""

    def _offer(self) -> None:
        transport: Any = self.transport
        said = transport.peerExtensions.get(b"server-sig-algs", b"")
        accepted = said.split(b",") if said else []
        while self._left and b"publickey" in self.methods.split(b","):
            identity = self._left.pop(0)
            algorithm = signature_algorithm(identity.blob, accepted, self._allowed)
            if algorithm is None:
                continue
            self.offered.append(identity.name)
            self._current = identity, algorithm
            self.askForAuth(b"publickey", b"\0" + NS(algorithm) + NS(identity.blob))
            return
        transport.keysRejected("")

    def ssh_USERAUTH_PK_OK(self, packet: bytes) -> None:
        """The server would take the key that was offered last: sign with it."""
        transport: Any = self.transport
        identity, algorithm = self._current
        request = b"\1" + NS(algorithm) + NS(identity.blob)
        signed = (
            NS(transport.sessionID)
            + bytes((MSG_USERAUTH_REQUEST,))
            + NS(self.user)
            + NS(self.instance.name)
            + NS(b"publickey")
            + request
        )

        def signed_by(signature: bytes) -> None:
            self.signing = ""
            if transport.error is None:
                self.askForAuth(b"publickey", request + NS(signature))

        def refused(reason: Failure) -> None:
            self.signing = ""
            if transport.error is None:  # else the agent was left because of that
                QUIET.warn("{key} did not sign: {why}", key=identity.name, why=reason.value)
                self._offer()

        self.signing = identity.name
        identity.sign(signed, algorithm).addCallbacks(signed_by, refused)

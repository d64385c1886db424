"""The SSH transport: Conch's, with deadlines, a reason for every end, and no weak algorithms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.conch.ssh import transport
from twisted.conch.ssh.common import getNS
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from pexecd.errors import HostError
from pexecd.ssh.connection import Connection
from pexecd.ssh.errors import (
    ConnectionLostError,
    HostKeyChangedError,
    HostKeyError,
    HostKeyRevokedError,
    HostKeyUnknownError,
    KeysRejectedError,
    NoCommonAlgorithmError,
    NotSSHError,
    PeerVanishedError,
    ThrottledError,
    TimedOutError,
)
from pexecd.ssh.keys import Identity
from pexecd.ssh.knownhosts import ALGORITHMS, KnownKeys, Verdict, fingerprint, key_type
from pexecd.ssh.quiet import QUIET
from pexecd.ssh.settings import Algorithms, Settings
from pexecd.ssh.userauth import PublicKeyAuth
from pexecd.units import Seconds

#: The stages of a connection, in order; deadlines and errors are told by them.
GREETING, KEY_EXCHANGE, AUTHENTICATE, OPEN = "greeting", "key exchange", "authenticate", "open"

#: So much text a server may say before its version (RFC 4253, section 4.2).
MOST_GREETING = 8192

#: What OpenSSH says to those whom it turns away.
TURNED_AWAY = (b"MaxStartups", b"Not allowed at this time")

#: The name lists of KEXINIT, in the order of the packet.
NEGOTIATED = (
    ("key exchange", "supportedKeyExchanges"),
    ("host key", "supportedPublicKeys"),
    ("cipher", "supportedCiphers"),
    ("cipher", "supportedCiphers"),
    ("MAC", "supportedMACs"),
    ("MAC", "supportedMACs"),
    ("compression", "supportedCompressions"),
    ("compression", "supportedCompressions"),
)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each stage may take."""

    #: ``ssh -G``.
    settings: Seconds = 20.0
    #: Name service and TCP; ConnectTimeout of the SSH settings wins.
    connect: Seconds = 15.0
    #: Until the server has said its version.
    greeting: Seconds = 20.0
    key_exchange: Seconds = 20.0
    #: Servers may ask slow name services and PAM modules.
    authenticate: Seconds = 60.0
    #: Until a channel is open and its command accepted.
    channel: Seconds = 30.0
    #: How often a silent host is asked for a sign of life...
    keepalive: Seconds = 15.0
    #: ... and how long it may be silent. ServerAliveInterval of the SSH settings wins.
    silence: Seconds = 45.0
    #: Until the peer has hung up, too.
    close: Seconds = 3.0


class Transport(transport.SSHClientTransport):
    """One connection to a host.

    Attributes:
        ready: fires with the ``Connection`` once the user is logged in; fails with a
            ``HostError``.
        error: why the connection ended or is about to; None while all is well.
        new_host_key: a key that the host proved to have, that was accepted although it is not
            in known_hosts; it should be added there.
    """

    _log = QUIET
    transport: Any
    # Left out: group exchange (blocks for 0.4 s), SHA-1, MD5, CBC, DES, DSA.
    supportedKeyExchanges = [  # noqa: RUF012 - as in Conch
        b"curve25519-sha256",
        b"curve25519-sha256@libssh.org",
        b"ecdh-sha2-nistp256",
        b"ecdh-sha2-nistp384",
        b"ecdh-sha2-nistp521",
    ]
    supportedCiphers = [b"aes128-ctr", b"aes192-ctr", b"aes256-ctr"]  # noqa: RUF012
    supportedMACs = [b"hmac-sha2-256", b"hmac-sha2-512"]  # noqa: RUF012
    supportedCompressions = [b"none"]  # noqa: RUF012

    def __init__(
        self,
        reactor: Any,
        host: str,
        settings: Settings,
        *,
        known: KnownKeys,
        identities: Sequence[Identity],
        useless: Sequence[str],
        deadlines: Deadlines,
    ) -> None:
        """Prepare; once it is connected, ``begin`` begins.

        Args:
            reactor: for deadlines, and threads that read files.
            host: its name in messages.
            settings: who logs in, and what to do with unknown host keys.
            known: loaded before, because Conch needs the verdict at once.
            identities: to offer, in this order.
            useless: why other keys cannot be offered, for the message.
            deadlines: for every stage.
        """
        self.ready: Deferred[Connection] = Deferred()
        self._gone = False
        self._waiting: list[Deferred[None]] = []
        self.error: HostError | None = None
        self.new_host_key: bytes | None = None
        wanted = settings.algorithms
        self.supportedKeyExchanges = permitted(self.supportedKeyExchanges, wanted.key_exchanges)
        self.supportedCiphers = permitted(self.supportedCiphers, wanted.ciphers)
        self.supportedMACs = permitted(self.supportedMACs, wanted.macs)
        self.supportedPublicKeys = [
            name for name in known.algorithms() if not wanted.host_keys or name in wanted.host_keys
        ]
        self._clock: IReactorTime = reactor
        self._host = host
        self._settings = settings
        self._known = known
        self._useless = useless
        self._deadlines = deadlines
        self._keepalive, self._silence = deadlines.keepalive, deadlines.silence
        if settings.alive_interval is not None:
            self._keepalive = settings.alive_interval
            self._silence = settings.alive_interval * (settings.alive_count + 1)
        self._greeting = b""
        self._host_key: bytes | None = None
        self._timer: IDelayedCall | None = None
        self.proved = False
        self._heard = reactor.seconds()
        self._connection = Connection(self, host, reactor, deadlines.channel)
        self._auth = PublicKeyAuth(
            settings.user, self._connection, identities, settings.algorithms.user_keys
        )
        self.stage = GREETING

    # --- stages and their ends ---------------------------------------------------------------

    def connectionMade(self) -> None:
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self.transport.pauseProducing()

    def begin(self) -> None:
        """Talk to the host."""
        self._enter(GREETING, self._deadlines.greeting)
        super().connectionMade()
        self.transport.registerProducer(self, streaming=True)
        self.transport.resumeProducing()

    def _enter(self, stage: str, limit: Seconds) -> None:
        self.stage = stage
        self._after(limit, self._late)

    def _after(self, limit: Seconds, act: Callable[[], object]) -> None:
        """There is one timer: for the stage, then for keepalives, then for hanging up."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = self._clock.callLater(limit, act)

    def _late(self) -> None:
        if self.error is None and self._auth.signing:  # it may wait for a person to agree
            self._reject_keys("")
        elif self.error is None:
            self.error = TimedOutError(self._host, self.stage, f"no answer in stage {self.stage!r}")
        self.transport.abortConnection()

    def drop(self, error: HostError) -> None:
        """End the connection because of ``error``; only the first one counts."""
        if self.error is None:
            self.error = error
            self.sendDisconnect(transport.DISCONNECT_BY_APPLICATION, b"")

    def close(self) -> Deferred[None]:
        """Disconnect; fires when the connection is gone."""
        if self._gone:
            return succeed(None)
        self.drop(ConnectionLostError(self._host, self.stage, "closed by pexecd"))
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        return done

    def sendDisconnect(self, reason: int, desc: bytes) -> None:
        """Conch calls this for what it finds wrong: learn why."""
        if self.error is None:
            self.error = self._explain(reason, desc)
        super().sendDisconnect(reason, b"")  # Conch puts our own failures into it, paths and all
        self.transport.unregisterProducer()  # a paused one would keep the connection open
        self._after(self._deadlines.close, self.transport.abortConnection)

    def _explain(self, reason: int, desc: bytes) -> HostError:
        said = desc.decode("utf-8", "replace")
        if reason == transport.DISCONNECT_KEY_EXCHANGE_FAILED and said == "bad signature":
            return HostKeyError(
                self._host, KEY_EXCHANGE, "the host did not prove that it has its host key"
            )
        if reason == transport.DISCONNECT_KEY_EXCHANGE_FAILED:
            return NoCommonAlgorithmError(self._host, KEY_EXCHANGE, self._no_common())
        if reason == transport.DISCONNECT_PROTOCOL_VERSION_NOT_SUPPORTED:
            return NotSSHError(self._host, GREETING, "not SSH version 2", said)
        return ConnectionLostError(self._host, self.stage, "the SSH protocol was broken", said)

    # --- back-pressure -----------------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The network takes no more just now."""
        self._connection.set_congested(True)

    def resumeProducing(self) -> None:
        """It does again."""
        self._connection.set_congested(False)

    def stopProducing(self) -> None:
        """The connection is gone, as ``connectionLost`` says."""

    # --- the end ---------------------------------------------------------------------------

    def receiveError(self, reasonCode: int, description: bytes) -> None:
        """The peer says why it disconnects."""
        said = description.decode("utf-8", "replace")
        if self.error is not None:
            return
        if self.stage == AUTHENTICATE:
            self._reject_keys(said)
        else:
            self.error = ConnectionLostError(
                self._host, self.stage, f"disconnected by the host (code {reasonCode})", said
            )

    def connectionLost(self, reason: Failure | None = connectionDone) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self.error is None:
            self.error = self._explain_loss(reason or connectionDone)
        self._connection.connection_lost(self.error)
        super().connectionLost(reason)
        if not self.ready.called:
            self.ready.errback(self.error)
        self._gone = True
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done.callback(None)

    def _explain_loss(self, reason: Failure) -> HostError:
        words = self._greeting.decode("utf-8", "replace")
        if self.stage != GREETING or reason.check(HostError):  # of a jump host
            return ConnectionLostError(
                self._host, self.stage, "connection lost", reason.getErrorMessage()
            )
        if any(phrase in self._greeting for phrase in TURNED_AWAY):
            return ThrottledError(self._host, GREETING, "the SSH server is too busy", words)
        if words.strip():
            return NotSSHError(self._host, GREETING, "what answers is no SSH server", words)
        return ThrottledError(
            self._host, GREETING, "the SSH server hung up before it said anything"
        )

    # --- greeting and packets ----------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Hold data back until there is a version: Conch takes any other text for a packet."""
        if self.error is not None:
            return
        self._heard = self._clock.seconds()
        if not self.gotVersion:
            self._greeting += data
            start = self._greeting.find(b"SSH-")
            while start > 0 and self._greeting[start - 1 : start] != b"\n":
                start = self._greeting.find(b"SSH-", start + 1)
            if start < 0 or b"\n" not in self._greeting[start:]:
                if len(self._greeting) > MOST_GREETING:
                    self._not_ssh()
                return
            data, self._greeting = self._greeting[start:], b""
            self._enter(KEY_EXCHANGE, self._deadlines.key_exchange)
        super().dataReceived(data)

    def _not_ssh(self) -> None:
        self.error = NotSSHError(
            self._host,
            GREETING,
            "what answers is no SSH server",
            self._greeting.decode("utf-8", "replace"),
        )
        self.transport.abortConnection()

    def getPacket(self) -> bytes | None:
        # nothing that comes after the end is looked at
        return None if self.error is not None else super().getPacket()

    def dispatchMessage(self, messageNum: int, payload: bytes) -> None:
        """Whatever Conch trips over in a packet is the peer's fault, and ends the connection."""
        try:
            super().dispatchMessage(messageNum, payload)
        except Exception as error:
            self.drop(
                ConnectionLostError(
                    self._host, self.stage, "the SSH protocol was broken", repr(error)
                )
            )

    # --- key exchange ------------------------------------------------------------------------

    def _no_common(self) -> str:
        """Name the algorithms that the host offers where none is ours."""
        theirs = getNS(self.otherKexInitPayload[17:], 10)
        for (what, ours), names in zip(NEGOTIATED, theirs, strict=False):
            if not set(names.split(b",")) & set(getattr(self, ours)):
                offers = names.decode("ascii", "replace").replace(",", ", ")
                mine = b", ".join(getattr(self, ours)).decode()
                return f"no common {what} algorithm: the host offers {offers}, pexecd {mine}"
        return "no common algorithm"

    def verifyHostKey(self, hostKey: bytes, fingerprint: bytes) -> Deferred[bool]:
        """Judge the host's key, at once: Conch cannot wait here.

        Source: SPEC section 7, host keys.
        """
        if self._host_key is None:
            self.error = self._judge(hostKey)
            self._host_key = hostKey
        elif hostKey != self._host_key:
            self.error = HostKeyChangedError(
                self._host, self.stage, "the host key changed during the connection"
            )
        return succeed(True) if self.error is None else fail(self.error)

    def _judge(self, key: bytes) -> HostError | None:
        verdict, entry = self._known.check(key)
        shown = fingerprint(key)
        place = entry.place if entry is not None else ""
        match verdict:
            case Verdict.KNOWN:
                return None
            case Verdict.REVOKED:
                what = f"its host key ({shown}) is revoked by {place}"
                return HostKeyRevokedError(self._host, KEY_EXCHANGE, what)
            case Verdict.CHANGED:
                kind = key_type(entry.blob) if entry is not None else b""
                which = "the one" if kind == key_type(key) else f"the {kind.decode()} key"
                what = f"its host key ({shown}) is not {which} in {place}"
                return HostKeyChangedError(self._host, KEY_EXCHANGE, what)
        if self._settings.accept_new:
            self.new_host_key = key
            return None
        files = " or ".join(str(file) for file in self._settings.known_hosts) or "known_hosts"
        what = f"its host key ({shown}) is not in {files}"
        return HostKeyUnknownError(self._host, KEY_EXCHANGE, what)

    def connectionSecure(self) -> None:
        """The host has proved who it is. Conch calls this after each rekeying, too."""
        if not self.proved:
            self.proved = True
            self._enter(AUTHENTICATE, self._deadlines.authenticate)
            self.requestService(self._auth)

    # --- logging in, and staying alive -----------------------------------------------------------

    def keysRejected(self, said: str) -> None:
        """No key is left to offer, or the server wants no more of them."""
        self._reject_keys(said)
        self.sendDisconnect(transport.DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE, b"")

    def _reject_keys(self, said: str) -> None:
        offered = ", ".join(self._auth.offered)
        methods = self._auth.methods.decode("ascii", "replace")
        no_key = bool(methods) and "publickey" not in methods.split(",")
        what = f"{self._settings.user} could not log in: "
        if self._auth.signing:
            what += f"{self._auth.signing} did not sign"
        elif offered and no_key:
            what += f"a key alone is not enough ({offered}), the host also asks for {methods}"
        elif offered:
            what += f"none of the keys was accepted ({offered})"
        elif no_key:
            what += f"the host takes no key, it asks for {methods}"
        else:
            what += "no key to offer"
        if self._useless:
            what += "; " + "; ".join(self._useless)
        error = KeysRejectedError(self._host, AUTHENTICATE, what, said)
        error.methods = frozenset(methods.split(","))
        self.error = error

    def setService(self, service: object) -> None:
        super().setService(service)
        if service is self._connection and not self.ready.called:
            self.stage = OPEN
            self._after(self._keepalive, self._keep_alive)
            self.ready.callback(self._connection)

    def _keep_alive(self) -> None:
        silence = self._clock.seconds() - self._heard
        if silence >= self._silence:
            self._vanished(silence)
        elif silence >= self._keepalive:
            self._connection.ask_for_life()
            self._after(self._keepalive, self._keep_alive)
        else:
            self._after(self._keepalive - silence, self._keep_alive)

    def _vanished(self, silence: Seconds) -> None:
        self.error = PeerVanishedError(self._host, OPEN, f"no sign of life for {silence:.0f} s")
        self.transport.abortConnection()


def permitted(ours: Sequence[bytes], wanted: Sequence[bytes]) -> list[bytes]:
    """Those of our algorithms that the user wants, in the user's order; all if nothing is said."""
    return [name for name in wanted if name in ours] if wanted else list(ours)


def left_out(wanted: Algorithms) -> str:
    """The setting of the user's that leaves us without an algorithm; empty: there is none."""
    for setting, ours, names in (
        ("KexAlgorithms", Transport.supportedKeyExchanges, wanted.key_exchanges),
        ("Ciphers", Transport.supportedCiphers, wanted.ciphers),
        ("MACs", Transport.supportedMACs, wanted.macs),
        ("HostKeyAlgorithms", ALGORITHMS, wanted.host_keys),
    ):
        if not permitted(ours, names):
            return setting
    return ""

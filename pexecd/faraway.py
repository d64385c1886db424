"""What only other computers need, SSH and TLS: it is loaded when the first of them is there.

To load it takes as long as all else that a run needs together, and a small job on this computer is
to begin at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from zope.interface import implementer

from pexecd.jobs.values import HostSpec
from pexecd.ports import IConnection, IConnector, TunnelEnd

if TYPE_CHECKING:
    from twisted.internet.interfaces import IProtocolFactory

    from pexecd.store.certificate import Certificate

T = TypeVar("T")

#: Runs a blocking function elsewhere.
InThread = Callable[[Callable[[], T]], Deferred[T]]


@implementer(IConnector)
class LateConnector:
    """Opens SSH connections by ``pexecd.ssh``, which is loaded with the first of them.

    Args:
        reactor: see ``ssh.Connector``.
        config: see there, too.
        in_thread: loading it blocks.
    """

    def __init__(self, reactor: Any, config: Path | None, in_thread: InThread[Any]) -> None:
        self._reactor = reactor
        self._config = config
        self._in_thread = in_thread
        self._connector: IConnector | None = None

    def connect(self, host: HostSpec) -> Deferred[IConnection]:
        """See ``IConnector.connect``."""
        return Deferred.fromCoroutine(self._connect(host))

    async def _connect(self, host: HostSpec) -> IConnection:
        if self._connector is None:
            kind = await self._in_thread(_load_ssh)
            # all hosts share one: it counts how many log in at once
            self._connector = self._connector or kind(self._reactor, self._config)
        return await self._connector.connect(host)


def _load_ssh() -> Callable[[Any, Path | None], IConnector]:
    from pexecd.ssh import Connector  # noqa: PLC0415 - see the module

    return Connector


class Secured:
    """The master's HTTP server by TLS, and its certificate: made when it is first asked for.

    Args:
        path: of the certificate in the state folder.
        factory: the server without TLS.
        in_thread: making or reading it blocks.
    """

    def __init__(self, path: Path, factory: IProtocolFactory, in_thread: InThread[Any]) -> None:
        self._path = path
        self._factory = factory
        self._in_thread = in_thread
        self._lock = DeferredLock()
        self._end: TunnelEnd | None = None

    def tunnel_end(self) -> Deferred[TunnelEnd]:
        """The server with and without TLS, and the certificate's checksum.

        Returns:
            Fails with ``StateError`` or ``OSError``, see ``Certificate.keep``.
        """
        return Deferred.fromCoroutine(self._tunnel_end())

    async def _tunnel_end(self) -> TunnelEnd:
        async with self._lock:  # two would make two
            if self._end is None:
                certificate = await self._in_thread(lambda: _keep(self._path))
                pinned = _by_tls(self._factory, certificate)
                self._end = TunnelEnd(self._factory, pinned, certificate.fingerprint)
            return self._end


def _keep(path: Path) -> Certificate:
    from pexecd.store.certificate import Certificate  # noqa: PLC0415 - see the module

    return Certificate.keep(path)


def _by_tls(factory: IProtocolFactory, certificate: Certificate) -> IProtocolFactory:
    from twisted.internet.ssl import PrivateCertificate  # noqa: PLC0415 - see the module
    from twisted.protocols.tls import TLSMemoryBIOFactory  # noqa: PLC0415

    options = PrivateCertificate.loadPEM(certificate.pem).options()
    secured: IProtocolFactory = TLSMemoryBIOFactory(options, isClient=False, wrappedFactory=factory)
    return secured

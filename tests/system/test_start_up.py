"""A run begins soon: what it does not need is not loaded."""

from __future__ import annotations

import subprocess
import sys

#: For other computers, or for other commands.
HEAVY = ("OpenSSL", "ssl", "cryptography", "twisted.conch", "rich", "treq", "twisted.trial")

LOADED = """
import sys
from pexecd.cli.early import import_reactor
reactor = import_reactor()
import pexecd.cli.run
print(*sys.modules)
"""

#: The reactor without TLS of its own, and a connection by TLS over it.
TLS = """
import tempfile
from pathlib import Path
from pexecd.cli.early import import_reactor
reactor = import_reactor()
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from pexecd.faraway import Secured

class Echo(Protocol):
    def dataReceived(self, data):
        self.transport.write(data)

class Ask(Protocol):
    def connectionMade(self):
        self.transport.write(b"seen")
    def dataReceived(self, data):
        print(data.decode(), self.transport.getPeerCertificate() is not None)
        self.transport.loseConnection()
    def connectionLost(self, reason):
        reactor.stop()

async def talk():
    from twisted.internet.ssl import CertificateOptions
    from twisted.protocols.tls import TLSMemoryBIOFactory
    path = Path(tempfile.mkdtemp()) / "certificate.pem"
    end = await Secured(path, Factory.forProtocol(Echo), lambda f: succeed(f())).tunnel_end()
    port = reactor.listenTCP(0, end.pinned, interface="127.0.0.1")
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    wrapped = TLSMemoryBIOFactory(CertificateOptions(), True, Factory.forProtocol(Ask))
    await endpoint.connect(wrapped)

Deferred.fromCoroutine(talk()).addErrback(lambda why: (why.printTraceback(), reactor.stop()))
reactor.run()
"""


def output_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_run_loads() -> None:
    loaded = set(output_of(LOADED).split())
    assert "twisted.web.server" in loaded
    assert [name for name in HEAVY if name in loaded] == []


def test_tls_over_a_reactor_that_has_none() -> None:
    assert output_of(TLS) == "seen True\n"

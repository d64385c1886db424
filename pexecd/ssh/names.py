"""Looking up the addresses of a host."""

from __future__ import annotations

import socket
from threading import Thread
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


def look_up(reactor: Any, name: str, family: socket.AddressFamily) -> Deferred[list[str]]:
    """Ask the name service, in a thread of its own.

    A look-up cannot be stopped once it waits for a name server. In the reactor's few threads some
    that never get an answer would hold up all other work, and the end of the process. (Twisted's
    own also refuses names with an underscore, and takes a cancelled look-up for a failed one.)

    Args:
        reactor: hears of the answer.
        name: a host name or an address.
        family: which addresses are wanted.

    Returns:
        Fires with addresses, best first; fails with ``socket.gaierror`` or ``UnicodeError``.
        Cancelling it leaves the thread to itself.
    """
    found: Deferred[list[str]] = Deferred()

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
            addresses = [socket.getnameinfo(each[4], socket.NI_NUMERICHOST)[0] for each in answers]
        except BaseException:  # whoever waits must hear of it
            reactor.callFromThread(found.errback, Failure())
        else:
            reactor.callFromThread(found.callback, addresses)

    Thread(target=ask, name=f"look up {name}", daemon=True).start()
    return found

"""What a request says in its URL and headers."""

from __future__ import annotations

import re
from functools import lru_cache

from pexecd.core.values import Caller
from pexecd.errors import RequestRejectedError, WrongSessionError
from pexecd.ports import IDirectory, ISession
from pexecd.protocol.request import Request
from pexecd.protocol.wire import decode_seconds
from pexecd.units import Seconds

#: The longest ``client=`` and ``host=``, in characters.
MAX_NAME = 255

_TICKET = re.compile(r"[0-9]{1,18}")
_COUNT = re.compile(r"[0-9]{1,9}")


class BadRequestError(RequestRejectedError):
    """An argument is missing or malformed; nothing has changed."""


def optional(request: Request, name: str) -> str | None:
    """An argument from the URL, None when it is not there."""
    values = request.args.get(name.encode())
    if values is None:
        return None
    if len(values) > 1:
        raise BadRequestError(f"the argument {name} is there {len(values)} times")
    try:
        value: str = values[0].decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"the argument {name} is not UTF-8") from None
    if not value:
        raise BadRequestError(f"the argument {name} is empty")
    return value


def required(request: Request, name: str) -> str:
    """An argument from the URL."""
    value = optional(request, name)
    if value is None:
        raise BadRequestError(f"the argument {name} is missing")
    return value


def find_session(directory: IDirectory, session_id: str) -> ISession:
    """The session with this ID; raises ``WrongSessionError``."""
    session = directory.find(session_id)
    if session is None:
        raise WrongSessionError("no such session")
    return session


def read_ticket(text: str) -> int:
    """A ticket as the master counts them."""
    if not _TICKET.fullmatch(text):
        raise BadRequestError(f"a ticket is a number, not {text[:60]!a}")
    return int(text)


def read_count(text: str) -> int:
    """How many of something."""
    if not _COUNT.fullmatch(text):
        raise BadRequestError(f"expected a number, not {text[:60]!a}")
    return int(text)


def caller_of(request: Request) -> Caller:
    """Who sent a request: what it says of itself, if it announced itself, else its address."""
    address = getattr(request.getClientAddress(), "host", "local")
    if not announced(request):
        return Caller(client=address, host=address)
    host = _name(request, "host")
    return Caller(
        client=_name(request, "client") or address,
        host=host or address,
        managed=host is not None,
        speaks=True,
    )


def _name(request: Request, argument: str) -> str | None:
    """A name that is fit for logs and tables."""
    name = optional(request, argument)
    if name is not None and not (name.isprintable() and len(name) <= MAX_NAME):
        raise BadRequestError(f"the argument {argument} is no name: {name[:60]!a}")
    return name


def announced(request: Request) -> bool:
    """Whether the client asks for what is new: ``Accept: application/x-pexec; framing=length``."""
    accepts = request.requestHeaders.getRawHeaders(b"Accept", ())
    return any(map(_announces, accepts))


@lru_cache(maxsize=64)
def _announces(accept: bytes) -> bool:
    for choice in accept.lower().replace(b" ", b"").split(b","):
        media, *parameters = choice.split(b";")
        if media == b"application/x-pexec" and b"framing=length" in parameters:
            return True
    return False


def read_seconds(text: str | None) -> Seconds | None:
    """How long a worker ran, where the client said so."""
    if text is None:
        return None
    try:
        return decode_seconds(text)
    except ValueError:
        raise BadRequestError(f"the argument seconds is a time, not {text[:60]!a}") from None

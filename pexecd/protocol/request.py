"""A request whose body goes where it belongs while it arrives.

twisted.web keeps a body of any size and parses forms in memory. Here the resource is
looked up as soon as the headers are there, and is handed every piece of the body; what
it refuses is answered at once, and the rest of the body is read and thrown away, so
that peers that send everything before they read get the answer too.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs
from twisted.web.iweb import INonQueuedRequestFactory
from twisted.web.resource import IResource
from zope.interface import Interface, provider

from pexecd.errors import BodyTooLargeError, RequestRejectedError

if TYPE_CHECKING:
    from pexecd.protocol.site import Channel, ProtocolSite

#: The largest body in bytes, but for the results of ``/complete``.
SMALL_BODY = 65536
#: A body must grow by so many bytes within each of the site's deadlines for bodies.
PROGRESS = 1024
#: Seconds after which a client that could not be served should try again.
RETRY_AFTER = 5


class Body(Protocol):
    """Takes the body of one request. What ``open`` and ``write`` raise refuses it."""

    def open(self, length: int | None) -> None:
        """The headers are there; ``length`` is that of the body, where it is known."""

    def write(self, data: bytes) -> Deferred[None] | None:
        """Take some bytes; a Deferred says: no more until it fires."""

    def abort(self) -> None:
        """The peer broke off: there will be no more, and no answer."""


class IBodyTaker(Interface):
    """A resource that wants bodies as they arrive, not in ``request.content``."""

    def take_body(request: Request) -> Body:  # noqa: N805 - interfaces have no self
        """Where the body of this request goes; it is ``request.body`` from then on."""


class SmallBody:
    """Keeps a body in memory, up to ``most`` bytes."""

    def __init__(self, most: int = SMALL_BODY) -> None:
        self.content = BytesIO()
        self._most = most

    def open(self, length: int | None) -> None:
        self._check(length or 0)

    def write(self, data: bytes) -> None:
        self._check(self.content.tell() + len(data))
        self.content.write(data)

    def abort(self) -> None:
        pass

    def _check(self, size: int) -> None:
        if size > self._most:
            raise BodyTooLargeError(f"the body is over {self._most} bytes")


@provider(INonQueuedRequestFactory)
class Request(server.Request):
    """One request; see the module.

    Attributes:
        body: where the body went.
        problem: why the body was refused; then ``process`` was called before its end.
        held: what the answer waits for; cancelled when the connection is lost.
        gone: the connection was lost: nothing can be answered.
    """

    log = Logger()
    channel: Channel
    site: ProtocolSite
    transport: Any
    content: BytesIO
    body: Body | None = None
    problem: Exception | None = None
    held: Deferred[Any] | None = None
    _resource: IResource | None = None

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, parsePOSTFormSubmission=False)
        self._progress = 0
        self._received = False
        self._processed = False
        self._finish_waits = False

    @property
    def gone(self) -> bool:
        return bool(self._disconnected)

    def begin(self, method: bytes, uri: bytes, version: bytes) -> None:
        """The headers are there. Called by the channel, before ``gotLength``."""
        self.method, self.uri, self.clientproto = method, uri, version
        if not uri.startswith(b"/") and b"://" in uri:
            # The founding document writes ``GET http://master/config``, which HTTP allows.
            uri = b"/" + uri.split(b"://", 1)[1].partition(b"/")[2]
        self.path, _, query = uri.partition(b"?")
        self.args = _arguments(query)
        self.site = self.channel.site
        self.prepath = []
        self.postpath = self.path[1:].split(b"/")
        if b"%" in self.path:
            self.postpath = [unquote_to_bytes(part) for part in self.postpath]

    def gotLength(self, length: int | None) -> None:
        try:
            self._resource = self.site.getResourceFor(self)
            taker = IBodyTaker(self._resource, None)
            body = SmallBody() if taker is None else taker.take_body(self)
            # Resources of twisted.web look for the body there.
            self.content = body.content if isinstance(body, SmallBody) else BytesIO()
            self.body = body
            body.open(length)
        except Exception as error:
            self._refuse(error)

    def handleContentChunk(self, data: bytes) -> None:
        self._progress += len(data)
        if self._progress >= PROGRESS:
            self._progress = 0
            self.channel.resetTimeout()
        if self.problem is not None:
            return
        assert self.body is not None
        try:
            behind = self.body.write(data)
        except Exception as error:
            self._refuse(error)
            return
        if behind is not None and not behind.called:
            self.channel.hold(behind)

    def _refuse(self, error: Exception) -> None:
        self.problem = error
        if self.channel.length != 0:
            self.setHeader(b"Connection", b"close")
            self.channel.persistent = False
            self.process()

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self._received = True
        if not self._processed:
            self.process()
        elif self._finish_waits:
            super().finish()

    def process(self) -> None:
        self._processed = True
        try:
            self._render()
        except RequestRejectedError as error:
            self.answer(error.status, text_line(error))
        except Exception:
            self.failed(Failure())

    def _render(self) -> None:
        if self.problem is not None and not IBodyTaker.providedBy(self._resource):
            raise self.problem
        self.render(self._resource)

    @property
    def answered_early(self) -> bool:
        """Whether this request is being answered before its body was there."""
        return self._processed and not self._received

    def write(self, data: bytes) -> None:
        if self.startedWriting or self.gone:
            super().write(data)
            return
        self.channel.settle_persistence(self)
        super().write(data)
        self.channel.write(b"")  # the head, if there is no body

    def finish(self) -> None:
        if self._received:
            super().finish()
            return
        # The channel must not take the rest of the body for the next request.
        if not self.startedWriting:
            self.write(b"")
        self._finish_waits = True

    def failed(self, reason: Failure) -> None:
        """A bug of ours; never a 500 on the wire, since clients would take it as final."""
        self.log.failure("{request} failed", reason, request=repr(self))
        if self.gone:
            return
        if self.startedWriting:
            self.transport.abortConnection()
        else:
            self.answer(503, b"pexecd failed here: see its log\n", retry_after=RETRY_AFTER)

    def processingFailed(self, reason: Failure) -> Failure:
        self.failed(reason)
        return reason

    def answer(self, status: int, body: bytes = b"", *, retry_after: int | None = None) -> None:
        """Answer with a short plain text. Does nothing when the peer has gone.

        Args:
            status: the HTTP status.
            body: the text; none for 204 and 205.
            retry_after: seconds, for 503.
        """
        if self.gone:
            return
        self.setResponseCode(status)
        self.head(len(body), b"text/plain; charset=utf-8")
        if retry_after is not None:
            self.setHeader(b"Retry-After", b"%d" % retry_after)
        self.write(body)
        self.finish()

    def head(self, length: int, content_type: bytes) -> None:
        """Set the headers that a body of this length and type needs."""
        if self.code != 204:
            self.setHeader(b"Content-Length", b"%d" % length)
        if length:
            self.setHeader(b"Content-Type", content_type)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        if self.held is not None:
            self.held.cancel()
        if self.body is not None and not self._processed:
            self.body.abort()

    def __repr__(self) -> str:
        """Without the query: it holds the session ID."""
        return f"<{self.method.decode('latin-1')} {(self.path or b'?').decode('latin-1')!a}>"


def _arguments(query: bytes) -> dict[bytes, list[bytes]]:
    """``parse_qs``, faster where nothing is escaped."""
    if b"%" in query or b"+" in query or b";" in query:
        arguments: dict[bytes, list[bytes]] = parse_qs(query, True)
        return arguments
    arguments = {}
    for item in query.split(b"&"):
        name, equals, value = item.partition(b"=")
        if equals:
            arguments.setdefault(name, []).append(value)
    return arguments


def text_line(message: object) -> bytes:
    """A message for people as the body of a reply: one line."""
    return " ".join(str(message).split()).encode() + b"\n"

"""The results of one ticket on their way from the peer to the spool."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred

from pexecd.core.values import Caller
from pexecd.errors import BodyTooLargeError
from pexecd.ports import IDirectory, ISession, IUpload
from pexecd.protocol.arguments import (
    BadRequestError,
    caller_of,
    find_session,
    optional,
    read_seconds,
    read_ticket,
    required,
)
from pexecd.protocol.forms import FormParser, form_boundary
from pexecd.protocol.request import SMALL_BODY, Request
from pexecd.protocol.sections import AmbiguousBodyError, Data
from pexecd.protocol.wire import (
    ResultBegun,
    ResultEnded,
    UploadEvent,
    UploadParser,
)
from pexecd.units import Seconds

#: A form's part of this name serves a session that has one result.
ANY_RESULT = "Result"
#: The longest value of a field of a form, in bytes.
MAX_FIELD = 1024


class ResultsBody:
    """Body of ``/complete``, in any of its three forms.

    Attributes:
        upload: where the results go; None before session and ticket are known, when they
            are of no use, and once they were handed on or given up.
        seconds: how long the worker ran, where the client said so.
    """

    caller: Caller
    seconds: Seconds | None = None

    def __init__(self, directory: IDirectory, request: Request) -> None:
        self._directory = directory
        self._request = request
        self._parser: UploadParser | FormParser
        self._session: ISession | None = None
        self._ticket: int | None = None
        self.upload: IUpload | None = None
        self._length = 0
        self._size = 0
        # The field of a form that is just arriving, and its value so far.
        self._field: str | None = None
        self._value = b""
        self._skipping = False
        self._arrived: set[str] = set()

    @property
    def session(self) -> ISession:
        """The session, once it is known."""
        assert self._session is not None
        return self._session

    @property
    def ticket(self) -> int:
        """The ticket, once it is known."""
        assert self._ticket is not None
        return self._ticket

    def open(self, length: int | None) -> None:
        request = self._request
        self._length = length or 0
        header = request.requestHeaders.getRawHeaders(b"Content-Type", [b""])[0]
        boundary = form_boundary(header.decode("latin-1"))
        self._parser = UploadParser() if boundary is None else FormParser(boundary)
        argument = required if boundary is None else optional
        self._learn_session(argument(request, "sessionID"))
        self.caller = caller_of(request)
        self.seconds = read_seconds(optional(request, "seconds"))
        self._learn_ticket(argument(request, "ticket"))

    def write(self, data: bytes) -> Deferred[None] | None:
        self._size += len(data)
        self._check_size(self._size)
        if self._known and self.upload is None:
            return None
        behind = self._take(self._parser.feed(data))
        if self._size > SMALL_BODY:
            # Fields that come this late would make us keep the results in memory.
            self._check_known()
        return behind

    def finish(self) -> list[str]:
        """All has arrived.

        Returns:
            The names of the session's results that are missing.
        """
        if not self._known or self.upload is not None:
            self._take(self._parser.finish())
        self._check_known()
        return [name for name in self.session.result_names if name not in self._arrived]

    def abort(self) -> None:
        if (upload := self.release()) is not None:
            self.session.abandon(self.caller, self.ticket, upload)

    def release(self) -> IUpload | None:
        """The upload, for the one call that ends it."""
        upload, self.upload = self.upload, None
        return upload

    def _take(self, events: Iterable[UploadEvent]) -> Deferred[None] | None:
        behind: Deferred[None] | None = None
        for event in events:
            if self._known and self.upload is None:
                continue  # of no use, as the fields said: read on for the 200
            match event:
                case ResultBegun(name, length):
                    self._begin(name, length)
                case Data(data):
                    behind = self._data(data) or behind
                case ResultEnded():
                    self._end()
        return behind

    def _begin(self, name: str, length: int | None) -> None:
        if (name == "SessionID" and self._session is None) or (
            name == "Ticket" and self._ticket is None
        ):
            self._field, self._value = name, b""
            return
        self._check_known()
        names = self.session.result_names
        if isinstance(self._parser, FormParser) and name == ANY_RESULT and len(names) == 1:
            name = names[0]
        self._skipping = name not in names
        if self._skipping:
            return
        if name in self._arrived:
            raise AmbiguousBodyError(f"the upload has the result {name[:60]!a} twice")
        self._arrived.add(name)
        assert self.upload is not None
        self.upload.begin(name, length)

    def _data(self, data: bytes) -> Deferred[None] | None:
        if self._field is not None:
            self._value += data
            if len(self._value) > MAX_FIELD:
                raise BadRequestError(f"the field {self._field} is over {MAX_FIELD} bytes")
            return None
        if self._skipping:
            return None
        assert self.upload is not None
        return self.upload.write(data)

    def _end(self) -> None:
        if self._field is None:
            return
        value = self._value.decode("utf-8", "replace").strip()
        if self._field == "SessionID":
            self._learn_session(value)
        else:
            self._learn_ticket(value)
        self._field = None

    def _learn_session(self, session_id: str | None) -> None:
        if session_id is not None:
            self._session = find_session(self._directory, session_id)
            self._open_upload()

    def _learn_ticket(self, ticket: str | None) -> None:
        if ticket is not None:
            self._ticket = read_ticket(ticket)
            self._open_upload()

    def _open_upload(self) -> None:
        if self._known:
            self.upload = self.session.upload(self.caller, self.ticket)
            self._check_size(max(self._length, self._size))

    @property
    def _known(self) -> bool:
        return self._session is not None and self._ticket is not None

    def _check_known(self) -> None:
        if not self._known:
            name = "SessionID" if self._session is None else "Ticket"
            raise BadRequestError(
                f"the field {name} is missing: put it before the results, or in the URL"
            )

    def _check_size(self, size: int) -> None:
        if self.upload is not None:
            limit = self.session.max_result
            if limit is not None and size > limit:
                raise BodyTooLargeError(f"the upload is over max_result, {limit} bytes")

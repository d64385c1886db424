"""What clients may ask for: each resource decodes, asks the session, encodes.

SPEC section 2 says which statuses there are. Whatever goes wrong here is answered with
503 and ``Retry-After``, so that clients try again; never with a 500 or a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from pexecd.core.values import Failure
from pexecd.errors import BodyTooLargeError, JournalError, RequestRejectedError
from pexecd.ports import IDirectory, ISession, NoTask
from pexecd.protocol.arguments import (
    BadRequestError,
    caller_of,
    find_session,
    optional,
    read_count,
    read_ticket,
    required,
)
from pexecd.protocol.bodies import ResultsBody
from pexecd.protocol.exchange import (
    EXCHANGE_MOST,
    MOST_WANTED,
    decode_exchange,
    encode_supply,
)
from pexecd.protocol.request import (
    RETRY_AFTER,
    Body,
    IBodyTaker,
    Request,
    SmallBody,
    text_line,
)
from pexecd.protocol.sections import AmbiguousBodyError, MalformedBodyError
from pexecd.protocol.sending import PeerLeftError, send
from pexecd.protocol.wire import TaskMessage, decode_failure, encode_pairs, encode_task


class Root(Resource):
    """The tree of the six requests and the exchange; other trees may be put beside them."""

    def __init__(self, directory: IDirectory) -> None:
        super().__init__()
        self.putChild(b"config", ConfigResource(directory))
        self.putChild(b"ping", PingResource(directory))
        self.putChild(b"worker", WorkerResource(directory))
        self.putChild(b"task", TaskResource(directory))
        self.putChild(b"complete", CompleteResource(directory))
        self.putChild(b"failed", FailedResource(directory))
        self.putChild(b"exchange", ExchangeResource(directory))

    def getChild(self, path: bytes, request: Request) -> IResource:
        return NotFound()


@implementer(IBodyTaker)
class NotFound(Resource):
    """There is nothing here, whatever the method, the rest of the path and the body."""

    isLeaf = True

    def take_body(self, request: Request) -> Body:
        raise NoSuchPathError

    def render(self, request: Request) -> int:
        request.answer(404, b"no such path; see docs/protocol.md\n")
        return NOT_DONE_YET


class NoSuchPathError(RequestRejectedError):
    """404, whatever the size of the body."""

    status = 404


@implementer(IBodyTaker)
class ClientResource(Resource):
    """Base of all of them: runs ``respond`` and turns what it raises into a status."""

    log = Logger()
    allowed: tuple[bytes, ...] = (b"GET",)

    def __init__(self, directory: IDirectory) -> None:
        super().__init__()
        self._directory = directory

    def getChild(self, path: bytes, request: Request) -> IResource:
        return NotFound()

    def take_body(self, request: Request) -> Body:
        if request.method not in self.allowed:
            raise MethodNotAllowedError("/".join(method.decode() for method in self.allowed))
        return SmallBody()

    def render(self, request: Request) -> int:
        answered = Deferred.fromCoroutine(self._answer(request))
        answered.addErrback(request.failed)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        try:
            if request.problem is not None:
                await self.refuse(request, request.problem)
            else:
                await self.respond(request)
        except MethodNotAllowedError as error:
            request.setHeader(b"Allow", b", ".join(self.allowed))
            request.answer(error.status, text_line(error))
        except RequestRejectedError as error:
            request.answer(error.status, text_line(error))
        except JournalError:
            request.answer(503, b"the master cannot store just now\n", retry_after=RETRY_AFTER)

    async def respond(self, request: Request) -> None:
        """Answer the request; its body has arrived whole."""
        raise NotImplementedError

    async def refuse(self, request: Request, problem: Exception) -> None:
        """The body was refused, perhaps before its end: do what follows from that."""
        raise problem

    def session(self, request: Request) -> ISession:
        """The session that the URL names."""
        return find_session(self._directory, required(request, "sessionID"))


class MethodNotAllowedError(RequestRejectedError):
    """405; ``HEAD`` gets it too, as it must not take a task."""

    status = 405

    def __init__(self, allowed: str) -> None:
        super().__init__(f"use {allowed} here")


class ConfigResource(ClientResource):
    """``GET /config``."""

    async def respond(self, request: Request) -> None:
        session = self.session(request)
        slots = optional(request, "slots")
        pairs = session.config(
            caller_of(request),
            optional(request, "platform"),
            None if slots is None else read_count(slots),
        )
        request.answer(200, encode_pairs(pairs))


class PingResource(ClientResource):
    """``GET /ping``: answered at once, for thousands of clients do little else."""

    def render(self, request: Request) -> int:
        if request.problem is not None:
            return super().render(request)
        try:
            session = self.session(request)
            ticket = read_ticket(required(request, "ticket"))
            works = session.ping(caller_of(request), ticket)
        except RequestRejectedError as error:
            request.answer(error.status, text_line(error))
        else:
            request.answer(204 if works else 205)
        return NOT_DONE_YET


class WorkerResource(ClientResource):
    """``GET /worker``: the executable, from disk."""

    async def respond(self, request: Request) -> None:
        session = self.session(request)
        name, platform = required(request, "name"), required(request, "platform")
        path = session.worker(caller_of(request), name, platform)
        try:
            await send(request, [path], {path: path.stat().st_size}, b"application/octet-stream")
        except PeerLeftError:
            return
        request.finish()


class TaskResource(ClientResource):
    """``GET /task``; may be held open by the session for a while."""

    async def respond(self, request: Request) -> None:
        session = self.session(request)
        caller = caller_of(request)
        asked = session.ask(caller, optional(request, "worker"))
        request.held = asked
        try:
            answer = await asked
        except CancelledError:
            return  # the peer has left, as the session now knows
        if isinstance(answer, NoTask):
            request.answer(
                503,
                b"no task is left\n" if answer.retry_after is None else b"no task just now\n",
                retry_after=answer.retry_after if caller.speaks else None,
            )
            return
        try:
            await self._tell(request, answer, framed=caller.speaks)
        except PeerLeftError:
            session.undelivered(answer.ticket)
            return
        except Exception:
            session.undelivered(answer.ticket)
            raise
        request.channel.watch(lambda: session.undelivered(answer.ticket))
        request.finish()

    async def _tell(self, request: Request, message: TaskMessage, *, framed: bool) -> None:
        sizes = file_sizes([message])
        pieces = encode_task(message, framed=framed, sizes=sizes)
        await send(request, pieces, sizes, b"application/x-pexec")


def file_sizes(messages: Sequence[TaskMessage]) -> dict[Path, int]:
    """The size of every file among the inputs of tasks."""
    return {
        item.content: item.content.stat().st_size
        for message in messages
        for item in message.inputs
        if isinstance(item.content, Path)
    }


class CompleteResource(ClientResource):
    """``POST /complete``: 200 once the results are stored."""

    allowed = (b"POST",)

    def take_body(self, request: Request) -> Body:
        super().take_body(request)
        return ResultsBody(self._directory, request)

    async def respond(self, request: Request) -> None:
        body = request.body
        assert isinstance(body, ResultsBody)
        try:
            missing = body.finish()
        except Exception as problem:
            await self.refuse(request, problem)
            return
        if body.upload is not None and missing:
            await self._fail(body, f"the upload lacks the result {missing[0]}")
        else:
            await body.session.complete(body.caller, body.ticket, body.release(), body.seconds)
        request.answer(200)

    async def refuse(self, request: Request, problem: Exception) -> None:
        body = request.body
        if not isinstance(body, ResultsBody) or body.upload is None:
            if isinstance(problem, AmbiguousBodyError):
                # Not known whose results these are, so no attempt can have failed.
                raise MalformedBodyError(str(problem))
            raise problem
        if isinstance(problem, AmbiguousBodyError):
            await self._fail(body, str(problem))
            request.answer(200)
            return
        if isinstance(problem, BodyTooLargeError):
            await self._fail(body, str(problem))
        else:
            body.abort()
        raise problem

    async def _fail(self, body: ResultsBody, reason: str) -> None:
        upload = body.release()
        await body.session.fail(body.caller, body.ticket, Failure(reason), upload)


class ExchangeResource(ClientResource):
    """``POST /exchange``: many tickets at once; 200 once all is on disk."""

    allowed = (b"POST",)

    def take_body(self, request: Request) -> Body:
        super().take_body(request)
        return SmallBody(EXCHANGE_MOST)

    async def respond(self, request: Request) -> None:
        session = self.session(request)
        caller = caller_of(request)
        if not caller.speaks:
            raise BadRequestError("the exchange is for clients that announce themselves")
        body = request.body
        assert isinstance(body, SmallBody)
        names = frozenset(session.result_names)
        posted = decode_exchange(body.content.getvalue(), names, session.max_result)
        want = min(read_count(required(request, "want")), MOST_WANTED)
        asked = session.exchange(caller, posted, want, optional(request, "worker"))
        request.held = asked
        try:
            supply = await asked
        except CancelledError:
            return  # the peer has left, as the session now knows

        def undelivered() -> None:
            for message in supply.tasks:
                session.undelivered(message.ticket)

        try:
            sizes = file_sizes(supply.tasks)
            pieces = encode_supply(supply.tasks, supply.over, supply.left, sizes)
            await send(request, pieces, sizes, b"application/x-pexec")
        except PeerLeftError:
            undelivered()
            return
        except Exception:
            undelivered()
            raise
        if supply.tasks:
            request.channel.watch(undelivered)
        request.finish()


class FailedResource(ClientResource):
    """``GET`` or ``POST /failed``, with or without a reason in the body."""

    allowed = (b"GET", b"POST")

    async def respond(self, request: Request) -> None:
        body = request.body
        assert isinstance(body, SmallBody)
        await self._fail(request, decode_failure(body.content.getvalue()))
        request.answer(200)

    async def refuse(self, request: Request, problem: Exception) -> None:
        if isinstance(problem, BodyTooLargeError):
            await self._fail(request, Failure("a failure with a report that is too long"))
        raise problem

    async def _fail(self, request: Request, failure: Failure) -> None:
        session = self.session(request)
        ticket = read_ticket(required(request, "ticket"))
        await session.fail(caller_of(request), ticket, failure, None)

"""Old peers, odd peers, peers that leave; connections that are used again."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocolFactory

from pexecd.faraway import Secured
from pexecd.ports import NoTask
from pexecd.protocol.wire import InputFile, ResultFile, TaskMessage
from tests.system.protocol_server import ANNOUNCED, Peer, Response, S, ServerCase, request, result


def task(ticket: int = 10016, *inputs: InputFile) -> TaskMessage:
    return TaskMessage(ticket, 600, "true", inputs, (ResultFile("output", "stdout"),))


class OldPeerTests(ServerCase):
    async def test_a_session_to_its_end(self) -> None:
        """HTTP/1.0, LF alone, CRLF in bodies, blanks round =, half-closing, never pinging."""

        def once(peer: Peer, data: bytes) -> bytes:
            peer.send(data)
            peer.finish_sending()
            return peer.rest()

        self.session.tasks = [task(), NoTask(None)]
        config = await self.run_peer(lambda p: once(p, f"GET /config?{S} HTTP/1.0\n\n".encode()))
        self.assertTrue(config.startswith(b"HTTP/1.0 200 "), config)
        self.assertTrue(config.endswith(b"\r\n\r\nDeleteWorker=Yes\nDeleteClient=No\nPing=10\n"))

        get_task = f"GET /task?{S} HTTP/1.0\nUser-Agent: old\n\n".encode()
        told = await self.run_peer(lambda p: once(p, get_task))
        self.assertIn(b"\r\n\r\nTicket=10016\nTimeout=600\nCommandLine=true\n", told)

        body = b"[Result]\r\nName = output\r\n--begin content--\r\n1\r\n--end content--\r\n"
        path = f"/complete?{S}&ticket=10016"
        done = await self.run_peer(lambda p: once(p, request("POST", path, body)))
        self.assertTrue(done.startswith(b"HTTP/1.0 200 "), done)
        self.assertEqual(self.the_call().upload.contents, {"output": b"1"})

        over = await self.run_peer(lambda p: once(p, get_task))
        self.assertTrue(over.startswith(b"HTTP/1.0 503 "), over)
        self.assertNotIn(b"Retry-After", over)
        self.assertEqual(self.session.lost, [])

    async def test_a_request_that_is_none(self) -> None:
        for wire in (
            b"hello\r\n\r\n",
            b"GET /config\r\n\r\n",
            b"GET /config HTTP/2.0\r\n\r\n",
            b"GET /config HTTP/1.0\r\nno colon\r\n\r\n" + request("GET", f"/task?{S}"),
            b"GET /" + b"x" * 20_000 + b" HTTP/1.0\r\n\r\n",
            b"GET / HTTP/1.0\r\n" + b"A: b\r\n" * 101 + b"\r\n",
            b"GET / HTTP/1.0\r\nA: " + b"x" * 16_000 + b"\r\nB: " + b"x" * 1000 + b"\r\n\r\n",
            b"POST /complete HTTP/1.0\r\nContent-Length: -1\r\n\r\n",
            b"POST /complete HTTP/1.0\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
            b"GET / HTTP/1.0\r\nA: " + b"x" * 2_000_000,
        ):
            reply = await self.wire(wire)
            self.assertTrue(reply.startswith(b"HTTP/1.1 400 "), reply)
            self.assertEqual(reply.count(b"HTTP/1.1"), 1)
            self.assertTrue(
                reply.endswith(b"\r\n\r\nthis is no HTTP request, or its headers are too long\n")
            )
        self.assertEqual(self.session.callers, [])

    async def test_a_body_whose_length_was_not_said(self) -> None:
        reply = await self.wire(
            f"POST /complete?{S}&ticket=1 HTTP/1.0\r\n\r\n".encode() + result(b"1" * 100_000)
        )
        self.assertTrue(reply.startswith(b"HTTP/1.0 400 "), reply)
        self.assertTrue(reply.endswith(b"\r\n\r\nthe body is empty, expected [Result] sections\n"))

    async def test_a_chunked_body_that_breaks(self) -> None:
        abandoned = self.session.next("abandon")
        head = request("POST", f"/complete?{S}&ticket=1", None, "Transfer-Encoding: chunked")
        reply = await self.wire(head + b"5\r\n[Resu\r\nzzz\r\n")
        self.assertTrue(reply.startswith(b"HTTP/1.1 400 "), reply)
        await abandoned


class ConnectionTests(ServerCase):
    async def test_keep_alive(self) -> None:
        self.session.over = {2}

        def talk(peer: Peer) -> list[Response]:
            replies = []
            for path in (
                f"/config?{S}",
                f"/ping?{S}&ticket=1",
                f"/ping?{S}&ticket=2",
                "/nothing",
                "/config",
            ):
                peer.send(request("GET", path, version="HTTP/1.1"))
                replies.append(peer.response())
            for body in (result(b"1"), b"garbage", result(b"2")):
                peer.send(request("POST", f"/complete?{S}&ticket=1", body, version="HTTP/1.1"))
                replies.append(peer.response())
            peer.send(request("GET", f"/config?{S}", None, "Connection: close", version="HTTP/1.1"))
            replies.append(peer.response())
            assert peer.rest() == b""
            return replies

        replies = await self.run_peer(talk)
        self.assertEqual([r.status for r in replies], [200, 204, 205, 404, 400, 200, 400, 200, 200])
        self.assertEqual([r.headers.get("Connection") for r in replies], [*[None] * 8, "close"])

    async def test_keep_alive_in_http_1_0(self) -> None:
        def talk(peer: Peer) -> list[Response]:
            replies = []
            for _ in range(3):
                peer.send(request("GET", f"/config?{S}", None, "Connection: Keep-Alive"))
                replies.append(peer.response())
            peer.send(request("GET", f"/config?{S}"))
            replies.append(peer.response())
            assert peer.rest() == b""
            return replies

        replies = await self.run_peer(talk)
        self.assertEqual({r.version for r in replies}, {"HTTP/1.0"})
        self.assertEqual(
            [r.headers.get("Connection") for r in replies], ["keep-alive"] * 3 + [None]
        )

    async def test_many_requests_at_once(self) -> None:
        self.session.tasks = [task(10000 + number) for number in range(500)]

        def talk(peer: Peer) -> list[Response]:
            peer.send(request("GET", f"/task?{S}", version="HTTP/1.1") * 500)
            peer.finish_sending()
            replies = [peer.response() for _ in range(500)]
            assert peer.rest() == b""
            return replies

        replies = await self.run_peer(talk)
        for number, reply in enumerate(replies):
            self.assertTrue(reply.body.startswith(b"Ticket=%d\n" % (10000 + number)))

    async def test_a_reply_does_not_overtake_a_large_one(self) -> None:
        big = InputFile("a", self.file(bytes(20_000_000)))
        self.session.tasks = [task(10016, big), task(10017)]

        def talk(peer: Peer) -> list[Response]:
            peer.send(request("GET", f"/task?{S}", version="HTTP/1.1") * 2)
            return [peer.response() for _ in range(2)]

        large, small = await self.run_peer(talk)
        self.assertGreater(len(large.body), 20_000_000)
        self.assertTrue(small.body.startswith(b"Ticket=10017\n"))

    async def test_byte_by_byte(self) -> None:
        def talk(peer: Peer) -> Response:
            for byte in request("POST", f"/complete?{S}&ticket=1", result(b"1")):
                peer.send(bytes([byte]))
            return peer.response()

        self.assertEqual((await self.run_peer(talk)).status, 200)

    async def test_expect(self) -> None:
        def talk(peer: Peer) -> Response:
            wire = request(
                "POST",
                f"/complete?{S}&ticket=1",
                result(b"1"),
                "Expect: 100-continue",
                version="HTTP/1.1",
            )
            head, _, body = wire.partition(b"\r\n\r\n")
            peer.send(head + b"\r\n\r\n")
            assert peer.response().status == 100
            peer.send(body)
            return peer.response()

        self.assertEqual((await self.run_peer(talk)).status, 200)


class LeavingTests(ServerCase):
    """A request for a task is held while its peer stays, half-closes or leaves."""

    def talk(self, *steps: Any, headers: tuple[str, ...] = ()) -> Deferred[Any]:
        """Ask for a task, then do these in a thread; the result is that of the last."""

        def run(peer: Peer) -> Any:
            peer.send(request("GET", f"/task?{S}", None, *headers, version="HTTP/1.1"))
            answer = None
            for step in steps:
                answer = step(peer)
            return answer

        return Deferred.fromCoroutine(self.run_peer(run))

    async def test_a_peer_that_stays(self) -> None:
        asked = self.session.next("ask")
        reply = self.talk(Peer.response)
        await asked
        self.session.asks[0].callback(task())
        self.assertEqual((await reply).status, 200)
        self.assertEqual(self.session.lost, [])

    async def test_a_peer_that_is_reset(self) -> None:
        withdrawn = self.session.next("withdraw")
        await self.talk(Peer.reset)
        await withdrawn
        self.assertEqual(self.session.withdrawn, 1)

    async def test_a_client_that_announced_itself_and_closes_its_side(self) -> None:
        withdrawn = self.session.next("withdraw")
        rest = self.talk(
            Peer.finish_sending, lambda peer: peer.socket.recv(1), headers=(ANNOUNCED,)
        )
        await withdrawn
        await self.assertFailure(rest, ConnectionResetError)

    async def test_it_gets_nothing_that_is_ready_in_that_very_turn(self) -> None:
        asked, undelivered = self.session.next("ask"), self.session.next("undelivered")
        rest = self.talk(
            Peer.finish_sending, lambda peer: peer.socket.recv(1), headers=(ANNOUNCED,)
        )
        await asked
        channel, _ = self.site.channels[0]
        closes = channel.readConnectionLost

        def closed_and_answered() -> None:
            closes()
            self.session.asks[0].callback(task())

        channel.readConnectionLost = closed_and_answered  # type: ignore[method-assign]
        await undelivered
        await self.assertFailure(rest, ConnectionResetError)

    async def test_another_that_closes_its_side_is_still_answered(self) -> None:
        asked = self.session.next("ask")
        reply = self.talk(Peer.finish_sending, Peer.response)
        await asked
        await self.half_closed()
        self.assertEqual(self.session.withdrawn, 0)
        self.session.asks[0].callback(task())
        self.assertEqual((await reply).status, 200)
        await self.closed()
        self.assertEqual(self.session.lost, [])

    async def test_another_that_left_is_found_out_when_it_gets_a_task(self) -> None:
        asked = self.session.next("ask")
        await self.talk(Peer.finish_sending)  # and closes altogether
        await asked
        await self.half_closed()
        undelivered = self.session.next("undelivered")
        self.session.asks[0].callback(task())
        await undelivered
        self.assertEqual(self.session.lost, [10016])
        await self.closed()

    async def test_a_peer_that_is_reset_just_before_it_gets_its_task(self) -> None:
        asked, undelivered = self.session.next("ask"), self.session.next("undelivered")
        with Peer(self.port) as peer:
            peer.send(request("GET", f"/task?{S}", version="HTTP/1.1"))
            await asked
            peer.reset()
        # The reactor has had no turn in which to see that.
        self.session.asks[0].callback(task())
        await undelivered
        self.assertEqual(self.session.lost, [10016])
        await self.closed()

    async def test_a_peer_that_leaves_before_it_has_read_its_task(self) -> None:
        undelivered = self.session.next("undelivered")
        self.session.tasks = [task(10016, InputFile("a", self.file(bytes(50_000_000))))]
        await self.talk(lambda peer: peer.socket.recv(10))
        await undelivered
        self.assertEqual(self.session.lost, [10016])

    async def test_a_peer_that_leaves_with_the_reply_unread(self) -> None:
        asked = self.session.next("ask")
        undelivered = self.session.next("undelivered")
        there = self.talk(lambda peer: peer.socket.recv(1))
        await asked
        self.session.asks[0].callback(task(10016))
        await there
        await undelivered
        self.assertEqual(self.session.lost, [10016])

    async def test_the_next_request_says_that_the_task_arrived(self) -> None:
        self.session.tasks = [task()]

        def again(peer: Peer) -> None:
            peer.response()
            peer.send(request("GET", f"/config?{S}", version="HTTP/1.1"))
            peer.socket.recv(1)  # the rest is left unread, so this resets the connection

        await self.talk(again)
        await self.closed()
        self.assertEqual(self.session.lost, [])

    async def test_a_request_sent_ahead_does_not_say_that_the_task_arrived(self) -> None:
        asked = self.session.next("ask")
        ahead = request("GET", f"/config?{S}", version="HTTP/1.1")
        await self.talk(lambda peer: peer.send(ahead), Peer.finish_sending)  # and leaves
        await asked
        await self.half_closed()
        undelivered = self.session.next("undelivered")
        self.session.asks[0].callback(task())
        await undelivered
        self.assertEqual(self.session.lost, [10016])
        await self.closed()

    async def test_what_a_peer_that_left_has_posted_is_stored(self) -> None:
        stored = self.session.next("stored")
        self.session.gate = Deferred()

        def talk(peer: Peer) -> None:
            peer.send(request("POST", f"/complete?{S}&ticket=1", result(b"1"), ANNOUNCED))

        await self.run_peer(talk)
        await stored
        await self.closed()
        self.session.gate.callback(None)
        self.assertEqual(self.the_call().what, "complete")

    async def half_closed(self) -> None:
        """Wait until the server has seen that the peer closed its side."""
        transport = self.site.channels[0][0].transport
        while transport in self.reactor.getReaders():
            await self.turn()


class EndTests(ServerCase):
    """The master ends: who waits for an answer gets none."""

    async def ends(self, *, secure: bool) -> None:
        factory: IProtocolFactory = self.site
        if secure:
            secured = Secured(Path(self.mktemp()), factory, lambda work: succeed(work()))
            factory = (await secured.tunnel_end()).pinned
        listening = self.reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.port = listening.getHost().port

        def wait(peer: Peer) -> bytes:
            if secure:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                peer.socket = context.wrap_socket(peer.socket)
            peer.send(request("GET", f"/task?{S}", version="HTTP/1.1"))
            return peer.rest()

        asked = self.session.next("ask")
        rest = Deferred.fromCoroutine(self.run_peer(wait))
        await asked
        self.site.disconnect()
        self.assertEqual(await rest, b"")
        await self.closed()
        self.assertEqual(self.session.withdrawn, 1)
        self.flushWarnings()  # what Twisted asks of pyOpenSSL is deprecated there

    async def test_in_the_clear(self) -> None:
        await self.ends(secure=False)

    async def test_by_tls(self) -> None:
        await self.ends(secure=True)

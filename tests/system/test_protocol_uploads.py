"""``POST /complete``: three forms, every end, and bounds, while the body arrives."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tracemalloc
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from pexecd.core.values import Caller
from pexecd.errors import JournalError
from pexecd.protocol.site import READ_AT_ONCE
from tests.system.protocol_server import (
    ANNOUNCED,
    PATIENCE,
    Peer,
    Response,
    S,
    ServerCase,
    request,
    result,
)
from tests.unit.protocol.fakes import SECRET
from tests.unit.protocol.vectors import examples

COMPLETE = f"/complete?{S}&ticket=10016"
BOUNDARY = "Content-Type: multipart/form-data; boundary=XXXX"


def form(*parts: tuple[str, bytes], end: bytes = b"--XXXX--\r\n") -> bytes:
    return (
        b"".join(
            b'--XXXX\r\nContent-Disposition: form-data; name="%s"; filename="any"\r\n\r\n%s\r\n'
            % (name.encode(), content)
            for name, content in parts
        )
        + end
    )


class EndTests(ServerCase):
    """How an upload ends, for its ticket and on the wire."""

    async def test_complete(self) -> None:
        reply = await self.post(COMPLETE, result(b"0.61223"))
        self.assertEqual((reply.status, reply.body), (200, b""))
        call = self.the_call()
        self.assertEqual((call.what, call.ticket, call.seconds), ("complete", 10016, None))
        self.assertEqual(call.caller, Caller("127.0.0.1", "127.0.0.1"))
        self.assertEqual(call.upload.contents, {"output": b"0.61223"})

    async def test_what_the_client_says_of_itself(self) -> None:
        body = b"[Result]\nName=output\nLength=1\n--begin content--\n1\n--end content--\n"
        await self.post(f"{COMPLETE}&seconds=0.125&client=c7&host=node1", body, ANNOUNCED)
        call = self.the_call()
        self.assertEqual(call.seconds, 0.125)
        self.assertEqual(call.caller, Caller("c7", "node1", True, True))
        self.assertEqual(call.upload.begun, [("output", 1)])

    async def test_200_waits_until_it_is_stored(self) -> None:
        self.session.gate = Deferred()
        stored = self.session.next("stored")
        reply = Deferred.fromCoroutine(self.post(COMPLETE, result(b"1")))
        await stored
        self.assertNoResult(reply)
        self.session.gate.callback(None)
        self.assertEqual((await reply).status, 200)

    async def test_the_master_cannot_store(self) -> None:
        self.session.error = JournalError("disk full")
        reply = await self.post(COMPLETE, result(b"1"))
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))

    async def test_a_missing_result_fails_the_attempt(self) -> None:
        self.session.result_names = ("output", "spectrum")
        reply = await self.post(COMPLETE, result(b"1"))
        self.assertEqual(reply.status, 200)
        call = self.the_call()
        self.assertEqual(call.what, "fail")
        self.assertEqual(call.failure.reason, "the upload lacks the result spectrum")
        self.assertEqual(call.upload.state, "aborted")

    async def test_an_unknown_result_is_ignored(self) -> None:
        reply = await self.post(COMPLETE, result(b"x", "other") + result(b"1"))
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.the_call().upload.contents, {"output": b"1"})

    async def test_a_ticket_whose_task_has_its_result(self) -> None:
        self.session.over = {10016}
        for body in (result(b"1"), b"garbage", b""):
            reply = await self.post(COMPLETE, body)
            self.assertEqual(reply.status, 200)
        reply = await self.post(COMPLETE, form(("output", b"1")), BOUNDARY)
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.session.calls, [])

    async def test_the_same_twice(self) -> None:
        for _ in range(2):
            self.assertEqual((await self.post(COMPLETE, result(b"1"))).status, 200)
        self.assertEqual([call.what for call in self.session.calls], ["complete", "complete"])

    async def test_bad_arguments(self) -> None:
        for path, words in {
            f"/complete?{S}": b"the argument ticket is missing\n",
            "/complete?ticket=1": b"the argument sessionID is missing\n",
            f"{COMPLETE}&seconds=-1": b"the argument seconds is a time, not '-1'\n",
            f"{COMPLETE}&ticket=1": b"the argument ticket is there 2 times\n",
        }.items():
            reply = await self.post(path, result(b"1"))
            self.assertEqual((reply.status, reply.body), (400, words))
        self.assertEqual(self.session.calls, [])
        self.assertEqual(self.session.uploads, [])

    async def test_a_bug_of_ours(self) -> None:
        self.session.broken = RuntimeError("a bug")
        reply = await self.post(COMPLETE, result(b"1"))
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(self.the_call().what, "abandon")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_the_peer_breaks_off(self) -> None:
        for leave in (Peer.reset, Peer.finish_sending):
            abandoned = self.session.next("abandon")
            body = result(b"1" * 100)

            def talk(peer: Peer, leave: Any = leave, body: bytes = body) -> None:
                peer.send(request("POST", COMPLETE, body)[:-50])
                leave(peer)

            await self.run_peer(talk)
            await abandoned
            self.assertEqual(self.session.uploads[-1].state, "aborted")


class FormTests(ServerCase):
    """The founding document's body and its examples; ``multipart/form-data``."""

    async def test_examples(self) -> None:
        for file, body, entry in examples("uploads"):
            self.session.calls.clear()
            verdict = entry.get("verdict")
            names = [item["name"] for item in entry.get("value", ())]
            self.session.result_names = tuple(names) or ("output", "spectrum")
            reply = await self.post(COMPLETE, body, "Content-Type: application/octet-stream")
            self.assertEqual(reply.status, 400 if verdict == "malformed" else 200, file)
            self.assertEqual(reply.body.count(b"\n"), 1 if verdict == "malformed" else 0)
            call = self.the_call()
            ends = {None: "complete", "malformed": "abandon", "ambiguous": "fail"}
            self.assertEqual(call.what, ends[verdict], file)
            if verdict is None:
                self.assertEqual(
                    call.upload.contents,
                    {i["name"]: base64.b64decode(i["content"]) for i in entry["value"]},
                    file,
                )

    async def test_form(self) -> None:
        self.session.result_names = ("output", "spectrum")
        content = bytes(range(256)) * 3 + b"\r\n--XXX\r\n--end content--\n"
        body = form(("output", content), ("unknown", b"?"), ("spectrum", b""))
        reply = await self.post(COMPLETE, body, BOUNDARY)
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.the_call().upload.contents, {"output": content, "spectrum": b""})

    async def test_fields(self) -> None:
        fields = ("SessionID", SECRET.encode()), ("Ticket", b"10016")
        for path, parts in (
            ("/complete", (*fields, ("output", b"1"))),
            ("/complete", (fields[1], fields[0], ("output", b"1"))),
            (f"/complete?{S}", (fields[1], ("Result", b"1"))),
            ("/complete?ticket=10016", (fields[0], ("output", b"1"))),
        ):
            self.session.calls.clear()
            reply = await self.post(path, form(*parts), BOUNDARY)
            self.assertEqual((reply.status, reply.body), (200, b""))
            call = self.the_call()
            self.assertEqual((call.what, call.ticket), ("complete", 10016))
            self.assertEqual(call.upload.contents, {"output": b"1"})

    async def test_fields_that_are_wrong(self) -> None:
        session, ticket = ("SessionID", SECRET.encode()), ("Ticket", b"10016")
        output = ("output", b"1")
        late = b"the field %s is missing: put it before the results, or in the URL\n"
        for parts, status, words in (
            ((output, session, ticket), 400, late % b"SessionID"),
            ((session, output, ticket), 400, late % b"Ticket"),
            ((session, ("junk", b"1" * 70_000), ticket), 400, late % b"Ticket"),
            ((output,), 400, late % b"SessionID"),
            ((), 400, late % b"SessionID"),
            ((session, session), 400, b"the upload has the result 'SessionID' twice\n"),
            ((("SessionID", b"no"), ticket, output), 403, b"no such session\n"),
            ((session, ("Ticket", b"x"), output), 400, b"a ticket is a number, not 'x'\n"),
            ((session, ("Ticket", b"1" * 2000)), 400, b"the field Ticket is over 1024 bytes\n"),
        ):
            reply = await self.post("/complete", form(*parts), BOUNDARY)
            self.assertEqual((reply.status, reply.body), (status, words))
        self.assertEqual(self.session.uploads, [])
        self.assertEqual(self.session.calls, [])

    async def test_the_result_under_both_names(self) -> None:
        reply = await self.post(COMPLETE, form(("output", b"1"), ("Result", b"2")), BOUNDARY)
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.the_call().what, "fail")

    async def test_a_part_named_result_needs_a_session_with_one(self) -> None:
        self.session.result_names = ("output", "spectrum")
        reply = await self.post(COMPLETE, form(("Result", b"1")), BOUNDARY)
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.the_call().failure.reason, "the upload lacks the result output")

    async def test_malformed_forms(self) -> None:
        for body in (form(("output", b"1"), end=b""), b"--XXXX\r\n\r\n1\r\n--XXXX--\r\n", b"1"):
            self.session.calls.clear()
            reply = await self.post(COMPLETE, body, BOUNDARY)
            self.assertEqual(reply.status, 400)
            self.assertTrue(reply.body.startswith(b"multipart/form-data: "), reply.body)
            self.assertEqual(self.the_call().what, "abandon")
        reply = await self.post(COMPLETE, b"1", "Content-Type: multipart/form-data")
        self.assertEqual(reply.status, 400)

    async def curl(self, *arguments: str, stdin: bytes = b"") -> str:
        def run() -> str:
            done = subprocess.run(
                ["curl", "-q", "-sS", "-m", str(PATIENCE), "-w", "%{http_code}", *arguments],
                input=stdin,
                capture_output=True,
                check=True,
            )
            return done.stdout.decode()

        return await deferToThread(run)

    async def test_curl(self) -> None:
        content = bytes(range(256)) * 20_000
        path = self.file(content)
        url = f"http://127.0.0.1:{self.port}"
        expected = hashlib.sha256(content).digest()
        for arguments in (
            ("-F", f"output=@{path}", url + COMPLETE),
            ("-F", f"Result=@{path}", url + COMPLETE),
            ("--http1.0", "-F", f"output=@{path}", url + COMPLETE),
            (
                *("-F", f"SessionID={SECRET}", "-F", "Ticket=10016"),
                *("-F", f"output=@{path}", f"{url}/complete"),
            ),
            ("-H", "Expect: 100-continue", "-F", f"output=@{path}", url + COMPLETE),
            ("-H", "Transfer-Encoding: chunked", "-F", f"output=@{path}", url + COMPLETE),
        ):
            self.session.calls.clear()
            self.assertEqual(await self.curl(*arguments), "200")
            upload = self.the_call().upload
            self.assertEqual(upload.checksums["output"].digest(), expected)

    async def test_curl_posts_the_founding_body(self) -> None:
        body = result(bytes(100_000))
        url = f"http://127.0.0.1:{self.port}{COMPLETE}"
        self.assertEqual(await self.curl("--data-binary", "@-", url, stdin=body), "200")
        self.assertEqual(self.the_call().upload.contents, {"output": bytes(100_000)})

    async def test_curl_hears_of_the_limit_before_it_sends(self) -> None:
        self.session.max_result = 1000
        path = self.file(bytes(5_000_000))
        url = f"http://127.0.0.1:{self.port}{COMPLETE}"
        answer = await self.curl("-H", "Expect: 100-continue", "-F", f"output=@{path}", url)
        self.assertTrue(answer.endswith("413"), answer)
        self.assertEqual(self.the_call().upload.written, 0)


class BoundTests(ServerCase):
    async def test_a_length_over_the_limit(self) -> None:
        self.session.max_result = 100
        reply = await self.post(COMPLETE, result(b"1" * 100))
        self.assertEqual(reply.status, 413)
        self.assertEqual(reply.body, b"the upload is over max_result, 100 bytes\n")
        call = self.the_call()
        self.assertEqual((call.what, call.ticket), ("fail", 10016))
        self.assertEqual(call.failure.reason, "the upload is over max_result, 100 bytes")
        self.assertEqual(call.upload.written, 0)

    async def test_just_the_limit(self) -> None:
        body = result(b"1")
        self.session.max_result = len(body)
        self.assertEqual((await self.post(COMPLETE, body)).status, 200)
        self.assertEqual(self.the_call().what, "complete")

    async def test_no_limit_for_what_is_thrown_away(self) -> None:
        self.session.max_result = 10
        self.session.over = {10016}
        self.assertEqual((await self.post(COMPLETE, result(b"1"))).status, 200)

    async def test_an_unknown_length_over_the_limit(self) -> None:
        """The answer comes at once, while the peer is still sending."""
        self.session.max_result = 1_000_000
        head = request("POST", COMPLETE, None, "Transfer-Encoding: chunked", version="HTTP/1.1")
        start = b"[Result]\nName=output\n--begin content--\n"

        def talk(peer: Peer) -> Response:
            peer.send(head + b"%x\r\n%s\r\n" % (len(start), start))
            block = bytes(100_000)
            for _ in range(11):
                peer.send(b"%x\r\n%s\r\n" % (len(block), block))
            reply = peer.response()
            # ... and what still comes is read, lest a peer that only sends is reset.
            for _ in range(100):
                peer.send(b"%x\r\n%s\r\n" % (len(block), block))
            peer.send(b"0\r\n\r\n")
            assert peer.rest() == b""
            return reply

        reply = await self.run_peer(talk)
        self.assertEqual((reply.status, reply.headers["Connection"]), (413, "close"))
        self.assertEqual(self.the_call().what, "fail")
        self.assertLessEqual(self.the_call().upload.written, 1_000_000)

    async def test_a_refusal_comes_before_the_body(self) -> None:
        def talk(peer: Peer) -> Response:
            peer.send(request("POST", "/complete?sessionID=no&ticket=1", b"", "X: 1"))
            return peer.response()

        self.assertEqual((await self.run_peer(talk)).status, 403)

        def only_the_head(peer: Peer) -> Response:
            head = "Content-Length: 1000000000000"
            peer.send(request("POST", "/complete?sessionID=no&ticket=1", None, head))
            return peer.response()

        self.assertEqual((await self.run_peer(only_the_head)).status, 403)

    async def test_other_paths(self) -> None:
        for path, status in ((f"/failed?{S}&ticket=1", 413), ("/nothing", 404), ("/task", 405)):
            reply = await self.post(path, bytes(1_000_000))
            self.assertEqual(reply.status, status)

    async def test_back_pressure(self) -> None:
        """While the disk is behind, nothing more is read from the peer."""
        disk: Deferred[None] = Deferred()
        self.session.disk = disk
        first = self.session.next("write")
        body = result(bytes(50_000_000))
        posted = Deferred.fromCoroutine(self.post(COMPLETE, body))
        await first
        await self.turn()
        (channel, _), upload = self.site.channels[0], self.session.uploads[0]
        self.assertNotIn(channel.transport, self.reactor.getReaders())
        self.assertLessEqual(upload.written, READ_AT_ONCE)
        self.session.disk = None
        disk.callback(None)
        self.assertEqual((await posted).status, 200)
        self.assertEqual(upload.sizes, {"output": 50_000_000})

    async def test_memory_does_not_grow_with_size(self) -> None:
        block = bytes(range(256)) * 256
        count = 1024

        def post(head: bytes, start: bytes, end: bytes) -> Response:
            length = len(start) + count * len(block) + len(end)
            with Peer(self.port) as peer:
                peer.send(head.replace(b"LENGTH", b"%d" % length) + start)
                for _ in range(count):
                    peer.send(block)
                peer.send(end)
                return peer.response()

        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        plain = f"POST {COMPLETE} HTTP/1.0\r\nContent-Length: LENGTH\r\n".encode()
        start, _, end = result(b"|").partition(b"|")
        counted = start.replace(b"--begin", b"Length=%d\n--begin" % (count * len(block)))
        form_start, _, form_end = form(("output", b"|")).partition(b"|")
        for head, first, last in (
            (plain + b"\r\n", start, end),
            (plain + b"\r\n", counted, end),
            (plain + BOUNDARY.encode() + b"\r\n\r\n", form_start, form_end),
        ):
            reply = await deferToThread(post, head, first, last)
            self.assertEqual(reply.status, 200)
            self.assertEqual(self.session.uploads[-1].sizes, {"output": count * len(block)})
        _, peak = tracemalloc.get_traced_memory()
        self.assertLess(peak, 8_000_000)

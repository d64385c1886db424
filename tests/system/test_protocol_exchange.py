"""The exchange on the wire: every status, bodies that break off, peers that leave."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from pexecd.core.values import Caller, Failure
from pexecd.errors import JournalError
from pexecd.ports import TaskSupply
from pexecd.protocol.exchange import EXCHANGE_MOST, MOST_WANTED
from pexecd.protocol.wire import InputFile, ResultFile, TaskMessage
from tests.system.protocol_server import ANNOUNCED, Peer, Response, S, ServerCase, request
from tests.unit.protocol.test_exchange import complete, failed, read_supply, result
from tests.unit.protocol.vectors import FOLDER

PATH = f"/exchange?{S}&client=c7&host=node1&want="


def task(ticket: int = 10016, *inputs: InputFile) -> TaskMessage:
    return TaskMessage(ticket, 600, "true", inputs, (ResultFile("output", "stdout"),), task=7)


def exchange(body: bytes, *headers: str, want: object = 0, version: str = "HTTP/1.1") -> bytes:
    return request("POST", f"{PATH}{want}", body, ANNOUNCED, *headers, version=version)


class ExchangeTests(ServerCase):
    async def swap(self, body: bytes, *headers: str, want: object = 0) -> Response:
        return await self.post(f"{PATH}{want}", body, ANNOUNCED, *headers)

    async def test_what_was_done_for_new_tasks(self) -> None:
        self.session.tasks = [task(10020), task(10021, InputFile("stdin", b"4")), task(10022)]
        self.session.over = {10017}
        reply = await self.swap(
            complete(10016, result(b"0.61223"), 0.5)
            + failed(10015, (FOLDER / "failures/exit.bin").read_bytes())
            + b"running 10017 12.5\nwaiting 10018\nback 10019\n",
            want=2,
        )
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.headers["Content-Type"], "application/x-pexec")
        over, tasks, left = read_supply(reply.body)
        self.assertEqual((over, left), ([10017], ""))
        self.assertEqual(tasks, [task(10020), task(10021, InputFile("stdin", b"4"))])
        self.assertEqual(self.session.callers, [Caller("c7", "node1", True, True)])
        (posted,) = self.session.posted
        self.assertEqual(posted.complete, [(10016, 0.5, {"output": b"0.61223"})])
        ((ticket, failure),) = posted.failed
        self.assertEqual((ticket, failure.exit_status, failure.seconds), (10015, 3, 0.52))
        self.assertEqual(posted.running, [(10017, 12.5)])
        self.assertEqual((posted.waiting, posted.back), ([10018], [10019]))

    async def test_nothing_for_nothing(self) -> None:
        reply = await self.swap(b"")
        self.assertEqual((reply.status, reply.body), (200, b""))
        self.assertEqual(reply.headers["Content-Length"], "0")
        reply = await self.swap(b"", want=1)
        self.assertEqual((reply.status, reply.body), (200, b"end\n"))

    async def test_files_among_the_inputs(self) -> None:
        content = bytes(range(256)) * 40_000
        self.session.tasks = [
            task(10020, InputFile("a", self.file(content)), InputFile("b", self.file(b""))),
            task(10021, InputFile("a", self.file(b"small"))),
        ]
        reply = await self.swap(b"", want=5)
        over, tasks, left = read_supply(reply.body)
        self.assertEqual((over, left), ([], ""))
        self.assertTrue(tasks[0].inputs[0].content == content)
        self.assertEqual(tasks[0].inputs[1], InputFile("b", b""))
        self.assertEqual(tasks[1].inputs, (InputFile("a", b"small"),))

    async def test_a_form_is_not_parsed(self) -> None:
        for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            reply = await self.swap(b"back 10016\n", f"Content-Type: {kind}")
            self.assertEqual(reply.status, 200)
        self.assertEqual([posted.back for posted in self.session.posted], [[10016]] * 2)

    async def test_a_chunked_body(self) -> None:
        head = request("POST", f"{PATH}0", None, ANNOUNCED, "Transfer-Encoding: chunked")
        reply = await self.wire(head + b"5\r\nback \r\n6\r\n10016\n\r\n0\r\n\r\n")
        self.assertTrue(reply.startswith(b"HTTP/1.0 200 "), reply)
        self.assertEqual(self.session.posted[0].back, [10016])

    # --- what is refused -----------------------------------------------------------------------

    async def test_bad_requests_change_nothing(self) -> None:
        old = b"the exchange is for clients that announce themselves\n"
        for path, headers, body, words in (
            (f"{PATH}1", (), b"", old),
            ("/exchange?want=1", (ANNOUNCED,), b"", b"the argument sessionID is missing\n"),
            (f"/exchange?{S}", (ANNOUNCED,), b"", b"the argument want is missing\n"),
            (PATH, (ANNOUNCED,), b"", b"the argument want is empty\n"),
            (f"{PATH}-1", (ANNOUNCED,), b"", b"expected a number, not '-1'\n"),
            (f"{PATH}1&want=2", (ANNOUNCED,), b"", b"the argument want is there 2 times\n"),
            (f"{PATH}{'1' * 10}", (ANNOUNCED,), b"", b"expected a number, not '1111111111'\n"),
            (f"{PATH}1&worker=", (ANNOUNCED,), b"", b"the argument worker is empty\n"),
            (
                f"{PATH}1",
                (ANNOUNCED,),
                b"back 10016\ngone 10017\n",
                b"no such entry of an exchange: 'gone 10017'\n",
            ),
            (
                f"{PATH}1",
                (ANNOUNCED,),
                complete(10016, result(b"1")) + complete(10017, b"1"),
                b"expected Key=Value or a section, not '1'\n",
            ),
        ):  # fmt: skip
            reply = await self.post(path, body, *headers)
            self.assertEqual((reply.status, reply.body), (400, words))
        self.assertEqual(self.session.posted, [])

    async def test_wrong_session_and_wrong_worker(self) -> None:
        reply = await self.post("/exchange?sessionID=no&want=1", b"", ANNOUNCED)
        self.assertEqual((reply.status, reply.body), (403, b"no such session\n"))
        reply = await self.post(f"{PATH}1&worker=other", b"back 10016\n", ANNOUNCED)
        self.assertEqual((reply.status, reply.body), (403, b"no such worker\n"))
        reply = await self.post(f"{PATH}1&worker=ising", b"", ANNOUNCED)
        self.assertEqual(reply.status, 200)

    async def test_wrong_method(self) -> None:
        for method in ("GET", "HEAD", "PUT", "BREW"):
            wire = await self.wire(request(method, f"{PATH}1", None, ANNOUNCED))
            head, _, _ = wire.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.0 405 "), head)
            self.assertIn(b"Allow: POST", head.split(b"\r\n"))
        self.assertEqual(self.session.posted, [])

    async def test_a_body_that_is_too_long(self) -> None:
        body = b"back 10016\n"
        long = body + b"waiting 10017\n" * (EXCHANGE_MOST // 14 + 1)
        words = b"the body is over %d bytes\n" % EXCHANGE_MOST
        reply = await self.swap(long)
        self.assertEqual((reply.status, reply.body), (413, words))
        head = request("POST", f"{PATH}0", None, ANNOUNCED, "Transfer-Encoding: chunked")
        wire = await self.wire(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(long), long))
        self.assertTrue(wire.startswith(b"HTTP/1.0 413 "), wire)
        self.assertEqual(self.session.posted, [])
        most = complete(10016, result(b"x" * (EXCHANGE_MOST - 150)))
        most += b"waiting 10017\n" * 2
        self.assertLessEqual(len(most), EXCHANGE_MOST)
        self.assertEqual((await self.swap(most)).status, 200)

    async def test_a_result_that_is_too_large_fails_its_attempt_only(self) -> None:
        self.session.max_result = 100
        reply = await self.swap(complete(10016, result(b"x" * 100)) + complete(1, result(b"1")))
        self.assertEqual(reply.status, 200)
        (posted,) = self.session.posted
        self.assertEqual([ticket for ticket, _, _ in posted.complete], [1])
        self.assertEqual(
            posted.failed,
            [(10016, Failure("the upload is over max_result, 100 bytes", seconds=1.5))],
        )

    async def test_the_master_cannot_store(self) -> None:
        self.session.error = JournalError("disk full")
        reply = await self.swap(complete(10016, result(b"1")), want=1)
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(reply.body, b"the master cannot store just now\n")

    async def test_a_bug_of_ours_is_no_500(self) -> None:
        self.session.error = RuntimeError("a bug")
        reply = await self.swap(b"", want=1)
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_an_input_that_has_just_gone(self) -> None:
        gone = self.file(b"1")
        gone.unlink()
        self.session.tasks = [task(10020), task(10021, InputFile("a", gone)), task(10022)]
        reply = await self.swap(b"", want=3)
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(self.session.lost, [10020, 10021, 10022])
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 1)

    async def test_nobody_gets_more_tasks_than_there_is_sense_in(self) -> None:
        self.session.tasks = [task(10000 + number) for number in range(MOST_WANTED + 10)]
        reply = await self.swap(b"", want=999_999_999)
        self.assertEqual(len(read_supply(reply.body)[1]), MOST_WANTED)

    # --- connections -----------------------------------------------------------------------------

    async def test_keep_alive(self) -> None:
        self.session.tasks = [task(10000 + number) for number in range(9)]

        def talk(peer: Peer) -> list[Response]:
            replies = []
            for number in range(9):
                peer.send(exchange(complete(10000 + number, result(b"1")), want=1))
                replies.append(peer.response())
            peer.send(exchange(b"", want="x"))
            replies.append(peer.response())
            peer.send(exchange(b"", "Connection: close", want=1))
            replies.append(peer.response())
            assert peer.rest() == b""
            return replies

        replies = await self.run_peer(talk)
        self.assertEqual([reply.status for reply in replies], [200] * 9 + [400, 200])
        tickets = [
            message.ticket for reply in replies[:9] for message in read_supply(reply.body)[1]
        ]
        self.assertEqual(tickets, list(range(10000, 10009)))
        self.assertEqual(replies[-1].body, b"end\n")
        self.assertEqual(self.session.lost, [])

    async def test_http_1_0(self) -> None:
        self.session.tasks = [task()]

        def talk(peer: Peer) -> list[Response]:
            keep = "Connection: keep-alive"
            peer.send(exchange(b"back 1\n", keep, want=1, version="HTTP/1.0"))
            first = peer.response()
            peer.send(exchange(b"back 2\n", version="HTTP/1.0"))
            second = peer.response()
            assert peer.rest() == b""
            return [first, second]

        first, second = await self.run_peer(talk)
        self.assertEqual(first.headers["Connection"], "keep-alive")
        self.assertEqual((first.version, first.status, second.status), ("HTTP/1.0", 200, 200))
        self.assertEqual(len(self.session.posted), 2)

    async def test_byte_by_byte(self) -> None:
        def talk(peer: Peer) -> Response:
            for byte in exchange(complete(10016, result(b"1")) + b"waiting 10017\n"):
                peer.send(bytes([byte]))
            return peer.response()

        self.assertEqual((await self.run_peer(talk)).status, 200)
        self.assertEqual(self.session.posted[0].waiting, [10017])

    async def test_expect(self) -> None:
        def talk(peer: Peer) -> Response:
            head, _, body = exchange(b"back 1\n", "Expect: 100-continue").partition(b"\r\n\r\n")
            peer.send(head + b"\r\n\r\n")
            assert peer.response().status == 100
            peer.send(body)
            return peer.response()

        self.assertEqual((await self.run_peer(talk)).status, 200)

    async def test_a_body_that_breaks_off_changes_nothing(self) -> None:
        wire = exchange(b"back 10016\n" + complete(10017, result(b"1")), want=1)

        def reset(peer: Peer) -> None:
            peer.send(wire[:-5])
            peer.reset()

        def close(peer: Peer) -> None:
            peer.send(wire[:-5])
            peer.finish_sending()

        await self.run_peer(reset)
        await self.run_peer(close)
        for _, lost in self.site.channels:
            await lost
        self.assertEqual(self.session.posted, [])


class LeavingTests(ServerCase):
    """An exchange waits for the disk while its peer stays or leaves."""

    def talk(self, *steps: Any, want: int = 2) -> Deferred[Any]:
        """Exchange, then do these in a thread; the result is that of the last."""

        def run(peer: Peer) -> Any:
            peer.send(exchange(complete(10016, result(b"1")), want=want))
            answer = None
            for step in steps:
                answer = step(peer)
            return answer

        return Deferred.fromCoroutine(self.run_peer(run))

    def answer(self, *tasks: TaskMessage) -> None:
        self.session.exchanges[0].callback(TaskSupply(tasks, [], ""))

    async def test_200_waits_for_the_disk(self) -> None:
        self.session.gate = Deferred()
        asked = self.session.next("exchange")
        reply = self.talk(Peer.response)
        await asked
        self.assertNoResult(reply)
        self.answer(task(10020), task(10021))
        self.assertEqual((await reply).status, 200)
        self.assertEqual(self.session.lost, [])

    async def test_a_peer_that_is_reset(self) -> None:
        self.session.gate = Deferred()
        withdrawn = self.session.next("withdraw")
        await self.talk(Peer.reset)
        await withdrawn
        self.assertEqual(self.session.withdrawn, 1)
        self.assertEqual(len(self.session.posted), 1)

    async def test_a_peer_that_closes_its_side_has_left(self) -> None:
        self.session.gate = Deferred()
        withdrawn = self.session.next("withdraw")
        rest = self.talk(Peer.finish_sending, lambda peer: peer.socket.recv(1))
        await withdrawn
        await self.assertFailure(rest, ConnectionResetError)

    async def test_a_peer_that_leaves_with_the_answer_unread(self) -> None:
        self.session.gate = Deferred()
        asked = self.session.next("exchange")
        undelivered = self.session.next("undelivered")
        there = self.talk(lambda peer: peer.socket.recv(1))
        await asked
        self.answer(task(10020), task(10021))
        await there
        await undelivered
        await self.turn()
        self.assertEqual(self.session.lost, [10020, 10021])

    async def test_a_peer_that_leaves_within_a_long_answer(self) -> None:
        undelivered = self.session.next("undelivered")
        large = self.file(bytes(50_000_000))
        self.session.tasks = [task(10020, InputFile("a", large)), task(10021)]
        await self.talk(lambda peer: peer.socket.recv(10))
        await undelivered
        await self.turn()
        self.assertEqual(self.session.lost, [10020, 10021])

    async def test_the_next_exchange_says_that_the_tasks_arrived(self) -> None:
        self.session.tasks = [task(10020), task(10021)]

        def again(peer: Peer) -> None:
            peer.response()
            peer.send(exchange(b"running 10020 0.1\n" * 1000, want=1))
            peer.socket.recv(1)  # the rest is left unread, so this resets the connection

        await self.talk(again)
        await self.closed()
        self.assertEqual(self.session.lost, [])

    async def test_a_clean_end_says_that_the_tasks_arrived(self) -> None:
        self.session.tasks = [task(10020), task(10021)]
        await self.talk(Peer.response)
        await self.closed()
        self.assertEqual(self.session.lost, [])

    async def test_a_peer_that_leaves_without_tasks_has_lost_none(self) -> None:
        self.session.gate = Deferred()
        asked = self.session.next("exchange")
        there = self.talk(lambda peer: peer.socket.recv(1), want=0)
        await asked
        self.answer()
        await there
        await self.closed()
        self.assertEqual(self.session.lost, [])

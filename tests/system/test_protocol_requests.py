"""Every request of SPEC section 2 with every status."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from pexecd.core.values import Caller, End
from pexecd.errors import JournalError
from pexecd.ports import NoTask
from pexecd.protocol.wire import InputFile, ResultFile, TaskMessage
from tests.system.protocol_server import ANNOUNCED, Peer, S, ServerCase, request, result
from tests.unit.protocol.fakes import SECRET
from tests.unit.protocol.vectors import FOLDER

TEXT = "text/plain; charset=utf-8"


def task(*inputs: InputFile, ticket: int = 10016) -> TaskMessage:
    return TaskMessage(
        ticket,
        600,
        "ising -L 32 -T 2.2 --seed 4",
        inputs,
        (ResultFile("output", "stdout"),),
        task=17,
    )


class ConfigTests(ServerCase):
    async def test_config(self) -> None:
        reply = await self.get(f"/config?{S}")
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.body, b"DeleteWorker=Yes\nDeleteClient=No\nPing=10\n")
        self.assertEqual(reply.headers["Content-Type"], TEXT)
        self.assertEqual(reply.headers["Server"], "pexecd")
        self.assertEqual(self.session.callers, [Caller("127.0.0.1", "127.0.0.1")])

    async def test_a_client_announces_itself(self) -> None:
        await self.get(f"/config?{S}&client=c7&host=node1&platform=linux-x86_64", ANNOUNCED)
        await self.get(
            f"/config?{S}&client=c7", "Accept: text/plain, Application/X-Pexec;q=1;framing=Length"
        )
        self.assertEqual(
            self.session.callers,
            [Caller("c7", "node1", True, True), Caller("c7", "127.0.0.1", False, True)],
        )
        self.assertEqual(self.session.platforms, ["linux-x86_64", None])

    async def test_names_are_fit_for_logs(self) -> None:
        for argument in ("client=a%0Ab", "host=a%09b", "host=" + "x" * 300):
            reply = await self.get(f"/config?{S}&{argument}", ANNOUNCED)
            self.assertEqual(reply.status, 400)
            self.assertIn(b" is no name: ", reply.body)
        self.assertEqual(self.session.callers, [])

    async def test_who_does_not_announce_itself_is_known_by_address(self) -> None:
        for accept in ("Accept: */*", "Accept: application/x-pexec", "X: framing=length"):
            await self.get(f"/config?{S}&client=c7&host=node1", accept)
        self.assertEqual(set(self.session.callers), {Caller("127.0.0.1", "127.0.0.1")})

    async def test_no_executable(self) -> None:
        reply = await self.get(f"/config?{S}&platform=vax", ANNOUNCED)
        self.assertEqual((reply.status, reply.body), (415, b"no executable for vax\n"))


class PingTests(ServerCase):
    async def test_keep_on(self) -> None:
        reply = await self.get(f"/ping?{S}&ticket=10016")
        self.assertEqual((reply.status, reply.body), (204, b""))
        self.assertNotIn("Content-Length", reply.headers)

    async def test_over(self) -> None:
        self.session.over = {10016}
        reply = await self.get(f"/ping?{S}&ticket=10016")
        self.assertEqual((reply.status, reply.body), (205, b""))
        self.assertEqual(reply.headers["Content-Length"], "0")


class ErrorTests(ServerCase):
    async def test_wrong_session(self) -> None:
        paths = ("config", "ping", "worker", "task", "complete", "failed")
        for path in paths:
            for method in ("GET", "POST"):
                reply = await self.ask(request(method, f"/{path}?sessionID=no&ticket=1", b""))
                self.assertIn(reply.status, (403, 405), path)
                if reply.status == 403:
                    self.assertEqual(reply.body, b"no such session\n")
        reply = await self.post("/complete?sessionID=no", result(b"1"))
        self.assertEqual(reply.status, 403)

    async def test_arguments(self) -> None:
        for path, words in {
            "/config": b"the argument sessionID is missing\n",
            "/config?sessionID=": b"the argument sessionID is empty\n",
            f"/config?{S}&{S}": b"the argument sessionID is there 2 times\n",
            "/config?sessionID=%ff": b"the argument sessionID is not UTF-8\n",
            f"/ping?{S}": b"the argument ticket is missing\n",
            f"/ping?{S}&ticket=ten": b"a ticket is a number, not 'ten'\n",
            f"/ping?{S}&ticket=%D9%A1": b"a ticket is a number, not '\\u0661'\n",
            f"/ping?{S}&ticket={'1' * 19}": b"a ticket is a number, not '1111111111111111111'\n",
            f"/worker?{S}&name=ising": b"the argument platform is missing\n",
            f"/worker?{S}&platform=any": b"the argument name is missing\n",
            f"/failed?{S}": b"the argument ticket is missing\n",
        }.items():
            reply = await self.get(path)
            self.assertEqual((reply.status, reply.body), (400, words), path)
            self.assertEqual(reply.headers["Content-Type"], TEXT)
        self.assertEqual(self.session.calls, [])

    async def test_unknown_paths(self) -> None:
        for method in ("GET", "POST", "HEAD", "BREW"):
            for path in ("/", "/nothing", "/config/", f"/task/more?{S}", "*"):
                reply = await self.wire(request(method, path))
                self.assertTrue(reply.startswith(b"HTTP/1.0 404 "), reply)

    async def test_wrong_method(self) -> None:
        for method, path, allowed in (
            ("HEAD", "/task", "GET"),
            ("POST", "/task", "GET"),
            ("PUT", "/worker", "GET"),
            ("DELETE", "/ping", "GET"),
            ("GET", "/complete", "POST"),
            ("HEAD", "/complete", "POST"),
            ("HEAD", "/failed", "GET, POST"),
            ("BREW", "/failed", "GET, POST"),
        ):
            wire = await self.wire(request(method, f"{path}?{S}&ticket=10000"))
            head, _, body = wire.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.0 405 "), head)
            self.assertIn(f"Allow: {allowed}".encode(), head.split(b"\r\n"))
            self.assertEqual(body == b"", method == "HEAD")
        self.assertEqual(self.session.callers, [])
        self.assertEqual(self.session.calls, [])

    async def test_a_bug_of_ours_is_no_500(self) -> None:
        self.session.tasks = [RuntimeError("a bug")]
        reply = await self.get(f"/task?{S}")
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertNotIn(b"bug", reply.body)
        (failure,) = self.flushLoggedErrors(RuntimeError)
        self.assertNotIn(SECRET, str(failure))

    async def test_the_session_id_is_never_logged(self) -> None:
        self.session.tasks = [task(), RuntimeError("a bug"), task(InputFile("a", Path("gone")))]
        with capturedLogs() as events:
            for path in ("config", "task", "task", "task", "nothing", "ping"):
                await self.get(f"/{path}?{S}")
            await self.post(f"/complete?{S}&ticket=1", b"garbage")
        self.assertEqual(len(self.flushLoggedErrors()), 2)
        self.assertTrue(any("<GET '/task'> failed" in formatEvent(event) for event in events))
        for event in events:
            said = repr(event) + str(event.get("log_failure", "")) + formatEvent(event)
            self.assertNotIn(SECRET, said)
            self.assertNotIn(S, said)

    async def test_an_absolute_address(self) -> None:
        """The founding document writes ``GET http://master/config``."""
        reply = await self.get(f"http://master/config?{S}")
        self.assertEqual(reply.status, 200)


class WorkerTests(ServerCase):
    async def test_worker(self) -> None:
        content = os.urandom(3_000_000)
        self.session.workers["ising", "linux-x86_64"] = self.file(content)
        reply = await self.get(f"/worker?{S}&name=ising&platform=linux-x86_64")
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.headers["Content-Type"], "application/octet-stream")
        self.assertTrue(reply.body == content)

    async def test_an_empty_worker(self) -> None:
        self.session.workers["ising", "any"] = self.file(b"")
        reply = await self.get(f"/worker?{S}&name=ising&platform=any")
        self.assertEqual((reply.status, reply.body), (200, b""))

    async def test_wrong_name_and_platform(self) -> None:
        reply = await self.get(f"/worker?{S}&name=other&platform=any")
        self.assertEqual((reply.status, reply.body), (403, b"no such worker\n"))
        reply = await self.get(f"/worker?{S}&name=ising&platform=vax")
        self.assertEqual((reply.status, reply.body), (415, b"no executable for vax\n"))

    async def test_a_worker_that_is_not_there(self) -> None:
        self.session.workers["ising", "any"] = Path("gone")
        reply = await self.get(f"/worker?{S}&name=ising&platform=any")
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 1)

    async def test_a_peer_that_leaves_within_it(self) -> None:
        self.session.workers["ising", "any"] = self.file(bytes(20_000_000))

        def talk(peer: Peer) -> None:
            peer.send(request("GET", f"/worker?{S}&name=ising&platform=any"))
            peer.socket.recv(10)

        await self.run_peer(talk)
        await self.closed()


class TaskTests(ServerCase):
    async def test_plain(self) -> None:
        self.session.tasks = [task(InputFile("stdin", b"4"))]
        reply = await self.get(f"/task?{S}&worker=ising")
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.headers["Content-Type"], "application/x-pexec")
        self.assertEqual(reply.body, (FOLDER / "tasks/stdin.bin").read_bytes())
        self.assertEqual(self.session.lost, [])

    async def test_framed(self) -> None:
        self.session.tasks = [task(InputFile("stdin", b"4"))]
        reply = await self.get(f"/task?{S}", ANNOUNCED)
        self.assertEqual(reply.body, (FOLDER / "tasks/stdin-framed.bin").read_bytes())

    async def test_inputs_from_files(self) -> None:
        large, small = os.urandom(2_000_000), b"4"
        paths = self.file(large), self.file(small)
        for headers in ((), (ANNOUNCED,)):
            self.session.tasks = [
                task(InputFile("a", paths[0]), InputFile("b", paths[1]), InputFile("c", b"x"))
            ]
            reply = await self.get(f"/task?{S}", *headers)
            self.assertEqual(reply.status, 200)
            for content in (large, small, b"x"):
                length = b"Length=%d\n" % len(content) if headers else b""
                self.assertTrue(
                    length + b"--begin content--\n" + content + b"\n--end content--\n" in reply.body
                )
        self.assertEqual(self.session.lost, [])

    async def test_an_input_that_is_not_there(self) -> None:
        self.session.tasks = [task(InputFile("a", Path("gone")))]
        reply = await self.get(f"/task?{S}")
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(self.session.lost, [10016])
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 1)

    async def test_no_task_left(self) -> None:
        for headers in ((), (ANNOUNCED,)):
            self.session.tasks = [NoTask(None)]
            reply = await self.get(f"/task?{S}", *headers)
            self.assertEqual((reply.status, reply.body), (503, b"no task is left\n"))
            self.assertNotIn("Retry-After", reply.headers)

    async def test_none_just_now(self) -> None:
        self.session.tasks = [NoTask(7), NoTask(7)]
        reply = await self.get(f"/task?{S}", ANNOUNCED)
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "7"))
        reply = await self.get(f"/task?{S}")
        self.assertEqual(reply.status, 503)
        self.assertNotIn("Retry-After", reply.headers)

    async def test_wrong_worker(self) -> None:
        reply = await self.get(f"/task?{S}&worker=other")
        self.assertEqual((reply.status, reply.body), (403, b"no such worker\n"))

    async def test_the_master_cannot_store(self) -> None:
        self.session.tasks = [JournalError("disk full")]
        reply = await self.get(f"/task?{S}", ANNOUNCED)
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))
        self.assertEqual(reply.body, b"the master cannot store just now\n")


class FailedTests(ServerCase):
    async def test_without_a_body(self) -> None:
        reply = await self.get(f"/failed?{S}&ticket=10016")
        self.assertEqual((reply.status, reply.body), (200, b""))
        call = self.the_call()
        self.assertEqual((call.what, call.ticket, call.upload), ("fail", 10016, None))
        self.assertEqual(call.failure.reason, "the client gave no reason")

    async def test_with_a_body(self) -> None:
        body = (FOLDER / "failures/timeout.bin").read_bytes()
        reply = await self.post(f"/failed?{S}&ticket=10016&client=c7&host=node1", body, ANNOUNCED)
        self.assertEqual(reply.status, 200)
        call = self.the_call()
        self.assertEqual(call.caller, Caller("c7", "node1", True, True))
        self.assertEqual(call.failure.end, End.TIMED_OUT)
        self.assertEqual(call.failure.stderr, b"--end content--\nx")

    async def test_a_form_is_not_parsed(self) -> None:
        reply = await self.post(
            f"/failed?{S}&ticket=10016",
            b"ticket=1&why=disk+full",
            "Content-Type: application/x-www-form-urlencoded",
        )
        self.assertEqual(reply.status, 200)
        self.assertEqual(self.the_call().failure.reason, "ticket=1&why=disk+full")

    async def test_a_body_that_is_too_long(self) -> None:
        reply = await self.post(f"/failed?{S}&ticket=10016", b"x" * 70_000)
        self.assertEqual((reply.status, reply.body), (413, b"the body is over 65536 bytes\n"))
        self.assertEqual(self.the_call().what, "fail")

    async def test_200_waits_for_the_journal(self) -> None:
        self.session.gate = Deferred()
        stored = self.session.next("stored")
        reply = self.get(f"/failed?{S}&ticket=10016")
        asked = Deferred.fromCoroutine(reply)
        await stored
        self.assertNoResult(asked)
        self.session.gate.callback(None)
        self.assertEqual((await asked).status, 200)

    async def test_the_master_cannot_store(self) -> None:
        self.session.error = JournalError("disk full")
        reply = await self.get(f"/failed?{S}&ticket=10016")
        self.assertEqual((reply.status, reply.headers["Retry-After"]), (503, "5"))

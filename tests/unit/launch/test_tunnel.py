"""How long a tunnel is kept, and what for; with a host of the test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pexecd.errors import ForwardRefusedError, HostError
from pexecd.jobs.values import HostSpec
from pexecd.launch.errors import RUNNING, STARTED, LoginUnusableError
from pexecd.launch.launcher import OLD_CLIENT_PAUSE, Launcher
from pexecd.launch.tunnel import TunnelFailedError
from pexecd.ports import ClientOrder, CommandResult, IConnection, TunnelEnd
from tests.unit.launch.test_launcher import ScriptedConnector, Watcher, ended

PLAIN, PINNED = Factory(), Factory()
END = TunnelEnd(PLAIN, PINNED, "ab" * 32)


class Lost(HostError):
    pass


@implementer(IConnection)
class Host:
    """Understands the scripts for tunnels; ``starts`` are the exit statuses of the others."""

    def __init__(self, *starts: int, sockets: bool = True, ports: bool = True) -> None:
        self.lost: Deferred[HostError] = Deferred()
        self.did: list[str] = []
        #: The exit status of a start, once no more are named.
        self.status = STARTED
        self.server = ""
        self.told: list[str] = []
        self.folder = CommandResult(0, None, b"hello\n%s begins\n%s is in /tmp/pexec-7\n", b"")
        self.places: list[tuple[str | None, Any]] = []
        self._starts = list(starts)
        self._may = {True: sockets, False: ports}

    def run(self, command: str, stdin: bytes, timeout: float) -> Deferred[CommandResult]:
        script, *lines = stdin.decode().splitlines()
        if "is in" in script:
            self.did.append("prepare")
            said = self.folder.stdout.replace(b"%s", lines[0].encode())
            return succeed(CommandResult(self.folder.status, None, said, self.folder.stderr))
        if "is told" in script:
            self.did.append("tell")
            self.server = lines[1]
            return succeed(CommandResult(0, None, f"{lines[0]} is told\n".encode(), b""))
        if "rmdir" in script:
            self.did.append("remove")
            return succeed(CommandResult(0, None, b"", b""))
        self.did.append("start")
        self.told += [line for line in lines if line.startswith("Server=")]
        return succeed(ended(self._starts.pop(0) if self._starts else self.status))

    def copy(self, source: Path, target: str, mode: int, timeout: float) -> Deferred[None]:
        raise NotImplementedError

    def forward(self, socket: str | None, factory: Any) -> Deferred[int]:
        if not self._may[socket is not None]:
            return fail(ForwardRefusedError("node7", "forward", "no"))
        self.places.append((socket, factory))
        return succeed(0 if socket else 4711)

    def close(self) -> Deferred[None]:
        self.did.append("close")
        return succeed(None)

    def break_off(self) -> None:
        self.lost.callback(Lost("node7", "open", "the cable"))


class TestTunnels(SynchronousTestCase):
    def launch(self, *hosts: Host | Deferred[Host]) -> Launcher:
        self.clock, self.watcher = Clock(), Watcher()
        for host in hosts:
            if isinstance(host, Host):
                verifyObject(IConnection, host)
        self.connector = ScriptedConnector(list(hosts))
        self.launcher = Launcher(
            self.clock,
            [HostSpec("node7", "node7")],
            lambda _: ClientOrder("secret", "public", ""),
            self.watcher,
            self.connector,
            tunnel_end=lambda: succeed(END),
            jitter=lambda: 0.0,
        )
        self.launcher.start()
        return self.launcher

    def end(self, how: Any) -> None:
        ending = how()
        self.clock.advance(0)
        self.successResultOf(ending)

    def tearDown(self) -> None:
        self.end(self.launcher.stop)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_leads_from_a_socket_and_stays(self) -> None:
        host = Host()
        self.launch(host)
        self.assertEqual(self.watcher.heard, ["started node7"])
        self.assertEqual(host.did, ["prepare", "tell", "start"])
        ((socket, factory),) = host.places
        self.assertRegex(socket or "", r"^/tmp/pexec-7/[0-9a-f]{24}-[0-9a-f]{8}\.socket$")
        self.assertEqual((host.server, factory), (f"unix:{socket}", PLAIN))
        file = re.sub(r"-\w+\.socket$", ".server", socket or "")
        self.assertEqual(host.told, [f"Server=file:{file}"])
        self.end(self.launcher.stop)
        self.assertEqual(host.did[3:], ["remove", "close"])

    def test_where_sockets_are_forbidden_it_is_a_port_with_tls(self) -> None:
        host = Host(sockets=False)
        self.launch(host)
        self.assertEqual(host.places, [(None, PINNED)])
        self.assertEqual(host.server, f"https://127.0.0.1:4711#{END.fingerprint}")

    def test_where_all_is_forbidden_that_is_final(self) -> None:
        host = Host(sockets=False, ports=False)
        self.launch(host)
        self.assertEqual(self.watcher.heard, ["failed node7 for good"])
        self.assertEqual(host.did, ["prepare", "remove", "close"])

    def test_no_folder_for_it(self) -> None:
        host = Host()
        host.folder = CommandResult(1, None, b"%s begins\n", b"/tmp/pexec-7 is another user's")
        self.launch(host)
        (error,) = self.watcher.errors
        self.assertIsInstance(error, TunnelFailedError)
        self.assertIn("is another user's", str(error))

    def test_a_login_that_runs_nothing(self) -> None:
        host = Host()
        host.folder = CommandResult(1, None, b"This account is not available\n", b"")
        self.launch(host)
        self.assertIsInstance(self.watcher.errors[0], LoginUnusableError)
        self.assertEqual(self.watcher.errors[0].said, "This account is not available")

    def test_a_start_up_file_that_does_not_end_its_line(self) -> None:
        """As those that give a terminal a title."""
        host = Host()
        said = b"\033]0;node7\007%s begins\n%s is in /tmp/pexec-7\n"
        host.folder = CommandResult(0, None, said, b"")
        self.launch(host)
        self.assertEqual(self.watcher.heard, ["started node7"])

    def test_it_comes_back_at_another_place_that_the_same_file_names(self) -> None:
        first, second = Host(), Host(RUNNING)
        self.launch(first, second)
        first.break_off()
        self.assertEqual(self.watcher.heard, ["started node7", "failed node7"])
        self.assertIn("the cable", str(self.watcher.errors[0]))
        self.clock.advance(1)
        self.assertEqual(self.watcher.heard[2:], ["started node7"])
        self.assertNotEqual(second.places, first.places)
        self.assertEqual(second.server, f"unix:{second.places[0][0]}")
        self.assertEqual(second.told, first.told)

    def test_a_client_that_is_missed_is_started_through_the_same_tunnel(self) -> None:
        host = Host(STARTED, RUNNING)
        self.launch(host)
        self.launcher.revive("node7")
        self.assertEqual(host.did, ["prepare", "tell", "start", "start"])
        self.assertEqual(self.watcher.heard, ["started node7"] * 2)
        self.launcher.revive("node7")
        self.assertEqual(self.watcher.heard, ["started node7"] * 3)

    def test_one_that_is_to_be_replaced_needs_it_to_the_end(self) -> None:
        host = Host(STARTED, RUNNING, RUNNING, STARTED)
        self.launch(host)
        self.launcher.change([HostSpec("node7", "node7", slots=3)])
        self.assertEqual(self.watcher.heard[-1], "outdated node7")
        self.clock.advance(OLD_CLIENT_PAUSE)
        self.clock.advance(OLD_CLIENT_PAUSE)
        self.assertEqual(self.watcher.heard[-1], "started node7")
        self.assertEqual(host.did, ["prepare", "tell", *["start"] * 4])

    def test_a_host_that_is_gone_keeps_it_for_what_runs_there(self) -> None:
        host = Host()
        self.launch(host)
        self.launcher.change([])
        self.launcher.revive("node7")
        self.assertEqual(host.did, ["prepare", "tell", "start"])

    def test_clients_hear_of_the_end_before_it_is_closed(self) -> None:
        host = Host()
        self.launch(host)
        self.end(self.launcher.wind_down)
        self.launcher.revive("node7")
        self.assertEqual(host.did, ["prepare", "tell", "start"])
        self.end(self.launcher.stop)
        self.assertEqual(host.did[3:], ["remove", "close"])

    def test_clients_of_an_earlier_master_hear_of_an_end_that_comes_at_once(self) -> None:
        host, connecting = Host(), Deferred[Host]()
        self.launch(connecting)
        self.end(self.launcher.wind_down)
        connecting.callback(host)
        self.assertEqual(host.did, ["prepare", "tell"])
        self.end(self.launcher.stop)
        self.assertEqual(host.did[2:], ["remove", "close"])

    def test_nothing_is_removed_under_clients_that_carry_on(self) -> None:
        host = Host()
        self.launch(host)
        self.end(self.launcher.leave)
        self.assertEqual(host.did[3:], ["close"])

    def test_nothing_is_begun_anew_during_the_end(self) -> None:
        first = Host()
        self.launch(first, Host())
        self.end(self.launcher.wind_down)
        first.break_off()
        self.clock.advance(1000)
        self.assertEqual(len(self.connector.left), 1)

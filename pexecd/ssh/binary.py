"""The system's ssh, for what Conch cannot do.

It logs in and then shares its connection by a control socket in a folder of ours (``mux``). It goes
to the background once it is logged in, and ends by itself when nobody has used it for some seconds:
so a master that is killed leaves nothing behind. A shared connection that the user has open is
used as it is, and never ended.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlinePassedError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from pexecd.errors import HostError
from pexecd.ssh.errors import (
    ConnectionLostError,
    HostKeyChangedError,
    HostKeyRevokedError,
    HostKeyUnknownError,
    JumpRefusedError,
    KeysRejectedError,
    NameUnknownError,
    NoCommonAlgorithmError,
    NoRouteError,
    NotSSHError,
    PeerVanishedError,
    ProxyCommandError,
    RefusedError,
    SettingsError,
    ThrottledError,
    TimedOutError,
)
from pexecd.ssh.mux import (
    CLOSE_FORWARD,
    OPEN,
    TERMINATE,
    MuxConnection,
    MuxError,
    MuxTransport,
    ask_ssh,
    enter_ssh,
)
from pexecd.ssh.process import Program
from pexecd.ssh.settings import Settings, name_of_jump, parse_jump
from pexecd.ssh.transport import AUTHENTICATE, GREETING, KEY_EXCHANGE, Deadlines

CONNECT = "connect"

#: An ssh that nobody uses ends after so many seconds.
IDLE = 15
#: A control socket's path, with what ssh appends to it while it makes one.
LONGEST_SOCKET_PATH = 107 - 17
#: So much of what ssh wrote is looked at.
MOST_WORDS = 16 * 1024
#: Shells that know ``2>>``.
SHELLS = ("sh", "bash", "dash", "ksh", "zsh")

#: What ssh says (in English), what that means, and at which stage; the first that fits counts.
SAYINGS: tuple[tuple[str, type[HostError], str, str], ...] = (
    ("Could not resolve hostname", NameUnknownError, CONNECT, "the name has no address"),
    ("REVOKED HOST KEY", HostKeyRevokedError, KEY_EXCHANGE, "its host key is revoked"),
    ("is revoked", HostKeyRevokedError, KEY_EXCHANGE, "its host key is revoked"),
    ("IDENTIFICATION HAS CHANGED", HostKeyChangedError, KEY_EXCHANGE, "its host key has changed"),
    ("host key is known for", HostKeyUnknownError, KEY_EXCHANGE, "its host key is not known"),
    ("Host key verification failed", HostKeyUnknownError, KEY_EXCHANGE, "its host key is no good"),
    ("Unable to negotiate", NoCommonAlgorithmError, KEY_EXCHANGE, "no common algorithm"),
    ("Permission denied", KeysRejectedError, AUTHENTICATE, "could not log in"),
    ("Too many authentication failures", KeysRejectedError, AUTHENTICATE, "could not log in"),
    ("MaxStartups", ThrottledError, GREETING, "the SSH server is too busy"),
    ("Not allowed at this time", ThrottledError, GREETING, "the SSH server is too busy"),
    ("invalid characters", NotSSHError, GREETING, "what answers is no SSH server"),
    ("Bad remote protocol version", NotSSHError, GREETING, "what answers is no SSH server"),
    ("invalid format", NotSSHError, GREETING, "what answers is no SSH server"),
    ("during banner exchange", TimedOutError, GREETING, "no answer in stage 'greeting'"),
    ("administratively prohibited", JumpRefusedError, CONNECT, "a jump host forwards nothing"),
    ("Connection refused", RefusedError, CONNECT, "connection refused"),
    ("No route to host", NoRouteError, CONNECT, "no connection"),
    ("unreachable", NoRouteError, CONNECT, "no connection"),
    ("Name or service not known", NameUnknownError, CONNECT, "the name has no address"),
    ("timed out", TimedOutError, CONNECT, "no connection in time"),
    ("not responding", PeerVanishedError, OPEN, "no sign of life"),
    ("onfiguration option", SettingsError, CONNECT, "ssh does not take its settings"),
)


def explain(host: str, said: str, proxy_said: str, gate: str) -> HostError:
    """Tell by what ssh wrote why it did not connect.

    Args:
        host: its name in messages.
        said: by ssh (``LC_ALL=C``).
        proxy_said: by the command that leads to the host, or the ssh to its jump host.
        gate: that jump host; empty: there is none.
    """
    through = "UNKNOWN port" in said  # what ssh calls the far end of a command
    words = proxy_said if through and proxy_said.strip() else said
    hung_up = "kex_exchange_identification" in said
    for saying, kind, stage, what in SAYINGS:
        if saying in words:
            at_gate = words is proxy_said and gate and "stdio forwarding failed" not in words
            place = f"jump host {gate}: " if at_gate else ""
            error = kind(host, stage, place + what, _line(words, saying))
            error.gate = gate if at_gate else ""
            return error
    if through:
        what = f"the way by {gate or 'ProxyCommand'} ended before the host said anything"
        return ProxyCommandError(host, CONNECT, what, words)
    if hung_up:
        what = "the SSH server hung up in place of a greeting"
        return ThrottledError(host, GREETING, what, said)
    return ConnectionLostError(host, CONNECT, "ssh could not connect", said)


def _line(words: str, saying: str) -> str:
    return next(line for line in words.splitlines() if saying in line).strip("@ ")


@dataclass(frozen=True, slots=True)
class _Folder:
    """What belongs to one ssh of ours; nobody else may enter."""

    path: Path

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def proxy_log(self) -> Path:
        return self.path / "proxy"

    def said(self) -> tuple[str, str]:
        """What ssh, and the command that leads to the host, wrote. Blocks."""
        return _tail(self.log), _tail(self.proxy_log)

    def remove(self) -> None:
        """Blocks."""
        shutil.rmtree(self.path, ignore_errors=True)


def _make_folder() -> _Folder:
    for parent in (None, "/tmp"):  # noqa: S108 - a new folder there is safe
        path = Path(tempfile.mkdtemp(prefix="pexecd-ssh-", dir=parent))
        if len(os.fsencode(path / "control")) <= LONGEST_SOCKET_PATH:
            break
        path.rmdir()
    return _Folder(path)


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - MOST_WORDS))
            return opened.read(MOST_WORDS).decode("utf-8", "replace")
    except OSError:
        return ""


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and len(os.fsencode(path)) <= 107
    except (OSError, ValueError):
        return False


class SystemSSH:
    """Connects by the system's ssh."""

    def __init__(self, reactor: Any, environ: Mapping[str, str], deadlines: Deadlines) -> None:
        self._reactor = reactor
        self._environ = dict(environ)
        # Nobody is there to be asked. (BatchMode sees to that in ssh itself, but not in another
        # ssh that its ProxyCommand may start.)
        self._environ |= {
            "LC_ALL": "C",
            "SSH_ASKPASS": "/bin/false",
            "SSH_ASKPASS_REQUIRE": "force",
        }
        self._deadlines = deadlines
        self._log = Logger()

    async def shared(self, host: str, settings: Settings) -> MuxConnection | None:
        """The connection that the user has open and shares (ControlMaster), if there is one."""
        path = settings.control_path
        if path is None or not await self._in_thread(_is_socket, path):
            return None
        folder = await self._in_thread(_make_folder)
        transport = self._transport(host, path, folder)
        try:
            connection = await enter_ssh(self._reactor, path, transport, self._deadlines.connect)
        except MuxError as problem:
            await self._in_thread(folder.remove)
            self._log.info(
                "{host}: the shared connection at {path} is not used: {problem}",
                host=host,
                path=path,
                problem=problem,
            )
            return None
        except BaseException:
            await self._in_thread(folder.remove)
            raise
        transport.finish = lambda error: Deferred.fromCoroutine(
            self._leave(folder, transport, error)
        )
        return connection

    async def connect(self, host: str, settings: Settings) -> MuxConnection:
        """Log in.

        Raises:
            HostError: of the class that fits what ssh said.
        """
        folder = await self._in_thread(_make_folder)
        control = str(folder.control)
        transport = self._transport(host, control, folder)
        try:
            await self._start(host, settings, folder)
            connection = await enter_ssh(self._reactor, control, transport, self._deadlines.channel)
        except MuxError as problem:
            await self._end(folder, transport.pid)
            what = "the connection of the local ssh cannot be used"
            raise ConnectionLostError(host, OPEN, what, str(problem)) from problem
        except BaseException:
            await self._end(folder, transport.pid)
            raise
        transport.finish = lambda error: Deferred.fromCoroutine(
            self._finish(folder, transport.pid, error)
        )
        return connection

    def _transport(self, host: str, control: str, folder: _Folder) -> MuxTransport:
        limits = self._deadlines.channel, self._deadlines.close
        return MuxTransport(host, self._reactor, control, folder.path, *limits)

    # --- beginning ---------------------------------------------------------------------------

    async def _start(self, host: str, settings: Settings, folder: _Folder) -> None:
        options = self._options(settings, folder)
        command = [*settings.command, *settings.config, *options, *settings.target]
        ssh = Program(self._reactor, command, self._environ)
        stages = self._deadlines
        limit = (settings.connect_timeout or stages.connect) + stages.greeting
        limit += stages.key_exchange + stages.authenticate
        try:
            status, _, err = await ssh.ended.addTimeout(limit, self._reactor)
        except DeadlinePassedError:
            said, proxy_said = await self._in_thread(folder.said)
            what = f"ssh did not log in within {limit:g} s"
            raise TimedOutError(host, CONNECT, what, said + proxy_said) from None
        finally:
            await ssh.gone
        if status != 0:
            said, proxy_said = await self._in_thread(folder.said)
            gate = name_of_jump(settings.jumps[-1]) if settings.jumps else ""
            raise explain(host, err.decode("utf-8", "replace") + said, proxy_said, gate)

    def _options(self, settings: Settings, folder: _Folder) -> list[str]:
        limit = settings.connect_timeout or self._deadlines.connect
        options = {
            "BatchMode": "yes",
            "ControlMaster": "yes",
            "ControlPersist": str(IDLE),
            "StrictHostKeyChecking": "accept-new" if settings.accept_new else "yes",
            "ConnectTimeout": str(max(1, round(limit))),
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "LogLevel": "INFO",
        }
        if settings.alive_interval is None:
            interval = max(1, round(self._deadlines.keepalive))
            count = max(1, round(self._deadlines.silence / interval) - 1)
            options |= {"ServerAliveInterval": str(interval), "ServerAliveCountMax": str(count)}
        way = self._way(settings, folder)
        if way:
            options["ProxyCommand"] = way
        # ssh fills in % in the socket's path, too
        control = str(folder.control).replace("%", "%%")
        words = ["-N", "-T", "-S", control, "-E", str(folder.log)]
        return words + [
            word for name, value in options.items() for word in ("-o", f"{name}={value}")
        ]

    def _way(self, settings: Settings, folder: _Folder) -> str:
        """A ProxyCommand whose words are kept; ssh in the background would throw them away.

        Empty: the user's own, as it is.
        """
        shell = self._environ.get("SHELL") or "/bin/sh"  # as ssh chooses it
        if os.path.basename(shell) not in SHELLS:
            return ""
        command = settings.proxy_command
        if command:
            # ssh puts an `exec` in front, too; and there may be more than one command
            command = f"{shlex.quote(shell)} -c {shlex.quote(f'exec {command}')}"
        elif settings.jumps:
            *before, last = settings.jumps
            try:
                jump = parse_jump(last)
            except ValueError:
                return ""
            words = [*settings.command, *settings.config, "-o", "BatchMode=yes"]
            words += [
                "-o",
                f"StrictHostKeyChecking={'accept-new' if settings.accept_new else 'yes'}",
            ]
            if before:
                words += ["-J", ",".join(before)]
            if jump.port is not None:
                words += ["-p", str(jump.port)]
            if jump.user is not None:
                words += ["-l", jump.user]
            quoted = [shlex.quote(word.replace("%", "%%")) for word in words]
            command = " ".join([*quoted, "-W '[%h]:%p'", "--", shlex.quote(jump.address)])
        log = shlex.quote(str(folder.proxy_log)).replace("%", "%%")
        return f"{command} 2>>{log}" if command else ""

    # --- end -----------------------------------------------------------------------------------

    async def _finish(self, folder: _Folder, pid: int, error: HostError) -> HostError:
        """End the ssh, and learn more of why, if it has ended by itself."""
        said, _ = await self._in_thread(folder.said)
        await self._end(folder, pid)
        lines = said.strip().splitlines()
        if "closed by pexecd" in error.what or not lines:
            return error
        kind = PeerVanishedError if "not responding" in said else ConnectionLostError
        return kind(error.host, OPEN, "connection lost", lines[-1])

    async def _leave(self, folder: _Folder, transport: MuxTransport, error: HostError) -> HostError:
        """Leave the user's ssh as it was."""
        for forward in transport.forwards:
            with suppress(MuxError):
                await transport.ask(CLOSE_FORWARD, forward, self._deadlines.close)
        await self._in_thread(folder.remove)
        return error

    async def _end(self, folder: _Folder, pid: int) -> None:
        control, limit = str(folder.control), self._deadlines.close
        if await self._in_thread(_is_socket, control):
            try:
                await ask_ssh(self._reactor, control, limit, TERMINATE)
            except MuxError:
                # it was there just now: if it does not answer it hangs
                if pid and await self._in_thread(_is_listening, control):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        await self._in_thread(folder.remove)

    def _in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *args)


def _is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True

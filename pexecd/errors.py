"""The error tree, cut by who must act.

Every message is one line that says what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pexecd.units import Seconds

#: Exit status for bad files and usage (SPEC section 4).
BAD_INPUT = 2

#: So many characters of a peer's own words are passed on.
MOST_WORDS = 300


def spoken(host: str) -> str:
    """A host's name in messages: ``:``, this computer's in cluster files, says little there."""
    return "this computer" if host == ":" else host


class PexecdError(Exception):
    """The root of all errors that pexecd raises on purpose."""


class Mistake(NamedTuple):
    """One mistake in a file that a user wrote."""

    #: The file as the user named it.
    file: str
    #: Counted from 1; 0 when the mistake is the whole file's (it is missing, say).
    line: int
    #: What is wrong, and what was expected.
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.text}"


class BadInputError(PexecdError):
    """The user's files or arguments are wrong: exit status 2, nothing was started."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = tuple(mistakes)


class StateError(PexecdError):
    """The state folder cannot be used: foreign, newer, held by another master."""


class JournalError(PexecdError):
    """The disk refused to keep a record or a result; nothing was confirmed."""


class RequestRejectedError(PexecdError):
    """A peer's request was wrong: it is answered, and nothing has changed."""

    status = 400


class WrongSessionError(RequestRejectedError):
    """No such session, or the worker named is not this session's."""

    status = 403


class WrongPlatformError(RequestRejectedError):
    """There is no executable of the worker for the platform that was named."""

    status = 415


class BodyTooLargeError(RequestRejectedError):
    """The body is over the job's ``max_result``."""

    status = 413


class HostError(PexecdError):
    """A host could not be used. ``str()`` of it is the one-line reason for people.

    Attributes:
        host: the name of the host in the cluster file.
        stage: what was being done: ``connect``, ``authenticate``, ``start``, ``copy``...
        said: the peer's own words, in one line; empty if there were none.
        retry: whether trying again later can help.
        least_pause: how long to wait at least before trying again (seconds).
        busy: it may well work then, for the host was too busy, and nothing else.
        advice: what a person can do about it; part of the message.
        what: what happened, without the peer's words and advice.
        gate: the jump host where it happened; empty: at the host itself.
    """

    retry = True
    least_pause: Seconds = 0.0
    busy = False
    advice = ""

    def __init__(self, host: str, stage: str, reason: str, said: str = "") -> None:
        self.host = host
        self.stage = stage
        # control characters of a peer could play tricks on a terminal
        words = "".join(char if char.isprintable() else " " for char in said).split()
        self.said = " ".join(words)[:MOST_WORDS]
        self.what = reason
        self.gate = ""
        self.reason = f"{reason}: {self.said}" if self.said else reason
        if self.advice:
            self.reason += f"; {self.advice}"
        super().__init__(f"{spoken(host)}: {self.reason}")


class ForwardRefusedError(HostError):
    """The SSH server does not let us listen on the host, on a unix socket or a port."""

    retry = False
    advice = (
        "allow AllowTcpForwarding in its sshd_config (PermitListen, DisableForwarding and options "
        "of the key can forbid it, too), or let hosts reach the master without a tunnel, by "
        "listen = in [job]"
    )


class InvariantBrokenError(PexecdError):
    """A bug of ours: the master stops, and its supervisor starts it again from the journal."""

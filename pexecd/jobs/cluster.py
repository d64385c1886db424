"""The cluster file: a computer a line, as in GNU parallel's sshlogin files, and ``key=value``."""

# Tests: tests/unit/jobs/test_cluster.py

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from pexecd.errors import Mistake
from pexecd.jobs.fields import platform_word
from pexecd.jobs.mistakes import did_you_mean
from pexecd.jobs.reader import text_lines
from pexecd.jobs.values import HostSpec

#: This computer, without SSH: all there is without a cluster file.
HERE = HostSpec(name=":", address="localhost", local=True)

_KEYS = ("slots", "platform", "python", "dir", "shared", "start")
_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*")
_SLOTS = re.compile(r"([0-9]+)/(.*)")
_USER = re.compile(r"[\w.+@\\][\w.+@\\-]*\$?")
_HOST = re.compile(r"[\w.][\w.-]*")
_LIST = re.compile(r"[\[{,]")
_PORT = re.compile(r"[0-9]{1,5}")


class _LineError(Exception):
    """What is wrong with a line, and what was expected."""


def read_cluster(path: Path, file: str, mistakes: list[Mistake]) -> tuple[HostSpec, ...]:
    """Read a cluster file.

    Args:
        path: where it is; it can be read.
        file: its name, for the mistakes.
        mistakes: what is wrong is added here; the lines that are right are returned.
    """
    before = len(mistakes)
    hosts: dict[tuple[str | None, str, int | None], HostSpec] = {}
    for number, line in text_lines(path.read_bytes(), file, mistakes):
        words = _COMMENT.sub("", line).split()
        if not words:
            continue
        host, problems = _read_line(words)
        mistakes.extend(Mistake(file, number, text) for text in problems)
        if host is None:
            continue
        key = (host.user, ":" if host.local else host.address.lower(), host.port)
        first = hosts.setdefault(key, host._replace(line=number))
        if first.line != number:
            text = f"host {host.name} is there twice, it was named in line {first.line}"
            mistakes.append(Mistake(file, number, text))
    if not hosts and len(mistakes) == before:
        mistakes.append(Mistake(file, 0, "names no host, one a line expected"))
    return tuple(hosts.values())


def _read_line(words: list[str]) -> tuple[HostSpec | None, list[str]]:
    """A host and all that is wrong in its line; None when not even the host can be told."""
    first, *options = words
    try:
        host = _read_login(first)
        pairs = [_pair(word) for word in options]
    except _LineError as error:
        return None, [str(error)]
    problems: list[str] = []
    seen = {"slots"} if host.slots else set[str]()
    for key, value in pairs:
        if key in seen:
            problems.append(f"{key} is given twice")
            continue
        seen.add(key)
        try:
            host = _with_option(host, key, value)
        except _LineError as error:
            problems.append(str(error))
    return host, problems


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise _LineError(
            f"'{word}' is no key=value, a host a line and no blanks around '=' expected; an ssh "
            "command in place of a host is not supported: give its options in the file of [ssh] "
            "config"
        )
    return key, value


def _read_login(word: str) -> HostSpec:
    """``[SLOTS/][user@]host[:port]``, or ``:`` for this computer."""
    if word.startswith("@"):
        raise _LineError(f"'{word}': groups (@group) are not supported, leave the @group out")
    slots = None
    counted = _SLOTS.fullmatch(word)
    if counted:
        slots, word = _slots(counted[1]), counted[2]
    if word == ":":
        return HERE._replace(slots=slots)
    if "/" in word:
        raise _LineError(
            f"'{word}': an ssh command in place of a host is not supported: "
            "[SLOTS/][user@]host[:port] expected"
        )
    login, at, place = word.rpartition("@")
    if ":" in login:
        raise _LineError("passwords (user:password@host) are not supported, use a key")
    user = login if at else None
    if user is not None and not _USER.fullmatch(user):
        raise _LineError(f"'{user}' is no user name")
    address, port = _read_place(place)
    return HostSpec(name=word, address=address, user=user, port=port, slots=slots)


def _read_place(place: str) -> tuple[str, int | None]:
    """Address and port of ``host``, ``host:port``, ``[addr]`` or ``[addr]:port``."""
    if place.startswith("["):
        address, bracket, rest = place[1:].partition("]")
        if not bracket or not _is_ipv6(address) or (rest and rest[0] != ":"):
            raise _LineError(f"'{place}': an IPv6 address is written [addr] or [addr]:port")
        return address, _port(rest[1:]) if rest else None
    if _is_ipv6(place):
        raise _LineError(f"'{place}': an IPv6 address is written [{place}] or [{place}]:port")
    address, colon, port = place.partition(":")
    if not _HOST.fullmatch(address):
        # a name that begins with '-' would be an option to ssh
        raise _LineError(
            f"'{address}' is no name or address of a host, one a line expected (lists like "
            "node[1-4] or node1,node2 are not supported)"
            if _LIST.search(place)
            else f"'{address}' is no name or address of a host"
        )
    return address, _port(port) if colon else None


def _with_option(host: HostSpec, key: str, value: str) -> HostSpec:
    if key not in _KEYS:
        raise _LineError(
            f"unknown key '{key}'{did_you_mean(key, _KEYS)}, one of {', '.join(_KEYS)} expected"
        )
    if not value:
        raise _LineError(f"{key} is empty, {key}=VALUE expected")
    match key:
        case "slots":
            return host._replace(slots=_slots(value))
        case "platform":
            platform = platform_word(value)
            if platform is None:
                raise _LineError(f"platform={value}: a word like linux-x86_64 expected")
            return host._replace(platform=platform)
        case "python":
            return host._replace(python=value)
        case "dir":
            if not value.startswith(("/", "~/")):
                raise _LineError(f"dir={value}: a folder that begins with / or ~/ expected")
            return host._replace(dir=value)
        case "shared":
            return host._replace(shared=value)
        case _:
            if value not in {"yes", "no"}:
                raise _LineError(f"start={value}: yes or no expected")
            return host._replace(start=value == "yes")


def _slots(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,5}", text):
        raise _LineError(f"'{text}' slots: a whole number, 1 to 999999 expected")
    return int(text)


def _port(text: str) -> int:
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65536:
        raise _LineError(f"'{text}' is no port, 1 to 65535 expected")
    return int(text)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True

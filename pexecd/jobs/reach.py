"""Where the master listens, and which hosts can reach it there."""

# Tests: tests/unit/jobs/test_reach.py

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from pexecd.jobs.mistakes import did_you_mean
from pexecd.jobs.values import HostSpec

#: What Twisted's server endpoints are told, in this order where it is not by name.
_TCP_ARGUMENTS = ("port", "interface", "backlog")
_SYSTEMD_ARGUMENTS = ("domain", "index", "name")
#: Those that a master can listen on.
_KINDS = ("tcp", "tcp6", "ssl", "systemd")

_COLON = re.compile(r"(?<!\\):")


def listen_problem(text: str) -> str | None:
    """What is wrong with a Twisted server endpoint, or None.

    Clients speak HTTP: over TCP, or over TLS (``ssl``) with a certificate that is the master's
    own affair. What systemd hands over is seen when the master starts.
    """
    kind, *rest = _COLON.split(text)
    if not rest or not re.fullmatch(r"[a-z][a-z0-9]*", kind):
        return f"'{text}' is no Twisted server endpoint, one like tcp:8080 expected"
    if kind not in _KINDS:
        return f"'{kind}' is no endpoint that clients can reach, {', '.join(_KINDS)} expected"
    if kind == "systemd":
        return _systemd_problem(rest)
    try:
        given = _arguments(rest, _TCP_ARGUMENTS)
    except ValueError as error:
        return f"{error}; {kind}:PORT or {kind}:PORT:interface=ADDRESS expected"
    port, backlog = given.get("port", ""), given.get("backlog", "50")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        return f"'{port}' is no port, {kind}:0 to {kind}:65535 expected"
    if not re.fullmatch(r"[0-9]{1,9}", backlog):
        return f"backlog '{backlog}' is no whole number"
    return None


def _systemd_problem(parts: Iterable[str]) -> str | None:
    expected = "systemd:domain=INET:index=0 or systemd:domain=INET:name=NAME expected"
    try:
        given = _arguments(parts, _SYSTEMD_ARGUMENTS)
    except ValueError as error:
        return f"{error}; {expected}"
    if given.get("domain") not in ("INET", "INET6"):
        return f"domain '{given.get('domain', '')}' is neither INET nor INET6; {expected}"
    if ("index" in given) == ("name" in given) or not given.get("index", "0").isdecimal():
        return f"the socket is named by one of index= (a number) and name=; {expected}"
    return None


def advertise_problem(text: str, secure: bool = False) -> str | None:
    """What is wrong with the address that hosts are told, or None.

    Args:
        text: the address.
        secure: whether the master speaks TLS.
    """
    scheme = "https" if secure else "http"
    try:
        url = urlsplit(text)
        good = (
            url.scheme == scheme
            and bool(url.hostname)
            and url.port != 0
            and not (url.path or url.query or url.fragment or url.username or " " in text)
        )
    except ValueError:
        good = False
    return None if good else f"'{text}': an address like {scheme}://master:8080 expected"


def needs_tunnel(host: HostSpec, listen: str | None, advertise: str | None) -> bool:
    """Whether a host reaches the master through its SSH connection alone."""
    return not host.local and not advertise and listens_on_loopback(listen)


def is_secure(listen: str | None) -> bool:
    """Whether an endpoint, well formed or missing, speaks TLS."""
    return listen is not None and listen.startswith("ssl:")


def as_tcp(listen: str) -> str:
    """The endpoint below one that speaks TLS; any other as it is."""
    return f"tcp:{listen.removeprefix('ssl:')}" if is_secure(listen) else listen


def is_loopback(address: str) -> bool:
    """A name or address of this machine itself."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def listens_on_loopback(listen: str | None) -> bool:
    """Whether an endpoint, well formed or missing, is for this machine alone."""
    if listen is None:
        return True
    kind, *rest = _COLON.split(listen)
    if kind == "systemd":
        return False
    return is_loopback(_arguments(rest, _TCP_ARGUMENTS).get("interface", ""))


def _arguments(parts: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    r"""The arguments of an endpoint by their names, without ``\``.

    Raises:
        ValueError: there are others, or too many.
    """
    given: dict[str, str] = {}
    by_place = iter(known)
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            key, value = next(by_place, ""), part
        if key in given or not key:
            raise ValueError(rf"'{part}' is too much (a ':' within an address is written '\:')")
        if key not in known:
            raise ValueError(f"unknown argument '{key}'{did_you_mean(key, known)}")
        given[key] = re.sub(r"\\(.)", r"\1", value)
    return given

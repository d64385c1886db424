"""Where the master listens, and which hosts can reach it there."""

# Tests: tests/unit/jobs/test_reach.py

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pexecd.jobs.mistakes import did_you_mean
from pexecd.jobs.values import HostSpec

#: The Twisted server endpoints that a master can listen on.
_KINDS = ("tcp", "tcp6", "systemd")
#: What ``tcp`` and ``tcp6`` are told, in this order where it is not by name.
_TCP_ARGUMENTS = ("port", "interface", "backlog")

_COLON = re.compile(r"(?<!\\):")


def listen_problem(text: str) -> str | None:
    """What is wrong with a Twisted server endpoint, or None.

    Clients speak plain HTTP over TCP, which is what these kinds are for. What systemd hands
    over is seen when the master starts.
    """
    kind, *rest = _COLON.split(text)
    if not rest or not re.fullmatch(r"[a-z][a-z0-9]*", kind):
        return f"'{text}' is no Twisted server endpoint, one like tcp:8080 expected"
    if kind not in _KINDS:
        return f"'{kind}' is no endpoint that clients can reach, {', '.join(_KINDS)} expected"
    if kind == "systemd":
        return None
    try:
        given = _tcp_arguments(rest)
    except ValueError as error:
        return f"{error}; {kind}:PORT or {kind}:PORT:interface=ADDRESS expected"
    port, backlog = given.get("port", ""), given.get("backlog", "50")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        return f"'{port}' is no port, {kind}:0 to {kind}:65535 expected"
    if not re.fullmatch(r"[0-9]{1,9}", backlog):
        return f"backlog '{backlog}' is no whole number"
    return None


def advertise_problem(text: str) -> str | None:
    """What is wrong with the address that hosts are told, or None."""
    try:
        url = urlsplit(text)
        good = (
            url.scheme == "http"
            and bool(url.hostname)
            and url.port != 0
            and not (url.path or url.query or url.fragment or url.username or " " in text)
        )
    except ValueError:
        good = False
    return None if good else f"'{text}': an address like http://master:8080 expected"


def hosts_that_need_a_tunnel(hosts: Iterable[HostSpec], listen: str | None) -> list[HostSpec]:
    """The hosts that cannot reach a master that listens there, as long as there are no tunnels."""
    if not listens_on_loopback(listen):
        return []
    return [host for host in hosts if not (host.local or is_loopback(host.address))]


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
    return kind != "systemd" and is_loopback(_tcp_arguments(rest).get("interface", ""))


def _tcp_arguments(parts: Iterable[str]) -> dict[str, str]:
    r"""The arguments of a ``tcp`` endpoint by their names, without ``\``.

    Raises:
        ValueError: there are others, or too many.
    """
    given: dict[str, str] = {}
    by_place = iter(_TCP_ARGUMENTS)
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            key, value = next(by_place, ""), part
        if key in given or not key:
            raise ValueError(rf"'{part}' is too much (a ':' within an address is written '\:')")
        if key not in _TCP_ARGUMENTS:
            raise ValueError(f"unknown argument '{key}'{did_you_mean(key, _TCP_ARGUMENTS)}")
        given[key] = re.sub(r"\\(.)", r"\1", value)
    return given

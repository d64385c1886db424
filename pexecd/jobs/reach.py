"""Where the master listens, and which hosts can reach it there."""

# Tests: tests/unit/jobs/test_reach.py

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from pexecd.jobs.values import HostSpec

_COLON = re.compile(r"(?<!\\):")


def listen_problem(text: str) -> str | None:
    """What is wrong with the form of a Twisted server endpoint, or None.

    Only ``tcp`` and ``tcp6`` are looked into; Twisted knows best about the others.
    """
    kind, *rest = _COLON.split(text)
    if not rest or not re.fullmatch(r"[a-z][a-z0-9]*", kind):
        return f"'{text}' is no Twisted server endpoint, one like tcp:8080 expected"
    if kind in {"tcp", "tcp6"}:
        port = _endpoint_port(rest)
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            return f"'{port}' is no port, {kind}:0 to {kind}:65535 expected"
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
    if not _on_loopback(listen):
        return []
    return [host for host in hosts if not (host.local or is_loopback(host.address))]


def is_loopback(address: str) -> bool:
    """A name or address of this machine itself."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def _on_loopback(listen: str | None) -> bool:
    """Whether an endpoint, well formed or missing, is for this machine alone."""
    if listen is None:
        return True
    kind, *rest = _COLON.split(listen)
    if kind == "unix":
        return True
    for argument in rest:
        key, _, value = argument.partition("=")
        if key == "interface":
            return is_loopback(value.replace("\\:", ":"))
    return False


def _endpoint_port(arguments: list[str]) -> str:
    """The port among the arguments of a ``tcp`` endpoint: named, or else the first."""
    for argument in arguments:
        if argument.startswith("port="):
            return argument.removeprefix("port=")
    return arguments[0]

from __future__ import annotations

import pytest

from pexecd.jobs.reach import (
    advertise_problem,
    as_tcp,
    is_loopback,
    is_secure,
    listen_problem,
    needs_tunnel,
)
from pexecd.jobs.values import HostSpec


@pytest.mark.parametrize(
    "text",
    [
        "tcp:8080",
        "tcp:0",
        "tcp:port=80",
        "tcp:8080:interface=127.0.0.1",
        "tcp:interface=127.0.0.1:port=80",
        r"tcp6:8080:interface=\:\:1",
        "tcp:8080:127.0.0.1:100",
        "tcp:interface=127.0.0.1:8080",
        "systemd:domain=INET:index=0",
        "systemd:INET6:name=jobs",
        "ssl:8443",
        "ssl:8443:interface=10.0.0.1",
    ],
)
def test_an_endpoint_has_a_word_before_a_colon(text: str) -> None:
    assert listen_problem(text) is None


@pytest.mark.parametrize(
    "text",
    ["8080", "tcp", "tcp:", "tcp:http", "tcp:65536", "tcp:-1", "TCP:80", "my host:80", ":80"],
)
def test_another_form_of_endpoint_is_a_mistake(text: str) -> None:
    assert "expected" in (listen_problem(text) or "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssl:443:privateKey=key.pem", "unknown argument 'privateKey'"),
        ("unix:/run/pexecd", "'unix' is no endpoint"),
        ("tpc:8080", "tcp, tcp6, ssl, systemd expected"),
        ("tcp:8080:interfaec=10.0.0.1", "did you mean 'interface'?"),
        ("tcp:8080:interface=::1", r"is written '\:'"),
        ("tcp:8080:port=8080", "'port=8080' is too much"),
        ("tcp:8080:backlog=many", "backlog 'many'"),
        ("tcp:interface=127.0.0.1", "'' is no port"),
        ("systemd:index=0", "domain '' is neither INET nor INET6"),
        ("systemd:domain=UNIX:index=0", "domain 'UNIX' is neither"),
        ("systemd:domain=INET", "one of index= (a number) and name="),
        ("systemd:domain=INET:index=first", "one of index="),
        ("systemd:domain=INET:index=0:name=jobs", "one of index="),
        ("systemd:domain=INET:nmae=jobs", "did you mean 'name'?"),
    ],
)
def test_an_endpoint_that_cannot_serve_clients_is_a_mistake(text: str, says: str) -> None:
    assert says in (listen_problem(text) or "")


def test_hosts_are_told_an_http_address() -> None:
    assert advertise_problem("http://master:8080") is None
    assert advertise_problem("http://[::1]:8080") is None
    for text in (
        "master:8080", "https://master", "http://", "http://a:b", "http://a:99999",
        "http://a:0", "http://a/path", "http://u@a", "http://a?b", "http://[a", "http://a b",
    ):  # fmt: skip
        assert "http://master:8080 expected" in (advertise_problem(text) or ""), text


def test_this_machine_has_many_names() -> None:
    assert all(map(is_loopback, ("localhost", "LOCALHOST", "127.0.0.1", "127.0.0.21", "::1")))
    assert not any(map(is_loopback, ("lab1", "10.0.0.1", "127.example.org", "fe80::1", "")))


@pytest.mark.parametrize(
    ("listen", "cut_off"),
    [
        (None, True),
        ("tcp:8080:interface=127.0.0.1", True),
        ("tcp:8080:interface=localhost", True),
        (r"tcp6:8080:interface=\:\:1", True),
        ("tcp:8080:127.0.0.1", True),
        ("tcp:8080", False),
        ("tcp:8080:interface=10.0.0.1", False),
        ("ssl:8443", False),
        ("ssl:8443:interface=127.0.0.1", True),
        ("systemd:domain=INET:index=0", False),
    ],
)
def test_remote_hosts_have_tunnels_to_a_master_that_listens_on_loopback(
    listen: str | None, cut_off: bool
) -> None:
    here = HostSpec(":", "localhost", local=True)
    # its port may lead to another computer
    for remote in (HostSpec("a@lab2:22", "lab2"), HostSpec("127.0.0.1:2222", "127.0.0.1")):
        assert needs_tunnel(remote, listen, None) is cut_off
        assert not needs_tunnel(remote, listen, "http://gate:80")
    assert not needs_tunnel(here, listen, None)


def test_tls_is_over_tcp() -> None:
    assert is_secure("ssl:8443")
    assert not any(map(is_secure, (None, "tcp:8080", "systemd:domain=INET:index=0")))
    assert as_tcp("ssl:8443:interface=10.0.0.1") == "tcp:8443:interface=10.0.0.1"
    assert as_tcp("tcp:8080") == "tcp:8080"

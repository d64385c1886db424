"""What the system's ssh says, and what that means."""

from __future__ import annotations

import pytest

from pexecd.errors import HostError
from pexecd.ssh.binary import explain
from pexecd.ssh.errors import (
    ConnectionLostError,
    HostKeyUnknownError,
    JumpRefusedError,
    KeysRejectedError,
    NoCommonAlgorithmError,
    NoRouteError,
    ProxyCommandError,
    RefusedError,
    ThrottledError,
    TimedOutError,
)

THROUGH = """\
kex_exchange_identification: Connection closed by remote host
Connection closed by UNKNOWN port 65535
"""


@pytest.mark.parametrize(
    ("said", "kind", "stage"),
    [
        ("ssh: connect to host 10.0.0.1 port 22: Connection timed out", TimedOutError, "connect"),
        ("ssh: connect to host 10.0.0.1 port 22: No route to host", NoRouteError, "connect"),
        (
            "Connection timed out during banner exchange\nConnection to h port 22 timed out",
            TimedOutError,
            "greeting",
        ),
        (
            (
                "kex_exchange_identification: read: Connection reset by peer\n"
                "Connection reset by 10.0.0.1 port 22"
            ),
            ThrottledError,
            "greeting",
        ),
        (
            (
                "Unable to negotiate with 10.0.0.1 port 22: no matching cipher found. "
                "Their offer: chacha20-poly1305@openssh.com"
            ),
            NoCommonAlgorithmError,
            "key exchange",
        ),
        ("ann@h: Permission denied (publickey).", KeysRejectedError, "authenticate"),
        (
            "Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures",
            KeysRejectedError,
            "authenticate",
        ),
        ("something that nobody has heard before", ConnectionLostError, "connect"),
        ("", ConnectionLostError, "connect"),
    ],
)
def test_by_itself(said: str, kind: type[HostError], stage: str) -> None:
    error = explain("node7", said, "", "")
    assert (type(error), error.host, error.stage) == (kind, "node7", stage)
    assert error.said in said.replace("\n", " ")


@pytest.mark.parametrize(
    ("methods", "helps"),
    [
        ("publickey,password", {"authorized_keys"}),
        ("publickey,gssapi-keyex,gssapi-with-mic", {"authorized_keys", "kinit"}),
        ("gssapi-keyex,gssapi-with-mic", {"kinit"}),
        ("password,keyboard-interactive", {"ssh -M"}),
    ],
)
def test_what_may_help_to_log_in(methods: str, helps: set[str]) -> None:
    error = explain("node7", f"ann@h: Permission denied ({methods}).", "", "")
    assert {word for word in ("authorized_keys", "kinit", "ssh -M") if word in str(error)} == helps


@pytest.mark.parametrize(
    ("proxy_said", "kind", "at_gate"),
    [
        ("ssh: connect to host gate port 22: Connection refused", RefusedError, True),
        ("Host key verification failed.", HostKeyUnknownError, True),
        ("ann@gate: Permission denied (publickey).", KeysRejectedError, True),
        (
            "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed",
            RefusedError,
            False,
        ),
        (
            (
                "channel 0: open failed: administratively prohibited: open failed\n"
                "stdio forwarding failed"
            ),
            JumpRefusedError,
            False,
        ),
        ("", ProxyCommandError, False),
    ],
)
def test_by_a_jump_host(proxy_said: str, kind: type[HostError], at_gate: bool) -> None:
    error = explain("node7", THROUGH, proxy_said, "gate")
    assert (type(error), error.gate) == (kind, "gate" if at_gate else "")
    assert ("jump host gate:" in str(error)) is at_gate

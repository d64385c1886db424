from __future__ import annotations

import pytest

from pexecd.service import is_own_address


@pytest.mark.parametrize(
    ("address", "listening", "own"),
    [
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "::", True),
        ("::1", "::", True),
        ("::1", "0.0.0.0", False),
        ("192.0.2.7", "0.0.0.0", False),
        ("", "0.0.0.0", False),
        ("UNKNOWN", "::", False),
    ],
)
def test_what_a_host_sees_counts_where_it_is_this_computer(
    address: str, listening: str, own: bool
) -> None:
    assert is_own_address(address, listening) is own

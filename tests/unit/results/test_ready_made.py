from __future__ import annotations

import io

import pytest

from pexecd.results.runner import check

MIB = 1 << 20


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("non_empty", b"x"),
        ("non_empty", b" " * 3 * MIB + b"x"),
        ("one_line", b"a line"),
        ("one_line", b"a line\r\n"),
        ("one_line", b"\n"),
        ("one_line", b"x" * (MIB - 1) + b"\n"),
        ("one_line", b"\xff\x00\n"),
        ("number", b"0.61223\n"),
        ("number", b" -1e-300 \r\n"),
        ("number", b"17"),
        ("match /^E = \\d+$/", b"E = 17\n"),
        ("match /(?m)^b$/", b"a\nb\nc"),
        ("match /\xfc/", "für".encode()),
        ("match /\ufffd/", b"\xff"),
    ],
)
def test_valid(kind: str, data: bytes) -> None:
    kind, _, regex = kind.partition(" ")
    assert check(kind, regex.strip("/"), io.BytesIO(data)) == ""


@pytest.mark.parametrize(
    ("kind", "data", "why"),
    [
        ("non_empty", b"", "is empty"),
        ("non_empty", b" \r\n\t" * MIB, "is empty"),
        ("one_line", b"", "is empty, not one line"),
        ("one_line", b"a\nb", "has more than one line"),
        ("one_line", b"a\n\n", "has more than one line"),
        ("one_line", b"x" * 3 * MIB, "has a line of more than 1 MiB"),
        ("number", b"", "is empty, not a number"),
        ("number", b"segfault\n", "is not a number: 'segfault'"),
        ("number", b"1\n2\n", "is not a number: '1\n2'"),
        ("number", b"nan", "is not a number: 'nan'"),
        ("number", b"-inf\n", "is not a number: '-inf'"),
        ("number", b"1_000", "is not a number: '1_000'"),
        ("number", "１".encode(), "is not a number: '\ufffd\ufffd\ufffd'"),
        ("number", b"1" * 5000, f"is not a number: '{'1' * 40}...'"),
        ("match /^E/", b"no", "does not match /^E/"),
        ("match /x/", b" " * 16 * MIB + b"x", "does not match /x/"),
    ],
)
def test_not_valid(kind: str, data: bytes, why: str) -> None:
    kind, _, regex = kind.partition(" ")
    assert check(kind, regex.strip("/"), io.BytesIO(data)) == why

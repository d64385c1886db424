from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pexecd.protocol.forms import FormParser, form_boundary
from pexecd.protocol.sections import AmbiguousBodyError, Data, MalformedBodyError
from pexecd.protocol.wire import MAX_RESULTS, ResultBegun, ResultEnded, UploadEvent


def parse(pieces: Iterable[bytes], boundary: str = "XX") -> list[tuple[str, bytes]]:
    parser = FormParser(boundary)
    results: list[tuple[str, bytes]] = []
    ended = True

    def steps() -> Iterator[Iterator[UploadEvent]]:
        yield from (parser.feed(piece) for piece in pieces)
        yield parser.finish()

    for events in steps():
        for event in events:
            match event:
                case ResultBegun(name, None):
                    assert ended
                    ended = False
                    results.append((name, b""))
                case Data(data):
                    assert not ended
                    results[-1] = (results[-1][0], results[-1][1] + data)
                case ResultEnded():
                    ended = True
                case _:
                    pytest.fail(str(event))
    assert ended
    return results


def form(*parts: tuple[str, bytes]) -> bytes:
    return (
        b"".join(
            b'--XX\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
            % (name.encode(), content)
            for name, content in parts
        )
        + b"--XX--\r\n"
    )


SCRAPS = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"--X", b"X", b"-", b"a", b"\r\n--X"]),
    max_size=12,
).map(b"".join)
PARTS = st.lists(
    st.tuples(st.text("abü._-", min_size=1, max_size=3), st.one_of(st.binary(), SCRAPS)),
    max_size=3,
    unique_by=lambda part: part[0],
).filter(lambda parts: all(b"\r\n--XX" not in b"\r\n" + content for _, content in parts))


@given(PARTS, st.lists(st.integers(0, 2000), max_size=12))
def test_every_content_survives_any_division(
    parts: list[tuple[str, bytes]], places: list[int]
) -> None:
    body = form(*parts)
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    assert parse(body[a:b] for a, b in itertools.pairwise(edges) if a < b) == parts


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--XX\r\n",
        form(("a", b"1"))[:-4],
        b"--XX\r\nContent-Disposition: form-data\r\n\r\n1\r\n--XX--\r\n",
        b"--XX\r\n\r\n1\r\n--XX--\r\n",
        b"--XX\r\nContent-Disposition: form-data; name=" + b"x" * 10_000,
    ],
)
def test_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBodyError):
        parse([body] if body else [])


def test_a_part_twice() -> None:
    with pytest.raises(AmbiguousBodyError):
        parse([form(("a", b"1"), ("a", b"2"))])


def test_there_are_only_so_many_parts() -> None:
    with pytest.raises(MalformedBodyError):
        parse([form(*((f"r{number}", b"") for number in range(MAX_RESULTS + 1)))])


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("", None),
        ("application/x-www-form-urlencoded", None),
        ("multipart/mixed; boundary=a", None),
        ("multipart/form-data; boundary=----abc", "----abc"),
        ('Multipart/Form-Data; charset=x; boundary="a b"', "a b"),
    ],
)
def test_boundaries(content_type: str, boundary: str | None) -> None:
    assert form_boundary(content_type) == boundary


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_no_boundary(content_type: str) -> None:
    with pytest.raises(MalformedBodyError, match="names no boundary"):
        form_boundary(content_type)

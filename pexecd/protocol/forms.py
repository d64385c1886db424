"""``multipart/form-data`` uploads, read as they arrive by the library ``multipart``.

The events are those of ``wire.UploadParser``: every part is a result, whatever file name
it has. Which parts are fields, not results, is decided by who reads the events.
"""

from __future__ import annotations

from collections.abc import Iterator

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)

from pexecd.protocol.sections import MAX_LINE, Data, MalformedBodyError
from pexecd.protocol.wire import MAX_RESULTS, ResultBegun, ResultEnded, UploadEvent, take_name


def form_boundary(content_type: str) -> str | None:
    """The boundary that a ``Content-Type`` names; None when it is no form of this kind.

    Raises:
        MalformedBodyError: it is one, but names no boundary.
    """
    if not content_type.lower().startswith("multipart/form-data"):
        return None
    _, options = parse_options_header(content_type)
    boundary: str = options.get("boundary", "")
    if not boundary:
        raise MalformedBodyError("the Content-Type multipart/form-data names no boundary")
    return boundary


class FormParser:
    """Reads a form with one part for each result."""

    def __init__(self, boundary: str) -> None:
        try:
            self._parser = PushMultipartParser(
                boundary, max_header_size=MAX_LINE, max_segment_count=MAX_RESULTS + 2
            )
        except MultipartError as error:
            raise _malformed(error) from None
        self._names: set[str] = set()

    def feed(self, data: bytes) -> Iterator[UploadEvent]:
        """What these bytes complete. Exhaust it before the next call.

        Raises:
            MalformedBodyError: this is no such form.
            AmbiguousBodyError: a part comes twice.
        """
        try:
            for event in self._parser.parse(data):
                if isinstance(event, MultipartSegment):
                    if not event.name:
                        raise MalformedBodyError("a part of the form has no name")
                    take_name(event.name, self._names)
                    yield ResultBegun(event.name, None)
                elif event is None:
                    yield ResultEnded()
                else:
                    yield Data(bytes(event))
        except MultipartError as error:
            raise _malformed(error) from None

    def finish(self) -> Iterator[UploadEvent]:
        """There are no more bytes. Raises as ``feed``."""
        try:
            self._parser.close()
        except MultipartError as error:
            raise _malformed(error) from None
        return iter(())


def _malformed(error: MultipartError) -> MalformedBodyError:
    return MalformedBodyError(f"multipart/form-data: {error.args[0]}")

"""Replies that are made of bytes and of files: large ones go only as fast as the peer reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from pexecd.errors import PexecdError
from pexecd.protocol.request import Request

#: Bytes that are read from a file at a time.
BLOCK = 65536
#: Bytes that are written at once. More have to wait until the peer has read what came before: it
#: has its deadline for every part of them, and not one for all.
AT_ONCE = 262144


class PeerLeftError(PexecdError):
    """The connection was lost before the reply was written."""


async def send(
    request: Request,
    pieces: Sequence[bytes | Path],
    sizes: Mapping[Path, int],
    content_type: bytes,
) -> None:
    """Write a whole reply with status 200, but for ``request.finish()``.

    Args:
        request: what is answered.
        pieces: the body; a path stands for that file's bytes.
        sizes: the size of each file, as it was announced.
        content_type: of the body.

    Raises:
        PeerLeftError: the connection was lost meanwhile.
        OSError: a file cannot be read; the reply may have begun.
    """
    if request.gone:
        raise PeerLeftError("the peer has left")
    lengths = [sizes[piece] if isinstance(piece, Path) else len(piece) for piece in pieces]
    request.setResponseCode(200)
    request.head(sum(lengths), content_type)
    for piece, length in zip(pieces, lengths, strict=True):
        if isinstance(piece, bytes) and length <= AT_ONCE:
            request.write(piece)
        else:
            await _Sender(request, piece, length).start()


@implementer(IPushProducer)
class _Sender:
    """Writes bytes or a file to a request, a block whenever there is room."""

    def __init__(self, request: Request, piece: bytes | Path, size: int) -> None:
        self._request = request
        self._piece = piece
        self._left = size
        self._paused = False
        self._sent: Deferred[None] = Deferred()

    def start(self) -> Deferred[None]:
        """Fires when all was written; fails as ``send`` does."""
        piece = self._piece
        self._file = BytesIO(piece) if isinstance(piece, bytes) else piece.open("rb")
        self._request.registerProducer(self, True)
        self.resumeProducing()
        return self._sent

    def resumeProducing(self) -> None:
        self._paused = False
        try:
            while self._left and not self._paused:
                self._request.write(self._read())
        except OSError as error:
            self._end().errback(error)
        else:
            if not self._left:
                self._end().callback(None)

    def _read(self) -> bytes:
        block = self._file.read(min(BLOCK, self._left))
        if not block:
            raise OSError(f"{self._piece!s} has become shorter")
        self._left -= len(block)
        return block

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._end().errback(PeerLeftError("the peer has left"))

    def _end(self) -> Deferred[None]:
        self._file.close()
        self._request.unregisterProducer()
        return self._sent

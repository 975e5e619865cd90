"""Streams of bytes for tests: in odd pieces, damaged, failing, and content made of them."""

from __future__ import annotations

import hashlib
from random import Random

import trio

from hybrid.core.byte_stream import BlobContent, ByteStream
from hybrid.errors import HybridError


class PieceStream(ByteStream):
    """``data`` in pieces of odd lengths; before byte ``fails_at`` it raises ``error``."""

    def __init__(
        self, data: bytes, *, fails_at: int | None = None, error: HybridError | None = None
    ) -> None:
        self.name = "the test's stream"
        self.closed = False
        self._data = data
        self._position = 0
        self._random = Random(len(data))
        self._fails_at = fails_at
        self._error = error

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        assert not self.closed
        if self._fails_at is not None and self._position >= self._fails_at:
            assert self._error is not None
            raise self._error
        piece = self._data[self._position : self._position + self._random.randint(1, 300_000)]
        self._position += len(piece)
        return piece

    async def aclose(self) -> None:
        self.closed = True


class Content:
    """Makes streams and remembers them. ``blob`` is for whoever writes."""

    def __init__(
        self,
        data: bytes,
        *,
        known: bool = True,
        repeatable: bool = True,
        fails_at: int | None = None,
        error: HybridError | None = None,
        digest: str = "",
    ) -> None:
        self.data = data
        self.digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.streams: list[PieceStream] = []
        self._fault = (fails_at, error)
        stated = digest or (self.digest if known else "")
        self.blob = BlobContent(self._open, stated, len(data) if known else None, repeatable)

    async def _open(self) -> ByteStream:
        fails_at, error = self._fault
        self.streams.append(PieceStream(self.data, fails_at=fails_at, error=error))
        return self.streams[-1]

    @property
    def all_closed(self) -> bool:
        return all(stream.closed for stream in self.streams)

"""Bodies of requests: sent piece by piece, and once more from the start if they must be."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

import httpx
import trio

SEND_BYTES = 1 << 17
"""A piece that a slow line must take within the time that a request may stand still."""


class RequestBody(httpx.AsyncByteStream):
    """The body of one request. It is its own iterator, so that nothing is left unfinished.

    ``length`` in bytes; ``answer_seconds`` is the longest wait for the answer behind it, if the
    usual one is too short.
    """

    length: int
    answer_seconds: float = 0.0

    @abstractmethod
    async def start(self) -> None:
        """Called before each sending: begin with the first byte."""

    @abstractmethod
    async def __anext__(self) -> bytes: ...

    def __aiter__(self) -> Self:
        return self


class BytesBody(RequestBody):
    """Bytes in memory."""

    def __init__(self, data: bytes | memoryview, answer_seconds: float = 0.0) -> None:
        self.length = len(data)
        self.answer_seconds = answer_seconds
        self.sent = 0
        """Bytes handed out since the start."""
        self._data = memoryview(data)

    async def start(self) -> None:
        self.sent = 0

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.sent == self.length:
            raise StopAsyncIteration
        piece = bytes(self._data[self.sent : self.sent + SEND_BYTES])
        self.sent += len(piece)
        return piece

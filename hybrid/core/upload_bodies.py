"""What an upload sends: a stream as one body, chunks cut from a stream, and one chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from hybrid.core.byte_stream import BlobContent, ByteStream, VerifiedStream
from hybrid.core.device import Buffer
from hybrid.core.request_body import SEND_BYTES, BytesBody, RequestBody
from hybrid.core.retry import Patience
from hybrid.errors import FormatError, HybridError

Advance = Callable[[int], None]
"""Told how many bytes went; negative when some go again."""


class ContentError(Exception):
    """What is to be sent cannot be read: not the fault of whom it is sent to. Never tried again."""

    def __init__(self, error: HybridError) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def content_errors() -> Iterator[None]:
    """HybridErrors of the content leave as ContentError."""
    try:
        yield
    except HybridError as error:
        raise ContentError(error) from error


class StreamBody(RequestBody):
    """A stream as the body of a request. Its last bytes go only after its end was seen to be good:
    a damaged stream never makes a whole request.
    """

    def __init__(
        self,
        content: BlobContent,
        digest: str,
        size: int,
        patience: Patience,
        note: Advance,
        answer_seconds: float,
    ) -> None:
        self.length = size
        self.answer_seconds = answer_seconds
        self._content = content
        self._digest = digest
        self._patience = patience
        self._note = note
        self._stream: ByteStream | None = None
        self._piece: memoryview = memoryview(b"")
        self._left = size
        self._sent = 0

    async def start(self) -> None:
        await self.aclose()
        self._note(-self._sent)
        self._left, self._sent, self._piece = self.length, 0, memoryview(b"")
        with self._own_time():
            stream = await self._content.open()
        # Hashing everything twice would be half of the work.
        trusted = stream.verified == self._digest
        self._stream = stream if trusted else VerifiedStream(stream, self._digest, self.length)
        if self.length == 0:
            await self._look_at_end()

    async def __anext__(self) -> bytes:
        if not self._piece:
            if not self._left:
                self._patience.wait_for(self.answer_seconds)
                raise StopAsyncIteration
            await self._read()
        piece = bytes(self._piece[:SEND_BYTES])
        self._piece = self._piece[SEND_BYTES:]
        self._sent += len(piece)
        self._note(len(piece))
        self._patience.progress(len(piece))
        return piece

    async def aclose(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def _read(self) -> None:
        assert self._stream is not None
        with self._own_time():
            self._piece = memoryview(await self._stream.read())
        if not 0 < len(self._piece) <= self._left:
            problem = "more" if self._piece else "less"
            raise FormatError(f"{self._stream.name} has {problem} than {self.length} bytes")
        self._left -= len(self._piece)
        if not self._left:
            await self._look_at_end()

    async def _look_at_end(self) -> None:
        assert self._stream is not None
        with self._own_time():
            if await self._stream.read():
                raise FormatError(f"{self._stream.name} has more than {self.length} bytes")

    @contextmanager
    def _own_time(self) -> Iterator[None]:
        """While the content is read, the registry is not what is waited for."""
        self._patience.wait_for(float("inf"))
        try:
            with content_errors():
                yield
        finally:
            self._patience.wait_for(0.0)


class ProgressBody(BytesBody):
    """A chunk; ``note`` and ``patience`` learn of each piece."""

    def __init__(self, data: memoryview, patience: Patience, note: Advance) -> None:
        super().__init__(data)
        self._patience = patience
        self._note = note

    async def start(self) -> None:
        self._note(-self.sent)
        await super().start()

    async def __anext__(self) -> bytes:
        piece = await super().__anext__()
        self._note(len(piece))
        self._patience.progress(len(piece))
        return piece


class ChunkReader:
    """Chunks of one size from a stream, the last one shorter."""

    def __init__(self, stream: ByteStream) -> None:
        self.ended = False
        self._stream = stream
        self._rest: Buffer = b""

    async def read(self, length: int) -> bytearray:
        """``length`` bytes, or what is left before the end, which is looked for at once."""
        chunk = bytearray(self._rest[:length])
        self._rest = self._rest[length:]
        while len(chunk) <= length and not self._rest:
            with content_errors():
                piece = await self._stream.read()
            if not piece:
                self.ended = True
                break
            space = length - len(chunk)
            chunk += piece[:space]
            self._rest = piece[space:]
        return chunk

"""Whole blobs as streams: the contract by which images move, and the streams over memory and files.

A ByteStream is read to its end by one task. It gives ``b""`` only when all that it can check was
right, so whoever has seen the end may use what came before it as good, and nobody else may.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from hybrid.core.device import Buffer, Source
from hybrid.errors import FormatError

if TYPE_CHECKING:
    from hybrid.core.reference import RegistryReference

PIECE_BYTES = 1 << 20
"""Longest piece that a stream gives; whoever reads one needs no more memory than this."""


class ByteStream(ABC):
    """Bytes from the first to the last. Close it (or use ``async with``) in the task that read it.

    Not to be used by several tasks.
    """

    name: str
    """What the bytes are, for messages."""
    verified: str = ""
    """The digest that the stream itself checks before its end; "" if it checks none."""

    @abstractmethod
    async def read(self) -> Buffer:
        """The next bytes, 1 to PIECE_BYTES; ``b""`` at the end, also if asked again.

        Raises HybridErrors: FormatError if what came is damaged, cut or too long.
        """

    local: bool = False
    """Whether the bytes lie on this machine: then a thread may read them."""

    def read_local(self) -> Buffer:
        """As ``read``, for a thread, which waits for a disk at most. Of a ``local`` stream only.

        Nobody may close the stream meanwhile.
        """
        raise AssertionError(f"{self.name} is not local")

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to release
        """Release what the stream holds. May be called twice."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


@dataclass(frozen=True)
class BlobContent:
    """A blob to be written somewhere: how to get its bytes, and what is known of them.

    ``repeatable``: ``open`` may be called again, and gives the same bytes. Without it ``open`` is
    called once, and an upload that breaks can go on only where the registry lets it.
    """

    open: Callable[[], Awaitable[ByteStream]]
    digest: str = ""
    """"" if it is not known before all was read."""
    size: int | None = None
    """Bytes; None if it is not known before."""
    repeatable: bool = True
    origin: RegistryReference | None = None
    """A repository that has the blob: another one of the same registry can take it from there."""


class MemoryStream(ByteStream):
    """Bytes in memory."""

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self.name = name
        self._data = memoryview(data)

    async def read(self) -> Buffer:
        await trio.lowlevel.checkpoint()
        piece, self._data = self._data[:PIECE_BYTES], self._data[PIECE_BYTES:]
        return piece


class SourceStream(ByteStream):
    """``length`` bytes at ``offset`` of a local Source, read in threads. Closes the Source."""

    local = True

    def __init__(self, source: Source, offset: int = 0, length: int | None = None) -> None:
        self.name = source.name
        self._source = source
        self._position = offset
        self._end = source.size if length is None else offset + length

    async def read(self) -> Buffer:
        if self._position >= self._end:
            await trio.lowlevel.checkpoint()
            return b""
        # The disk may be slow, and other blobs are on their way at the same time.
        return await trio.to_thread.run_sync(self.read_local)

    def read_local(self) -> Buffer:
        length = min(PIECE_BYTES, self._end - self._position)
        if length <= 0:
            return b""
        piece = self._source.pread_nowait(self._position, length)
        assert piece is not None, "a local source answers at once"
        self._position += length
        return piece

    async def aclose(self) -> None:
        await self._source.aclose()


class VerifiedStream(ByteStream):
    """A stream whose digest and size are checked as it passes. Closes the inner one.

    ``digest`` "" and ``size`` None are not checked; afterwards ``actual_digest`` and ``position``
    tell them. ``hint`` is for the user if something is wrong.
    """

    def __init__(
        self, inner: ByteStream, digest: str = "", size: int | None = None, *, hint: str = ""
    ) -> None:
        self.name = inner.name
        self.verified = digest
        self.local = inner.local
        self.position = 0
        self._inner = inner
        self._size = size
        self._hint = hint
        self._hash = hashlib.sha256()
        self._ended = False

    @property
    def actual_digest(self) -> str:
        """Of what has passed so far."""
        return f"sha256:{self._hash.hexdigest()}"

    async def read(self) -> Buffer:
        if self._ended:
            await trio.lowlevel.checkpoint()
            return b""
        piece = await self._inner.read()
        if self._count(piece):
            await hash_piece(self._hash.update, piece)
        return piece

    def read_local(self) -> Buffer:
        if self._ended:
            return b""
        piece = self._inner.read_local()
        if self._count(piece):
            self._hash.update(piece)
        return piece

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _count(self, piece: Buffer) -> bool:
        """False at the end, which is checked."""
        if not piece:
            self._check_end()
            self._ended = True
            return False
        self.position += len(piece)
        if self._size is not None and self.position > self._size:
            raise FormatError(
                f"{self.name} has more than the {self._size} bytes expected", hint=self._hint
            )
        return True

    def _check_end(self) -> None:
        if self._size is not None and self.position != self._size:
            raise FormatError(
                f"{self.name} ends after {self.position} of {self._size} bytes", hint=self._hint
            )
        if self.verified and self.actual_digest != self.verified:
            raise FormatError(
                f"{self.name}: its {self.position} bytes have the digest {self.actual_digest}, "
                f"not {self.verified}",
                hint=self._hint,
            )


async def hash_piece(update: Callable[[Buffer], None], piece: Buffer) -> None:
    """Hash a big piece in a thread, so that another core can do it; a small one at once."""
    if len(piece) >= PIECE_BYTES // 2:
        await trio.to_thread.run_sync(update, piece)
    else:
        update(piece)


def memory_content(data: bytes, name: str = "memory") -> BlobContent:
    """A small blob in memory, such as the config of an image."""

    async def open_stream() -> ByteStream:
        return MemoryStream(data, name)

    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return BlobContent(open_stream, digest, len(data))


async def read_all(content: BlobContent, limit_bytes: int) -> bytes:
    """A small blob in memory. Raises FormatError if it is longer than ``limit_bytes``."""
    parts: list[Buffer] = []
    total = 0
    async with await content.open() as stream:
        while piece := await stream.read():
            parts.append(piece)
            total += len(piece)
            if total > limit_bytes:
                raise FormatError(f"{stream.name} has more than {limit_bytes} bytes")
    return b"".join(parts)

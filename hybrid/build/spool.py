"""What can be read only once is kept on disk while it is sent, so that it can be sent again.

A registry need not be able to continue an upload that broke (Debian's docker-registry is not, amid
a chunk). The copy has no name and is gone with the process.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

from hybrid.core.byte_stream import PIECE_BYTES, BlobContent, ByteStream
from hybrid.core.device import Buffer
from hybrid.core.output_file import write_error
from hybrid.errors import HybridError


class Spool:
    """A blob that passes once, as content that can be opened again. An async context manager.

    One stream at a time: whoever opens it again has given up the one before. ``directory`` is made
    if it is not there. Without space the blob still passes once, and then raises StorageFullError.
    """

    def __init__(self, content: BlobContent, directory: Path) -> None:
        self._content = content
        self._directory = directory
        self._live: ByteStream | None = None
        self._fd = -1
        self._kept = 0
        self._failure: HybridError | None = None

    @property
    def content(self) -> BlobContent:
        """To be put somewhere."""
        return BlobContent(self._open, self._content.digest, self._content.size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True):
            if self._live is not None:
                await self._live.aclose()
        if self._fd >= 0:
            os.close(self._fd)

    async def _open(self) -> ByteStream:
        if self._live is None:
            self._live = await self._content.open()
            await trio.to_thread.run_sync(self._make_file)
        elif self._failure is not None:
            raise self._failure
        return SpooledStream(self, self._live)

    def _make_file(self) -> None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            self._failure = write_error(error, self._directory)

    async def read_at(self, position: int) -> Buffer:
        """What was kept from there on, at most a piece."""
        length = min(PIECE_BYTES, self._kept - position)
        return await trio.to_thread.run_sync(os.pread, self._fd, length, position)

    async def read_on(self, live: ByteStream) -> Buffer:
        """What comes next, and is kept."""
        piece = await live.read()
        if self._failure is None and piece:
            await trio.to_thread.run_sync(self._keep, piece)
        self._kept += len(piece)
        return piece

    @property
    def kept(self) -> int:
        """Bytes that have come so far."""
        return self._kept

    def _keep(self, piece: Buffer) -> None:
        view, position = memoryview(piece), self._kept
        try:
            while view:
                written = os.pwrite(self._fd, view, position)
                view, position = view[written:], position + written
        except OSError as error:
            self._failure = write_error(error, self._directory)
            # Nobody will read it: the space may be what others lack.
            os.ftruncate(self._fd, 0)


class SpooledStream(ByteStream):
    """From the first byte: what was kept, then what comes."""

    def __init__(self, spool: Spool, live: ByteStream) -> None:
        self.name = live.name
        self._spool = spool
        self._live = live
        self._position = 0

    async def read(self) -> Buffer:
        spool = self._spool
        if self._position < spool.kept:
            piece = await spool.read_at(self._position)
        else:
            piece = await spool.read_on(self._live)
        self._position += len(piece)
        return piece

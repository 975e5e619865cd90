"""The wrappers of a layer, written as a stream: tar( zfile( bytes ) ), each optional.

    produce --> pieces of 1 MiB and more --> compress, in threads --> write, in a thread

The three go on at the same time, with two pieces between each: memory does not grow with the layer.

The sha256 of the result takes one more reading of it, of what is compressed by then and still in
memory of the kernel. It cannot be had on the way: a tar header says in front how long the layer is,
and a ZFile header that saves readers one request says where the index is, which both are known only
at the end.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import trio

from hybrid.core.device import Buffer
from hybrid.core.disk import first_error
from hybrid.core.tarball import WRAPPER_SIZE, wrap_head, wrap_tail
from hybrid.core.zfile import ZFileWriter

if TYPE_CHECKING:
    from hybrid.build.compact import Put

PIECE_BYTES = 1 << 20
"""What each thread is given at a time."""
MAX_PIECE_BYTES = 8 << 20
"""What all of them are given: some six of these are in memory."""
_WAITING = 2
_HASH_BYTES = 1 << 20

Produce = Callable[["Put"], Awaitable[None]]
"""Gives the bytes of a stream, in order, to the sink it is called with."""


@dataclass(frozen=True)
class Wrapping:
    """How a stream is stored. ``compress``: lz4, zstd or none."""

    compress: str = "lz4"
    block_size: int = 4096
    tar: bool = True
    threads: int = 1


@dataclass(frozen=True)
class WrittenBlob:
    """A finished blob. Sizes in bytes."""

    digest: str
    size: int
    stream_size: int
    """Of what is inside the wrappers."""


async def write_blob(produce: Produce, wrapping: Wrapping, file: BinaryIO) -> WrittenBlob:
    """Write a new file: what ``produce`` gives, in its wrappers.

    ``file`` is empty, and can be read and sought. Raises OSError if it cannot be written, and what
    ``produce`` raises. The same bytes give the same blob, whatever the number of threads.
    """
    job = _Job(wrapping, file)
    try:
        async with trio.open_nursery() as nursery:
            to_packing, pieces = trio.open_memory_channel[bytes](_WAITING)
            to_writing, packed = trio.open_memory_channel[Buffer](_WAITING)
            nursery.start_soon(job.gather, produce, to_packing)
            nursery.start_soon(job.pack, pieces, to_writing)
            nursery.start_soon(job.write, packed)
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    digest = await trio.to_thread.run_sync(_digest, file, abandon_on_cancel=False)
    return WrittenBlob(digest, job.size, job.stream_size)


class _Job:
    def __init__(self, wrapping: Wrapping, file: BinaryIO) -> None:
        self.size = 0
        self.stream_size = 0
        self._file = file
        self._wrapping = wrapping
        self._writer: ZFileWriter | None = None
        self._piece_bytes = min(PIECE_BYTES * wrapping.threads, MAX_PIECE_BYTES)
        if wrapping.compress != "none":
            self._writer = new_zfile_writer(wrapping)

    async def gather(self, produce: Produce, target: trio.MemorySendChannel[bytes]) -> None:
        """Small pieces become large ones: each hop to a thread costs as much as a block."""
        parts: list[Buffer] = []
        waiting = 0

        async def put(data: Buffer) -> None:
            nonlocal waiting
            parts.append(data)
            waiting += len(data)
            if waiting >= self._piece_bytes:
                await target.send(b"".join(parts))
                parts.clear()
                waiting = 0

        async with target:
            await produce(put)
            if parts:
                await target.send(b"".join(parts))

    async def pack(
        self, pieces: trio.MemoryReceiveChannel[bytes], target: trio.MemorySendChannel[Buffer]
    ) -> None:
        writer = self._writer
        async with pieces, target:
            if writer is not None:
                await target.send(writer.header())
            async for piece in pieces:
                self.stream_size += len(piece)
                if writer is None:
                    await target.send(piece)
                else:
                    await target.send(await trio.to_thread.run_sync(writer.write, piece))
            if writer is not None:
                await target.send(await trio.to_thread.run_sync(writer.finish))

    async def write(self, packed: trio.MemoryReceiveChannel[Buffer]) -> None:
        base = WRAPPER_SIZE if self._wrapping.tar else 0
        self._file.write(bytes(base))
        size = 0
        async with packed:
            async for data in packed:
                if data:
                    await trio.to_thread.run_sync(self._file.write, data)
                    size += len(data)
        await trio.to_thread.run_sync(self._finish, base, size)
        self.size = os.fstat(self._file.fileno()).st_size

    def _finish(self, base: int, size: int) -> None:
        """Put in front what could not be known before."""
        if base:
            self._file.write(wrap_tail(size))
            self._file.seek(0)
            self._file.write(wrap_head(size))
        if self._writer is not None:
            self._file.seek(base)
            self._file.write(self._writer.overwritten_header())
        self._file.flush()


def new_zfile_writer(wrapping: Wrapping) -> ZFileWriter:
    """The encoder for a wrapping. Raises ValueError for what the format does not have."""
    return ZFileWriter(wrapping.compress, wrapping.block_size, threads=wrapping.threads)


def _digest(file: BinaryIO) -> str:
    found = hashlib.sha256()
    offset = 0
    while data := os.pread(file.fileno(), _HASH_BYTES, offset):
        found.update(data)
        offset += len(data)
    return f"sha256:{found.hexdigest()}"

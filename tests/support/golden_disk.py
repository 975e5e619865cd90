"""Stacks of layers opened with the product and compared with what they must contain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from support.golden import CHUNK, Expected

from hybrid.core.device import Source
from hybrid.core.disk import LayeredDevice
from hybrid.core.opening import open_layer
from hybrid.core.segments import ZEROS
from hybrid.core.source import FileSource, MemorySource

Blob = bytes | Path | Source


def source_of(blob: Blob) -> Source:
    if isinstance(blob, Source):
        return blob
    return FileSource(blob) if isinstance(blob, Path) else MemorySource(blob)


@asynccontextmanager
async def open_disk(blobs: Sequence[Blob]) -> AsyncIterator[LayeredDevice]:
    """The disk of these layers, bottom first. Everything is closed at the end, after errors too."""
    sources = [source_of(blob) for blob in blobs]
    try:
        yield LayeredDevice([await open_layer(source) for source in sources], "disk")
    finally:
        for source in sources:
            await source.aclose()


async def read(disk: LayeredDevice, offset: int, length: int) -> bytes:
    """Read in both ways that a Device offers; they must agree wherever the quick one answers."""
    quick = disk.pread_nowait(offset, length)
    data = bytes(await disk.pread(offset, length))
    assert len(data) == length
    assert quick is None or bytes(quick) == data
    return data


async def disk_of(blobs: Sequence[Blob]) -> bytes:
    """All bytes of the disk that these blobs make, bottom first. For small disks."""
    async with open_disk(blobs) as disk:
        return await read(disk, 0, disk.size)


def pieces(disk: LayeredDevice) -> Iterator[tuple[bool, int, int]]:
    """(zeros by the index, offset, length) over the whole disk; data in pieces of CHUNK bytes."""
    position = 0
    for source, _, length in disk.segments.extents(0, disk.size) if disk.size else []:
        step = length if source == ZEROS else CHUNK
        for start in range(0, length, step):
            yield source == ZEROS, position + start, min(step, length - start)
        position += length
    assert position == disk.size


async def check_disk(disk: LayeredDevice, expected: Expected) -> None:
    """Assert that the disk holds exactly what is expected; holes cost no time."""
    assert disk.size == expected.size
    for zeros, offset, length in pieces(disk):
        if zeros:
            assert expected.is_zero(offset, length), f"zeros at {offset}+{length}"
        else:
            same = await read(disk, offset, length) == expected.read(offset, length)
            assert same, f"data at {offset}+{length}"

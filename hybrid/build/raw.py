"""A raw disk, a file or a block device, as a stack to make a layer of. Holes are not read."""

from __future__ import annotations

import os
from pathlib import Path

from hybrid.core.device import SECTOR, Buffer, Source, check_range
from hybrid.core.disk import LayeredDevice
from hybrid.core.layer import Layer
from hybrid.core.lsmt import LayerRecord
from hybrid.core.segments import SegmentMap
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.stream import PlainStream
from hybrid.errors import FormatError


class RawSource(Source):
    """The bytes of a raw disk; a last sector that is cut off is filled up with zeros."""

    def __init__(self, file: StoredFile, length: int) -> None:
        self.name = str(file.path)
        self.size = -(-length // SECTOR) * SECTOR
        self._file = file
        self._length = length

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        there = max(0, min(length, self._length - offset))
        data = self._file.read(offset, there)
        return data if there == length else data + bytes(length - there)

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)

    async def aclose(self) -> None:
        self._file.close()


class _RawLayer(Layer):
    """Has no header to be checked."""

    async def check_head(self) -> None:
        pass

    def parts_nowait(self, offset: int, length: int) -> list[Buffer] | None:
        return self.stream.parts_nowait(offset, length)

    async def parts(self, offset: int, length: int) -> list[Buffer]:
        return await self.stream.parts(offset, length)


def open_raw(path: Path) -> LayeredDevice:
    """A raw file or a block device, which its closing closes. Its size is rounded up to sectors.

    Raises NotFoundError, PermissionNeededError, or FormatError for what is neither.
    """
    real = Path(os.path.realpath(path))
    is_block_device = real.is_block_device()
    if real.exists() and not (is_block_device or real.is_file()):
        raise FormatError(f"{path} is neither a regular file nor a block device")
    file = Storage().open(real, writable=False)
    try:
        length = file.end()
        source = RawSource(file, length)
        segments = _everything(source.size) if is_block_device else _data(file, length)
    except BaseException:
        file.close()
        raise
    record = LayerRecord(0, 0, 0, source.size, "", "", b"")
    layer = _RawLayer(source, PlainStream(source, 0, source.size), record, segments, 0)
    return LayeredDevice([layer], str(path))


def _everything(size: int) -> SegmentMap:
    return SegmentMap([0], [size // SECTOR], [0]) if size else SegmentMap()


def _data(file: StoredFile, length: int) -> SegmentMap:
    segments = SegmentMap()
    position = 0
    while position < length:
        found = file.next_data(position, length)
        if found is None:
            break
        first, last = found[0] // SECTOR, -(-found[1] // SECTOR)
        segments.starts.append(first)
        segments.ends.append(last)
        segments.locations.append(first)
        position = last * SECTOR
    return segments

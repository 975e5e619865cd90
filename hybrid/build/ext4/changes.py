"""What a layer changes on the disk below it: the blocks for its LSMT file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, NamedTuple, Protocol, Self

from hybrid.build.ext4.native import FileSystem, compare
from hybrid.build.ext4.runs import Run, common, divided, whole_blocks
from hybrid.core.device import Buffer, check_range

_STEP = 1 << 20
"""Bytes compared at once."""


class Base(Protocol):
    """The disk below a layer. All in bytes."""

    @property
    def size(self) -> int:
        """A multiple of 4096."""
        ...

    def read(self, offset: int, length: int) -> Buffer:
        """Exactly these bytes."""
        ...

    def extents(self) -> Sequence[Run]:
        """(offset, length), ascending, of all that may be anything but zeros."""
        ...


class Extent(NamedTuple):
    """A range of a layer, in bytes: whole blocks of 4096."""

    offset: int
    length: int
    zero: bool
    """It holds zeros (a zeroed segment): changed to zeros, or not in use any more."""


class Changes:
    """The changed ranges, ascending and joined, and their data until ``close``.

    Blocks that are equal to what lies below are not among them, nor are blocks that nothing uses,
    except that those which had data below are now zero.
    """

    def __init__(self, scratch: IO[bytes], size: int, extents: list[Extent]) -> None:
        self.size = size
        self.extents = extents
        self._scratch = scratch

    def read(self, offset: int, length: int) -> bytes:
        """Data of an extent that is not ``zero``. Any number of threads may read."""
        check_range(offset, length, self.size, "a layer")
        return read_exactly(self._scratch.fileno(), offset, length)

    @property
    def data_bytes(self) -> int:
        """Bytes of all extents that are not ``zero``."""
        return sum(extent.length for extent in self.extents if not extent.zero)

    def close(self) -> None:
        """Give the scratch file back."""
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_exactly(fd: int, offset: int, length: int) -> bytes:
    """Bytes of a sparse file; beyond its end there are zeros."""
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data.ljust(length, b"\0")


def new_scratch(directory: str | None) -> IO[bytes]:
    """A nameless file, in ``directory`` or where temporary files are."""
    return TemporaryFile(prefix="hybrid-layer-", dir=directory, buffering=0)


def collect(fs: FileSystem, scratch: IO[bytes], base: Base | None, size: int) -> Changes:
    """Compare what was written with what lies below. ``fs`` was flushed."""
    below = whole_blocks(base.extents(), size) if base is not None else []
    found = list(_differences(fs, scratch.fileno(), base, below))
    found += (Extent(offset, length, True) for offset, length in common(fs.free(), below))
    return Changes(scratch, size, _joined(sorted(found)))


def _differences(fs: FileSystem, fd: int, base: Base | None, below: list[Run]) -> Iterator[Extent]:
    for start, length, inside in divided(fs.written(), below):
        for offset in range(start, start + length, _STEP):
            step = min(_STEP, start + length - offset)
            old = base.read(offset, step) if inside and base is not None else None
            for place, count, zero in compare(read_exactly(fd, offset, step), old):
                yield Extent(offset + place, count, zero)


def _joined(extents: list[Extent]) -> list[Extent]:
    result: list[Extent] = []
    for extent in extents:
        last = result[-1] if result else None
        if last and last.offset + last.length == extent.offset and last.zero == extent.zero:
            result[-1] = Extent(last.offset, last.length + extent.length, last.zero)
        else:
            result.append(extent)
    return result

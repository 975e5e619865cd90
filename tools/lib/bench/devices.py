"""The Devices that the benchmark's own servers have, by the name that is given to a server.

memory:FILE         the file, in memory
null:BYTES          a disk of so many bytes that reads as a pattern, whose memory stays cached
layers:FILE:FILE    local layers, bottom first, as `hybrid mount` opens them
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybrid.core.device import Buffer, Device, check_range
from hybrid.core.disk import LayeredDevice
from hybrid.core.opening import open_layer
from hybrid.core.source import FileSource

_PERIOD = 1 << 20
_PATTERN = bytes(range(251)) * (2 * _PERIOD // 251 + 1)


class MemoryDevice(Device):
    """A file in memory. Reads are views, without a copy."""

    def __init__(self, file: Path) -> None:
        data = file.read_bytes()
        self.name = "memory"
        self.size = len(data)
        self._view = memoryview(data)

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        return self._view[offset : offset + length]

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)


class NullDevice(Device):
    """A disk that repeats 1 MiB for ever. Reads of up to 1 MiB are views, without a copy."""

    def __init__(self, size: int) -> None:
        self.name = "null"
        self.size = size
        self._view = memoryview(_PATTERN)

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        start = offset % _PERIOD
        data = self._view[start : start + length]
        return data if len(data) == length else b"".join(self._pieces(offset, length))

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)

    def _pieces(self, offset: int, length: int) -> list[Buffer]:
        ends = range(offset, offset + length, _PERIOD)
        return [self.pread_nowait(o, min(_PERIOD, offset + length - o)) for o in ends]


def layers_name(layers: Sequence[Path]) -> str:
    return ":".join(["layers", *map(str, layers)])


async def open_device(name: str) -> Device:
    """The Device of that name."""
    kind, *arguments = name.split(":")
    if kind == "null":
        return NullDevice(int(arguments[0]))
    if kind == "memory":
        return MemoryDevice(Path(arguments[0]))
    return LayeredDevice([await open_layer(FileSource(path)) for path in arguments], kind)

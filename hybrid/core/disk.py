"""The merged virtual disk of a stack of layers: the Device that front ends serve."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from hybrid.core import lsmt
from hybrid.core.device import SECTOR, Buffer, Device, check_range
from hybrid.core.layer import Layer
from hybrid.core.lsmt import ZEROS, Extent

_ZERO_BYTES = bytes(1 << 20)


class LayeredDevice(Device):
    """Layers, bottom first, merged: the upper one wins for every sector that it maps.

    The size is the virtual size of the topmost layer that states one (spec: lsmt 6). Raises
    UnsupportedError for more than 255 layers. Closing the device closes the layers.
    """

    def __init__(self, layers: Sequence[Layer], name: str) -> None:
        self.name = name
        self.layers = list(layers)
        self.segments = lsmt.merge([layer.segments or lsmt.SegmentMap() for layer in layers], name)
        for layer in self.layers:
            layer.segments = None  # the merged index has all of it
        sizes = [layer.record.virtual_size for layer in layers if layer.record.virtual_size]
        self.size = -(-(sizes[-1] if sizes else 0) // SECTOR) * SECTOR
        self._files = list(reversed(self.layers))  # as the tags count

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        check_range(offset, length, self.size, self.name)
        if not length:
            return b""
        parts: list[Buffer] = []
        for source, where, size in self.segments.extents(offset, length):
            if source == ZEROS:
                parts.extend(_zeros(size))
            else:
                found = self._files[source].parts_nowait(where, size)
                if found is None:
                    return None
                parts += found
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def pread(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        if not length:
            return b""
        extents = self.segments.extents(offset, length)
        if len(extents) == 1:
            return b"".join(await self._parts(extents[0]))
        parts: list[list[Buffer]] = [[] for _ in extents]

        async def read(number: int) -> None:
            parts[number] = await self._parts(extents[number])

        try:
            async with trio.open_nursery() as nursery:
                for number in range(len(extents)):
                    nursery.start_soon(read, number)
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        return b"".join(part for found in parts for part in found)

    def stats(self) -> dict[str, int]:
        return {
            "layers": len(self.layers),
            "segments": len(self.segments),
            "bytes_total": sum(layer.source.size for layer in self.layers),
        }

    async def aclose(self) -> None:
        for layer in self.layers:
            await layer.aclose()

    async def _parts(self, extent: Extent) -> list[Buffer]:
        if extent.source == ZEROS:
            return _zeros(extent.length)
        file = self._files[extent.source]
        found = file.parts_nowait(extent.offset, extent.length)
        return await file.parts(extent.offset, extent.length) if found is None else found


def _zeros(length: int) -> list[Buffer]:
    """Buffers of ``length`` zero bytes in all, without making new ones."""
    whole, rest = divmod(length, len(_ZERO_BYTES))
    parts: list[Buffer] = [_ZERO_BYTES] * whole
    if rest:
        parts.append(memoryview(_ZERO_BYTES)[:rest])
    return parts


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of a group: the reads of one request mostly fail for one reason.

    A cancellation goes first, since it must reach its scope.
    """
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(first_error(error) if isinstance(error, BaseExceptionGroup) else error)
    cancelled = [error for error in leaves if isinstance(error, trio.Cancelled)]
    return (cancelled or leaves)[0]

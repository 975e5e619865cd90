"""The merged virtual disk of a stack of layers: the Device that front ends serve."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from hybrid.core.device import SECTOR, Buffer, Device, check_range
from hybrid.core.layer import Layer
from hybrid.core.segments import MAX_LAYERS, ZEROS, Extent, SegmentMap, merge, restack
from hybrid.core.stream import ZFileStream
from hybrid.errors import UnsupportedError

_ZERO_BYTES = bytes(1 << 20)
_INLINE_EXTENTS = 128
"""Extents of one request that are read without a checkpoint; each may expand a block of 64 KiB."""
_PARALLEL_EXTENTS = 16


class LayeredDevice(Device):
    """Layers, bottom first, merged: the upper one wins for every sector that it maps.

    The size is the virtual size of the topmost layer that states one (spec: lsmt 6). Raises
    UnsupportedError for more than 255 layers. Closing the device closes the layers.
    """

    def __init__(self, layers: Sequence[Layer], name: str) -> None:
        self.name = name
        self.layers = list(layers)
        self.segments = merge([layer.segments or SegmentMap() for layer in layers], name)
        for layer in self.layers:
            layer.segments = None  # the merged index has all of it
        sizes = [layer.record.virtual_size for layer in layers if layer.record.virtual_size]
        self.size = -(-(sizes[-1] if sizes else 0) // SECTOR) * SECTOR
        self._files = tuple(reversed(self.layers))  # as the tags count

    def check_room(self) -> None:
        """Raises UnsupportedError if there is no room for another layer."""
        if len(self.layers) >= MAX_LAYERS:
            raise UnsupportedError(
                f"{self.name} has {len(self.layers)} layers, and cannot have more",
                hint="`hybrid commit` or `hybrid layer merge` makes one of several",
            )

    def push(self, layer: Layer) -> None:
        """Put a layer on top of the others. Requests that wait are answered as before it.

        The disk grows to the size that the layer states. Raises UnsupportedError for more than 255
        layers.
        """
        self.check_room()
        self.segments = restack(layer.segments or SegmentMap(), self.segments)
        layer.segments = None
        self.size = max(self.size, -(-layer.record.virtual_size // SECTOR) * SECTOR)
        self.layers.append(layer)
        self._files = (layer, *self._files)

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        parts = self.read_parts_nowait(offset, length)
        if parts is None:
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_parts_nowait(self, offset: int, length: int) -> list[Buffer] | None:
        check_range(offset, length, self.size, self.name)
        if not length:
            return []
        extents = self.segments.extents(offset, length)
        if len(extents) > _INLINE_EXTENTS:
            return None
        parts: list[Buffer] = []
        for source, where, size in extents:
            if source == ZEROS:
                parts.extend(zeros(size))
            else:
                found = self._files[source].parts_nowait(where, size)
                if found is None:
                    return None
                parts += found
        return parts

    async def pread(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        if not length:
            return b""
        extents, files = self.segments.extents(offset, length), self._files
        parts: list[list[Buffer]] = []
        missing: list[int] = []
        for number, extent in enumerate(extents):
            if number % _INLINE_EXTENTS == _INLINE_EXTENTS - 1:
                await trio.lowlevel.checkpoint()
            found = _parts_nowait(extent, files)
            parts.append(found or [])
            if found is None:
                missing.append(number)
        await _fetch(extents, files, missing, parts)
        pieces = [part for found in parts for part in found]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def identity(self) -> str:
        """A hex digest that differs for another disk: of indexes, sizes and uuids of all layers.

        Whoever takes a disk over from a process that died must find the same one.
        """
        digest = hashlib.sha256(f"{self.size}".encode())
        for numbers in (self.segments.starts, self.segments.ends, self.segments.locations):
            digest.update(numbers)
        for layer in self.layers:
            digest.update(repr((layer.source.size, layer.base, layer.record)).encode())
            if isinstance(layer.stream, ZFileStream):
                digest.update(layer.stream.blocks.offsets)
        return digest.hexdigest()

    def stats(self) -> dict[str, int]:
        return {
            "layers": len(self.layers),
            "segments": len(self.segments),
            "bytes_total": sum(layer.source.size for layer in self.layers),
        }

    async def aclose(self) -> None:
        for layer in self.layers:
            await layer.aclose()


async def _fetch(
    extents: list[Extent], files: tuple[Layer, ...], missing: list[int], parts: list[list[Buffer]]
) -> None:
    """Fill in what was not at hand, a few extents at a time."""
    waiting = iter(missing)

    async def work() -> None:
        for number in waiting:
            source, offset, length = extents[number]
            parts[number] = await files[source].parts(offset, length)

    if len(missing) == 1:
        await work()
    elif missing:
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(_PARALLEL_EXTENTS, len(missing))):
                    nursery.start_soon(work)
        except BaseExceptionGroup as group:
            raise first_error(group) from group


def _parts_nowait(extent: Extent, files: tuple[Layer, ...]) -> list[Buffer] | None:
    if extent.source == ZEROS:
        return zeros(extent.length)
    return files[extent.source].parts_nowait(extent.offset, extent.length)


def zeros(length: int) -> list[Buffer]:
    """Buffers of ``length`` zero bytes in all, without making new ones."""
    whole, rest = divmod(length, len(_ZERO_BYTES))
    parts: list[Buffer] = [_ZERO_BYTES] * whole
    if rest:
        parts.append(memoryview(_ZERO_BYTES)[:rest])
    return parts


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One error of a group: the reads of one request mostly fail for one reason.

    A cancellation goes first, since it must reach its scope; then what is no ordinary error, such
    as KeyboardInterrupt.
    """
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(first_error(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(leaves, key=_urgency)


def _urgency(error: BaseException) -> int:
    if isinstance(error, trio.Cancelled):
        return 0
    return 2 if isinstance(error, Exception) else 1

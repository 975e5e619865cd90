"""A disk that can be changed: a writable layer over the layers of an image.

Reads look into the upper first; what it does not map comes from below. Writes go to the upper, in
whole sectors. A write that covers a sector in part reads the rest of it first; while that waits,
``_exclusive`` keeps all other changes out, so that no write gets lost in between. The same lock
holds changes up while the upper is exchanged (``snapshot`` of the directory).
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import trio

from hybrid.core.device import SECTOR, Buffer, Device, check_range
from hybrid.core.disk import LayeredDevice, first_error, zeros
from hybrid.core.segments import ZEROS, Extent
from hybrid.core.upper import Upper
from hybrid.core.writable_map import DATA, HOLE

_PIECE = 1 << 20
"""Bytes of a long write that are stored at a time."""
_ZERO_BYTES = bytes(_PIECE)
_MIN_ZERO = 4096
"""Bytes of zeros that become a zeroed segment rather than data."""


class WritableDevice(Device):
    """``upper`` over ``lower`` (None: nothing is below). Closing it closes both.

    ``identity`` tells one such disk from others; it does not change with what is written.
    """

    writable = True

    def __init__(
        self, lower: LayeredDevice | None, upper: Upper, name: str, *, identity: str = ""
    ) -> None:
        self.name = name
        self.lower = lower
        self.upper = upper
        self.size = -(-(upper.virtual_size or (lower.size if lower else 0)) // SECTOR) * SECTOR
        self.digest: str = getattr(lower, "digest", "")
        self._identity = identity
        self._exclusive = trio.Lock()

    def identity(self) -> str:
        below = self.lower.identity() if self.lower is not None else ""
        text = self._identity or f"{self.upper.record.uuid} {below}"
        return hashlib.sha256(f"{self.size} {text}".encode()).hexdigest()

    # --- reading

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        parts = self.read_parts_nowait(offset, length)
        if parts is None:
            return None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_parts_nowait(self, offset: int, length: int) -> list[Buffer] | None:
        check_range(offset, length, self.size, self.name)
        parts: list[Buffer] = []
        position = offset
        for extent in self.upper.segments.extents(offset, length) if length else ():
            found = self._extent_nowait(extent, position)
            if found is None:
                return None
            parts += found
            position += extent.length
        return parts

    async def pread(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        parts: list[list[Buffer]] = []
        missing: list[Callable[[], Awaitable[None]]] = []
        position = offset
        # All of the upper is read before anything waits: later writes cannot pull it away.
        for number, extent in enumerate(
            self.upper.segments.extents(offset, length) if length else ()
        ):
            found = self._extent_nowait(extent, position)
            parts.append(found or [])
            if found is None:
                missing.append(self._fetch(parts, number, position, extent.length))
            position += extent.length
        await _run_all(missing)
        return b"".join(part for found in parts for part in found)

    def _fetch(
        self, parts: list[list[Buffer]], number: int, offset: int, length: int
    ) -> Callable[[], Awaitable[None]]:
        lower = self.lower
        assert lower is not None
        below = max(0, min(length, lower.size - offset))

        async def fetch() -> None:
            parts[number] = [await lower.pread(offset, below), *zeros(length - below)]

        return fetch

    def _extent_nowait(self, extent: Extent, position: int) -> list[Buffer] | None:
        source, where, length = extent
        if source == DATA:
            return [self.upper.read(where, length)]
        below = 0
        if source == HOLE and self.lower is not None:
            below = max(0, min(length, self.lower.size - position))
        if not below or source == ZEROS:
            return zeros(length)
        assert self.lower is not None
        found = self.lower.read_parts_nowait(position, below)
        return None if found is None else [*found, *zeros(length - below)]

    # --- writing

    def pwrite_nowait(self, offset: int, data: Buffer) -> bool:
        check_range(offset, len(data), self.size, self.name)
        if (
            offset % SECTOR or len(data) % SECTOR or self.upper.wants_flush
            or self._exclusive.locked()
        ):  # fmt: skip
            return False
        self._store(offset, data)
        return True

    async def pwrite(self, offset: int, data: Buffer) -> None:
        check_range(offset, len(data), self.size, self.name)
        if self.upper.wants_flush:
            await self.upper.flush()
        async with self._exclusive:
            head = -offset % SECTOR if offset % SECTOR else 0
            view = memoryview(data)
            if head:
                head = min(head, len(view))
                await self._store_partly(offset, view[:head])
            whole = (len(view) - head) // SECTOR * SECTOR
            self._store(offset + head, view[head : head + whole])
            if head + whole < len(view):
                await self._store_partly(offset + head + whole, view[head + whole :])

    async def discard(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size, self.name)
        if self.upper.wants_flush:
            await self.upper.flush()
        async with self._exclusive:
            first = -(-offset // SECTOR)
            last = (offset + length) // SECTOR
            if first >= last:
                await self._zero_partly(offset, offset + length)
                return
            await self._zero_partly(offset, first * SECTOR)
            self.upper.zero(first, last - first)
            await self._zero_partly(last * SECTOR, offset + length)

    async def flush(self) -> None:
        await self.upper.flush()

    def _store(self, offset: int, data: Buffer) -> None:
        """Whole sectors. Zeros are not stored, but noted."""
        view = memoryview(data)
        for begin in range(0, len(view), _PIECE):
            piece = view[begin : begin + _PIECE]
            sector = (offset + begin) // SECTOR
            if _is_zero(piece):
                self.upper.zero(sector, len(piece) // SECTOR)
            else:
                self.upper.write(sector, piece)

    async def _store_partly(self, offset: int, data: Buffer) -> None:
        """A part of one sector; the lock is held."""
        start = offset // SECTOR * SECTOR
        sector = bytearray(await self.pread(start, SECTOR))
        sector[offset - start : offset - start + len(data)] = data
        self.upper.write(start // SECTOR, sector)

    async def _zero_partly(self, begin: int, end: int) -> None:
        while begin < end:
            stop = min(end, (begin // SECTOR + 1) * SECTOR)
            await self._store_partly(begin, bytes(stop - begin))
            begin = stop

    # --- the rest

    async def exchange(self, work: Callable[[], Awaitable[tuple[LayeredDevice, Upper]]]) -> None:
        """Keep changes out while ``work`` makes another lower and upper, and go on with those."""
        async with self._exclusive:
            self.lower, self.upper = await work()

    def stats(self) -> dict[str, int]:
        below = self.lower.stats() if self.lower is not None else {}
        return below | self.upper.stats()

    async def aclose(self) -> None:
        try:
            await self.upper.aclose()
        finally:
            if self.lower is not None:
                await self.lower.aclose()


def _is_zero(piece: memoryview) -> bool:
    length = len(piece)
    if length < _MIN_ZERO or piece[0] or piece[-1] or piece[length // 2]:
        return False
    # As bytes: a comparison of views would go byte by byte.
    return bytes(piece) == (_ZERO_BYTES if length == _PIECE else _ZERO_BYTES[:length])


async def _run_all(tasks: list[Callable[[], Awaitable[None]]]) -> None:
    if len(tasks) == 1:
        await tasks[0]()
    elif tasks:
        try:
            async with trio.open_nursery() as nursery:
                for task in tasks:
                    nursery.start_soon(task)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

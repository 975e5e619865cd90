"""The LSMT stream of a layer, as random-access bytes: plain, or expanded from a ZFile.

Streams answer with lists of buffers, so that a Device joins all parts of a request once. As in
``hybrid.core.device``, ``parts_nowait`` gives None where it would have to wait.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

from hybrid.core.device import Buffer, Source, check_range
from hybrid.core.zfile import BlockMap, DamagedBlockError

logger = logging.getLogger("hybrid.core")

_REMEMBERED_BYTES = 1 << 20


class Stream(ABC):
    """``size`` bytes; ranges must be non-empty and lie inside."""

    size: int
    source: Source
    """Where the bytes come from."""

    @abstractmethod
    def parts_nowait(self, offset: int, length: int) -> list[Buffer] | None: ...

    @abstractmethod
    async def parts(self, offset: int, length: int) -> list[Buffer]: ...

    async def read(self, offset: int, length: int) -> bytes:
        """The range as one buffer; for metadata, not for the hot path."""
        return b"".join(await self.parts(offset, length)) if length else b""


class PlainStream(Stream):
    """Uncompressed: ``size`` bytes of the source from ``base`` on."""

    def __init__(self, source: Source, base: int, size: int) -> None:
        self.size = size
        self.source = source
        self._base = base

    def parts_nowait(self, offset: int, length: int) -> list[Buffer] | None:
        check_range(offset, length, self.size, self.source.name)
        data = self.source.pread_nowait(self._base + offset, length)
        return None if data is None else [data]

    async def parts(self, offset: int, length: int) -> list[Buffer]:
        check_range(offset, length, self.size, self.source.name)
        return [await self.source.pread(self._base + offset, length)]


class ZFileStream(Stream):
    """Expanded from the ZFile that begins at byte ``base`` of the source.

    Blocks of which a request took only a part are remembered (1 MiB of them): the next request
    usually wants the rest. A block that is damaged is dropped from the copies below (the cache)
    and read once more from the origin; what is damaged there too is a DamagedBlockError.
    """

    def __init__(self, source: Source, base: int, blocks: BlockMap) -> None:
        self.size = blocks.size
        self.source = source
        self.blocks = blocks
        self._base = base
        self._remembered: dict[int, bytes] = {}
        self._capacity = max(2, _REMEMBERED_BYTES // blocks.block_size)

    def parts_nowait(self, offset: int, length: int) -> list[Buffer] | None:
        check_range(offset, length, self.size, self.source.name)
        known, first, last = self._plan(offset, length)
        parts: list[bytes] = known
        if first < last:
            start, size = self._compressed(first, last)
            data = self.source.pread_nowait(start, size)
            if data is None:
                return None
            try:
                parts = known + self.blocks.decode(data, first, last)
            except DamagedBlockError:
                return None  # the waiting path asks the origin again
        return self._cut(parts, offset, length)

    async def parts(self, offset: int, length: int) -> list[Buffer]:
        check_range(offset, length, self.size, self.source.name)
        known, first, last = self._plan(offset, length)
        fetched = await self._fetch(first, last) if first < last else []
        return self._cut(known + fetched, offset, length)

    async def _fetch(self, first: int, last: int) -> list[bytes]:
        start, size = self._compressed(first, last)
        data = await self.source.pread(start, size)
        try:
            return self.blocks.decode(data, first, last)
        except DamagedBlockError as error:
            damaged = self._compressed(error.block, error.block + 1)
            if not await self.source.evict(*damaged):
                raise
            logger.warning("%s; fetching it again", error)
        # Several blocks may be damaged, so the rest of the run is read again with the first.
        await self.source.evict(start, size)
        return self.blocks.decode(await self.source.pread(start, size), first, last)

    def _compressed(self, first: int, last: int) -> tuple[int, int]:
        """Offset and size in the source of blocks ``first`` to ``last - 1``."""
        offsets = self.blocks.offsets
        return self._base + offsets[first], offsets[last] - offsets[first]

    def _plan(self, offset: int, length: int) -> tuple[list[bytes], int, int]:
        """What is remembered of the beginning, and the blocks that have to be read."""
        first, last = self.blocks.blocks_of(offset, length)
        if self._remembered:
            block = self._remembered.get(first)
            if block is not None:
                return [block], first + 1, last
        return [], first, last

    def _cut(self, parts: list[bytes], offset: int, length: int) -> list[Buffer]:
        """Trim whole blocks to the range, remembering those that are trimmed."""
        block_size = self.blocks.block_size
        first, skip = divmod(offset, block_size)
        surplus = sum(map(len, parts)) - skip - length if skip or length % block_size else 0
        cut: list[Buffer] = list(parts)
        if surplus:
            last = parts[-1]
            self._remember(first + len(parts) - 1, last)
            cut[-1] = memoryview(last)[: len(last) - surplus]
        if skip:
            if len(parts) > 1 or not surplus:
                self._remember(first, parts[0])
            cut[0] = memoryview(cut[0])[skip:]
        return cut

    def _remember(self, number: int, block: bytes) -> None:
        if number not in self._remembered and len(self._remembered) >= self._capacity:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[number] = block

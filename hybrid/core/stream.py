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
        run = b""
        if first < last:
            start, size = self._compressed(first, last)
            data = self.source.pread_nowait(start, size)
            if data is None:
                return None
            try:
                run = self.blocks.decode(data, first, last)
            except DamagedBlockError:
                return None  # the waiting path asks the origin again
        return self._cut(known, run, offset, length)

    async def parts(self, offset: int, length: int) -> list[Buffer]:
        check_range(offset, length, self.size, self.source.name)
        known, first, last = self._plan(offset, length)
        run = await self._fetch(first, last) if first < last else b""
        return self._cut(known, run, offset, length)

    async def _fetch(self, first: int, last: int) -> bytes:
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

    def _plan(self, offset: int, length: int) -> tuple[bytes, int, int]:
        """The first block if it is remembered (else b""), and the blocks that have to be read."""
        first, last = self.blocks.blocks_of(offset, length)
        if self._remembered:
            block = self._remembered.get(first)
            if block is not None:
                return block, first + 1, last
        return b"", first, last

    def _cut(self, known: bytes, run: bytes, offset: int, length: int) -> list[Buffer]:
        """Trim whole blocks to the range, remembering those of ``run`` that are trimmed."""
        first, skip = divmod(offset, self.blocks.block_size)
        end = skip + length - len(known)  # in run
        begin = 0
        cut: list[Buffer] = []
        if known:
            cut.append(memoryview(known)[skip : skip + length] if skip or end < 0 else known)
            first += 1
        else:
            begin = skip
        if run:
            if begin:
                self._remember(first, 0, run)
            if end < len(run):
                self._remember(first, end, run)
            cut.append(memoryview(run)[begin:end] if begin or end < len(run) else run)
        return cut

    def _remember(self, first: int, position: int, run: bytes) -> None:
        """Keep the block at ``position`` of ``run``, which begins with block number ``first``.

        A copy, unless the run is that block: one block must not keep a whole run in memory.
        """
        block_size = self.blocks.block_size
        number = position // block_size
        if len(run) > block_size:
            run = run[number * block_size : (number + 1) * block_size]
        number += first
        if number not in self._remembered and len(self._remembered) >= self._capacity:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[number] = run

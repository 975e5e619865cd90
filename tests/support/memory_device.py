"""A writable Device in memory that fails, waits and fills up where a test says so."""

from __future__ import annotations

import trio

from hybrid.core.device import Buffer, Device, check_range
from hybrid.errors import FormatError, StorageFullError

Range = tuple[int, int]
"""(offset, length) in bytes."""


class MemoryDevice(Device):
    """Bytes in memory. The faults are attributes that may be changed at any time.

    ``calls`` has what was done, in order, when it took effect: ("read" | "write" | "discard",
    offset, length) and ("flush", 0, 0).
    """

    name = "memory"

    def __init__(self, content: bytes | int, *, writable: bool = True) -> None:
        """``content``: the bytes, or how many zeros."""
        self.content = bytearray(content)
        self.size = len(self.content)
        self.writable = writable
        self.failing: list[Range] = []
        """Reads and writes that touch these raise FormatError."""
        self.slow: list[Range] = []
        """Reads and writes that touch these would block: they wait until ``gate`` is set."""
        self.gate = trio.Event()
        self.bug: Exception | None = None
        """Raised by everything that is done with the content."""
        self.is_full = False
        """Writes raise StorageFullError."""
        self.waiting = 0
        """Calls that wait for the gate now."""
        self.records = True
        self.calls: list[tuple[str, int, int]] = []

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        if self.slow and self._is_slow(offset, length):
            return None
        return self._read(offset, length)

    async def pread(self, offset: int, length: int) -> Buffer:
        await self._wait(offset, length)
        return self._read(offset, length)

    def pwrite_nowait(self, offset: int, data: Buffer) -> bool:
        if self.slow and self._is_slow(offset, len(data)):
            return False
        self._write(offset, data)
        return True

    async def pwrite(self, offset: int, data: Buffer) -> None:
        await self._wait(offset, len(data))
        self._write(offset, data)

    async def discard(self, offset: int, length: int) -> None:
        await self._wait(offset, length)
        self._check("discard", offset, length)
        self.content[offset : offset + length] = bytes(length)

    async def flush(self) -> None:
        await self._wait(0, self.size)
        if not self.writable:
            self._refuse_write()
        self._check("flush", 0, 0)

    def _read(self, offset: int, length: int) -> Buffer:
        self._check("read", offset, length)
        return memoryview(self.content)[offset : offset + length]

    def _write(self, offset: int, data: Buffer) -> None:
        if not self.writable:
            self._refuse_write()
        self._check("write", offset, len(data))
        if self.is_full:
            raise StorageFullError("no space left for memory", hint="free some")
        self.content[offset : offset + len(data)] = data

    def _check(self, what: str, offset: int, length: int) -> None:
        check_range(offset, length, self.size, self.name)
        if self.bug is not None:
            raise self.bug
        if self.failing and _touches(self.failing, offset, length):
            raise FormatError(f"bad block in {what} at {offset}", offset=offset)
        if self.records:
            self.calls.append((what, offset, length))

    def _is_slow(self, offset: int, length: int) -> bool:
        return not self.gate.is_set() and _touches(self.slow, offset, length)

    async def _wait(self, offset: int, length: int) -> None:
        if self._is_slow(offset, length):
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1


def _touches(ranges: list[Range], offset: int, length: int) -> bool:
    return any(start < offset + length and offset < start + size for start, size in ranges)

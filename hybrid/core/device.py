"""The two contracts of the core: a Source of bytes, and a Device of sectors.

Both are read at positions only: there is no shared seek pointer anywhere. Numbers are bytes unless
a name says ``sector`` (512 bytes). Both offer two ways to read:

``pread_nowait(offset, length)``
    answers at once, without a checkpoint, or returns ``None`` for "would block" (network, another
    process). It may do short local disk reads and decompress up to about 512 KiB inline: a hop to
    a thread costs more (design: 90-140 us against 1-2 us a block).
``await pread(offset, length)``
    always answers. It is a checkpoint only if it really has to wait.

Both return exactly ``length`` bytes (``bytes`` or ``memoryview``; never a short read), or raise a
``HybridError`` that says which part of which blob failed. A range that leaves ``[0, size]`` is the
caller's bug and raises ``ValueError``. All methods may be called by any number of tasks at once.

A Device with ``writable`` set can be changed too. A read that overlaps a write in flight may give
old or new bytes; one that begins after the write has returned gives the new ones. What was written
is safe from a crash once a ``flush`` that began later has returned. ``StorageFullError`` means that
there is no space for the new data; the old data is then intact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NoReturn

SECTOR = 512
"""Bytes of a sector, the unit of the LSMT index and of block devices."""

Buffer = bytes | bytearray | memoryview


def check_range(offset: int, length: int, size: int, name: str) -> None:
    """The checkpoint between layers: raise ValueError unless the range lies in [0, size]."""
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"read of {length} bytes at {offset} leaves {name} of {size} bytes")


class Source(ABC):
    """Random-access bytes of one immutable blob: a local file, a registry blob, memory.

    Caching, retry and throttling are Sources wrapped around a Source.
    """

    name: str
    """What the bytes are, for messages: a path, or ``host/repo@sha256:...``."""
    size: int
    """Length in bytes. Never changes."""

    @abstractmethod
    def pread_nowait(self, offset: int, length: int) -> Buffer | None: ...

    @abstractmethod
    async def pread(self, offset: int, length: int) -> Buffer: ...

    async def evict(self, offset: int, length: int) -> bool:
        """Forget copies of this range, so that the next read asks the origin again.

        Returns False if the range was read from the origin itself: asking again is pointless.
        """
        return False

    async def aclose(self) -> None:  # noqa: B027 - most Sources hold nothing
        """Release files and connections. Reads after that are a bug."""


class Device(ABC):
    """The merged virtual disk of an image. Any byte range may be read, aligned or not."""

    name: str
    """What the disk is, for messages and logs."""
    size: int
    """Bytes, a multiple of 512."""
    writable: bool = False

    @abstractmethod
    def pread_nowait(self, offset: int, length: int) -> Buffer | None: ...

    @abstractmethod
    async def pread(self, offset: int, length: int) -> Buffer: ...

    def read_parts_nowait(self, offset: int, length: int) -> Sequence[Buffer] | None:
        """As ``pread_nowait``, in pieces that together are the range, for readers that copy.

        The pieces must be used before the next call: a Device may use the memory again.
        """
        data = self.pread_nowait(offset, length)
        return None if data is None else (data,)

    def pwrite_nowait(self, offset: int, data: Buffer) -> bool:
        """Write all of ``data`` and return True, or return False: would block, nothing written."""
        self._refuse_write()

    async def pwrite(self, offset: int, data: Buffer) -> None:
        """Write all of ``data``, which must stay as it is until this returns."""
        self._refuse_write()

    async def discard(self, offset: int, length: int) -> None:
        """Make the range read as zeros, giving its space back where that is possible."""
        self._refuse_write()

    async def flush(self) -> None:
        """Return when all that was written before is on stable storage."""
        self._refuse_write()

    def _refuse_write(self) -> NoReturn:
        raise ValueError(f"{self.name} is read-only")

    def identity(self) -> str:
        """A text that differs whenever the content might be another one."""
        return f"{self.name} {self.size}"

    def stats(self) -> dict[str, int]:
        """Counters for ``list`` and ``status``: ``bytes_total``, ``bytes_fetched``, ... (bytes)."""
        return {}

    async def aclose(self) -> None:  # noqa: B027
        """Release everything below. Reads after that are a bug."""

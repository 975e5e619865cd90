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
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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

    @abstractmethod
    def pread_nowait(self, offset: int, length: int) -> Buffer | None: ...

    @abstractmethod
    async def pread(self, offset: int, length: int) -> Buffer: ...

    def stats(self) -> dict[str, int]:
        """Counters for ``list`` and ``status``: ``bytes_total``, ``bytes_fetched``, ... (bytes)."""
        return {}

    async def aclose(self) -> None:  # noqa: B027
        """Release everything below. Reads after that are a bug."""

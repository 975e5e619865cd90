"""Sources that behave as caches and registries do on a bad day; for tests of layers and images."""

from __future__ import annotations

from hybrid.core.device import Buffer, Source, check_range


class StaleCache(Source):
    """A cache whose copy is damaged. What is evicted comes from the origin at the next read.

    ``copy`` is what the cache holds, ``origin`` what the registry would send (both of one length).
    With ``remote`` the nowait path always says "would block". ``requests`` and ``evictions`` list
    (offset, length) in bytes.
    """

    def __init__(self, copy: bytes, origin: bytes, *, remote: bool = True) -> None:
        assert len(copy) == len(origin)
        self.name = "stale"
        self.size = len(origin)
        self.requests: list[tuple[int, int]] = []
        self.evictions: list[tuple[int, int]] = []
        self._held = bytearray(copy)
        self._origin = origin
        self._remote = remote

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        check_range(offset, length, self.size, self.name)
        if self._remote:
            return None
        return bytes(self._held[offset : offset + length])

    async def pread(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        self.requests.append((offset, length))
        return bytes(self._held[offset : offset + length])

    async def evict(self, offset: int, length: int) -> bool:
        check_range(offset, length, self.size, self.name)
        self.evictions.append((offset, length))
        self._held[offset : offset + length] = self._origin[offset : offset + length]
        return True


def flipped(data: bytes, *positions: int, mask: int = 0x20) -> bytes:
    """The data with bits of these bytes inverted."""
    out = bytearray(data)
    for position in positions:
        out[position] ^= mask
    return bytes(out)

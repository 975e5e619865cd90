"""Free space within a file, to be used again or given back to the file system (pure).

To give back one block costs a file system some 100 us, which for small random writes would be
most of the work. So what is free is used again first, in the order in which it became free, and
only what is more than ``budget`` has to be given back.
"""

from __future__ import annotations

from collections import deque

from hybrid.core.reclaim import joined

_LOOKS = 4
"""Ranges that a request looks at before it gives up."""


class SpacePool:
    """Ranges (offset, length), in bytes; they must not overlap."""

    def __init__(self) -> None:
        self._ranges: deque[tuple[int, int]] = deque()
        self.size = 0
        """Bytes of all ranges."""

    def add(self, ranges: list[tuple[int, int]]) -> None:
        self._ranges.extend(ranges)
        self.size += sum(length for _, length in ranges)

    def take(self, length: int) -> int | None:
        """A place for ``length`` bytes, which is no longer free; None if none was found quickly."""
        ranges = self._ranges
        if self.size < length:
            return None
        for _ in range(min(_LOOKS, len(ranges))):
            offset, room = ranges[0]
            if room >= length:
                if room > length:
                    ranges[0] = (offset + length, room - length)
                else:
                    ranges.popleft()
                self.size -= length
                return offset
            ranges.rotate(-1)
        return None

    def take_long(self, least: int) -> list[tuple[int, int]]:
        """Remove all ranges that have, with their neighbours, at least ``least`` bytes."""
        ranges = joined(self._ranges)
        self._ranges = deque(found for found in ranges if found[1] < least)
        self.size = sum(length for _, length in self._ranges)
        return [found for found in ranges if found[1] >= least]

    def take_excess(self, budget: int, count: int) -> list[tuple[int, int]]:
        """Remove up to ``count`` ranges until no more than ``budget`` bytes are left.

        Returns them sorted, with neighbours joined.
        """
        excess: list[tuple[int, int]] = []
        while self.size > budget and len(excess) < count:
            found = self._ranges.popleft()
            self.size -= found[1]
            excess.append(found)
        return joined(excess)

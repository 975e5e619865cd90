"""The index of a writable layer in memory: which sectors lie where, changed in place (pure).

As ``SegmentMap``, three parallel arrays of 8-byte numbers, but cut into pieces ("chunks") of a
bounded length: a change moves at most one chunk. 24 bytes a segment, and up to twice that while
chunks are half full after splits. A change costs a binary search of the chunks and one inside.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise

from hybrid.core.device import SECTOR
from hybrid.core.segments import MOFFSET_MASK, ZEROED, ZEROS, Extent, Segment, SegmentMap

HOLE = -2
"""The source of an Extent that this layer does not map: what is below shows."""
DATA = 0
"""The source of an Extent that lies in this layer's file."""

_CHUNK = 1024
"""Segments of one chunk, at most."""

Dead = list[tuple[int, int]]
"""Ranges of the file that nothing refers to any more: (first sector, sectors)."""


class WritableMap:
    """Sorted and disjoint; neighbours that continue each other are joined.

    A location is the second word of an LSMT entry: ``moffset`` in sectors, and the zeroed bit.
    """

    __slots__ = ("_chunks", "_count", "_firsts")

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = [_Chunk()]
        self._firsts = [0]
        """Where the first segment of each chunk begins; 0 for the first chunk."""
        self._count = 0

    @classmethod
    def of_sorted(cls, segments: SegmentMap) -> WritableMap:
        """The same segments (tags are dropped). They are sorted, as a SegmentMap always is."""
        made = cls()
        half = _CHUNK // 2  # leaves room, so that the first changes need no splits
        for begin in range(0, len(segments), half):
            chunk = _Chunk()
            chunk.starts = segments.starts[begin : begin + half]
            chunk.ends = segments.ends[begin : begin + half]
            chunk.locations = segments.locations[begin : begin + half]
            if not begin:
                made._chunks, made._firsts = [chunk], [0]
            else:
                made._chunks.append(chunk)
                made._firsts.append(chunk.starts[0])
        made._count = len(segments)
        return made

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Segment]:
        for chunk in self._chunks:
            yield from SegmentMap(chunk.starts, chunk.ends, chunk.locations)

    def memory(self) -> int:
        """Bytes that the arrays take, unused room in them included."""
        numbers = sum(
            array_.__sizeof__()
            for chunk in self._chunks
            for array_ in (chunk.starts, chunk.ends, chunk.locations)
        )
        return numbers + len(self._firsts) * 48  # a list slot and an int; chunk objects

    def snapshot(self) -> SegmentMap:
        """The segments as they are now, in a map of their own."""
        found = SegmentMap()
        for chunk in self._chunks:
            found.starts.extend(chunk.starts)
            found.ends.extend(chunk.ends)
            found.locations.extend(chunk.locations)
        return found

    def put(self, start: int, end: int, location: int) -> Dead:
        """Map sectors [start, end) to ``location``; what that replaced in the file is returned."""
        dead = self._cut(start, end)
        number = max(0, bisect_right(self._firsts, start) - 1)
        chunk = self._chunks[number]
        self._count -= len(chunk.starts)
        chunk.insert(start, end, location)
        self._count += len(chunk.starts)
        if number:
            self._firsts[number] = chunk.starts[0]
        if len(chunk.starts) > _CHUNK:
            upper = chunk.split()
            self._chunks.insert(number + 1, upper)
            self._firsts.insert(number + 1, upper.starts[0])
        return dead

    def _cut(self, start: int, end: int) -> Dead:
        """Map nothing in [start, end)."""
        dead: Dead = []
        number = max(0, bisect_right(self._firsts, start) - 1)
        while number < len(self._chunks):
            chunk = self._chunks[number]
            self._count -= len(chunk.starts)
            chunk.cut(start, end, dead)
            self._count += len(chunk.starts)
            if not chunk.starts and len(self._chunks) > 1:
                del self._chunks[number], self._firsts[number]
                self._firsts[0] = 0
            else:
                if number and chunk.starts:
                    self._firsts[number] = chunk.starts[0]
                number += 1
            if number >= len(self._chunks) or self._firsts[number] >= end:
                break
        return dead

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Where the bytes ``[offset, offset + length)`` of the disk come from, in order.

        The source of an Extent is DATA (``offset`` is that in the file, in bytes), ZEROS or HOLE.
        """
        stop = offset + length
        position = offset
        extents: list[Extent] = []
        for start, end, location in self._from(offset // SECTOR):
            begin = start * SECTOR
            if begin >= stop:
                break
            if begin > position:
                extents.append(Extent(HOLE, 0, begin - position))
                position = begin
            last = min(end * SECTOR, stop)
            if location & ZEROED:
                extents.append(Extent(ZEROS, 0, last - position))
            else:
                where = location * SECTOR + position - begin
                extents.append(Extent(DATA, where, last - position))
            position = last
            if position >= stop:
                break
        if position < stop:
            extents.append(Extent(HOLE, 0, stop - position))
        return extents

    def _from(self, sector: int) -> Iterator[tuple[int, int, int]]:
        """The segments that end beyond ``sector``: start, end, location."""
        number = max(0, bisect_right(self._firsts, sector) - 1)
        first = bisect_right(self._chunks[number].ends, sector)
        while number < len(self._chunks):
            chunk = self._chunks[number]
            for index in range(first, len(chunk.starts)):
                yield chunk.starts[index], chunk.ends[index], chunk.locations[index]
            first = 0
            number += 1

    def unreferenced(self, begin: int, end: int) -> Dead:
        """The ranges of file sectors [begin, end) that no segment refers to."""
        used = sorted(
            (location, location + last - first)
            for chunk in self._chunks
            for first, last, location in zip(chunk.starts, chunk.ends, chunk.locations, strict=True)
            if not location & ZEROED
        )
        edges = [(begin, begin), *used, (end, end)]
        return [(a, b - a) for (_, a), (b, _) in pairwise(edges) if b > a]


class _Chunk:
    __slots__ = ("ends", "locations", "starts")

    def __init__(self) -> None:
        self.starts = array("Q")
        self.ends = array("Q")
        self.locations = array("Q")

    def insert(self, start: int, end: int, location: int) -> None:
        """Add a segment where there is room for it, joined with neighbours that it continues."""
        starts, ends, locations = self.starts, self.ends, self.locations
        at = bisect_left(starts, start)
        length = end - start
        joins_left = (
            at > 0
            and ends[at - 1] == start
            and _continues(locations[at - 1], start - starts[at - 1], location)
        )
        joins_right = (
            at < len(starts) and starts[at] == end and _continues(location, length, locations[at])
        )
        if joins_left and joins_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at], locations[at]
        elif joins_left:
            ends[at - 1] = end
        elif joins_right:
            starts[at] = start
            locations[at] = location
        else:
            starts.insert(at, start)
            ends.insert(at, end)
            locations.insert(at, location)

    def cut(self, start: int, end: int, dead: Dead) -> None:
        """Remove [start, end); what that frees in the file is added to ``dead``."""
        starts, ends, locations = self.starts, self.ends, self.locations
        first = bisect_right(ends, start)
        last = bisect_left(starts, end, first)
        if first >= last:
            return
        kept: list[tuple[int, int, int]] = []
        for index in range(first, last):
            begin, stop, location = starts[index], ends[index], locations[index]
            cut_begin, cut_stop = max(begin, start), min(stop, end)
            if not location & ZEROED:
                dead.append((location + cut_begin - begin, cut_stop - cut_begin))
            if begin < start:
                kept.append((begin, start, location))
            if stop > end:
                kept.append((end, stop, _advanced(location, end - begin)))
        starts[first:last] = array("Q", [part[0] for part in kept])
        ends[first:last] = array("Q", [part[1] for part in kept])
        locations[first:last] = array("Q", [part[2] for part in kept])

    def split(self) -> _Chunk:
        """Keep the lower half; return the upper one."""
        half = len(self.starts) // 2
        upper = _Chunk()
        upper.starts, self.starts = self.starts[half:], self.starts[:half]
        upper.ends, self.ends = self.ends[half:], self.ends[:half]
        upper.locations, self.locations = self.locations[half:], self.locations[:half]
        return upper


def _advanced(location: int, sectors: int) -> int:
    return location if location & ZEROED else location + sectors


def _continues(left: int, sectors: int, right: int) -> bool:
    """Whether ``right`` lies where ``left`` of so many sectors ends; zeros always do."""
    if left & ZEROED or right & ZEROED:
        return bool(left & right & ZEROED)
    return left + sectors == right & MOFFSET_MASK

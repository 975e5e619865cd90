"""Sets of sectors as sorted runs, and how the index of a stack becomes such sets. PURE."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge

from hybrid.core.segments import ZEROED, SegmentMap

BLOCK_SECTORS = 8
"""Sectors of the 4 KiB blocks, aligned on the disk, in which zeros are looked for."""


class Runs:
    """Ranges of sectors [start, end), ascending; none touches the next. 16 bytes a range."""

    __slots__ = ("ends", "starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.starts = array("Q")
        self.ends = array("Q")
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Append a range; none of it may lie in front of the end of the last one."""
        if start >= end:
            return
        if self.ends and self.ends[-1] >= start:
            assert self.starts[-1] <= start, "ranges must ascend"
            self.ends[-1] = max(self.ends[-1], end)
            return
        self.starts.append(start)
        self.ends.append(end)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.ends, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Runs({list(self)})"

    def sectors(self) -> int:
        return sum(self.ends) - sum(self.starts)

    def intersect(self, other: Runs) -> Runs:
        """What lies in both."""
        found = Runs()
        for start, end in self:
            for first, last in other.within(start, end):
                found.add(first, last)
        return found

    def subtract(self, other: Runs) -> Runs:
        """What lies in this and not in the other."""
        found = Runs()
        for start, end in self:
            position = start
            for first, last in other.within(start, end):
                found.add(position, first)
                position = last
            found.add(position, end)
        return found

    def union(self, other: Runs) -> Runs:
        """What lies in either."""
        return Runs(merged(self, other))

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges that lie in [start, end), cut to it."""
        number = bisect_right(self.ends, start)
        while number < len(self.starts) and self.starts[number] < end:
            yield max(start, self.starts[number]), min(end, self.ends[number])
            number += 1

    def whole_blocks(self) -> Runs:
        """Only the 4 KiB blocks that lie in it as a whole."""
        size = BLOCK_SECTORS
        return Runs((-(-start // size) * size, end // size * size) for start, end in self)


def merged(one: Runs, other: Runs) -> Iterator[tuple[int, int]]:
    """The ranges of both, by their starts."""
    return merge(one, other)


def split_index(segments: SegmentMap, limit: int) -> tuple[Runs, Runs]:
    """What a stack maps below sector ``limit``: sectors to read, and sectors that are zeros.

    A 4 KiB block that is mapped to data in part is to be read as a whole, as far as it is mapped:
    so the result follows from what is mapped, and not from the pieces in which it was written.
    """
    starts, ends, locations = segments.starts, segments.ends, segments.locations
    data, zeros = Runs(), Runs()
    first = 0
    while first < len(starts) and starts[first] < limit:
        last = first + 1
        while last < len(starts) and starts[last] == ends[last - 1]:
            last += 1
        bottom, top = starts[first], min(ends[last - 1], limit)
        position = bottom
        for number in range(first, last):
            if locations[number] & ZEROED or starts[number] >= limit:
                continue
            begin = max(position, starts[number] // BLOCK_SECTORS * BLOCK_SECTORS)
            end = min(top, -(-ends[number] // BLOCK_SECTORS) * BLOCK_SECTORS)
            zeros.add(position, begin)
            if begin < end:
                data.add(begin, end)
                position = end
        zeros.add(position, top)
        first = last
    return data, zeros


def data_of(segments: SegmentMap) -> Runs:
    """The sectors that a stack maps to something else than zeros."""
    found = Runs()
    for start, end, location in zip(
        segments.starts, segments.ends, segments.locations, strict=True
    ):
        if not location & ZEROED:
            found.add(start, end)
    return found


def windows(runs: Runs, sectors: int) -> Iterator[list[tuple[int, int]]]:
    """The ranges, cut and grouped by aligned windows of so many sectors, so that the groups depend
    on nothing but the runs."""
    group: list[tuple[int, int]] = []
    window = -1
    for start, end in runs:
        while start < end:
            number = start // sectors
            if number != window:
                if group:
                    yield group
                group, window = [], number
            stop = min(end, (number + 1) * sectors)
            group.append((start, stop))
            start = stop
    if group:
        yield group

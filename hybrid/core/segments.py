"""Which sectors of a disk lie where: of one layer, and of all layers merged (spec: lsmt 6).

Pure: no I/O. Sectors are 512 bytes. A range that no layer maps reads as zeros; an upper layer hides
what lies below it, with zeroed segments too.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hybrid.core.device import SECTOR
from hybrid.errors import UnsupportedError

MAX_LAYERS = 255
MAX_MERGED_ENTRIES = 8_000_000
"""Entries of all layers of an image together. The reference takes 16 times as many; at 24 bytes
and some microseconds each, that would be an attack rather than an image."""

ZEROS = -1
"""The source of an Extent that reads as zeros."""

MOFFSET_MASK = (1 << 55) - 1
ZEROED = 1 << 55
TAG_SHIFT = 56
LOCATION_MASK = (1 << 56) - 1
"""A location without its tag."""


class Extent(NamedTuple):
    """``length`` bytes of a disk: at ``offset`` (bytes) of file ``source``, or ZEROS."""

    source: int
    offset: int
    length: int


class Segment(NamedTuple):
    """An entry in plain numbers: sectors, and ``tag`` = file number (0 = top)."""

    offset: int
    length: int
    moffset: int
    zeroed: bool
    tag: int


class SegmentMap:
    """A sorted, disjoint index: which sectors of the disk lie where. 24 bytes a segment.

    Three parallel arrays: ``starts`` and ``ends`` are sectors of the disk; ``locations`` is the
    second word of an entry (moffset in sectors, zeroed bit, tag = number of the file, 0 = top).
    """

    __slots__ = ("ends", "locations", "starts")

    def __init__(
        self,
        starts: Sequence[int] = (),
        ends: Sequence[int] = (),
        locations: Sequence[int] = (),
    ) -> None:
        self.starts = array("Q", starts)
        self.ends = array("Q", ends)
        self.locations = array("Q", locations)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Segment]:
        for start, end, location in zip(self.starts, self.ends, self.locations, strict=True):
            yield Segment(
                start, end - start, location & MOFFSET_MASK, bool(location & ZEROED),
                location >> TAG_SHIFT,
            )  # fmt: skip

    def memory(self) -> int:
        """Bytes that the arrays take."""
        return sum(
            len(numbers) * numbers.itemsize for numbers in (self.starts, self.ends, self.locations)
        )

    def with_tag(self, tag: int) -> SegmentMap:
        """The same segments, all in file number ``tag``."""
        mark = tag << TAG_SHIFT
        tagged = [location & LOCATION_MASK | mark for location in self.locations]
        return SegmentMap(self.starts, self.ends, tagged)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Where the bytes ``[offset, offset + length)`` of the disk come from, in order.

        Neighbours that continue each other in the same file are joined. Length must be > 0.
        """
        starts, ends, locations = self.starts, self.ends, self.locations
        stop = offset + length
        number = bisect_right(ends, offset // SECTOR)
        extents: list[Extent] = []
        position = offset
        while position < stop:
            begin = starts[number] * SECTOR if number < len(starts) else stop
            if begin > position:
                source, where, end = ZEROS, 0, min(begin, stop)
            else:
                end = min(ends[number] * SECTOR, stop)
                location = locations[number]
                number += 1
                if location & ZEROED:
                    source, where = ZEROS, 0
                else:
                    source = location >> TAG_SHIFT
                    where = (location & MOFFSET_MASK) * SECTOR + position - begin
            _append_extent(extents, source, where, end - position)
            position = end
        return extents


def _append_extent(extents: list[Extent], source: int, offset: int, length: int) -> None:
    if extents:
        last = extents[-1]
        if last.source == source and (source == ZEROS or last.offset + last.length == offset):
            extents[-1] = Extent(source, last.offset, last.length + length)
            return
    extents.append(Extent(source, offset, length))


def merge(layers: Sequence[SegmentMap], name: str = "image") -> SegmentMap:
    """Merge layers, bottom first, into one index; tags count from the top (spec: lsmt 6).

    Raises UnsupportedError for more than 255 layers, or 8 million segments. Balanced, so that n
    segments in k layers cost n log k; runs that do not interleave are copied as slices.
    """
    if len(layers) > MAX_LAYERS:
        raise UnsupportedError(f"{name} has {len(layers)} layers; at most {MAX_LAYERS} can be used")
    count = sum(map(len, layers))
    if count > MAX_MERGED_ENTRIES:
        raise UnsupportedError(
            f"{name} has {count} segments in its layers; at most {MAX_MERGED_ENTRIES} can be used"
        )
    stack = [layer.with_tag(tag) for tag, layer in enumerate(reversed(layers))]
    while len(stack) > 1:
        pairs = [_overlay(stack[i], stack[i + 1]) for i in range(0, len(stack) - 1, 2)]
        stack = pairs + stack[len(stack) - len(stack) % 2 :]
    return stack[0] if stack else SegmentMap()


def restack(upper: SegmentMap, lower: SegmentMap) -> SegmentMap:
    """A merged index with one more layer on top, which becomes file number 0."""
    moved = SegmentMap(lower.starts, lower.ends)
    moved.locations.extend(location + (1 << TAG_SHIFT) for location in lower.locations)
    return _overlay(upper.with_tag(0), moved)


def _overlay(upper: SegmentMap, lower: SegmentMap) -> SegmentMap:
    """The upper's segments, with those of the lower in the gaps between them."""
    if not len(lower):
        return upper
    merged = SegmentMap()
    position = u = i = 0  # sectors below position are done; next segment of upper and of lower
    while u < len(upper):
        i = bisect_right(lower.ends, position, i)
        if i == len(lower):
            break
        # All of upper that begins before lower has anything to give goes out in one piece.
        free = max(lower.starts[i], position)
        run = bisect_right(upper.starts, free, u)
        if run > u:
            _copy(merged, upper, u, run)
            position = merged.ends[-1]
            u = run
        else:
            i = _fill(merged, lower, i, position, upper.starts[u])
            position = upper.starts[u]
    if u < len(upper):
        _copy(merged, upper, u, len(upper))
    else:
        i = bisect_right(lower.ends, position, i)
        if i < len(lower):
            _fill(merged, lower, i, position, lower.ends[-1])
    return merged


def _copy(merged: SegmentMap, other: SegmentMap, first: int, last: int) -> None:
    merged.starts.extend(other.starts[first:last])
    merged.ends.extend(other.ends[first:last])
    merged.locations.extend(other.locations[first:last])


def _fill(merged: SegmentMap, lower: SegmentMap, first: int, begin: int, end: int) -> int:
    """Append lower's segments of sectors [begin, end), cut to them; return where to go on."""
    last = bisect_left(lower.starts, end, first)
    head = len(merged)
    _copy(merged, lower, first, last)
    cut = begin - merged.starts[head]
    if cut > 0:
        merged.starts[head] = begin
        if not merged.locations[head] & ZEROED:
            merged.locations[head] += cut
    merged.ends[-1] = min(merged.ends[-1], end)
    return last - 1

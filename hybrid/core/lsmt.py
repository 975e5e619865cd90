"""LSMT codec: layers of changed sectors, and their merge into one disk (spec: lsmt).

Pure: no I/O. A sealed layer, as seen behind its wrappers:

    0        4096           index_offset               EOF-4096  EOF
    | header | data sectors | entries, 16 bytes each   | trailer |

Header and trailer are 4096-byte blocks with the same packed record in front:

    offset size field              offset size field
         0   24 magic                  48    8 virtual_size (bytes)
        24    4 record size (390)      56   37 uuid (text)
        28    4 flags                  93   37 parent_uuid (text)
        32    8 index_offset (bytes)  132    2 version, sub_version
        40    8 index_size (entries)  134  256 user_tag

An entry maps ``length`` sectors of the disk from ``offset`` on to sector ``moffset`` of the file,
or to zeros. Sectors are 512 bytes. A range that no layer maps reads as zeros; an upper layer hides
what lies below it, with zeroed entries too.
"""

from __future__ import annotations

import struct
import sys
import uuid as uuids
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from operator import le
from typing import NamedTuple

from hybrid.core.device import SECTOR, Buffer
from hybrid.errors import FormatError, UnsupportedError

BLOCK = 4096
"""Bytes of the header, and of the trailer."""
ENTRY_SIZE = 16
MAGIC = b"LSMT\x00\x01\x02\x00\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a"
MAX_LAYERS = 255
MAX_ENTRIES = 1_000_000
"""Entries of one sealed layer that readers accept (spec: lsmt 18)."""
MAX_MERGED_ENTRIES = 8_000_000
"""Entries of all layers of an image together. The reference takes 16 times as many; at 24 bytes
and some microseconds each, that would be an attack rather than an image."""
MAX_LENGTH = (1 << 14) - 1
"""Sectors of one entry."""
NO_UUID = "00000000-0000-0000-0000-000000000000"

FLAG_HEADER = 1
FLAG_DATA = 2
FLAG_SEALED = 4
FLAG_SPARSE = 16

ZEROS = -1
"""The source of an Extent that reads as zeros."""

_RECORD = struct.Struct("<24sIIQQQ37s37sHBB256s")
_ENTRY = struct.Struct("<QQ")
_INVALID = ((1 << 50) - 1).to_bytes(8, "little") + bytes(8)
_OFFSET_BITS = 50
_OFFSET_MASK = (1 << 50) - 1
INVALID_SECTOR = _OFFSET_MASK
"""First sector of an entry that is padding."""
MOFFSET_MASK = (1 << 55) - 1
ZEROED = 1 << 55
_TAG_SHIFT = 56
_LOCATION_MASK = (1 << 56) - 1


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """The record of a header or trailer. ``index_size`` counts entries, other sizes are bytes."""

    flags: int
    index_offset: int
    index_size: int
    virtual_size: int
    uuid: str
    parent_uuid: str
    user_tag: bytes

    @property
    def sparse(self) -> bool:
        return bool(self.flags & FLAG_SPARSE)


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


def is_lsmt(head: Buffer) -> bool:
    """True if ``head`` (at least 24 bytes) begins with the LSMT magic."""
    return bytes(head[:24]) == MAGIC


def parse_header(block: Buffer, name: str) -> LayerRecord:
    """Parse the 4096 bytes at the start of a data file. Raises FormatError."""
    record = _parse_record(block, name, "header")
    if not record.flags & FLAG_HEADER:
        raise FormatError(f"{name}: LSMT header is not marked as header")
    if not record.flags & FLAG_DATA:
        raise FormatError(f"{name}: LSMT header is not that of a data file")
    return record


def parse_trailer(block: Buffer, name: str, file_size: int) -> LayerRecord:
    """Parse the last 4096 bytes of a sealed layer of ``file_size`` bytes. Raises FormatError.

    The position and size of the index are checked against the file.
    """
    record = _parse_record(block, name, "trailer")
    if record.flags & (FLAG_HEADER | FLAG_DATA | FLAG_SEALED) != FLAG_DATA | FLAG_SEALED:
        raise FormatError(
            f"{name}: LSMT trailer has flags {record.flags:#x}: the layer is not sealed"
        )
    if record.virtual_size > _OFFSET_MASK * SECTOR:
        raise FormatError(f"{name}: impossible virtual size {record.virtual_size}")
    if record.index_size > MAX_ENTRIES:
        raise FormatError(f"{name}: LSMT index of {record.index_size} entries is too large")
    end = record.index_offset + record.index_size * ENTRY_SIZE
    if record.index_offset < BLOCK or end > file_size - BLOCK:
        raise FormatError(
            f"{name}: LSMT index at bytes {record.index_offset}-{end} does not lie between "
            f"header and trailer of {file_size} bytes"
        )
    return record


def parse_index_header(block: Buffer, name: str) -> LayerRecord:
    """Parse the 4096 bytes at the start of the index file of a writable layer.

    Raises FormatError (spec: lsmt 8.5).
    """
    record = _parse_record(block, name, "header")
    if record.flags & (FLAG_HEADER | FLAG_DATA | FLAG_SEALED) != FLAG_HEADER:
        raise FormatError(f"{name}: LSMT header is not that of the index of a writable layer")
    if record.index_offset != BLOCK:
        raise FormatError(f"{name}: LSMT index begins at {record.index_offset}, not at {BLOCK}")
    if record.virtual_size > _OFFSET_MASK * SECTOR:
        raise FormatError(f"{name}: impossible virtual size {record.virtual_size}")
    return record


def _parse_record(block: Buffer, name: str, what: str) -> LayerRecord:
    if len(block) != BLOCK:
        raise FormatError(f"{name}: LSMT {what} is cut off: {len(block)} of {BLOCK} bytes")
    (magic, _, flags, index_offset, index_size, virtual_size, uuid, parent_uuid, _, _, _,
     user_tag) = _RECORD.unpack_from(block)  # fmt: skip
    if magic != MAGIC:
        raise FormatError(f"{name}: no LSMT {what} where one should be (wrong magic)")
    return LayerRecord(
        flags, index_offset, index_size, virtual_size, _parse_uuid(uuid), _parse_uuid(parent_uuid),
        user_tag.rstrip(b"\0"),
    )  # fmt: skip


def _parse_uuid(field: bytes) -> str:
    """The upper-case text of a uuid, "" for none: uuids are advisory, bad ones are no error."""
    text = field.split(b"\0", 1)[0].decode("ascii", "replace").upper()
    return "" if text == NO_UUID or not is_uuid(text) else text


def is_uuid(text: str) -> bool:
    """True for 36 characters of the form 8-4-4-4-12, hex digits of either case."""
    try:
        return str(uuids.UUID(text)) == text.lower()
    except ValueError:
        return False


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
                location >> _TAG_SHIFT,
            )  # fmt: skip

    def memory(self) -> int:
        """Bytes that the arrays take."""
        return sum(
            len(numbers) * numbers.itemsize for numbers in (self.starts, self.ends, self.locations)
        )

    def with_tag(self, tag: int) -> SegmentMap:
        """The same segments, all in file number ``tag``."""
        mark = tag << _TAG_SHIFT
        tagged = [location & _LOCATION_MASK | mark for location in self.locations]
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
                    source = location >> _TAG_SHIFT
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


def parse_index(raw: Buffer, record: LayerRecord, name: str) -> SegmentMap:
    """Decode and check the index of a sealed layer (spec: lsmt 5). Raises FormatError.

    Padding entries are dropped wherever they stand, as are empty ones; tags on disk are ignored.
    """
    word0, word1 = read_entries(raw)
    _check_locations(word0, word1, record.index_offset // SECTOR, name)
    word0, word1 = _select(word0, word1, lambda w: w >> _OFFSET_BITS)
    found = SegmentMap()
    found.starts.extend(w & _OFFSET_MASK for w in word0)
    found.ends.extend((w & _OFFSET_MASK) + (w >> _OFFSET_BITS) for w in word0)
    found.locations.extend(w & _LOCATION_MASK for w in word1)
    if not all(map(le, found.ends, islice(found.starts, 1, None))):
        pairs = zip(found.ends, islice(found.starts, 1, None), strict=False)
        end, start = next((end, start) for end, start in pairs if end > start)
        raise FormatError(
            f"{name}: LSMT index is not in order: an entry ends at sector {end}, the next "
            f"begins at {start}"
        )
    return found


def entry_words(raw: Buffer) -> array[int]:
    """First and second words of whole entries (16 bytes each), in turns."""
    words = array("Q")
    words.frombytes(raw)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def read_entries(raw: Buffer) -> tuple[array[int], array[int]]:
    """First and second words of all entries (16 bytes each) that are no padding."""
    words = entry_words(raw)
    return _select(words[0::2], words[1::2], lambda w: w & _OFFSET_MASK != _OFFSET_MASK)


def split_entry(word0: int) -> tuple[int, int]:
    """First sector, and sectors, of an entry by its first word."""
    return word0 & _OFFSET_MASK, word0 >> _OFFSET_BITS


def _select(
    word0: array[int], word1: array[int], wanted: Callable[[int], object]
) -> tuple[array[int], array[int]]:
    """The entries whose first word is wanted; mostly that is all of them."""
    if all(map(wanted, word0)):
        return word0, word1
    selectors = [bool(wanted(word)) for word in word0]
    return array("Q", compress(word0, selectors)), array("Q", compress(word1, selectors))


def may_be_turbo(raw: Buffer, record: LayerRecord) -> bool:
    """Whether an index looks like that of a committed TurboOCI layer (spec: lsmt 10.2).

    Its tags say which of two files an entry points to, and it is not padded. A layer that was
    sealed in place can look alike: its header, other than a committed one, is not marked sealed.
    """
    unpadded = record.index_size % (BLOCK // ENTRY_SIZE) != 0
    return unpadded and any(bytes(raw)[ENTRY_SIZE - 1 :: ENTRY_SIZE])


def _check_locations(
    words0: Sequence[int], words1: Sequence[int], data_end: int, name: str
) -> None:
    """Every entry must lie between the header and the index, in sectors of the file."""
    data_begin = BLOCK // SECTOR
    for word0, word1 in zip(words0, words1, strict=True):
        begin = word1 & MOFFSET_MASK
        end = begin if word1 & ZEROED else begin + (word0 >> _OFFSET_BITS)
        if begin < data_begin or end > data_end:
            raise FormatError(
                f"{name}: LSMT entry for sector {word0 & _OFFSET_MASK} points to sectors "
                f"{begin}-{end}, outside the data at {data_begin}-{data_end}",
                hint="TurboOCI layers are not supported yet" if word1 >> _TAG_SHIFT else "",
            )


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
    moved.locations.extend(location + (1 << _TAG_SHIFT) for location in lower.locations)
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


class LayerWriter:
    """Makes a sealed layer from a stream of changed sectors (spec: lsmt 12).

    ``header()``, then ``add()`` and ``add_zeros()`` in ascending order of sectors, then
    ``finish()``; each returns the bytes to append to the output. The same calls give the same
    bytes: there is no time and no random number in a layer. ``uuid`` and ``parent_uuid`` are text
    ("" for none). Raises ValueError for values the format cannot hold, and UnsupportedError for
    more entries than readers accept.
    """

    _STEP = 64  # sectors that the reference copies at a time; entries join up to these borders

    def __init__(
        self, virtual_size: int, *, uuid: str = "", parent_uuid: str = "", user_tag: bytes = b""
    ) -> None:
        if virtual_size % SECTOR or not 0 <= virtual_size <= _OFFSET_MASK * SECTOR:
            raise ValueError(f"impossible virtual size {virtual_size}")
        for text in (uuid, parent_uuid):
            if text and not is_uuid(text):
                raise ValueError(f"not a uuid: {text!r}")
        if len(user_tag) > 256:
            raise ValueError(f"user tag of {len(user_tag)} bytes; 256 fit")
        self._virtual_size = virtual_size
        self._uuid = uuid
        self._parent_uuid = parent_uuid
        self._user_tag = user_tag
        self._entries: list[tuple[int, int, int, bool]] = []
        self._position = BLOCK // SECTOR
        self._next_sector = 0

    def header(self) -> bytes:
        return self._record(FLAG_HEADER | FLAG_DATA | FLAG_SEALED, 0, 0)

    def add(self, sector: int, data: Buffer) -> Buffer:
        """Map ``data`` (whole sectors) at ``sector`` of the disk; returns it for appending."""
        if len(data) % SECTOR:
            raise ValueError(f"{len(data)} bytes are not whole sectors")
        count = len(data) // SECTOR
        self._advance(sector, count)
        for start in range(0, count, self._STEP):
            step = min(self._STEP, count - start)
            self._append(sector + start, step, self._position, zeroed=False)
            self._position += step
        return data

    def add_zeros(self, sector: int, count: int) -> bytes:
        """Map ``count`` sectors to zeros, which hide what lower layers have there."""
        self._advance(sector, count)
        for start in range(0, count, MAX_LENGTH):
            step = min(MAX_LENGTH, count - start)
            self._append(sector + start, step, self._position, zeroed=True)
        return b""

    def finish(self) -> bytes:
        """The index, padded to whole 4096-byte blocks, and the trailer."""
        count = len(self._entries)
        padding = -count % (BLOCK // ENTRY_SIZE)
        if count + padding > MAX_ENTRIES:
            raise UnsupportedError(f"layer of {count} entries: readers accept {MAX_ENTRIES}")
        entries = [
            pack_entry(offset, length, moffset | (ZEROED if zeroed else 0))
            for offset, length, moffset, zeroed in self._entries
        ]
        index = b"".join(entries) + _INVALID * padding
        trailer = self._record(FLAG_DATA | FLAG_SEALED, self._position * SECTOR, count + padding)
        return index + trailer

    def _advance(self, sector: int, count: int) -> None:
        if sector < self._next_sector or count <= 0:
            raise ValueError(f"{count} sectors at {sector}: not above {self._next_sector}")
        if (sector + count) * SECTOR > (self._virtual_size or _OFFSET_MASK * SECTOR):
            raise ValueError(f"{count} sectors at {sector} are beyond the end of the disk")
        self._next_sector = sector + count

    def _append(self, sector: int, count: int, moffset: int, *, zeroed: bool) -> None:
        if self._entries:
            start, length, mapped, was_zeroed = self._entries[-1]
            follows = mapped if zeroed else mapped + length
            joined = length + count
            if (
                zeroed == was_zeroed and start + length == sector and follows == moffset
                and joined < MAX_LENGTH
            ):  # fmt: skip
                self._entries[-1] = (start, joined, mapped, zeroed)
                return
        self._entries.append((sector, count, moffset, zeroed))

    def _record(self, flags: int, index_offset: int, index_size: int) -> bytes:
        record = LayerRecord(
            flags, index_offset, index_size, self._virtual_size, self._uuid, self._parent_uuid,
            self._user_tag,
        )  # fmt: skip
        return pack_record(record)


def pack_record(record: LayerRecord) -> bytes:
    """A header or trailer, BLOCK bytes."""
    uuid, parent_uuid = (
        (text or NO_UUID).upper().encode() for text in (record.uuid, record.parent_uuid)
    )
    return _RECORD.pack(
        MAGIC, _RECORD.size, record.flags, record.index_offset, record.index_size,
        record.virtual_size, uuid, parent_uuid, 0, 1, 1, record.user_tag,
    ).ljust(BLOCK, b"\0")  # fmt: skip


def pack_entry(offset: int, length: int, location: int) -> bytes:
    """An entry of ``length`` (at most MAX_LENGTH) sectors; ``location`` is its second word."""
    return _ENTRY.pack(offset | length << _OFFSET_BITS, location)

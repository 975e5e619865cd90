"""LSMT codec: layers of changed sectors (spec: lsmt). Their merge is that of ``segments``.

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
or to zeros. Sectors are 512 bytes.
"""

from __future__ import annotations

import struct
import sys
import uuid as uuids
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress, islice
from operator import le

from hybrid.core.device import SECTOR, Buffer
from hybrid.core.segments import LOCATION_MASK, MOFFSET_MASK, TAG_SHIFT, ZEROED, SegmentMap
from hybrid.errors import FormatError, UnsupportedError

BLOCK = 4096
"""Bytes of the header, and of the trailer."""
ENTRY_SIZE = 16
MAGIC = b"LSMT\x00\x01\x02\x00\x65\x7e\x63\xd2\x94\x44\x08\x4c\xa2\xd2\xc8\xec\x4f\xcf\xae\x8a"
MAX_ENTRIES = 1_000_000
"""Entries of one sealed layer that readers accept (spec: lsmt 18)."""
MAX_LENGTH = (1 << 14) - 1
"""Sectors of one entry."""
NO_UUID = "00000000-0000-0000-0000-000000000000"

FLAG_HEADER = 1
FLAG_DATA = 2
FLAG_SEALED = 4
FLAG_SPARSE = 16

_RECORD = struct.Struct("<24sIIQQQ37s37sHBB256s")
_ENTRY = struct.Struct("<QQ")
_INVALID = ((1 << 50) - 1).to_bytes(8, "little") + bytes(8)
_OFFSET_BITS = 50
_OFFSET_MASK = (1 << 50) - 1
INVALID_SECTOR = _OFFSET_MASK
"""First sector of an entry that is padding."""


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
    found.locations.extend(w & LOCATION_MASK for w in word1)
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
                hint="TurboOCI layers are not supported yet" if word1 >> TAG_SHIFT else "",
            )


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

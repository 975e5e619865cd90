"""Codec of the append-only writable layer: a data file, and a log of index entries (pure).

    data file    | header | sectors in the order of writing ...
    index file   | header | entries, 16 bytes each, in the order of writing: later ones win

Spec: lsmt 8. In hybrid the log holds only entries whose data is on stable storage, so whatever a
power cut leaves of it is right. What was written since the last flush is told by a third file:

    unflushed    | header (64 bytes) | entries, in the order of writing

That one is never synchronised: it is for the next process on the same running system, where all
that was given to the kernel is still there. Its header names the boot it is good for:

    offset size field
         0    8 magic               32   16 uuid of the layer (raw)
         8    4 version (1)         48    8 first entry that still counts
        16   16 boot id (raw)       56    8 reserved
"""

from __future__ import annotations

import struct
import uuid as uuids
from collections.abc import Iterable
from dataclasses import dataclass

from hybrid.core import lsmt
from hybrid.core.device import SECTOR, Buffer
from hybrid.core.lsmt import ENTRY_SIZE, MAX_LENGTH, MOFFSET_MASK, ZEROED, LayerRecord, Segment
from hybrid.core.writable_map import WritableMap
from hybrid.errors import FormatError

LOG_BEGIN = lsmt.BLOCK
"""Where entries begin in the index file, in bytes."""
MAX_LOG_ENTRIES = 128_000_000
"""Entries of a log that readers accept (spec: lsmt 18)."""
UNFLUSHED_BEGIN = 64
DATA_BEGIN = lsmt.BLOCK // SECTOR
"""First sector of the data file that can hold data."""

Entry = tuple[int, int, int]
"""First sector, sectors (at most MAX_LENGTH), location (the second word of an LSMT entry)."""

_UNFLUSHED_MAGIC = b"HybridUF"
_UNFLUSHED = struct.Struct("<8sI4x16s16sQ8x")


def data_header(record: LayerRecord) -> bytes:
    """The header of the data file of a layer with these sizes and uuids."""
    flags = lsmt.FLAG_HEADER | lsmt.FLAG_DATA
    return lsmt.pack_record(_plain(record, flags, 0))


def index_header(record: LayerRecord) -> bytes:
    return lsmt.pack_record(_plain(record, lsmt.FLAG_HEADER, LOG_BEGIN))


def _plain(record: LayerRecord, flags: int, index_offset: int) -> LayerRecord:
    return LayerRecord(
        flags, index_offset, 0, record.virtual_size, record.uuid, record.parent_uuid, b""
    )


def pack_entries(start: int, sectors: int, location: int) -> bytes:
    """Entries that map ``sectors`` from ``start`` on; more than one where one cannot hold it."""
    entries = []
    while sectors > 0:
        length = min(sectors, MAX_LENGTH)
        entries.append(lsmt.pack_entry(start, length, location))
        start += length
        sectors -= length
        if not location & ZEROED:
            location += length
    return b"".join(entries)


def pack_map(segments: Iterable[Segment]) -> bytes:
    """A log that says in as few entries as possible what the map says."""
    return b"".join(
        pack_entries(found.offset, found.length, found.moffset | (ZEROED if found.zeroed else 0))
        for found in segments
    )


def replay(raw: Buffer, segments: WritableMap, data_sectors: int, name: str) -> int:
    """Apply the entries of a log to a map; return how many were dropped.

    ``data_sectors`` is the length of the data file. An entry that points beyond it came to the disk
    without its data, in a crash of a writer that does not order the two: it is dropped, and so are
    all behind it, which are younger. Empty entries, which a torn page can leave, count for nothing.
    Raises FormatError for an entry that no crash can explain.
    """
    word0, word1 = lsmt.read_entries(bytes(raw[: len(raw) // ENTRY_SIZE * ENTRY_SIZE]))
    put = segments.put
    for number, (first, second) in enumerate(zip(word0, word1, strict=True)):
        start, length = lsmt.split_entry(first)
        if not length:
            continue
        begin = second & MOFFSET_MASK
        is_zeroed = second & ZEROED
        if begin < DATA_BEGIN:
            raise FormatError(f"{name}: entry {number} points into the header of the data file")
        if (begin if is_zeroed else begin + length) > data_sectors:
            return len(word0) - number
        put(start, start + length, begin | is_zeroed)
    return 0


@dataclass(frozen=True, slots=True)
class UnflushedHeader:
    """Which run of the system, and which layer, a list of unflushed entries belongs to."""

    boot_id: uuids.UUID
    layer: uuids.UUID
    first: int = 0
    """Entries in front of this one are in the index file by now."""

    def pack(self) -> bytes:
        return _UNFLUSHED.pack(
            _UNFLUSHED_MAGIC, 1, self.boot_id.bytes, self.layer.bytes, self.first
        )


def parse_unflushed(raw: Buffer) -> UnflushedHeader | None:
    """The header; None if there is none, as after a crash while it was made."""
    if len(raw) < UNFLUSHED_BEGIN:
        return None
    magic, version, boot_id, layer, first = _UNFLUSHED.unpack_from(raw)
    if magic != _UNFLUSHED_MAGIC or version != 1:
        return None
    return UnflushedHeader(uuids.UUID(bytes=boot_id), uuids.UUID(bytes=layer), first)

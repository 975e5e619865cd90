"""Codec of the append-only writable layer: a data file, and a log of index entries (pure).

    data file    | header | sectors in the order of writing ...
    index file   | header | entries, 16 bytes each, in the order of writing: later ones win

Spec: lsmt 8. In hybrid the log holds only entries whose data is on stable storage, so whatever a
power cut leaves of it is right. What was written since the last flush is told by a third file:

    unflushed    | header (80 bytes) | entries, in the order of writing

That one is never synchronised: it is for the next process on the same running system, where all
that was given to the kernel is still there. Its header names the boot it is good for, and how long
the log was, so that it is not applied to what another program has written to since:

    offset size field
         0    8 magic               48    8 first entry that still counts
         8    4 version (1)         56    8 end of the log (bytes), without these entries
        12    4 1: the log's cached  64    8 the same of a log that is about to take its
               pages may be lies               place, or 0
        16   16 boot id (raw)       72    8 reserved
        32   16 uuid of the layer (raw)

A flush that was cut off may have appended some of the entries to the log already.
"""

from __future__ import annotations

import struct
import uuid as uuids
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hybrid.core import lsmt
from hybrid.core.device import SECTOR, Buffer
from hybrid.core.lsmt import ENTRY_SIZE, MAX_LENGTH, LayerRecord
from hybrid.core.segments import MOFFSET_MASK, ZEROED, Segment
from hybrid.core.writable_map import WritableMap
from hybrid.errors import FormatError

LOG_BEGIN = lsmt.BLOCK
"""Where entries begin in the index file, in bytes."""
MAX_LOG_ENTRIES = 128_000_000
"""Entries of a log that readers accept (spec: lsmt 18)."""
UNFLUSHED_BEGIN = 80
DATA_BEGIN = lsmt.BLOCK // SECTOR
"""First sector of the data file that can hold data."""

Entry = tuple[int, int, int]
"""First sector, sectors (at most MAX_LENGTH), location (the second word of an LSMT entry)."""

_UNFLUSHED_MAGIC = b"HybridUF"
_UNFLUSHED = struct.Struct("<8sII16s16sQQQ8x")


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


@dataclass
class Replay:
    """Applies the entries of a log to a map, piece by piece.

    ``data_sectors`` is the length of the data file. An entry that points beyond it came to the disk
    without its data, in a crash of a writer that does not order the two: it counts for nothing, nor
    does anything behind it, which is younger.
    """

    segments: WritableMap
    data_sectors: int
    name: str
    kept: int = 0
    """Entries in front of the first that counts for nothing, padding included."""
    is_cut: bool = False
    """Whether there was one."""
    has_holes: bool = False
    """Whether there were empty entries, which a torn page can leave. They are harmless here, but
    make other readers refuse the layer."""

    def apply(self, raw: Buffer) -> None:
        """Whole entries. Raises FormatError for one that no crash can explain."""
        put = self.segments.put
        for first, second in _words(raw):
            if self.is_cut:
                return
            start, length = lsmt.split_entry(first)
            begin = second & MOFFSET_MASK
            is_zeroed = second & ZEROED
            if start == lsmt.INVALID_SECTOR:
                pass
            elif not length:
                self.has_holes = True
            elif begin < DATA_BEGIN:
                raise FormatError(
                    f"{self.name}: entry {self.kept} points into the header of the data file"
                )
            elif (begin if is_zeroed else begin + length) > self.data_sectors:
                self.is_cut = True
                return
            else:
                put(start, start + length, begin | is_zeroed)
            self.kept += 1


def _words(raw: Buffer) -> Iterator[tuple[int, int]]:
    words = lsmt.entry_words(raw)
    return zip(words[0::2], words[1::2], strict=True)


def unpack_entries(raw: Buffer) -> list[Entry]:
    """Whole entries as they are; what is behind the last is ignored."""
    whole = bytes(raw[: len(raw) // ENTRY_SIZE * ENTRY_SIZE])
    return [(*lsmt.split_entry(first), second) for first, second in _words(whole)]


def is_sound(entry: Entry, data_sectors: int) -> bool:
    """Whether an entry can be what a writer has noted of a data file of this length."""
    start, length, location = entry
    begin = location & MOFFSET_MASK
    end = begin if location & ZEROED else begin + length
    return (
        length > 0 and start + length < lsmt.INVALID_SECTOR
        and location == location & (MOFFSET_MASK | ZEROED) and begin >= DATA_BEGIN
        and end <= data_sectors
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnflushedHeader:
    """Which run of the system, and which layer, a list of unflushed entries belongs to."""

    boot_id: uuids.UUID
    layer: uuids.UUID
    first: int = 0
    """Entries in front of this one are in the index file by now."""
    log_end: int = LOG_BEGIN
    """Where the log ended, in bytes, when the first one was still to be appended."""
    next_log_end: int = 0
    """The same of a log that may have taken its place; 0: there is none."""
    distrusts_log: bool = False
    """Synchronising failed: what the kernel shows of the files may not be what the disk has."""

    def pack(self) -> bytes:
        return _UNFLUSHED.pack(
            _UNFLUSHED_MAGIC, 1, int(self.distrusts_log), self.boot_id.bytes, self.layer.bytes,
            self.first, self.log_end, self.next_log_end,
        )  # fmt: skip

    def is_for(self, boot_id: uuids.UUID, layer: uuids.UUID) -> bool:
        return (self.boot_id, self.layer) == (boot_id, layer)


def parse_unflushed(raw: Buffer) -> UnflushedHeader | None:
    """The header; None if there is none, as after a crash while it was made."""
    if len(raw) < UNFLUSHED_BEGIN:
        return None
    (magic, version, flags, boot_id, layer, first, log_end,
     next_log_end) = _UNFLUSHED.unpack_from(raw)  # fmt: skip
    if magic != _UNFLUSHED_MAGIC or version != 1:
        return None
    return UnflushedHeader(
        uuids.UUID(bytes=boot_id), uuids.UUID(bytes=layer), first, log_end, next_log_end,
        bool(flags & 1),
    )  # fmt: skip

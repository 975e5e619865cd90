"""The files of a writable layer, opened read-only as a Layer: append-only or sparse.

Spec: lsmt 8 and 9. Nothing is changed or made good on disk, so a layer that somebody is writing to
may be looked at too; what is seen is then as of some moment.
"""

from __future__ import annotations

import uuid as uuids
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from typing import Any

from hybrid.core import lsmt, upper_log
from hybrid.core.device import SECTOR
from hybrid.core.layer import Layer
from hybrid.core.lsmt import LayerRecord, SegmentMap
from hybrid.core.source import FileSource
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.stream import PlainStream
from hybrid.core.unflushed import read_unflushed, running_boot, unflushed_path
from hybrid.core.upper_log import LOG_BEGIN, UnflushedHeader
from hybrid.core.writable_map import WritableMap
from hybrid.errors import NotFoundError


@dataclass(frozen=True)
class _Found:
    """What the two files say."""

    record: LayerRecord
    segments: SegmentMap
    used: int
    """Bytes that the data file takes on the disk."""
    entries: int = 0
    """In the log."""
    unflushed: int = 0
    """Entries that are not in the log yet."""


class WritableLayer(Layer):
    """A writable layer, read-only, as it was when it was opened."""

    def __init__(self, source: FileSource, found: _Found) -> None:
        stream = PlainStream(source, 0, source.size)
        super().__init__(source, stream, found.record, found.segments, 0)
        segments = found.segments
        lengths = map(sub, segments.ends, segments.starts)
        live = SECTOR * sum(
            length
            for length, location in zip(lengths, segments.locations, strict=True)
            if not location & lsmt.ZEROED
        )
        self._counts = {
            "writable": "sparse" if found.record.sparse else "append-only",
            "segments": len(segments),
            "live_bytes": live,
            "dead_bytes": max(0, source.size - lsmt.BLOCK - live),
            "disk_bytes": found.used,
            "index_entries": found.entries,
            "unflushed_entries": found.unflushed,
        }
        if found.record.sparse:
            del self._counts["dead_bytes"]  # what is not live are holes

    def describe(self) -> dict[str, Any]:
        """As Layer, and what became of what was written. Sizes in bytes.

        ``dead_bytes`` of the data file are overwritten or discarded, ``disk_bytes`` is what it
        takes on the disk (dead bytes are holes in time), ``unflushed_entries`` would not survive a
        power cut.
        """
        return super().describe() | self._counts


def open_pair(data: Path, index: Path) -> WritableLayer:
    """Open the two files as a layer.

    Raises NotFoundError, PermissionNeededError or FormatError. The index file of a sparse layer is
    not looked at: its index are the holes of the data file, as wide as blocks of the file system.
    """
    source = FileSource(data)
    try:
        return WritableLayer(source, _read(data, index))
    except BaseException:
        source.close()
        raise


def is_pair(data: Path, index: Path) -> bool:
    """Whether these look like the files of a writable layer."""
    return data.is_file() and index.is_file()


def read_pair_record(data: StoredFile, index: StoredFile) -> LayerRecord:
    """The record of a writable layer: of the index file, or, of a sparse layer, the data file.

    Raises FormatError.
    """
    header = lsmt.parse_header(_head(data), str(data.path))
    if header.sparse:
        return header
    return lsmt.parse_index_header(_head(index), str(index.path))


def _head(file: StoredFile) -> bytes:
    return file.read(0, min(lsmt.BLOCK, file.size()))


def _read(data: Path, index: Path) -> _Found:
    storage = Storage()
    data_file = storage.open(data, writable=False)
    try:
        header = lsmt.parse_header(_head(data_file), str(data))
        if header.sparse:
            return _Found(header, scan_sparse(data_file, header), data_file.used())
        index_file = storage.open(index, writable=False)
        try:
            return _replay(data_file, index_file)
        finally:
            index_file.close()
    finally:
        data_file.close()


def _replay(data: StoredFile, index: StoredFile) -> _Found:
    # First what is unflushed, then the log, then the data: a flush meanwhile moves entries from
    # the first to the second, and what either refers to is in the data file before.
    record = read_pair_record(data, index)
    unflushed = _unflushed_entries(index.path, record)
    raw = index.read(LOG_BEGIN, index.size() - LOG_BEGIN)
    segments = WritableMap()
    upper_log.replay(raw, segments, data.size() // SECTOR, str(index.path))
    for start, count, location in unflushed:
        segments.put(start, start + count, location)
    return _Found(
        record, segments.snapshot(), data.used(), len(raw) // lsmt.ENTRY_SIZE, len(unflushed)
    )


def _unflushed_entries(index: Path, record: LayerRecord) -> list[upper_log.Entry]:
    try:
        file = Storage().open(unflushed_path(index), writable=False)
    except NotFoundError:
        return []
    try:
        wanted = UnflushedHeader(running_boot(), uuids.UUID(record.uuid or lsmt.NO_UUID))
        found = read_unflushed(file, wanted)
        return found[1] if found else []
    finally:
        file.close()


def scan_sparse(file: StoredFile, record: LayerRecord) -> SegmentMap:
    """The index of a sparse layer, by its holes.

    Sector x lies at byte 4096 + 512 x; what is no hole is mapped (spec: lsmt 9).
    """
    segments = SegmentMap()
    end = min(file.size(), lsmt.BLOCK + record.virtual_size)
    position = lsmt.BLOCK
    while position < end:
        found = file.next_data(position, end)
        if found is None:
            break
        begin, stop = found
        # Whole sectors; file systems give blocks, but nothing says that they must.
        first, last = begin // SECTOR, -(-stop // SECTOR)
        segments.starts.append(first - upper_log.DATA_BEGIN)
        segments.ends.append(last - upper_log.DATA_BEGIN)
        segments.locations.append(first)
        position = last * SECTOR
    return segments

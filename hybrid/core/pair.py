"""The files of a writable layer, opened read-only as a Layer: append-only or sparse.

Spec: lsmt 8 and 9. Nothing is changed or made good on disk.
"""

from __future__ import annotations

import uuid as uuids
from pathlib import Path

from hybrid.core import lsmt, upper_log
from hybrid.core.device import SECTOR
from hybrid.core.index_log import IndexLog
from hybrid.core.layer import Layer
from hybrid.core.lsmt import LayerRecord
from hybrid.core.segments import SegmentMap
from hybrid.core.source import FileSource
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.stream import PlainStream
from hybrid.core.unflushed import find_base, read_unflushed, running_boot, unflushed_path
from hybrid.core.upper_log import Entry, Replay
from hybrid.core.writable_map import WritableMap
from hybrid.errors import NotFoundError


def open_pair(data: Path, index: Path, *, lock: bool = False) -> Layer:
    """Open the two files as a layer, which must not change meanwhile.

    With ``lock`` nobody can write to it until it is closed; else the caller sees to that, as with a
    checkpoint. Raises NotFoundError, PermissionNeededError, BusyError or FormatError. The index
    file of a sparse layer is not looked at: its index are the holes of the data file, as wide as
    blocks of the file system.
    """
    source = FileSource(data)
    try:
        if lock:
            source.lock(data.parent)
        record, segments = _read(data, index)
        return Layer(source, PlainStream(source, 0, source.size), record, segments, 0)
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


def _read(data: Path, index: Path) -> tuple[LayerRecord, SegmentMap]:
    storage = Storage()
    data_file = storage.open(data, writable=False)
    try:
        header = lsmt.parse_header(_head(data_file), str(data))
        if header.sparse:
            return header, _scan_sparse(data_file, header)
        index_file = storage.open(index, writable=False)
        try:
            return _replay(data_file, index_file)
        finally:
            index_file.close()
    finally:
        data_file.close()


def _replay(data: StoredFile, index: StoredFile) -> tuple[LayerRecord, SegmentMap]:
    # First what is unflushed, then the log, then the data: a flush meanwhile moves entries from
    # the first to the second, and what either refers to is in the data file before.
    record = read_pair_record(data, index)
    sectors = data.size() // SECTOR
    unflushed = _unflushed_entries(index, record, sectors)
    segments = WritableMap()
    IndexLog(Storage(), index, record).read_into(Replay(segments, sectors, str(index.path)))
    for start, count, location in unflushed:
        segments.put(start, start + count, location)
    return record, segments.snapshot()


def _unflushed_entries(index: StoredFile, record: LayerRecord, sectors: int) -> list[Entry]:
    try:
        file = Storage().open(unflushed_path(index.path), writable=False)
    except NotFoundError:
        return []
    try:
        layer = uuids.UUID(record.uuid or lsmt.NO_UUID)
        left = read_unflushed(file, running_boot(), layer)
        return [] if left is None or find_base(left, index, sectors) is None else left[1]
    finally:
        file.close()


def _scan_sparse(file: StoredFile, record: LayerRecord) -> SegmentMap:
    """Sector x lies at byte 4096 + 512 x; what is no hole is mapped (spec: lsmt 9)."""
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

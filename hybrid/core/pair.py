"""The files of a writable layer, opened read-only as a Layer: append-only or sparse.

Spec: lsmt 8 and 9. Nothing is changed or made good on disk.
"""

from __future__ import annotations

import uuid as uuids
from pathlib import Path

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
    unflushed = _unflushed_entries(index.path, record)
    raw = index.read(LOG_BEGIN, index.size() - LOG_BEGIN)
    segments = WritableMap()
    upper_log.replay(raw, segments, data.size() // SECTOR, str(index.path))
    for start, count, location in unflushed:
        segments.put(start, start + count, location)
    return record, segments.snapshot()


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

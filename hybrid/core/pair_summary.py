"""What became of what was written to a writable layer: for `hybrid layer info`."""

from __future__ import annotations

import uuid as uuids
from pathlib import Path
from typing import Any

from hybrid.core import lsmt
from hybrid.core.device import SECTOR
from hybrid.core.pair import open_pair
from hybrid.core.segments import ZEROED, SegmentMap
from hybrid.core.source import FileSource
from hybrid.core.storage import Storage
from hybrid.core.unflushed import read_unflushed, running_boot, unflushed_path
from hybrid.core.upper_log import LOG_BEGIN
from hybrid.errors import NotFoundError


def summarize_pair(data: Path, index: Path) -> dict[str, Any]:
    """Counts of a writable layer. Raises as ``open_pair``.

    In bytes: ``live_bytes`` that segments refer to, ``dead_bytes`` that were overwritten or
    discarded (holes, in time), ``disk_bytes`` that the data file takes. ``unflushed_entries`` would
    not survive a power cut.
    """
    record, segments, size = _read(data, index)
    live = live_bytes(segments)
    found = {
        "writable": "sparse" if record.sparse else "append-only",
        "segments": len(segments),
        "live_bytes": live,
        "disk_bytes": _used(data),
    }
    if record.sparse:
        return found  # what is not live are holes, and there is no log
    return found | {
        "dead_bytes": max(0, size - lsmt.BLOCK - live),
        "index_entries": max(0, index.stat().st_size - LOG_BEGIN) // lsmt.ENTRY_SIZE,
        "unflushed_entries": _unflushed_entries(index, record.uuid),
    }


def _read(data: Path, index: Path) -> tuple[lsmt.LayerRecord, SegmentMap, int]:
    """Record, segments, and bytes of the data file."""
    layer = open_pair(data, index)
    assert isinstance(layer.source, FileSource)
    layer.source.close()
    return layer.record, layer.segments or SegmentMap(), layer.source.size


def live_bytes(segments: SegmentMap) -> int:
    """Bytes that are mapped to data."""
    parts = zip(segments.starts, segments.ends, segments.locations, strict=True)
    return SECTOR * sum(end - start for start, end, location in parts if not location & ZEROED)


def _used(data: Path) -> int:
    file = Storage().open(data, writable=False)
    try:
        return file.used()
    finally:
        file.close()


def _unflushed_entries(index: Path, uuid: str) -> int:
    try:
        file = Storage().open(unflushed_path(index), writable=False)
    except NotFoundError:
        return 0
    try:
        found = read_unflushed(file, running_boot(), uuids.UUID(uuid or lsmt.NO_UUID))
        return len(found[1]) if found else 0
    finally:
        file.close()

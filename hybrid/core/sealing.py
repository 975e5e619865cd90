"""Sealing a writable layer in place: its index is appended to its data file (spec: lsmt 13)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import trio

from hybrid.core import lsmt, upper_log
from hybrid.core.device import SECTOR
from hybrid.core.pair import open_pair, read_pair_record
from hybrid.core.segments import SegmentMap
from hybrid.core.source import FileSource
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.unflushed import running_boot
from hybrid.core.upper import Upper
from hybrid.errors import FormatError, UnsupportedError, UsageError


async def seal_pair(data: Path, index: Path) -> None:
    """Seal a writable layer, append-only or sparse; the index file is not needed after that.

    A crash leaves it sealed or as it was. Raises UsageError (sealed already), UnsupportedError (too
    many segments), BusyError (in use), and the errors of opening and writing.
    """
    storage = Storage()
    if await trio.to_thread.run_sync(_is_sealed_or_sparse, storage, data, index):
        await trio.to_thread.run_sync(_seal_sparse, storage, data, index)
        return
    upper = Upper.open(storage, data, index, running_boot())
    try:
        await upper.seal()
    finally:
        await upper.aclose()


def _is_sealed_or_sparse(storage: Storage, data: Path, index: Path) -> bool:
    """Whether the layer is a sparse one. Raises UsageError if it is sealed."""
    file = storage.open(data, writable=False)
    try:
        if _is_sealed(file):
            raise UsageError(
                f"{data} is sealed already", hint="`hybrid layer commit` makes a compact layer"
            )
        index_file = storage.open(index, writable=False)
        try:
            return read_pair_record(file, index_file).sparse
        finally:
            index_file.close()
    finally:
        file.close()


def _is_sealed(file: StoredFile) -> bool:
    size = file.size()
    if size < 2 * lsmt.BLOCK:
        return False
    try:
        lsmt.parse_trailer(file.read(size - lsmt.BLOCK, lsmt.BLOCK), str(file.path), size)
    except FormatError:
        return False
    return True


def _seal_sparse(storage: Storage, data: Path, index: Path) -> None:
    file = storage.open(data)
    try:
        file.lock()
        header, segments = _index_of_sparse(data, index)
        raw = upper_log.pack_map(segments)
        count = len(raw) // lsmt.ENTRY_SIZE
        if count > lsmt.MAX_ENTRIES:
            raise UnsupportedError(
                f"{data} has {count} segments; a layer can have {lsmt.MAX_ENTRIES}",
                hint="`hybrid layer commit` makes a layer of it that has fewer",
            )
        # Where its last sector is, even if the file ends before that.
        end = max(file.size(), lsmt.BLOCK + header.virtual_size)
        end = -(-end // SECTOR) * SECTOR
        flags = lsmt.FLAG_DATA | lsmt.FLAG_SEALED | lsmt.FLAG_SPARSE
        trailer = replace(header, flags=flags, index_offset=end, index_size=count, user_tag=b"")
        tail = raw.ljust(-(-len(raw) // SECTOR) * SECTOR, b"\0") + lsmt.pack_record(trailer)
        file.write(end, tail)
        file.sync()
    finally:
        file.close()


def _index_of_sparse(data: Path, index: Path) -> tuple[lsmt.LayerRecord, SegmentMap]:
    layer = open_pair(data, index)
    assert isinstance(layer.source, FileSource)
    layer.source.close()
    return layer.record, layer.segments or SegmentMap()

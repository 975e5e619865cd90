"""The file that lists what a writable layer has taken but not flushed (format: ``upper_log``).

It is written, never synchronised: it is for the next process on the same running system.
"""

from __future__ import annotations

import contextlib
import uuid as uuids
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid.core import lsmt, upper_log
from hybrid.core.lsmt import ENTRY_SIZE
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.upper_log import UNFLUSHED_BEGIN, Entry, UnflushedHeader
from hybrid.errors import HybridError, NotFoundError

_MAX_SLOTS = 1 << 16
"""Entries that no longer count, before the file is written anew."""
_MAX_SIZE = 1 << 26
"""Bytes; a longer file is none of ours."""


def unflushed_path(index: Path) -> Path:
    """Where it is: beside the index file of the layer."""
    return index.with_name(index.name + ".unflushed")


def running_boot() -> uuids.UUID:
    """Which run of the system this is (proc(5), sys/kernel/random)."""
    return uuids.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


class UnflushedFile:
    """Entries by number: 0 is the oldest that is not flushed.

    A write of an entry is one write to the kernel, and so is there or not if the process dies.
    Until ``keep`` or ``clear`` nothing is changed.
    """

    def __init__(
        self, storage: Storage, path: Path, boot_id: uuids.UUID, layer: uuids.UUID
    ) -> None:
        self._storage = storage
        self._header = UnflushedHeader(boot_id, layer)
        try:
            self._file = storage.open(path)
        except NotFoundError:
            self._file = storage.create(path)
        self.left = read_unflushed(self._file, boot_id, layer)
        """What an earlier process left."""
        self._slot = 0
        """Place in the file of entry 0."""

    def keep(self, first: int, log_end: int) -> None:
        """Go on with the entries that are there: nothing is lost if we die before a flush."""
        self._slot = first
        self._write_header(first=first, log_end=log_end)

    def put(self, number: int, entry: Entry) -> None:
        """Add an entry, or replace the last one. Raises StorageFullError and others."""
        where = UNFLUSHED_BEGIN + ENTRY_SIZE * (self._slot + number)
        self._file.write(where, lsmt.pack_entry(*entry))

    def shift(self, count: int) -> None:
        """From now on the entry that had number ``count`` has number 0.

        Those in front of it are being flushed; in the file they count until ``forget``. Negative:
        they were not, after all.
        """
        self._slot += count

    def forget(self, entries: Sequence[Entry], log_end: int) -> None:
        """The entries that were shifted out are in the log, which ends at ``log_end`` (bytes)."""
        if not entries:
            self.clear(log_end)
        elif self._slot > _MAX_SLOTS:
            self._rewrite(entries, log_end)
        else:
            self._write_header(first=self._slot, log_end=log_end, next_log_end=0)

    def expect(self, log_end: int) -> None:
        """A log that ends there is about to take the place of the one there is."""
        self._write_header(next_log_end=log_end)

    def clear(self, log_end: int) -> None:
        """There are no entries. Cut first, so that old ones never count."""
        self._file.truncate(UNFLUSHED_BEGIN)
        self._write_header(first=0, log_end=log_end, next_log_end=0, distrusts_log=False)
        self._slot = 0

    def distrust(self) -> None:
        """Synchronising has failed: the next process must not build on what the kernel shows."""
        with contextlib.suppress(HybridError):
            self._write_header(distrusts_log=True)

    def remove(self) -> None:
        """Nothing is unflushed, and another program may write to the layer next."""
        self._storage.remove(self._file.path)

    def close(self) -> None:
        self._file.close()

    def _write_header(self, **changes: Any) -> None:
        header = replace(self._header, **changes)
        self._file.write(0, header.pack())
        self._header = header

    def _rewrite(self, entries: Sequence[Entry], log_end: int) -> None:
        path = self._file.path
        new = path.with_name(path.name + ".new")
        self._storage.remove(new)
        header = replace(self._header, first=0, log_end=log_end, next_log_end=0)
        file = self._storage.create(new, like=self._file)
        try:
            file.write(0, header.pack() + b"".join(lsmt.pack_entry(*e) for e in entries))
            self._storage.replace(new, path)
        except HybridError:
            file.close()
            raise
        self._file.close()
        file.path = path
        self._file, self._slot, self._header = file, 0, header


def read_unflushed(
    file: StoredFile, boot_id: uuids.UUID, layer: uuids.UUID
) -> tuple[UnflushedHeader, list[Entry]] | None:
    """The header, and the entries that count; None if they are for others."""
    size = file.size()
    raw = file.read(0, min(size, UNFLUSHED_BEGIN))
    header = upper_log.parse_unflushed(raw)
    if header is None or not header.is_for(boot_id, layer) or size > _MAX_SIZE:
        return None
    begin = min(size, UNFLUSHED_BEGIN + ENTRY_SIZE * header.first)
    return header, upper_log.unpack_entries(file.read(begin, size - begin))


def find_base(
    left: tuple[UnflushedHeader, list[Entry]] | None, log: StoredFile, data_sectors: int
) -> int | None:
    """The end of the log (bytes) to which the entries belong; None: they are not to be applied.

    Behind that end the log must hold nothing but some of the first entries, which a flush that was
    cut off has appended: to apply those again changes nothing. Else another program wrote to it.
    """
    if left is None or left[0].distrusts_log:
        return None
    header, entries = left
    if not all(upper_log.is_sound(entry, data_sectors) for entry in entries):
        return None
    packed = b"".join(lsmt.pack_entry(*entry) for entry in entries)
    size = log.size()
    for end in (header.log_end, header.next_log_end):
        length = (size - end) // ENTRY_SIZE * ENTRY_SIZE
        if (
            upper_log.LOG_BEGIN <= end <= size
            and length <= len(packed)
            and packed.startswith(log.read(end, length))
        ):
            return end
    return None

"""The file that lists what a writable layer has taken but not flushed (format: ``upper_log``).

It is written, never synchronised: it is for the next process on the same running system.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hybrid.core import lsmt, upper_log
from hybrid.core.lsmt import ENTRY_SIZE
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.upper_log import UNFLUSHED_BEGIN, Entry, UnflushedHeader
from hybrid.errors import HybridError, NotFoundError

_MAX_SLOTS = 1 << 16
"""Entries that no longer count, before the file is written anew."""


def unflushed_path(index: Path) -> Path:
    """Where it is: beside the index file of the layer."""
    return index.with_name(index.name + ".unflushed")


def running_boot() -> uuids.UUID:
    """Which run of the system this is (proc(5), sys/kernel/random)."""
    return uuids.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip())


class UnflushedFile:
    """Entries by number: 0 is the oldest that is not flushed.

    A write of an entry is one write to the kernel, and so is there or not if the process dies.
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
        found = read_unflushed(self._file, self._header)
        self.left: list[Entry] = found[1] if found else []
        """What an earlier process left."""
        self._slot = found[0] if found else 0
        """Place in the file of entry 0."""
        if not self.left:
            self.clear()

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

    def forget(self, entries: Sequence[Entry]) -> None:
        """The entries that were shifted out are flushed; these are the ones that are not."""
        if not entries:
            self.clear()
        elif self._slot > _MAX_SLOTS:
            self._rewrite(entries)
        else:
            self._write_header(self._slot)

    def clear(self) -> None:
        """There are no entries. Cut first, so that old ones never count."""
        self._file.truncate(UNFLUSHED_BEGIN)
        self._write_header(0)
        self._slot = 0

    def remove(self) -> None:
        """Nothing is unflushed, and another program may write to the layer next."""
        self._storage.remove(self._file.path)

    def close(self) -> None:
        self._file.close()

    def _write_header(self, first: int) -> None:
        self._file.write(0, replace(self._header, first=first).pack())

    def _rewrite(self, entries: Sequence[Entry]) -> None:
        path = self._file.path
        new = path.with_name(path.name + ".new")
        self._storage.remove(new)
        file = self._storage.create(new)
        try:
            file.write(0, self._header.pack() + b"".join(lsmt.pack_entry(*e) for e in entries))
            self._storage.replace(new, path)
        except HybridError:
            file.close()
            raise
        self._file.close()
        file.path = path
        self._file, self._slot = file, 0


def read_unflushed(file: StoredFile, wanted: UnflushedHeader) -> tuple[int, list[Entry]] | None:
    """The place of the first entry that counts, and the entries; None if they are for others."""
    raw = file.read(0, file.size())
    header = upper_log.parse_unflushed(raw)
    if header is None or (header.boot_id, header.layer) != (wanted.boot_id, wanted.layer):
        return None
    body = raw[UNFLUSHED_BEGIN + ENTRY_SIZE * header.first :]
    words = lsmt.read_entries(body[: len(body) // ENTRY_SIZE * ENTRY_SIZE])
    pairs = zip(*words, strict=True)
    return header.first, [(*lsmt.split_entry(word0), word1) for word0, word1 in pairs]

"""The index file of a writable layer: a log that grows, and is replaced when it is mostly history.

What blocks for long (``append``, ``make``) may run in a thread; all else is for the task that the
layer belongs to. One flush runs at a time, and only that changes the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hybrid.core import upper_log
from hybrid.core.lsmt import ENTRY_SIZE, LayerRecord
from hybrid.core.segments import Segment
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.upper_log import LOG_BEGIN, MAX_LOG_ENTRIES, Replay
from hybrid.errors import FormatError, HybridError, StorageFailedError

_RESERVE = 1 << 16
"""Bytes that are reserved at a time."""
_PIECE = 1 << 20
"""Bytes that are read at a time."""
_MIN_HISTORY = 4096
"""Entries that are not worth writing the log anew."""


@dataclass(frozen=True)
class NewLog:
    """A log that is complete and on stable storage, but not in place."""

    file: StoredFile
    end: int


class IndexLog:
    def __init__(self, storage: Storage, file: StoredFile, record: LayerRecord) -> None:
        self.record = record
        self.file = file
        self.end = LOG_BEGIN
        """Where the next entry goes, in bytes."""
        self._storage = storage
        self._reserved = 0
        """End of the space that is certain, in bytes."""
        self._patience = 0
        """Entries below which no new log is tried, since the last one failed."""

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def entries(self) -> int:
        return (self.end - LOG_BEGIN) // ENTRY_SIZE

    def is_mostly_history(self, segments: int, times: int) -> bool:
        """Whether the log has more than so many times the entries that it needs."""
        return self.entries > max(_MIN_HISTORY + times * segments, self._patience)

    def read_into(self, replay: Replay) -> None:
        """Replay all whole entries. Raises FormatError."""
        size = self.file.size()
        count = (size - LOG_BEGIN) // ENTRY_SIZE
        if count > MAX_LOG_ENTRIES:
            raise FormatError(f"{self.path} has {count} entries; {MAX_LOG_ENTRIES} can be used")
        whole = LOG_BEGIN + count * ENTRY_SIZE
        for begin in range(LOG_BEGIN, whole, _PIECE):
            replay.apply(self.file.read(begin, min(_PIECE, whole - begin)))
        self.end = whole

    def cut(self, entries: int) -> None:
        """Drop what is behind so many entries."""
        self.end = LOG_BEGIN + entries * ENTRY_SIZE
        self.file.truncate(self.end)

    def reserve(self, entries: int) -> None:
        """Make sure that so many more entries find space. Raises StorageFullError."""
        needed = self.end + ENTRY_SIZE * entries
        if needed > self._reserved:
            self.file.reserve(self.end, needed - self.end + _RESERVE)
            self._reserved = needed + _RESERVE

    def append(self, raw: bytes) -> None:
        """Returns when it is on stable storage; raises StorageFailedError if that fails."""
        self.file.write(self.end, raw)
        try:
            self.file.sync()
        except HybridError as error:
            raise final(error) from error
        self.end += len(raw)

    def make(self, segments: Iterable[Segment]) -> NewLog:
        """A new log that says what these segments say. Raises HybridError, and leaves nothing."""
        path = self.path.with_name(self.path.name + ".new")
        self._storage.remove(path)
        file = self._storage.create(path, like=self.file)
        try:
            raw = upper_log.pack_map(segments)
            file.write(0, upper_log.index_header(self.record))
            file.write(LOG_BEGIN, raw)
            file.sync()
        except BaseException:
            file.close()
            self._storage.remove(path)
            raise
        return NewLog(file, LOG_BEGIN + len(raw))

    def put_in_place(self, new: NewLog) -> None:
        """Go on with a new log. Raises StorageFailedError if it may not be there after a crash."""
        path = self.path
        try:
            self._storage.replace(new.file.path, path)
        except HybridError:
            new.file.close()
            raise
        old, self.file = self.file, new.file
        self.file.path = path
        self.end, self._reserved, self._patience = new.end, 0, 0
        old.close()
        try:
            self._storage.sync_directory(path.parent)
        except HybridError as error:
            raise final(error) from error

    def be_patient(self) -> None:
        """A new log could not be made: not again before the log is twice as long."""
        self._patience = 2 * self.entries

    def set_size(self, virtual_size: int) -> None:
        """Write another size of the disk into the header, durably."""
        self.record = replace(self.record, virtual_size=virtual_size)
        self.file.write(0, upper_log.index_header(self.record))
        self.file.sync()


def final(error: HybridError) -> HybridError:
    """A failure after which a later success would mean nothing."""
    return StorageFailedError(
        f"{error.message}: what was written last may be lost",
        hint="nothing more is written; unmount, look at that disk, and mount again",
    )

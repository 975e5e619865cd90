"""The append-only writable layer on disk: crash-safe, and near its live data in size.

Codec: ``upper_log`` (spec: lsmt 8). What is promised, and how it is kept:

* **A write is whole or absent after a crash.** Data goes where nothing is that counts. The index
  file gets an entry only after the data is on stable storage.
* **What a flush has confirmed is there after any crash.** ``flush`` synchronises data, then
  appends entries and synchronises those.
* **What was acknowledged survives the death of the process**, since the kernel has it: the
  ``unflushed`` file lists it for the next process. After a restart of the system it is ignored.
* **Space comes back.** What was overwritten or discarded is written to again, or punched out of the
  data file, but only after the flush that made its successor durable; the log is rewritten when it
  is mostly history.
* **A failed synchronisation is final** (``broken``): the kernel may have dropped what it could not
  write, so that a later success would mean nothing. The layer can be opened again, as of the last
  flush.

Concurrency: all methods run in one thread, that of the trio run, except for what ``flush`` hands to
a thread: storing, punching, and making a new log. One flush runs at a time. Writes go on meanwhile;
their entries wait in ``_pending`` for the next flush. Files are exchanged in the task, never in a
thread. Only ``flush`` and what calls it awaits.
"""

from __future__ import annotations

import logging
import uuid as uuids
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import trio

from hybrid.core import lsmt, upper_log
from hybrid.core.device import SECTOR, Buffer
from hybrid.core.index_log import IndexLog, NewLog, final
from hybrid.core.lsmt import ENTRY_SIZE, MAX_LENGTH, LayerRecord
from hybrid.core.pair import read_pair_record
from hybrid.core.reclaim import Reclaimer
from hybrid.core.segments import ZEROED, SegmentMap
from hybrid.core.space_pool import SpacePool
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.unflushed import UnflushedFile, find_base, unflushed_path
from hybrid.core.upper_log import Entry, Replay
from hybrid.core.writable_map import WritableMap
from hybrid.errors import HybridError, StorageFailedError, StorageFullError, UnsupportedError

logger = logging.getLogger("hybrid.core")

_ALIGNMENT = 4096
"""Writes of at least this size begin at a multiple of it, so that their space can be freed."""
_WHILE_OPEN, _AT_REST = 16, 2
"""How many times longer than need be a log may get before it is rewritten: while the layer is in
use, and when it is opened or closed."""
_MAX_REUSED = 1 << 16
"""Bytes of a write that looks for free space within the file."""
_POOL_BYTES, _MAX_POOL_BYTES = 64 << 20, 1 << 30
"""Free bytes within the file that are kept for such writes: an eighth of the live data, within
these bounds."""
_PUNCHES = 256
"""Ranges that one flush gives back, besides twice those that it has freed."""
_SLACK = 1 << 20
"""Bytes on the disk beyond the live data that are not worth looking for at opening."""
_ZEROS = upper_log.DATA_BEGIN | ZEROED
"""The location of zeros: always valid, whatever becomes of the data file (spec: lsmt 5)."""

MAX_PENDING = 1 << 14
"""Entries that should not wait for a flush any longer: it bounds memory and the loss of a crash."""


def create_pair(
    storage: Storage, data: Path, index: Path, virtual_size: int, *, parent_uuid: str = ""
) -> None:
    """Make the two files of an empty writable layer, durably. Raises BusyError if they exist."""
    record = LayerRecord(0, 0, 0, virtual_size, str(uuids.uuid4()), parent_uuid, b"")
    made: list[Path] = []
    try:
        for path, header in ((data, upper_log.data_header), (index, upper_log.index_header)):
            file = storage.create(path)
            made.append(path)
            try:
                file.write(0, header(record))
                file.sync()
            finally:
                file.close()
        for directory in {data.parent, index.parent}:
            storage.sync_directory(directory)
    except HybridError:
        for path in made:
            storage.remove(path)
        raise


class Upper:
    """An open writable layer. Sectors are those of the disk, unless a name says otherwise."""

    def __init__(
        self,
        storage: Storage,
        data: StoredFile,
        index: StoredFile,
        unflushed: UnflushedFile,
        record: LayerRecord,
    ) -> None:
        self.record = record
        self.segments = WritableMap()
        self.name = str(data.path)
        self.broken: HybridError | None = None
        """Why nothing more can be written, if so."""
        self._storage = storage
        self._data = data
        self._log = IndexLog(storage, index, record)
        self._unflushed = unflushed
        self._end = -(-data.size() // SECTOR) * SECTOR
        """Where the next write goes in the data file, in bytes."""
        self._flying = 0
        """Entries that a flush is storing."""
        self._pending: list[Entry] = []
        self._dead: list[tuple[int, int]] = []
        """Ranges of the data file (sectors) whose successors are in ``_pending``."""
        self._freed: list[tuple[int, int]] = []
        """Ranges (bytes) that are free, but for a hold."""
        self._holds = 0
        self._reclaimer = Reclaimer()
        self._pool = SpacePool()
        self._live = 0
        """Bytes of the data file that are referred to."""
        self._flushing = trio.Lock()

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk; 0: that of the layer below."""
        return self.record.virtual_size

    @property
    def wants_flush(self) -> bool:
        """Whether so much is unflushed that the next write had better flush first."""
        return len(self._pending) >= MAX_PENDING

    def stats(self) -> dict[str, int]:
        return {
            "upper_segments": len(self.segments),
            "upper_bytes_used": self._data.used() + self._log.file.used(),
            "upper_unflushed": len(self._pending),
        }

    # --- reading and writing

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the data file, where ``segments`` says that they are."""
        return self._data.read(offset, length)

    def write(self, sector: int, data: Buffer) -> None:
        """Map ``data`` (whole sectors, at most 4 MiB) at ``sector``.

        Raises StorageFullError, and what broke the layer; nothing has changed then.
        """
        if self.broken is not None:
            raise self.broken
        # Long data stays together; short data fills what is free first.
        reused = self._pool.take(len(data)) if len(data) <= _MAX_REUSED else None
        position = self._end if reused is None else reused
        if reused is None and len(data) >= _ALIGNMENT:
            position += -position % _ALIGNMENT
        try:
            self._data.write(position, data)
            self._note(sector, len(data) // SECTOR, position // SECTOR)
        except HybridError:
            if reused is not None:
                self._pool.add([(reused, len(data))])
            raise
        self._live += len(data)
        if reused is None:
            if position > self._end:
                self._dead.append((self._end // SECTOR, (position - self._end) // SECTOR))
            self._end = position + len(data)

    def zero(self, sector: int, count: int) -> None:
        """Map ``count`` sectors to zeros, which hide what is below. Raises as ``write``."""
        if self.broken is not None:
            raise self.broken
        for begin in range(sector, sector + count, MAX_LENGTH):
            self._note(begin, min(MAX_LENGTH, sector + count - begin), _ZEROS)

    def _note(self, start: int, count: int, location: int) -> None:
        """The unflushed file first: what it cannot take has not happened."""
        entry = (start, count, location)
        number = len(self._pending)
        if self._pending:
            joined = _join(self._pending[-1], entry)
            if joined is not None:
                entry = joined
                number -= 1
        # A write is only taken if its entry can be stored: a full disk must not show in a flush.
        self._log.reserve(self._flying + number + 1)
        self._unflushed.put(number, entry)
        self._pending[number:] = [entry]
        dead = self.segments.put(start, start + count, location)
        if dead:
            self._dead += dead
            self._live -= SECTOR * sum(length for _, length in dead)

    # --- durability

    async def flush(self) -> None:
        """Return when everything that was written before is on stable storage.

        Raises StorageFullError (may be tried again when there is space), or what broke the layer.
        """
        async with self._flushing:
            if self.broken is not None:
                raise self.broken
            if not self._pending:
                return
            # To be cut off in the middle would save no time: the disk works on.
            with trio.CancelScope(shield=True):
                await self._flush()

    async def _flush(self) -> None:
        batch, self._pending = self._pending, []
        dead, self._dead = self._dead, []
        self._unflushed.shift(len(batch))
        self._flying = len(batch)
        shorter: SegmentMap | None = None
        if self._log.is_mostly_history(len(self.segments), _WHILE_OPEN):
            shorter = self.segments.snapshot()  # the log says just this after the batch
        try:
            await trio.to_thread.run_sync(self._store, batch)
        except BaseException as error:
            # Nothing is known of the batch; it may be stored once more.
            self._pending[:0] = batch
            self._dead[:0] = dead
            self._unflushed.shift(-len(batch))
            if isinstance(error, StorageFailedError):
                self._break(error)
            raise
        finally:
            self._flying = 0
        freed = self._reclaimer.add(dead)
        self._freed += freed
        try:
            # First of all: what is in the log must not be applied again.
            self._unflushed.forget(self._pending, self._log.end)
            await self._give_back(_PUNCHES + 2 * len(freed))
            if shorter is not None:
                await self._shorten(shorter)
        except StorageFailedError as error:
            self._break(error)
            raise
        except HybridError as error:
            # All is safe; only space and old entries are kept for longer.
            logger.warning("%s", error)

    def _store(self, batch: list[Entry]) -> None:
        """In a thread: the data, and then the entries that refer to it."""
        try:
            self._data.sync()
        except HybridError as error:
            raise final(error) from error
        self._log.append(b"".join(lsmt.pack_entry(*entry) for entry in batch))

    def _break(self, error: HybridError) -> None:
        self.broken = error
        self._unflushed.distrust()

    async def _give_back(self, count: int) -> None:
        """What is free can be used again; what is too much of that is punched."""
        if not self._holds:
            self._pool.add(self._freed)
            self._freed = []
        budget = min(max(_POOL_BYTES, self._live // 8), _MAX_POOL_BYTES)
        # A few at a time, since others wait for this flush.
        excess = self._pool.take_excess(budget, count)
        if excess:
            await trio.to_thread.run_sync(self._punch, excess)

    def _punch(self, freed: list[tuple[int, int]]) -> None:
        for offset, length in freed:
            self._data.punch(offset, length)

    async def _shorten(self, segments: SegmentMap) -> None:
        try:
            new = await trio.to_thread.run_sync(self._log.make, segments)
        except HybridError:
            self._log.be_patient()
            raise
        self._exchange_log(new)

    def _exchange_log(self, new: NewLog) -> None:
        self._unflushed.expect(new.end)
        self._log.put_in_place(new)
        self._unflushed.forget(self._pending, self._log.end)

    # --- for others that read the files

    def hold(self) -> None:
        """Until ``release``, nothing that is in use now is freed: somebody reads the data file."""
        self._holds += 1

    def release(self) -> None:
        self._holds -= 1

    def resize(self, virtual_size: int) -> None:
        """Set the size of the disk in both headers, durably (spec: lsmt 8.6)."""
        self.record = replace(self.record, virtual_size=virtual_size)
        # The record lies in one sector, which a disk writes whole.
        self._data.write(0, upper_log.data_header(self.record))
        self._data.sync()
        self._log.set_size(virtual_size)

    async def seal(self) -> None:
        """Append index and trailer to the data file, which is then a sealed layer (lsmt 13).

        Flushes before, durable after. The layer can go on being written until it is closed: what
        was appended is garbage then, to which nothing refers. Nothing may be written meanwhile.
        """
        await self.flush()
        raw = upper_log.pack_map(self.segments)
        if len(raw) > lsmt.MAX_ENTRIES * ENTRY_SIZE:
            raise UnsupportedError(
                f"{self.name} has {len(raw) // ENTRY_SIZE} segments; a layer can have "
                f"{lsmt.MAX_ENTRIES}",
                hint="`hybrid commit` makes a layer of it that has fewer",
            )
        flags = lsmt.FLAG_DATA | lsmt.FLAG_SEALED
        trailer = replace(
            self.record, flags=flags, index_offset=self._end, index_size=len(raw) // ENTRY_SIZE
        )
        tail = raw.ljust(-(-len(raw) // SECTOR) * SECTOR, b"\0") + lsmt.pack_record(trailer)
        self._data.truncate(self._end)  # a failed write may have left something longer
        try:
            await trio.to_thread.run_sync(self._store_tail, self._end, tail)
        except StorageFailedError as error:
            self._break(error)
            raise
        self._end += len(tail)

    def _store_tail(self, offset: int, tail: bytes) -> None:
        self._data.write(offset, tail)
        try:
            self._data.sync()
        except HybridError as error:
            raise final(error) from error

    async def aclose(self) -> None:
        """Flush, tidy up, and let go of the files. Raises if the flush fails, after letting go."""
        try:
            await self.flush()
            await self._tidy_up()
        finally:
            self.close()

    async def _tidy_up(self) -> None:
        try:
            # The rest is used again next time: to give back each block would take long.
            await trio.to_thread.run_sync(self._punch, self._pool.take_long(_MAX_REUSED))
            if self._log.is_mostly_history(len(self.segments), _AT_REST):
                await self._shorten(self.segments.snapshot())
            # Another program may write to the layer next, and would not look at this file.
            self._unflushed.remove()
        except StorageFailedError:
            raise
        except HybridError as error:
            logger.warning("%s", error)

    def close(self) -> None:
        """Let go of the files as they are. What is not flushed is there at the next opening."""
        self._unflushed.close()
        self._log.file.close()
        self._data.close()

    # --- opening

    @classmethod
    def open(
        cls, storage: Storage, data: Path, index: Path, boot_id: uuids.UUID, *, hold: bool = False
    ) -> Upper:
        """Open the two files for writing, and make good what a crash left of them.

        Waits for the disk. Raises NotFoundError, PermissionNeededError, BusyError (in use),
        UnsupportedError (a sparse layer) and FormatError. ``boot_id`` is that of the running
        system (``running_boot``); ``hold``: from the beginning, as ``hold()`` later.
        """
        with ExitStack() as stack:
            data_file = _opened(storage, data, stack)
            data_file.lock()
            index_file = _opened(storage, index, stack)
            record = read_pair_record(data_file, index_file)
            if record.sparse:
                raise UnsupportedError(
                    f"{data} is a sparse writable layer, which hybrid does not write to",
                    hint="`hybrid commit` makes a layer of it; put a new upper over that",
                )
            layer = uuids.UUID(record.uuid or lsmt.NO_UUID)
            unflushed = UnflushedFile(storage, unflushed_path(index), boot_id, layer)
            stack.callback(unflushed.close)
            upper = cls(storage, data_file, index_file, unflushed, record)
            if hold:
                upper.hold()
            upper._recover()
            stack.pop_all()
        return upper

    def _recover(self) -> None:
        if self._data.size() < self._end:
            self._data.truncate(self._end)
        sectors = self._end // SECTOR
        left = self._unflushed.left
        base = find_base(left, self._log.file, sectors)
        replay = Replay(self.segments, sectors, str(self._log.path))
        self._log.read_into(replay)
        # A writer that died may not have got to it; from here on all of this counts as durable.
        self._data.sync()
        self._log.file.sync()
        self._storage.sync_directory(self._log.path.parent)
        self._cut_log(replay)
        if left is not None and left[0].distrusts_log:
            self._log.put_in_place(self._log.make(self.segments))
        if left is not None and base is not None and left[1]:
            self._pending = left[1]
            self._unflushed.keep(left[0].first, min(base, self._log.end))
        else:
            self._unflushed.clear(self._log.end)
        if replay.has_holes or self._log.is_mostly_history(len(self.segments), _AT_REST):
            self._shorten_now()
        # Only now: the log is for what is durable. What this replaces is found below.
        for start, count, location in self._pending:
            self.segments.put(start, start + count, location)
        if self._pending:
            logger.info("%s: %d unflushed writes are there", self.name, len(self._pending))
        self._reclaim_leftovers()

    def _cut_log(self, replay: Replay) -> None:
        size = self._log.file.size()
        if replay.is_cut or size > self._log.end:
            self._log.cut(replay.kept)
            logger.warning(
                "%s: a crash left %d bytes that are of no use: cut off",
                self._log.path, size - self._log.end,
            )  # fmt: skip

    def _shorten_now(self) -> None:
        try:
            self._exchange_log(self._log.make(self.segments))
        except StorageFullError as error:
            self._log.be_patient()
            logger.warning("%s", error)

    def _reclaim_leftovers(self) -> None:
        """What nothing refers to: of writes that a crash cut off, or not freed in time."""
        self._live = SECTOR * sum(found.length for found in self.segments if not found.zeroed)
        if not self._pending and self._data.used() <= self._live + _SLACK:
            return
        unused = self.segments.unreferenced(upper_log.DATA_BEGIN, self._end // SECTOR)
        if self._pending:
            self._dead = unused  # with what the pending entries replace
        elif self._holds:
            self._freed = self._reclaimer.add(unused)
        else:
            self._pool.add(self._reclaimer.add(unused))


def _opened(storage: Storage, path: Path, stack: ExitStack) -> StoredFile:
    file = storage.open(path)
    stack.callback(file.close)
    return file


def _join(last: Entry, entry: Entry) -> Entry | None:
    """Both as one entry, if the second continues the first on the disk and in the file."""
    start, count, location = last
    if start + count != entry[0] or count + entry[1] > MAX_LENGTH:
        return None
    follows = location if location & ZEROED else location + count
    return (start, count + entry[1], location) if follows == entry[2] else None

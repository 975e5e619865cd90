"""What the CachedSources of one blob share in a process: the file, and the fetches under way.

The protocol of flights and locks is written down in ``hybrid.core.cache``.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from hybrid.core.cachefile import CacheFile
from hybrid.core.cacheformat import chunk_count
from hybrid.core.device import Buffer, Source

logger = logging.getLogger("hybrid.cache")

_UNSTORED_CHUNKS = 16
"""Chunks of a blob that are kept in memory when they cannot be stored: 1 MiB."""
_REMEMBERED_ENDS = 8
"""Ends of fetches that count as the place where a sequential reader may go on."""
_POLL_SECONDS = (0.0005, 0.02)
"""First and longest pause between two tries to get a lock of another process."""


@dataclass(eq=False)
class Flight:
    """Some chunks on their way from ``origin``."""

    origin: Source
    pieces: dict[int, Buffer] | None = None
    error: Exception | None = None
    over: trio.Event = field(default_factory=trio.Event)


class SharedBlob:
    """One open blob of ``size`` bytes. ``file`` is None where it cannot be kept on disk.

    ``store(file, first, data)`` writes whole chunks, or returns False if it must not or cannot.
    ``on_unused`` is called when the last user is gone.
    """

    def __init__(
        self,
        size: int,
        file: CacheFile | None,
        *,
        refill_chunks: int,
        lock_wait_seconds: float,
        store: Callable[[CacheFile, int, Buffer], bool],
        on_unused: Callable[[], None],
    ) -> None:
        self.file = file
        self.flights: dict[int, Flight] = {}
        """Per chunk that a task of this process is fetching, the flight that brings it."""
        self._refill_chunks = refill_chunks
        self._lock_wait_seconds = lock_wait_seconds
        self._store = store
        self._on_unused = on_unused
        self._users = 0
        self._chunks = chunk_count(size)
        self._unstored: OrderedDict[int, bytes] = OrderedDict()
        self._ends: deque[int] = deque(maxlen=_REMEMBERED_ENDS)

    def retain(self) -> None:
        self._users += 1

    def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._on_unused()
            if self.file is not None:
                self.file.touch()
                self.file.close()

    def has(self, chunk: int) -> bool:
        return chunk in self._unstored or (self.file is not None and self.file.has(chunk))

    def load(self, chunk: int) -> Buffer | None:
        """One whole chunk, if it is local."""
        data = self.file.load(chunk) if self.file is not None else None
        return self._unstored.get(chunk) if data is None else data

    def load_range(self, first: int, end: int) -> dict[int, Buffer]:
        return {
            chunk: data for chunk in range(first, end) if (data := self.load(chunk)) is not None
        }

    def keep(self, first: int, pieces: list[memoryview], data: Buffer) -> None:
        """Store fetched chunks, or at least keep the last of them in memory."""
        if self.file is not None and self._store(self.file, first, data):
            return
        for chunk, piece in list(enumerate(pieces, first))[-_UNSTORED_CHUNKS:]:
            self._unstored[chunk] = bytes(piece)
            self._unstored.move_to_end(chunk)
        while len(self._unstored) > _UNSTORED_CHUNKS:
            self._unstored.popitem(last=False)

    def forget(self, first: int, end: int) -> None:
        if self.file is not None:
            self.file.forget(first, end)
        for chunk in [chunk for chunk in self._unstored if first <= chunk < end]:
            del self._unstored[chunk]
        for chunk, flight in self.flights.items():
            if first <= chunk < end and flight.pieces is not None:
                flight.pieces.pop(chunk, None)

    def claim(self, flight: Flight, first: int, end: int) -> int:
        """Claim a run of missing chunks, extended for a sequential reader. Returns its end."""
        stop = end
        if first in self._ends:
            refill = self._refill_chunks
            border = min(-(-end // refill) * refill, self._chunks)
            while stop < border and stop not in self.flights and not self.has(stop):
                stop += 1
            self._ends.remove(first)
        self._ends.append(stop)
        self.flights.update(dict.fromkeys(range(first, stop), flight))
        return stop

    async def lock(self, first: int, end: int, stop: int) -> None:
        """Lock [first, stop) against other processes; give up when [first, end) came or it is late.

        Who has the lock is fetching, dead within this poll (then it is free), or stopped.
        """
        file = self.file
        if file is None:
            return
        deadline = trio.current_time() + self._lock_wait_seconds
        pause, longest = _POLL_SECONDS
        while not file.try_lock(first, stop):
            if trio.current_time() >= deadline:
                logger.warning(
                    "another process has locked chunks %d to %d of %s for too long; "
                    "they are fetched again",
                    first,
                    stop - 1,
                    file.path,
                )
                return
            await trio.sleep(pause)
            pause = min(2 * pause, longest)
            if all(file.has(chunk) for chunk in range(first, end)):
                return

    def land(self, flight: Flight, first: int, stop: int) -> None:
        """End a flight, however it went."""
        for chunk in range(first, stop):
            del self.flights[chunk]
        if self.file is not None:
            self.file.unlock(first, stop)
        flight.over.set()

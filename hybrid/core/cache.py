"""The persistent block cache: a Source around an origin, with what was fetched kept on disk.

    BlobCache      a directory of blobs, shared by processes; keeps it below its limit
      CachedSource   what ``open`` returns: one per opened layer, with its own origin and counters
        SharedBlob     what the CachedSources of one blob share (hybrid.core.cacheblob)
          CacheFile      the file and its locks (hybrid.core.cachefile, cacheformat)

Bytes that are read piece by piece are never compared with the blob's digest. So which blobs are
the same is not for the digest alone to say: see CacheKey in hybrid.core.cacheformat.

A chunk (64 KiB) is local or not. A read that finds all of its chunks local is answered from disk at
once. Any other fetches what is missing, in as few requests as the gaps allow; where it goes on
where a former fetch ended, the fetch is extended to the next multiple of the refill size.

Concurrency
* One trio thread per BlobCache; nothing here may be called from another thread.
* ``SharedBlob.flights`` maps each chunk that a task of this process is fetching to its flight. A
  task looks for missing chunks, and claims those without a flight, WITHOUT AN AWAIT in between:
  with one, two tasks could claim the same chunk, and it would be fetched twice.
* A task waits for flights of others only while it has none of its own, and for a lock of another
  process only while it holds none. So nobody waits in a circle.
* Whoever claimed a chunk takes, while it fetches, the lock on its map entry, which excludes other
  processes. A process may be stopped while it has the lock, hence the wait for it is bounded;
  after that the chunk is fetched anyway. That is only a waste: both store the same bytes.
* Once the lock is there the map is looked at again, since the former owner usually stored what is
  wanted. From there to the end of ``store`` only the read of the origin is awaited.
* A flight ends by storing its bytes, by an error (all tasks that wait for it get the error; nothing
  remembers it, so the next read tries again), or cancelled (one of those who wait takes over).
* ``evict`` takes out of a flight what it found on disk, not what it is reading from the origin.
* Writes to the cache file are not awaited: up to a refill each, into the page cache.

The cache never makes a read fail: what cannot be stored (disk full, read-only, limit reached) is
served, with one warning. A few such chunks are kept in memory, so that reads of neighbouring
small blocks do not ask the origin for the same chunk each time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from hybrid.core.cacheblob import Flight, SharedBlob
from hybrid.core.cachefile import CacheFile, check_private, remove_unused
from hybrid.core.cacheformat import CHUNK_SHIFT, CHUNK_SIZE, CacheKey, chunk_span, is_cache_file
from hybrid.core.device import Buffer, Source, check_range
from hybrid.errors import ConfigError, FormatError

logger = logging.getLogger("hybrid.cache")

_GROWTH_BYTES = 64 << 20
"""The directory is looked through again when this process has stored so many bytes."""
_FULL_SECONDS = 10.0
"""How long a cache that is over its limit stores nothing before it looks again."""


class BlobCache:
    """A directory of cached blobs, which processes may share; on a local file system.

    ``limit_bytes`` is for all blobs together, on disk. ``refill_size`` (bytes, a power of two of at
    least 64 KiB) is how much a sequential reader fetches at once. ``lock_wait_seconds`` bounds the
    wait for another process that fetches the same chunk. Raises ConfigError.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limit_bytes: int,
        refill_size: int = 262144,
        lock_wait_seconds: float = 10.0,
    ) -> None:
        if refill_size < CHUNK_SIZE or refill_size & (refill_size - 1):
            raise ConfigError(
                f"the cache's refill size is {refill_size} bytes",
                hint=f"it must be a power of two of at least {CHUNK_SIZE}",
            )
        if limit_bytes < 0:
            raise ConfigError(f"the cache's size limit is {limit_bytes} bytes")
        self.directory = directory
        self.limit_bytes = limit_bytes
        self._refill_chunks = refill_size >> CHUNK_SHIFT
        self._lock_wait_seconds = lock_wait_seconds
        self._blobs: dict[CacheKey, SharedBlob] = {}
        self._warned: set[str] = set()
        self._growth_step = max(CHUNK_SIZE, min(_GROWTH_BYTES, limit_bytes // 8))
        self._grown = 0
        self._full = False
        self._full_until = 0.0

    def open(self, origin: Source, digest: str, vouched_by: str) -> CachedSource:
        """Put the cache around ``origin``, whose bytes have this digest. Closing it closes both.

        ``vouched_by`` says on whose word they have: what came on another word is not used for it.

        Never fails: without a usable file, or with a digest other than sha256 and sha512, the
        bytes come from the origin only.
        """
        key = CacheKey(vouched_by, digest, origin.size)
        blob = self._blobs.get(key)
        if blob is None:
            file = self._open_file(key)
            blob = self._blobs[key] = SharedBlob(
                origin.size,
                file,
                refill_chunks=self._refill_chunks,
                lock_wait_seconds=self._lock_wait_seconds,
                store=self._store,
                on_unused=lambda: self._forget(key),
            )
            self.trim()
        return CachedSource(origin, blob)

    def trim(self) -> int:
        """Remove the least recently used blobs until the limit holds. Returns the bytes freed.

        A blob that any process has open is not touched. If the limit is exceeded all the same,
        nothing more is stored for a while.
        """
        files = sorted(self._list_files())
        used = sum(size for _, size, _ in files)
        freed = 0
        for _, size, path in files:
            if used <= self.limit_bytes:
                break
            try:
                removed = remove_unused(path)
            except FileNotFoundError:
                used -= size  # Another process trims as well.
                continue
            except OSError as error:
                self._warn("trim", f"cannot remove {path}: {error.strerror}")
                continue
            if removed:
                used -= size
                freed += size
        self._grown = 0
        self._full = used > self.limit_bytes
        self._full_until = time.monotonic() + _FULL_SECONDS
        return freed

    def _admits(self, length: int) -> bool:
        """Whether ``length`` more bytes may be stored. Trims now and then."""
        self._grown += length
        if self._full:
            look = time.monotonic() >= self._full_until
        else:
            look = self._grown >= self._growth_step
        if look:
            self.trim()
            self._grown = length
        if self._full:
            self._warn(
                "limit",
                f"the cache in {self.directory} has reached its limit of {self.limit_bytes} bytes "
                "with blobs in use: further data is not stored",
            )
        return not self._full

    def _warn(self, kind: str, message: str) -> None:
        """Log a warning, once per kind: the reason would be the same for each read."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", message)

    def _forget(self, key: CacheKey) -> None:
        del self._blobs[key]

    def _open_file(self, key: CacheKey) -> CacheFile | None:
        if not key.cacheable:
            self._warn("digest", f"a blob with the digest {key.digest} cannot be cached")
            return None
        path = self.directory / key.file_name
        try:
            file = CacheFile.open(path, key)
        except OSError as error:
            self._warn_storage(path, error)
            return None
        if not file.writable:
            self._warn("store", f"the cache in {self.directory} is read-only: nothing is stored")
        return file

    def _warn_storage(self, path: Path, error: OSError) -> None:
        where = error.filename or path
        self._warn(
            "store",
            f"cannot store in the cache: {where}: {error.strerror}; reading goes on without",
        )

    def _store(self, file: CacheFile, first: int, data: Buffer) -> bool:
        """Store chunks if the limit and the disk allow it."""
        if not self._admits(len(data)):
            return False
        try:
            file.store(first, data)
        except OSError as error:
            self._warn_storage(file.path, error)
            return False
        return True

    def _list_files(self) -> Iterator[tuple[int, int, Path]]:
        """Last use (nanoseconds), bytes on disk, path. Only files that are blobs of a cache."""
        try:
            check_private(self.directory)
            paths = [path for path in self.directory.iterdir() if is_cache_file(path.name)]
        except OSError:
            return  # No directory, or not ours: nothing to remove.
        for path in paths:
            try:
                status = path.stat(follow_symlinks=False)
            except OSError:
                continue  # Another process removed it.
            yield status.st_mtime_ns, status.st_blocks * 512, path


class CachedSource(Source):
    """A blob's bytes, from the cache where they are there. See BlobCache.open."""

    def __init__(self, origin: Source, blob: SharedBlob) -> None:
        self.name = origin.name
        self.size = origin.size
        self.bytes_fetched = 0
        """Bytes that were read from the origin through this object."""
        self.bytes_served = 0
        """Bytes that were returned to readers."""
        self._origin = origin
        self._blob = blob
        self._file = blob.file
        self._closed = False
        blob.retain()

    @property
    def bytes_present(self) -> int:
        """Bytes of the blob that are in the cache on disk, whoever stored them."""
        return 0 if self._file is None else self._file.bytes_present()

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        check_range(offset, length, self.size, self.name)
        if not length:
            return b""
        data = None if self._file is None else self._file.read(offset, length)
        if data is not None:
            self.bytes_served += length
        return data

    async def pread(self, offset: int, length: int) -> Buffer:
        data = self.pread_nowait(offset, length)
        if data is not None:
            return data
        first, end = chunk_span(offset, length)
        pieces = self._blob.load_range(first, end)
        # Each turn brings at least one chunk, raises, or follows the end of another task's flight.
        while missing := [chunk for chunk in range(first, end) if chunk not in pieces]:
            pieces.update(await self._bring(missing))
        self.bytes_served += length
        return b"".join(
            memoryview(pieces[chunk])[max(0, offset - start) : offset + length - start]
            for chunk, start in ((chunk, chunk << CHUNK_SHIFT) for chunk in range(first, end))
        )

    async def evict(self, offset: int, length: int) -> bool:
        check_range(offset, length, self.size, self.name)
        if length:
            self._blob.forget(*chunk_span(offset, length))
        return True

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._blob.release()
            await self._origin.aclose()

    async def _bring(self, missing: list[int]) -> dict[int, Buffer]:
        """Some of the missing chunks: fetched, or taken from a flight of another task."""
        flights = self._blob.flights
        wanted = set(missing)
        # Own fetches first: so two readers side by side fetch side by side.
        first = next((chunk for chunk in missing if chunk not in flights), None)
        if first is not None:
            end = first + 1
            while end in wanted and end not in flights:
                end += 1
            return await self._fetch(first, end)
        flight = flights[missing[0]]
        await flight.over.wait()
        if flight.error is not None and flight.origin is self._origin:
            raise flight.error
        # Nothing, if it was cancelled or failed at the origin of another CachedSource.
        return flight.pieces or self._blob.load_range(missing[0], missing[-1] + 1)

    async def _fetch(self, first: int, end: int) -> dict[int, Buffer]:
        """Fetch the run, or a part of it if another process was faster with the rest."""
        blob = self._blob
        flight = Flight(self._origin)
        stop = blob.claim(flight, first, end)
        blob.retain()  # The file stays open until its lock is released.
        try:
            await blob.lock(first, end, stop)
            flight.pieces = blob.load_range(first, stop)
            await self._fetch_gap(flight.pieces, first, end, stop)
        except Exception as error:
            flight.error = error
            raise
        finally:
            blob.land(flight, first, stop)
            blob.release()
        return flight.pieces

    async def _fetch_gap(self, pieces: dict[int, Buffer], first: int, end: int, stop: int) -> None:
        """Read the first gap of [first, end) from the origin; it may go on up to ``stop``."""
        begin = next((chunk for chunk in range(first, end) if chunk not in pieces), None)
        if begin is None:
            return
        finish = begin + 1
        while finish < stop and finish not in pieces:
            finish += 1
        offset = begin << CHUNK_SHIFT
        length = min(finish << CHUNK_SHIFT, self.size) - offset
        data = await self._origin.pread(offset, length)
        self.bytes_fetched += len(data)
        if len(data) != length:
            raise FormatError(
                f"{self.name} gave {len(data)} bytes at {offset} instead of {length}", offset=offset
            )
        view = memoryview(data)
        parts = [view[start : start + CHUNK_SIZE] for start in range(0, length, CHUNK_SIZE)]
        self._blob.keep(begin, parts, data)
        pieces.update(enumerate(parts, begin))

"""The file of one cached blob: its data, its locks, and nothing that waits for the network.

Its format is in ``hybrid.core.cacheformat``.

Why a crash cannot give wrong data: the data of a chunk is written before its entry, and each
process checks the CRC the first time that it uses a chunk that it did not store itself. So the
order in which the kernel brought pages to the disk does not matter, and nothing is ever synced.

Locks. Each covers what its owner may change, and dies with its owner:

``flock`` shared, on the whole file
    held as long as the file is open. Who wants to *remove* the file takes it exclusively, without
    waiting, and unlinks under it. An opener looks, once it has the lock, whether the path still
    names the file that it locked; if not, it was removed in between: open again.
OFD write lock on the header's bytes
    held while an empty file is laid out, or a file that does not fit (renamed, cut, damaged, open
    to other users) is unlinked to make room for a new one. Processes that still use the unlinked
    file are not disturbed: it lives until they close it.
OFD write lock on the bytes of map entries
    held while these chunks are fetched and stored (by ``hybrid.core.cache``).

OFD locks belong to the open file description: two tasks of a process that share a CacheFile do not
exclude each other, and a child inherits the locks over fork(). Hence one CacheFile per blob and
process (``BlobCache`` sees to that), opened after the fork.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
import struct
import time
from array import array
from contextlib import suppress
from pathlib import Path

from hybrid.core.cacheformat import (
    CHUNK_SHIFT,
    CHUNK_SIZE,
    ENTRY_SIZE,
    MAP_OFFSET,
    CacheKey,
    chunk_checksum,
    chunk_count,
    data_offset,
)
from hybrid.core.device import Buffer

logger = logging.getLogger("hybrid.cache")

# struct flock of a 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK = struct.Struct("hhqqi4x")

# Others hold the locks that opening needs for microseconds, unless they are stopped: 60 ms in all.
_OPEN_TRIES = 30
_OPEN_PAUSE_SECONDS = 0.002


class CacheFile:
    """One blob on disk. All methods answer at once; only ``open`` and ``store`` raise OSError.

    Damaged, unreadable and absent chunks look the same: ``None``.
    """

    def __init__(self, path: Path, key: CacheKey) -> None:
        self.path = path
        self.size = key.size
        self.writable = False
        self._fd = -1
        self._header = key.header
        self._data_offset = data_offset(key.size)
        # A byte per chunk: 1 where this process stored the chunk or has seen its CRC match. The
        # kernel gives memory only to the pages that are touched: a manifest may claim huge blobs.
        self._verified = mmap.mmap(-1, max(1, chunk_count(key.size)), flags=mmap.MAP_PRIVATE)
        # Chunks to be ignored, because their entry could not be cleared on disk.
        self._ignored: set[int] = set()

    @classmethod
    def open(cls, path: Path, key: CacheKey) -> CacheFile:
        """Open or create the file of a blob, or replace one that does not fit.

        Where nothing may be written, an existing file is opened read-only. Raises OSError, also
        for a directory in which others could exchange the files.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(path.parent)
        for _ in range(_OPEN_TRIES):
            file = cls._try_open(path, key)
            if file is not None:
                file.touch()
                return file
            time.sleep(_OPEN_PAUSE_SECONDS)
        raise BlockingIOError(errno.EAGAIN, "locked by another process", str(path))

    @classmethod
    def _try_open(cls, path: Path, key: CacheKey) -> CacheFile | None:
        file = cls(path, key)
        file._fd, file.writable = _open_descriptor(path)
        usable = False
        try:
            usable = file._join_users() and (file._fits() or file._lay_out())
        finally:
            if not usable:
                file.close()
        return file if usable else None

    def read(self, offset: int, length: int) -> bytes | None:
        """The bytes, if all chunks of the range are here (``length`` > 0). The hot path."""
        first = offset >> CHUNK_SHIFT
        end = (offset + length - 1 >> CHUNK_SHIFT) + 1
        if self._verified.find(b"\0", first, end) >= 0 and not self._verify(first, end):
            return None
        return self._read_data(offset, length)

    def load(self, chunk: int) -> bytes | None:
        """One whole chunk, its CRC checked once per process."""
        verified = self._verified[chunk]
        entry = 0 if verified else self._entry(chunk)
        if not verified and not entry:
            return None
        start = chunk << CHUNK_SHIFT
        length = min(CHUNK_SIZE, self.size - start)
        data = self._read_data(start, length)
        if data is not None and (verified or chunk_checksum(data) == entry):
            self._verified[chunk] = 1
            return data
        logger.warning("chunk %d of %s is damaged: it will be fetched again", chunk, self.path)
        self.forget(chunk, chunk + 1)
        return None

    def has(self, chunk: int) -> bool:
        """Whether the chunk is marked present, by whichever process. Its CRC is not checked."""
        return bool(self._verified[chunk] or self._entry(chunk))

    def store(self, first: int, data: Buffer) -> None:
        """Write whole chunks from ``first`` on, then mark them present. Raises OSError."""
        if not self.writable:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self.path))
        if os.fstat(self._fd).st_size != self._data_offset + self.size:
            # To write would make it long again, and what it held would read as zeros.
            self._trust_nothing()
            raise OSError(errno.EIO, "cut or extended while in use", str(self.path))
        view = memoryview(data)
        parts = [view[i : i + CHUNK_SIZE] for i in range(0, len(view), CHUNK_SIZE)]
        entries = struct.pack(f"<{len(parts)}I", *map(chunk_checksum, parts))
        # The order is the promise: an entry never stands before its data does.
        _write(self._fd, view, self._data_offset + (first << CHUNK_SHIFT))
        _write(self._fd, entries, MAP_OFFSET + ENTRY_SIZE * first)
        self._verified[first : first + len(parts)] = b"\1" * len(parts)
        self._ignored.difference_update(range(first, first + len(parts)))

    def forget(self, first: int, end: int) -> None:
        """Mark the chunks absent, for all processes.

        Their data stays where it is: another process may have verified and be reading it. Fetching
        a chunk again writes over it in place.
        """
        self._verified[first:end] = bytes(end - first)
        try:
            _write(self._fd, bytes(ENTRY_SIZE * (end - first)), MAP_OFFSET + ENTRY_SIZE * first)
        except OSError:
            self._ignored.update(range(first, end))

    def try_lock(self, first: int, end: int) -> bool:
        """Lock the map entries of these chunks against other processes, if nobody has them."""
        if not self.writable:
            return True  # Nothing is stored, so there is nothing to wait for.
        length = ENTRY_SIZE * (end - first)
        return self._lock_bytes(fcntl.F_WRLCK, MAP_OFFSET + ENTRY_SIZE * first, length)

    def unlock(self, first: int, end: int) -> None:
        """Undo ``try_lock``. Harmless where it was refused."""
        length = ENTRY_SIZE * (end - first)
        self._lock_bytes(fcntl.F_UNLCK, MAP_OFFSET + ENTRY_SIZE * first, length)

    def bytes_present(self) -> int:
        """Bytes of the blob that are marked present. Reads the whole map (4 bytes per chunk)."""
        chunks = chunk_count(self.size)
        try:
            entries = array("I", os.pread(self._fd, ENTRY_SIZE * chunks, MAP_OFFSET))
        except (OSError, ValueError):
            return 0
        total = CHUNK_SIZE * (len(entries) - entries.count(0))
        if len(entries) == chunks and chunks and entries[-1]:
            total -= CHUNK_SIZE * chunks - self.size
        return total

    def touch(self) -> None:
        """Note that the blob is used now, for ``trim``, which goes by the modification time."""
        with suppress(OSError):
            os.utime(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)  # All locks go with it.
            self._fd = -1

    def _read_data(self, offset: int, length: int) -> bytes | None:
        try:
            data = os.pread(self._fd, length, self._data_offset + offset)
        except OSError:
            data = b""
        if len(data) == length:
            return data
        self._trust_nothing()  # A broken disk, or a file that was cut by hand.
        return None

    def _trust_nothing(self) -> None:
        """What was seen of the file counts no more."""
        self._verified.madvise(mmap.MADV_DONTNEED)  # Private memory: it reads as zeros again.

    def _verify(self, first: int, end: int) -> bool:
        return all(
            self._verified[chunk] or self.load(chunk) is not None for chunk in range(first, end)
        )

    def _entry(self, chunk: int) -> int:
        if chunk in self._ignored:
            return 0
        try:
            return int.from_bytes(
                os.pread(self._fd, ENTRY_SIZE, MAP_OFFSET + ENTRY_SIZE * chunk), "little"
            )
        except OSError:
            return 0

    def _join_users(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # It is being removed.
        return _names(self.path, self._fd)

    def _fits(self) -> bool:
        status = os.fstat(self._fd)
        return (
            _is_private(status)
            and status.st_size == self._data_offset + self.size
            and os.pread(self._fd, len(self._header), 0) == self._header
        )

    def _lay_out(self) -> bool:
        """Make an empty file fit; unlink one that does not. False: open again."""
        if not self.writable:
            raise OSError(errno.EROFS, "cannot be replaced on a read-only file system")
        if not self._lock_bytes(fcntl.F_WRLCK, 0, MAP_OFFSET):
            return False
        # Whoever had the lock before may have done the work.
        fits = self._fits()
        if not fits and _names(self.path, self._fd):
            status = os.fstat(self._fd)
            if status.st_size == 0 and _is_private(status):
                # The header last: without it, the next opener replaces the file.
                os.ftruncate(self._fd, self._data_offset + self.size)
                _write(self._fd, self._header, 0)
                fits = True
            else:
                os.unlink(self.path)
        self._lock_bytes(fcntl.F_UNLCK, 0, MAP_OFFSET)
        return fits

    def _lock_bytes(self, kind: int, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(
                self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
            )
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # No locks here (ENOLCK): to fetch twice is better than not to read.
        return True


def check_private(directory: Path) -> None:
    """Raise OSError if another user than root could put files of his choice there."""
    if not _is_private(directory.stat()):
        raise PermissionError(
            errno.EPERM,
            "it belongs to another user or others may write to it (chown, chmod go-w)",
            str(directory),
        )


def remove_unused(path: Path) -> bool:
    """Remove the file unless a process has it open. Raises OSError (FileNotFoundError: gone)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _names(path, descriptor):
            return False
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _open_descriptor(path: Path) -> tuple[int, bool]:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600), True
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        try:
            return os.open(path, os.O_RDONLY | flags), False
        except FileNotFoundError:
            raise error from None


def _is_private(status: os.stat_result) -> bool:
    """Whether only we and root could have written to it."""
    others = stat.S_IWGRP | stat.S_IWOTH
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & others


def _names(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(descriptor: int, data: Buffer, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view = view[done:]
        offset += done

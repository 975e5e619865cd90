"""The files of a writable layer, behind one small class that a test can stand in for.

Everything that can matter in a crash goes through here: what is written, in which order, and what
is synchronised when. Failures become HybridErrors: StorageFullError where space is short.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from pathlib import Path

from hybrid.core.device import Buffer
from hybrid.core.file_lock import lock_file
from hybrid.core.storage_errors import storage_error
from hybrid.errors import FormatError

_KEEP_SIZE = 1  # linux/falloc.h
_PUNCH_HOLE = 2
_NOT_POSSIBLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class StoredFile:
    """An open file. Offsets and lengths in bytes. All methods may block on the disk."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._fd = descriptor
        self._allocates = True

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def end(self) -> int:
        """As ``size``, and of a block device as well. Raises StorageFailedError, ..."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise storage_error(error, f"cannot tell the size of {self.path}") from error

    def used(self) -> int:
        """Bytes that the file takes on the disk."""
        return os.fstat(self._fd).st_blocks * 512

    def read(self, offset: int, length: int) -> bytes:
        """All of the range. Raises FormatError if the file ends before, or cannot be read."""
        parts: list[bytes] = []
        done = 0
        while done < length:
            try:
                part = os.pread(self._fd, length - done, offset + done)
            except OSError as error:
                what = f"cannot read {self.path} at byte {offset + done}"
                raise storage_error(error, what) from error
            if not part:
                raise FormatError(
                    f"{self.path} ends at byte {offset + done}, within what was written to it",
                    hint="it was cut by something else",
                    offset=offset + done,
                )
            if len(part) == length:
                return part
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def next_data(self, offset: int, end: int) -> tuple[int, int] | None:
        """Begin and end of the next range at or behind ``offset`` that is no hole, cut at ``end``.

        None: there is no more. A file system that knows no holes calls everything data.
        """
        try:
            begin = os.lseek(self._fd, offset, os.SEEK_DATA)
            if begin >= end:
                return None
            return begin, min(os.lseek(self._fd, begin, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise storage_error(error, f"cannot look for data in {self.path}") from error

    def write(self, offset: int, data: Buffer) -> None:
        """All of ``data``. Raises StorageFullError, or SystemSupportError for what else fails."""
        try:
            done = os.pwrite(self._fd, data, offset)
            view = memoryview(data)
            while done < len(view):
                done += os.pwrite(self._fd, view[done:], offset + done)
        except OSError as error:
            raise storage_error(error, f"cannot write {self.path}") from error

    def sync(self) -> None:
        """Return when data, and what is needed to find it, is on stable storage."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(error, f"cannot synchronise {self.path}") from error

    def punch(self, offset: int, length: int) -> None:
        """Give the space of a range back where the file system can; it then reads as zeros."""
        self._allocate(_PUNCH_HOLE | _KEEP_SIZE, offset, length, "cannot free space in")

    def reserve(self, offset: int, length: int) -> None:
        """Make sure that a write there will find space, where the file system can do that.

        The size stays. Raises StorageFullError.
        """
        self._allocate(_KEEP_SIZE, offset, length, "no space for")

    def _allocate(self, mode: int, offset: int, length: int, what: str) -> None:
        if not self._allocates or _fallocate(self._fd, mode, offset, length) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NOT_POSSIBLE:
            error = OSError(number, os.strerror(number))
            raise storage_error(error, f"{what} {self.path}")
        self._allocates = False

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise storage_error(error, f"cannot set the size of {self.path}") from error

    def belong_as(self, other: StoredFile) -> None:
        """Take owner and mode of another file, as far as that is allowed."""
        status = os.fstat(other._fd)
        with contextlib.suppress(OSError):
            os.fchown(self._fd, status.st_uid, status.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(self._fd, stat.S_IMODE(status.st_mode))

    def lock(self) -> None:
        """Be the only process that has the file open for writing. Raises BusyError."""
        lock_file(self._fd, self.path.parent)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Storage:
    """Where StoredFiles come from. Paths are those of the host."""

    def create(self, path: Path, *, like: StoredFile | None = None) -> StoredFile:
        """A new file, with owner and mode of another. Raises BusyError if there is one already."""
        file = self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if like is not None:
            file.belong_as(like)
        return file

    def open(self, path: Path, *, writable: bool = True) -> StoredFile:
        return self._open(path, os.O_RDWR if writable else os.O_RDONLY)

    def replace(self, source: Path, target: Path) -> None:
        """Rename; what was at ``target`` is gone. Durable after ``sync_directory``."""
        try:
            source.replace(target)
        except OSError as error:
            raise storage_error(error, f"cannot replace {target}") from error

    def remove(self, path: Path) -> None:
        """Gone already is fine."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, f"cannot remove {path}") from error

    def sync_directory(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise storage_error(error, f"cannot synchronise {path}") from error

    def _open(self, path: Path, flags: int) -> StoredFile:
        try:
            flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would hold us up
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise storage_error(error, f"cannot open {path}") from error
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(descriptor)
            raise FormatError(f"{path} is neither a regular file nor a block device")
        return StoredFile(path, descriptor)

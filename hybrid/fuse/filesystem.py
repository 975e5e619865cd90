"""The FUSE file system of one image: a root directory with one file, the merged disk.

The file can be written if the Device can. Its size never changes, and nothing else can be changed.

The file's size is the Device's, rounded up to the logical block; the rounding is zeros. Every open
is direct I/O, so each kernel request (up to 1 MiB) arrives here as it was asked and the page cache
holds the data once, in the file system that is mounted on top.

Rules that keep the process alive and free of deadlocks:

* A failed read is ``EIO`` for that request only, with the reason in the log. Never a short read:
  the kernel would take it for the end of the file. The same goes for writes, whose error is
  ``ENOSPC`` where there is no space for them.
* No handler lets an exception out, since pyfuse3 would end the whole session.
* This process never stats, opens, mounts or unmounts anything on its own FUSE path: the answer
  would have to come from itself.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    StatvfsData,
)

from hybrid.core.device import Buffer, Device
from hybrid.errors import HybridError, StorageFullError
from hybrid.fuse import DISK_NAME
from hybrid.fuse.unchangeable import UnchangeableTree

LOGICAL_BLOCK = 512
"""Bytes. The exposed size is a multiple of it, so that a loop device never cuts a tail."""
_DISK_INODE = InodeT(pyfuse3.ROOT_INODE + 1)
_CACHE_SECONDS = 24 * 3600.0
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
_SIZE_FLAGS = os.O_TRUNC | os.O_APPEND
"""Opens that mean to change the size."""
_HANDLE = FileHandleT(_DISK_INODE)
_SYNC_HANDLE = FileHandleT(_DISK_INODE + 1)
"""Of a file opened with O_DSYNC or O_SYNC: the kernel leaves to us what that asks for."""

logger = logging.getLogger(__name__)


class DiskFilesystem(UnchangeableTree):
    """Serves ``device`` as the file ``disk``. ``on_release`` is called after each close of it."""

    def __init__(self, device: Device, on_release: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.size = -(-device.size // LOGICAL_BLOCK) * LOGICAL_BLOCK
        """Bytes of the file."""
        self.open_handles = 0
        """How often the file is open in the kernel (a loop device counts once)."""
        self.read_errors = 0
        """Reads answered with EIO."""
        self.write_errors = 0
        """Writes and flushes answered with EIO or ENOSPC."""
        self.writable = device.writable
        self._mode = 0o600 if device.writable else 0o400
        self._device = device
        self._device_size = device.size
        self._on_release = on_release
        self._started_ns = time.time_ns()

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Answer one read of the kernel; the hot path, hence no helper for the usual case."""
        wanted = min(size, self._device_size - off)
        if wanted <= 0:
            return self._zeros_after_device(off, size)
        try:
            data: Buffer | None = self._device.pread_nowait(off, wanted)
            if data is None:
                data = await self._device.pread(off, wanted)
        except HybridError as error:
            raise self._failed_read(off, wanted, str(error)) from None
        except Exception as error:
            logger.exception("unexpected error in a read of %d bytes at %d", wanted, off)
            raise self._failed_read(off, wanted, f"{type(error).__name__}: {error}") from None
        if len(data) != wanted:
            raise self._failed_read(off, wanted, f"the device gave {len(data)} bytes")
        if wanted < size:
            return bytes(data) + self._zeros_after_device(off + wanted, size - wanted)
        # pyfuse3 takes any contiguous buffer; its annotation says bytes.
        return data  # type: ignore[return-value]

    def _zeros_after_device(self, off: int, size: int) -> bytes:
        return bytes(max(0, min(size, self.size - off)))

    def _failed_read(self, off: int, wanted: int, reason: str) -> FUSEError:
        self.read_errors += 1
        logger.error("EIO for %d bytes at %d of %s: %s", wanted, off, self._device.name, reason)
        return FUSEError(errno.EIO)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write all of one request of the kernel (up to 1 MiB), aligned or not, or nothing."""
        if off + len(buf) > self._device_size:
            raise FUSEError(errno.ENOSPC)  # as block devices do
        try:
            if not self._device.pwrite_nowait(off, buf):
                await self._device.pwrite(off, buf)
            if fh == _SYNC_HANDLE:
                await self._device.flush()
        except Exception as error:
            raise self._failed_change(f"WRITE {len(buf)} bytes at {off}", error) from None
        return len(buf)

    def _failed_change(self, what: str, error: Exception) -> FUSEError:
        self.write_errors += 1
        code = errno.ENOSPC if isinstance(error, StorageFullError) else errno.EIO
        name, disk = errno.errorcode[code], self._device.name
        if isinstance(error, HybridError):
            logger.error("%s for %s of %s: %s", name, what, disk, error)
        else:
            logger.error("%s for %s of %s: a bug", name, what, disk, exc_info=error)
        return FUSEError(code)

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        if parent_inode == pyfuse3.ROOT_INODE and name == DISK_NAME.encode():
            return self._attributes(_DISK_INODE)
        raise FUSEError(errno.ENOENT)

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        return self._attributes(inode)

    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        return not mode & os.W_OK or (self.writable and inode == _DISK_INODE)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        if inode != _DISK_INODE:
            raise FUSEError(errno.EISDIR)
        if flags & _WRITE_FLAGS and not self.writable:
            raise FUSEError(errno.EROFS)
        if flags & _SIZE_FLAGS:
            raise FUSEError(errno.EPERM)
        self.open_handles += 1
        fh = _SYNC_HANDLE if self.writable and flags & os.O_DSYNC else _HANDLE
        return FileInfo(fh=fh, direct_io=True)

    async def release(self, fh: FileHandleT) -> None:
        self.open_handles -= 1
        self._on_release()

    async def flush(self, fh: FileHandleT) -> None:
        """A close: it promises nothing, as elsewhere."""

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Also a flush of the loop device. With a read-only device nothing is ever dirty."""
        if not self.writable:
            return
        try:
            await self._device.flush()
        except Exception as error:
            raise self._failed_change("FLUSH", error) from None

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        if inode != pyfuse3.ROOT_INODE:
            raise FUSEError(errno.ENOTDIR)
        return FileHandleT(pyfuse3.ROOT_INODE)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        if start_id == 0:
            name = FileNameT(DISK_NAME.encode())
            pyfuse3.readdir_reply(token, name, self._attributes(_DISK_INODE), 1)

    async def releasedir(self, fh: FileHandleT) -> None:
        """Directories hold nothing."""

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        status = StatvfsData()
        status.f_bsize = status.f_frsize = LOGICAL_BLOCK
        status.f_blocks = self.size // LOGICAL_BLOCK
        status.f_bfree = status.f_bavail = 0
        status.f_files, status.f_ffree, status.f_favail = 1, 0, 0
        status.f_namemax = 255
        return status

    def _attributes(self, inode: InodeT) -> EntryAttributes:
        entry = EntryAttributes()
        is_disk = inode == _DISK_INODE
        entry.st_ino = inode
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = _CACHE_SECONDS
        entry.st_mode = ModeT(stat.S_IFREG | self._mode if is_disk else stat.S_IFDIR | 0o500)
        entry.st_nlink = 1 if is_disk else 2
        entry.st_uid, entry.st_gid, entry.st_rdev = os.getuid(), os.getgid(), 0
        entry.st_size = self.size if is_disk else 0
        entry.st_blksize = 4096
        entry.st_blocks = entry.st_size // 512
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._started_ns
        return entry

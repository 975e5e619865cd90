"""Sources of bytes that need no network: a local file, memory, and one that fails on purpose."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from hybrid.core.device import Buffer, Source, check_range
from hybrid.core.file_lock import lock_file
from hybrid.errors import (
    FormatError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    SystemSupportError,
)

_NO_SUCH = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class MemorySource(Source):
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray, name: str = "memory") -> None:
        self.name = name
        self.size = len(data)
        self._view = memoryview(data).toreadonly()

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        return self._view[offset : offset + length]

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)


class FileSource(Source):
    """A local regular file, opened read-only. Its size is taken once, when it is opened.

    Raises NotFoundError, PermissionNeededError, SystemSupportError (too many open files, ...), or
    FormatError (not a regular file).
    """

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise NotFoundError(f"no such file: {path}") from error
        except PermissionError as error:
            raise PermissionNeededError(f"cannot open {path}: permission denied") from error
        except OSError as error:
            kind = NotFoundError if error.errno in _NO_SUCH else SystemSupportError
            raise kind(f"cannot open {path}: {error.strerror}") from error
        status = os.fstat(self._fd)
        if not os.path.isfile(f"/proc/self/fd/{self._fd}"):
            os.close(self._fd)
            raise FormatError(f"{path} is not a regular file")
        self.size = status.st_size

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        try:
            data = os.pread(self._fd, length, offset)
            return data if len(data) == length else self._read_rest(data, offset, length)
        except OSError as error:
            raise self._failure(offset, length, error) from error

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)

    def lock(self, name: Path) -> None:
        """Keep writers away until the file is closed. Raises BusyError if there is one."""
        lock_file(self._fd, name, shared=True)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_rest(self, data: bytes, offset: int, length: int) -> bytes:
        # A regular file gives less only at its end (it was cut after opening) or past 2 GiB.
        parts = [data]
        done = len(data)
        while done < length:
            part = os.pread(self._fd, length - done, offset + done)
            if not part:
                raise FormatError(
                    f"{self.name} ends at byte {offset + done}, but was {self.size} bytes long",
                    hint="it was cut while in use",
                    offset=offset + done,
                )
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def _failure(self, offset: int, length: int, error: OSError) -> HybridError:
        name = errno.errorcode.get(error.errno or 0, "?")
        return FormatError(
            f"cannot read {length} bytes at {offset} of {self.name}: {error.strerror} ({name})",
            offset=offset,
        )


class FaultySource(Source):
    """A Source around a Source that asks ``fault(offset, length)`` before each read.

    ``fault`` may raise, or return replacement bytes, or return None to let the read pass. With
    ``remote`` the nowait path always says "would block", as a registry does. For tests.
    """

    def __init__(
        self,
        inner: Source,
        fault: Callable[[int, int], bytes | None] = lambda offset, length: None,
        *,
        remote: bool = False,
    ) -> None:
        self.name = inner.name
        self.size = inner.size
        self.requests: list[tuple[int, int]] = []
        self.evictions: list[tuple[int, int]] = []
        self._inner = inner
        self._fault = fault
        self._remote = remote

    def pread_nowait(self, offset: int, length: int) -> Buffer | None:
        if self._remote:
            return None
        self.requests.append((offset, length))
        data = self._fault(offset, length)
        return self._inner.pread_nowait(offset, length) if data is None else data

    async def pread(self, offset: int, length: int) -> Buffer:
        self.requests.append((offset, length))
        data = self._fault(offset, length)
        return await self._inner.pread(offset, length) if data is None else data

    async def evict(self, offset: int, length: int) -> bool:
        self.evictions.append((offset, length))
        return True

    async def aclose(self) -> None:
        await self._inner.aclose()

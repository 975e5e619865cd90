"""The uio device of a TCMU backstore: its map, and the two signals (spec: tcmu 3).

The kernel lets a uio device of TCMU be opened once at a time: an open one is the lock that says who
serves it. Reading four bytes says that commands may have come, writing four bytes that responses
have; the kernel takes the responses within that write.

A process that forks after ``open`` hands the descriptor on, and with it the lock. The map is not
inherited (MADV_DONTFORK): a child that lives longer than its parent must not hold the memory of a
device that is to be removed.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
from pathlib import Path

from hybrid.errors import (
    BusyError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    SystemSupportError,
)

_SYSFS = Path("/sys/class/uio")
_DEV = Path("/dev")
_NAME = re.compile(r"uio[0-9]+")
_SIGNAL = b"\1\0\0\0"  # any four bytes do
_GONE = (errno.EIO, errno.EINVAL)
"""The device was removed. On Linux 6.12 read(2) says EIO, write(2) EINVAL."""


class Uio:
    """An open uio device. ``open()`` makes it, ``close()`` lets others have it."""

    def __init__(self, name: str, descriptor: int, memory: mmap.mmap) -> None:
        self.name = name
        """``uioN``"""
        self.fd = descriptor
        """Readable when commands may have come, and when the device is gone. Non-blocking."""
        self.view = memoryview(memory)
        """The whole map, writable."""
        self._memory = memory

    @classmethod
    def open(cls, name: str) -> Uio:
        """Open and map the device ``name`` ("uio3"). Its node is made where nobody makes one.

        Raises NotFoundError (no such device), BusyError (somebody serves it),
        PermissionNeededError and SystemSupportError.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name of a uio device: {name!r}")
        number, size = _look_up(name)
        descriptor = _open_node(_DEV / name, number)
        try:
            memory = mmap.mmap(descriptor, size)
        except OSError as error:
            os.close(descriptor)
            raise SystemSupportError(
                f"cannot map {_DEV / name} ({size} bytes): {error.strerror}"
            ) from error
        memory.madvise(mmap.MADV_DONTFORK)
        return cls(name, descriptor, memory)

    def notify(self) -> None:
        """Tell the kernel that responses are there. If the device is gone, consume() says so."""
        try:
            os.write(self.fd, _SIGNAL)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def consume(self) -> bool:
        """Take the signal that commands came, if there is one; never waits.

        False: the device is gone, there will be no more commands. Look into the ring *after* this,
        else a command that comes between looking and taking the signal is not seen.
        """
        try:
            os.read(self.fd, len(_SIGNAL))
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False
        return True

    def close(self) -> None:
        """Give the device up. Close the Ring over ``view`` first.

        A view that somebody still holds (a task that failed) keeps map and device until the
        process ends: no reason to hide why it failed.
        """
        os.close(self.fd)
        self.view.release()
        with contextlib.suppress(BufferError):
            self._memory.close()


def _look_up(name: str) -> tuple[int, int]:
    """Device number, and size of the map in bytes."""
    directory = _SYSFS / name
    try:
        major, minor = (directory / "dev").read_text().split(":")
        size = int((directory / "maps/map0/size").read_text(), 16)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"no TCMU device {name}: {error.filename} does not exist",
            hint="it was removed, or the module target_core_user is not loaded",
        ) from error
    return os.makedev(int(major), int(minor)), size


def _open_node(path: Path, number: int) -> int:
    """Open the character device ``number`` at ``path``, and make the node if it is absent."""
    if not path.exists():
        _make_node(path, number)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(path, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != number:
        os.close(descriptor)
        raise SystemSupportError(
            f"{path} is not character device {os.major(number)}:{os.minor(number)}",
            hint=f"remove {path}: it is left over from another device",
        )
    return descriptor


def _make_node(path: Path, number: int) -> None:
    # Containers have no devtmpfs that would make the node.
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, number)
    except FileExistsError:
        return
    except OSError as error:
        raise SystemSupportError(
            f"{path} does not exist and cannot be made: {error.strerror}",
            hint=f"make it: mknod {path} c {os.major(number)} {os.minor(number)}",
        ) from error


def _open_error(path: Path, error: OSError) -> HybridError:
    if error.errno == errno.EBUSY:
        return BusyError(
            f"{path} is in use: another process serves this device",
            hint="end that process first; fuser shows which one it is",
        )
    if isinstance(error, PermissionError):
        return PermissionNeededError(f"cannot open {path}: {error.strerror}", hint="run it as root")
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return NotFoundError(f"cannot open {path}: the device was removed")
    return SystemSupportError(f"cannot open {path}: {error.strerror}")

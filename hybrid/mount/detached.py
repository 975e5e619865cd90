"""A file system that is mounted, and that only those see who have a descriptor of it.

By fsopen(2), fsconfig(2) and fsmount(2) of Linux 5.2: the mount is at no place, and is gone with
its last descriptor, so also with the process, whatever ends that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from hybrid.errors import (
    BusyError,
    FormatError,
    HybridError,
    PermissionNeededError,
    SystemSupportError,
)
from hybrid.mount.syscalls import fsconfig, fsmount, fsopen, syncfs

_FITRIM = 0xC0185879
_MOST_SAID = 4096

Setting = str | tuple[str, str]
"""A mount option: a flag, or a name and its value."""


class DetachedMount:
    """Closing it unmounts, unless other files of the file system are open."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: as fsmount(2) gives it."""
        self._descriptor = descriptor
        self.root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
        """A descriptor of the root directory."""

    def write_back(self) -> None:
        """Let all that was written reach the disk. Raises OSError."""
        syncfs(self.root)

    def trim(self) -> None:
        """Tell the disk which of its blocks the file system does not use. One that takes no such
        hints gets none.

        Raises OSError.
        """
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.root, _FITRIM, struct.pack("=QQQ", 0, (1 << 64) - 1, 0))
        syncfs(self.root)

    def close(self) -> None:
        os.close(self.root)
        os.close(self._descriptor)


def mount_detached(device: Path, fs: str, settings: Sequence[Setting]) -> DetachedMount:
    """Mount a block device to be written to, without times of access.

    Raises PermissionNeededError, SystemSupportError (no such file system here; a kernel before
    5.2), BusyError and FormatError.
    """
    context = -1
    try:
        context = fsopen(fs)
        fsconfig(context, "source", os.fspath(device))
        for setting in settings:
            name, value = (setting, None) if isinstance(setting, str) else setting
            fsconfig(context, name, value)
        fsconfig(context, None, None)
        return DetachedMount(fsmount(context))
    except OSError as error:
        raise _mount_error(error, fs, device, _last_said(context)) from error
    finally:
        if context >= 0:
            os.close(context)


def _last_said(context: int) -> str:
    """What the kernel says to a failure, beyond its errno."""
    said = ""
    with contextlib.suppress(OSError):
        while context >= 0:
            line = os.read(context, _MOST_SAID).decode(errors="replace").strip()
            said = line.partition(" ")[2] if line.startswith("e ") else said
    return said


def _mount_error(error: OSError, fs: str, device: Path, said: str) -> HybridError:
    what = f"cannot mount the {fs} file system on {device}: {error.strerror}"
    if said:
        what += f" ({said})"
    if error.errno == errno.ENOSYS:
        return SystemSupportError(what, hint="that takes Linux 5.2")
    if error.errno == errno.ENODEV:
        return SystemSupportError(
            f"this kernel has no {fs} file system", hint=f"install or load its module, {fs}"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionNeededError(what, hint="mounting needs CAP_SYS_ADMIN")
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return BusyError(what, hint="another image with the same file system is mounted")
    return FormatError(what, hint="dmesg says more")

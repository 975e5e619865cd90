"""mount(2), umount2(2) and others that Python does not have, with errno. The programs mount(8) and
umount(8) do more than is wanted: mount(8) silently makes a loop device for an erofs file, and both
look at the mounted tree.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY = 1
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
"""The same on all architectures (include/uapi/asm-generic/unistd.h); older C libraries have no
functions for them."""
_CLOEXEC = 1
"""FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC."""
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
"""Commands of fsconfig(2)."""
_ATTRIBUTES = 0x2 | 0x4 | 0x8 | 0x10
"""MOUNT_ATTR_NOSUID, _NODEV, _NOEXEC and _NOATIME."""

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: Path, target: Path, fstype: str, flags: int, options: str) -> None:
    """Raises OSError with the errno of mount(2)."""
    data = options.encode() or None
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data
    )
    if result != 0:
        raise _last_error(target)


def umount2(target: Path, flags: int = 0) -> None:
    """Raises OSError with the errno of umount2(2). Follows no symbolic link."""
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags | UMOUNT_NOFOLLOW)) != 0:
        raise _last_error(target)


def fsopen(fstype: str) -> int:
    """A context for a new mount. Raises OSError, as all of these."""
    return _checked(_libc.syscall(_SYS_FSOPEN, fstype.encode(), _CLOEXEC), fstype)


def fsconfig(context: int, name: str | None, value: str | None) -> None:
    """Set an option: a flag if there is no value. No name: make the file system ready."""
    command = _CREATE if name is None else _SET_FLAG if value is None else _SET_STRING
    key, text = (word if word is None else os.fsencode(word) for word in (name, value))
    _checked(_libc.syscall(_SYS_FSCONFIG, context, command, key, text, 0), name or "")


def fsmount(context: int) -> int:
    """A descriptor (O_PATH) of the root directory of the mount, whose files can be written but not
    used: no programs, no devices. It keeps no times of access."""
    return _checked(_libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, _ATTRIBUTES), "")


def syncfs(descriptor: int) -> None:
    """Write back the file system of a descriptor. Raises also for errors of earlier writing."""
    _checked(_libc.syncfs(descriptor), "")


def _checked(result: int, about: str) -> int:
    if result < 0:
        raise _last_error(about)
    return result


def _last_error(target: Path | str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(target))

"""mount(2) and umount2(2), with errno. The programs mount(8) and umount(8) do more than is wanted:
mount(8) silently makes a loop device for an erofs file, and both look at the mounted tree.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

MS_RDONLY = 1
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

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


def _last_error(target: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(target))

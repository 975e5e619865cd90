"""The compiled part, and its errors as hybrid has them.

NativeError has two arguments: a kind and a text. The kinds:

    full         no blocks or inodes are left in the file system
    scratch      the machine has no space for the scratch file
    limit        ext4 cannot hold this
    unsupported  a file system with features that hybrid does not write
    format       the file system, or what is to be written, is damaged
    system       a system call has failed
    missing      a name that the caller takes for existing does not exist: a bug
"""

from __future__ import annotations

from hybrid.errors import (
    FormatError,
    HybridError,
    StorageFullError,
    SystemSupportError,
    UnsupportedError,
)

try:
    from hybrid.build.ext4._native import FileSystem, NativeError, compare
except ImportError as error:
    raise SystemSupportError(
        f"this installation of hybrid cannot write ext4 ({error})",
        hint="apt-get install libext2fs-dev gcc python3-dev, then install hybrid again",
    ) from None

__all__ = ["DIRECTORY", "ROOT", "SYMLINK", "FileSystem", "NativeError", "compare", "translated"]

ROOT = 2
"""The inode of the root directory."""
DIRECTORY = 2
"""The type of a directory in directory entries."""
SYMLINK = 7
"""The type of a symbolic link in directory entries."""


def translated(error: NativeError, where: str, size: int) -> HybridError:
    """``where`` says what was being done, and to what; ``size`` is that of the disk in bytes."""
    kind, text = error.args
    message = f"{where}: {text}"
    if kind == "full":
        return StorageFullError(
            f"{where}: the virtual disk of {size / (1 << 30):g} GiB is full ({text})",
            hint="choose a larger one with --size",
        )
    if kind == "scratch":
        return StorageFullError(message, hint="the temporary directory (TMPDIR) needs space")
    if kind in ("limit", "unsupported"):
        return UnsupportedError(message)
    if kind == "format":
        return FormatError(message)
    if kind == "system":
        return SystemSupportError(message)
    raise error

"""Writing a result file: whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hybrid.errors import (
    HybridError,
    NotFoundError,
    PermissionNeededError,
    StorageFullError,
    SystemSupportError,
    UsageError,
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)
"""What open(O_TMPFILE) says where file system or kernel do not have it (man 2 open)."""


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """A new regular file that appears at ``path`` only when the block ends without an error.

    It has no name before that where the file system allows it, so that even kill -9 leaves nothing
    behind. What was at ``path`` before is replaced; a symbolic link is followed. Raises UsageError
    for what is no regular file, and other HybridErrors for a missing directory, missing rights or
    a full disk.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise UsageError(f"{path} is not a regular file", hint="name a file to make or to replace")
    # Beside the target, with a short name of its own: long names must not become too long.
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        descriptor, named = open_unnamed(target.parent, temporary)
        try:
            with open(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)
                if not named:
                    # The directory is not used, but makes Python call linkat(2).
                    os.link(
                        f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=descriptor,
                        follow_symlinks=True,
                    )  # fmt: skip
                    named = True
            temporary.replace(target)
            named = False
        finally:
            if named:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(error, path) from error


def open_unnamed(directory: Path, temporary: Path) -> tuple[int, bool]:
    """A new file: its descriptor, and whether it has the temporary name (else it has none)."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666), False
    except OSError as error:
        if error.errno not in _NO_TMPFILE or not directory.is_dir():
            raise
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    return os.open(temporary, flags, 0o666), True


def write_error(error: OSError, path: Path) -> HybridError:
    """The error for the user when ``path`` cannot be written."""
    text = f"cannot write {path}: {error.strerror or error}"
    if error.errno in FULL:
        return StorageFullError(text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionNeededError(text)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(text)
    return SystemSupportError(text)

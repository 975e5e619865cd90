"""Writing a result file: whole or not at all."""

from __future__ import annotations

import errno
import os
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


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that appears at ``path`` only when the block ends without an error.

    It is written beside ``path``, made durable and renamed, so that a failure or Ctrl-C leaves
    what was there before. A device or pipe is written directly. Raises HybridError for a missing
    directory, missing rights or a full disk.
    """
    try:
        if path.exists() and not path.is_file():
            if path.is_dir():
                raise UsageError(f"{path} is a directory")
            with path.open("wb") as direct:
                yield direct
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _translate(error, path) from error


def _translate(error: OSError, path: Path) -> HybridError:
    text = f"cannot write {path}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFullError(text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionNeededError(text)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(text)
    return SystemSupportError(text)

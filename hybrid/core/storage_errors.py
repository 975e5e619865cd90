"""What the operating system says of files, as errors for the user."""

from __future__ import annotations

import errno

from hybrid.core.output_file import FULL
from hybrid.errors import (
    BusyError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    StorageFailedError,
    StorageFullError,
    SystemSupportError,
)


def storage_error(error: OSError, what: str) -> HybridError:
    """An OSError as one line for the user, who is told what to do where that is known."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in FULL:
        return StorageFullError(text, hint="make space there; nothing that was there is damaged")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionNeededError(text)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(text)
    if error.errno == errno.EEXIST:
        return BusyError(text, hint="remove it, or choose another name")
    if error.errno in (errno.EIO, errno.ENXIO, errno.ESTALE, errno.EUCLEAN):
        return StorageFailedError(text, hint="dmesg says more")
    return SystemSupportError(text)

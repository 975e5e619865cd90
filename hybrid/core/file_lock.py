"""Locks by which one process keeps others away from the files of a writable layer."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from hybrid.core.storage_errors import storage_error
from hybrid.errors import BusyError


def lock_file(descriptor: int, name: Path, *, shared: bool = False) -> None:
    """Take the lock of an open file or directory, alone or with others who share it.

    Raises BusyError, which says who has it.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(
            f"{name} is in use by {_lock_holder(descriptor)}",
            hint="a writable layer can be used once at a time: `hybrid list` shows by what",
        ) from error
    except OSError as error:
        raise storage_error(error, f"cannot lock {name}") from error


def _lock_holder(descriptor: int) -> str:
    """Which process holds a lock on the file, as /proc/locks has it (man 5 proc_locks)."""
    status = os.fstat(descriptor)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks") as table:
        for line in table:
            fields = line.split()
            if place in fields:
                return f"process {fields[fields.index(place) - 1]}"
    return "another process"

"""A consistent point of a mount that is being written to, for commits and snapshots."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.core.checkpoints import locked_checkpoint
from hybrid.errors import BusyError, UnsupportedError
from hybrid.mount import control
from hybrid.mount.freezing import frozen
from hybrid.mount.mountinfo import MountEntry, read_mountinfo, top_mount
from hybrid.mount.state import MountRecord

_SECONDS, _MARGIN = 25.0, 5.0
"""For the server, which has to flush first. The file system is frozen meanwhile."""


@contextlib.contextmanager
def frozen_point(record: MountRecord) -> Iterator[dict[str, Any]]:
    """The files that hold the changes of a mount as of one moment, readable within the block.

    Yields ``sealed`` (paths, bottom first), ``data``, ``index`` (paths) and ``size`` (bytes). The
    file system is frozen only until the point is fixed; then it goes on. A disk that is not
    mounted is taken as it is. Raises UnsupportedError (not writable), TimeoutExpiredError,
    PermissionNeededError and BusyError.
    """
    check_writable(record)
    with locked_checkpoint(Path(record.upper)) as lock:
        with _still(record):
            answer = control.order(
                record.control, "checkpoint", _SECONDS, lock=str(lock), deadline=_deadline()
            )
        yield answer["point"]


def snapshot(record: MountRecord) -> Path:
    """Seal what was written so far; the mount goes on with a new layer above it.

    Returns the sealed layer file. Raises as ``frozen_point``.
    """
    check_writable(record)
    with _still(record):
        answer = control.order(record.control, "snapshot", _SECONDS, deadline=_deadline())
    return Path(answer["sealed"])


def _number(entry: MountEntry) -> int | None:
    """What stat(2) calls the device of a mount; btrfs has others there than in the table."""
    if entry.fstype == "btrfs":
        return None
    major, _, minor = entry.device.partition(":")
    return os.makedev(int(major), int(minor))


def _deadline() -> float:
    """Of the monotonic clock: what the server does later does not count any more."""
    return time.monotonic() + _SECONDS - _MARGIN


def check_writable(record: MountRecord) -> None:
    if not record.upper or not Path(record.upper).is_dir():
        raise UnsupportedError(
            f"mount {record.id} has no directory of changes",
            hint="mount the image with --rw to change it",
        )


def _still(record: MountRecord) -> contextlib.AbstractContextManager[None]:
    if not record.mountpoint:
        return contextlib.nullcontext()
    entry = top_mount(read_mountinfo(), record.mountpoint)
    if entry is None or entry.source != record.source:
        raise BusyError(
            f"{record.mountpoint} is not mounted any more, or covered by another mount",
            hint="commit the directory of changes once the mount has ended",
        )
    return frozen(Path(record.mountpoint), device=_number(entry))

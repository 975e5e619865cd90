"""A consistent point of a mount that is being written to, for commits and snapshots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.core.upper_directory import locked_checkpoint
from hybrid.errors import UnsupportedError
from hybrid.mount import control
from hybrid.mount.freezing import frozen
from hybrid.mount.state import MountRecord

_SECONDS = 25.0
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
            answer = control.order(record.control, "checkpoint", _SECONDS, lock=str(lock))
        yield answer["point"]


def snapshot(record: MountRecord) -> Path:
    """Seal what was written so far; the mount goes on with a new layer above it.

    Returns the sealed layer file. Raises as ``frozen_point``.
    """
    check_writable(record)
    with _still(record):
        answer = control.order(record.control, "snapshot", _SECONDS)
    return Path(answer["sealed"])


def check_writable(record: MountRecord) -> None:
    if not record.upper or not Path(record.upper).is_dir():
        raise UnsupportedError(
            f"mount {record.id} has no directory of changes",
            hint="mount the image with --rw to change it",
        )


def _still(record: MountRecord) -> contextlib.AbstractContextManager[None]:
    if not record.mountpoint:
        return contextlib.nullcontext()
    return frozen(Path(record.mountpoint))

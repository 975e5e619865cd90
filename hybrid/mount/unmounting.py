"""umount2(2) with a bound, and the reasons for which it fails told so that a user can act."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from hybrid.core.bounded import BoundedTask
from hybrid.errors import (
    BusyError,
    HybridError,
    PermissionNeededError,
    SystemSupportError,
    TimeoutExpiredError,
)
from hybrid.mount.front import Front
from hybrid.mount.holders import describe_holders
from hybrid.mount.last_flush import Waiting, check_not_stopped
from hybrid.mount.state import MountRecord
from hybrid.mount.syscalls import MNT_DETACH, umount2

logger = logging.getLogger(__name__)

_UMOUNT_SECONDS = 3.0
_STOPPED_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 0.3
_RETRIES = 20


def unmount(front: Front, record: MountRecord, target: str, lazy: bool) -> None:
    """Unmount ``target``, a path of the mount. Raises BusyError and others."""
    try:
        _umount_bounded(front, record, Path(target), lazy)
    except OSError as error:
        raise _umount_error(error, target, record) from error


def _umount_bounded(front: Front, record: MountRecord, target: Path, lazy: bool) -> None:
    """umount2, which waits for reads in flight: those of a server that is silent never end."""
    task = BoundedTask(f"umount of {target}", lambda: umount2(target, MNT_DETACH if lazy else 0))
    if record.writable and record.server.is_alive():
        _wait_for_write_back(task, record, target)
        return
    try:
        task.wait(_STOPPED_SECONDS if record.server.state() in ("", "T") else _UMOUNT_SECONDS)
        return
    except TimeoutExpiredError:
        # Nobody can be in the tree any more, or it would be busy.
        logger.warning("reads of %s do not end: making them fail", target)
    for _ in range(_RETRIES):
        # Again and again: what fails may lead to more reads.
        front.fail_reads(record)
        try:
            task.wait(_RETRY_SECONDS)
            return
        except TimeoutExpiredError:
            continue
    task.abandon()
    raise TimeoutExpiredError(f"umount of {target} does not end, though its reads fail")


def _wait_for_write_back(task: BoundedTask, record: MountRecord, target: Path) -> None:
    """The umount of a writable mount writes all its changes. Nothing that it does is cut short."""
    waiting = Waiting()
    while True:
        try:
            task.wait(_LOOK_SECONDS)
            return
        except TimeoutExpiredError:
            waiting.tell(f"the changes of {target} are being written back")
        if record.server.state() == "":
            break
        if record.server.state() == "T":
            task.abandon()
            check_not_stopped(record)
    try:
        # In mode fuse all that waits fails now.
        task.wait(_UMOUNT_SECONDS)
    except TimeoutExpiredError:
        task.abandon()
        raise BusyError(
            f"the server of {target} died while its changes were written back",
            hint=f"`hybrid resume {record.id}` goes on",
        ) from None


def busy(target: str, hint: str = "end that, or use --lazy") -> BusyError:
    """The error for something that is in use, by whom."""
    return BusyError(f"{target} is in use by {describe_holders(target)}", hint=hint)


def _umount_error(error: OSError, target: str, record: MountRecord) -> HybridError:
    if error.errno == errno.EBUSY:
        # A process that waits for a server that is stopped cannot be ended, nor for a dead one
        # in mode tcmu.
        if record.server.state() == "T":
            return busy(target, "its server is stopped: use --lazy")
        if record.mode == "tcmu" and not record.server.is_alive():
            return busy(target, f"its server is dead: `hybrid resume {record.id}`, or use --lazy")
        return busy(target)
    if error.errno == errno.EPERM:
        return PermissionNeededError(f"cannot unmount {target}: not allowed", hint="try with sudo")
    return SystemSupportError(f"cannot unmount {target}: {error.strerror}")

"""Taking a mount away, within seconds also when its server is dead, stopped or silent.

Not so with a writable one: its changes are written first, however long that takes, and a server
that has some is never killed.
"""

from __future__ import annotations

import logging
import signal

from hybrid.errors import BusyError, TimeoutExpiredError
from hybrid.mount.front import Front, front_of
from hybrid.mount.last_flush import check_not_stopped, failure_of, wait_flushed
from hybrid.mount.mountinfo import read_mountinfo, top_mount
from hybrid.mount.paths import is_mounted
from hybrid.mount.state import MountRecord, claim, remove_directory
from hybrid.mount.unmounting import unmount

_AFTER_KILL_SECONDS = 5.0

logger = logging.getLogger(__name__)


def detach(record: MountRecord, *, lazy: bool = False) -> bool:
    """Take the mount away: file system, disk, server and record.

    Returns False if a lazy detach leaves the server running until the last user is gone. Raises
    BusyError if the mount is in use; then everything stays as it is. Raises also, when all is taken
    away, what went wrong with the last flush of a writable mount.
    """
    with claim(record) as current:
        return current is None or _detach(current, lazy)


def _detach(record: MountRecord, lazy: bool) -> bool:
    front = front_of(record.mode)
    if record.writable:
        _check_can_write_back(record, lazy)
    if record.mountpoint:
        _unmount_tree(front, record, lazy)
    else:
        front.unmount_exposed(record, lazy)
    if record.ready and record.server.state() not in ("", "T"):
        if front.withdraw(record, lazy):
            return True
        if lazy and record.server.is_alive():
            return False
        if record.writable:
            wait_flushed(record)
    failure = failure_of(record)
    if not record.has_ended():
        force_end(record)
    if failure is not None:
        raise failure
    return True


def _check_can_write_back(record: MountRecord, lazy: bool) -> None:
    """Of a writable mount: what its file system has not written yet needs a server that answers."""
    check_not_stopped(record)
    if not record.ready or record.server.is_alive() or failure_of(record):
        return
    if record.mode == "tcmu" and not lazy:
        raise BusyError(
            f"the server of {record.mountpoint or record.exposed} is dead, and changes wait for it",
            hint=f"`hybrid resume {record.id}` goes on; --lazy gives up what was not synchronised",
        )
    logger.warning(
        "the server of %s died: changes that were not synchronised may be lost",
        record.mountpoint or record.exposed,
    )


def force_end(record: MountRecord) -> None:
    """Take away whatever is left of a mount, except for the mounted tree itself."""
    record.server.send(signal.SIGKILL)
    if not record.server.wait_gone(_AFTER_KILL_SECONDS):
        raise TimeoutExpiredError(f"server {record.pid} of mount {record.id} cannot be killed")
    front_of(record.mode).force(record)
    remove_directory(record.directory)


def unmount_ours(record: MountRecord) -> None:
    """Unmount the tree of a mount that failed half-way, if it got that far."""
    if record.mountpoint and is_mounted(record, read_mountinfo()):
        _unmount_tree(front_of(record.mode), record, lazy=True)


def _unmount_tree(front: Front, record: MountRecord, lazy: bool) -> None:
    entries = read_mountinfo()
    if not is_mounted(record, entries):
        return
    top = top_mount(entries, record.mountpoint)
    if top and top.source != record.source:
        raise BusyError(
            f"{record.mountpoint} is covered by another mount ({top.fstype} from {top.source})",
            hint="unmount that first",
        )
    unmount(front, record, record.mountpoint, lazy)

"""Taking a mount away, within seconds also when its server is dead, stopped or silent."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
from pathlib import Path

from hybrid.errors import (
    BusyError,
    HybridError,
    PermissionNeededError,
    SystemSupportError,
    TimeoutExpiredError,
)
from hybrid.fuse.loop import clear_loop, is_loop_over
from hybrid.mount import control
from hybrid.mount.bounded import BoundedTask
from hybrid.mount.holders import describe_holders
from hybrid.mount.mountinfo import read_mountinfo, top_mount
from hybrid.mount.paths import is_mounted
from hybrid.mount.processes import wait_until
from hybrid.mount.state import MountRecord, remove_directory
from hybrid.mount.syscalls import MNT_DETACH, umount2

logger = logging.getLogger(__name__)

_UMOUNT_SECONDS = 3.0
_AFTER_KILL_SECONDS = 5.0
_END_SECONDS = 3.0
_LAZY_SECONDS = 1.0
_ASK_SECONDS = 1.0
_MAX_STACKED = 8


def detach(record: MountRecord, *, lazy: bool = False) -> bool:
    """Take the mount away: file system, loop device, FUSE mount, server and record.

    Returns False if a lazy detach leaves the server running until the last user is gone. Raises
    BusyError if the mount is in use; then everything stays as it is.
    """
    if record.mountpoint:
        _unmount_tree(record, lazy)
    else:
        _unmount_file(record, lazy)
    if lazy and record.server.state() not in ("", "T"):
        return wait_until(lambda: _has_ended(record), _LAZY_SECONDS)
    _wait_for_end(record)
    return True


def force_end(record: MountRecord) -> None:
    """Take away whatever is left of a mount, except for the mounted tree itself."""
    record.server.send(signal.SIGKILL)
    if not record.server.wait_gone(_AFTER_KILL_SECONDS):
        raise TimeoutExpiredError(f"server {record.pid} of mount {record.id} cannot be killed")
    loop = Path(record.loop)
    if record.loop and is_loop_over(loop, record.disk):
        clear_loop(loop)
        wait_until(lambda: not is_loop_over(loop, record.disk), _ASK_SECONDS)
    _drop_fuse_mount(record)
    remove_directory(record.directory)


def unmount_ours(record: MountRecord) -> None:
    """Unmount the tree of a mount that failed half-way, if it got that far."""
    if record.mountpoint and is_mounted(record, read_mountinfo()):
        _unmount_tree(record, lazy=True)


def _unmount_tree(record: MountRecord, lazy: bool) -> None:
    entries = read_mountinfo()
    if not is_mounted(record, entries):
        return
    top = top_mount(entries, record.mountpoint)
    if top and top.source != record.source:
        raise BusyError(
            f"{record.mountpoint} is covered by another mount ({top.fstype} from {top.source})",
            hint="unmount that first",
        )
    try:
        _umount_bounded(record, Path(record.mountpoint), lazy)
    except OSError as error:
        stopped = record.server.state() == "T"
        raise _umount_error(error, record.mountpoint, stopped=stopped) from error


def _unmount_file(record: MountRecord, lazy: bool) -> None:
    if not _has_fuse_mount(record):
        return
    if os.geteuid() != 0:
        _fusermount(record, lazy)
        return
    try:
        _umount_bounded(record, record.fuse_directory, lazy)
    except OSError as error:
        stopped = record.server.state() == "T"
        raise _umount_error(error, str(record.fuse_directory), stopped=stopped) from error


def _umount_bounded(record: MountRecord, target: Path, lazy: bool) -> None:
    """umount2, which waits for reads in flight: those of a server that is silent never end."""
    task = BoundedTask(f"umount of {target}", lambda: umount2(target, MNT_DETACH if lazy else 0))
    try:
        try:
            task.wait(_ASK_SECONDS if record.server.state() == "T" else _UMOUNT_SECONDS)
        except TimeoutExpiredError:
            # Nobody can be in the tree any more, or it would be busy. Without its server the
            # reads in flight fail, and the kernel goes on.
            logger.warning("reads of %s do not end: killing server %d", target, record.pid)
            record.server.send(signal.SIGKILL)
            task.wait(_AFTER_KILL_SECONDS)
    except TimeoutExpiredError:
        task.abandon()
        raise


def _umount_error(error: OSError, target: str, *, stopped: bool) -> HybridError:
    if error.errno == errno.EBUSY:
        return _busy(target, stopped)
    if error.errno == errno.EPERM:
        return PermissionNeededError(f"cannot unmount {target}: not allowed", hint="try with sudo")
    return SystemSupportError(f"cannot unmount {target}: {error.strerror}")


def _busy(target: str, stopped: bool = False) -> BusyError:
    return BusyError(
        f"{target} is in use by {describe_holders(target)}",
        # A process that waits for a stopped server cannot be ended.
        hint="its server is stopped: use --lazy" if stopped else "end that, or use --lazy",
    )


def _fusermount(record: MountRecord, lazy: bool) -> None:
    """The way for ordinary users, who may not call umount2."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(record.fuse_directory)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_UMOUNT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise SystemSupportError("fusermount3 is missing", hint="install fuse3") from error
    except subprocess.TimeoutExpired as error:
        raise TimeoutExpiredError(f"{' '.join(command)} does not end") from error
    if done.returncode == 0 or not _has_fuse_mount(record):
        return
    if "busy" in done.stderr.lower():
        raise _busy(str(record.fuse_directory))
    raise SystemSupportError(f"cannot unmount {record.fuse_directory}: {done.stderr.strip()}")


def _has_fuse_mount(record: MountRecord) -> bool:
    return top_mount(read_mountinfo(), str(record.fuse_directory)) is not None


def _drop_fuse_mount(record: MountRecord) -> None:
    for _ in range(_MAX_STACKED):
        if not _has_fuse_mount(record):
            return
        _unmount_file(record, lazy=True)


def _has_ended(record: MountRecord) -> bool:
    return not record.server.is_alive() and not record.directory.exists()


def _wait_for_end(record: MountRecord) -> None:
    """The server ends by itself once nobody uses its disk. Help where it cannot."""
    if record.server.state() not in ("", "T") and record.ready:
        if record.server.wait_gone(_END_SECONDS) and _has_ended(record):
            return
        _check_unused(record)
    if not _has_ended(record):
        force_end(record)


def _check_unused(record: MountRecord) -> None:
    """Raises BusyError if the server still answers and says that its disk is open."""
    if not record.server.is_alive():
        return
    (answer,) = control.ask_all([record.control], "status", _ASK_SECONDS)
    if answer and answer.get("handles", 0):
        user = record.loop or str(record.disk)
        raise BusyError(
            f"{record.mountpoint or record.id} is unmounted, but {user} is still in use elsewhere: "
            f"by {describe_holders(user)}, or another mount namespace",
            hint="its server ends with the last user; see `hybrid list`",
        )

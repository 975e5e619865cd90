"""Mounting the exposed disk: mount(2) over a loop device, or straight from the file."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from hybrid.errors import (
    BusyError,
    FormatError,
    HybridError,
    MountPointError,
    PermissionNeededError,
    SystemSupportError,
    UnsupportedError,
)
from hybrid.mount.channel import Ready
from hybrid.mount.syscalls import MS_RDONLY, mount

logger = logging.getLogger(__name__)

_NO_MOUNT = "--no-mount still exposes the disk as a file"


def check_mountable(ready: Ready, image: str) -> None:
    """Raises FormatError if the disk holds no file system that hybrid knows, and UnsupportedError
    if it is to be written and cannot be.
    """
    if not ready.fstype:
        raise FormatError(
            f"the disk of {image} holds no file system that hybrid knows "
            "(ext2/3/4, xfs, erofs, squashfs, btrfs)",
            hint=_NO_MOUNT,
        )
    if ready.writable and not ready.can_be_written:
        raise UnsupportedError(
            f"{image} holds {ready.fstype}, which cannot be written to",
            hint="mount it without --rw, and an overlayfs above it",
        )


def mount_file(disk: Path, mountpoint: Path, ready: Ready) -> bool:
    """Mount the file without a loop device, where file system and kernel can (erofs, 6.12).

    False means that it has to go through a loop device; what is really wrong shows there.
    """
    if not ready.mounts_files:
        return False
    try:
        mount(disk, mountpoint, ready.fstype, MS_RDONLY, ready.options)
    except OSError as error:
        # ENOTBLK from kernels that want a block device; then others from kernels in between.
        logger.debug("no %s mount from a file: %s", ready.fstype, error.strerror)
        return False
    return True


def mount_device(device: Path, mountpoint: Path, ready: Ready) -> None:
    """Mount a block device with the first driver that the kernel has.

    mount(2) lets the kernel load the module itself, so there is no modprobe here.
    """
    flags = 0 if ready.writable else MS_RDONLY
    for driver in ready.drivers:
        try:
            mount(device, mountpoint, driver, flags, ready.options)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise _mount_error(error, mountpoint, ready) from error
        else:
            return
    raise SystemSupportError(
        f"this kernel has no {ready.fstype} file system",
        hint=f"install or load its module ({' or '.join(ready.drivers)}); {_NO_MOUNT}",
    )


def _mount_error(error: OSError, mountpoint: Path, ready: Ready) -> HybridError:
    what = f"cannot mount the {ready.fstype} file system on {mountpoint}: {error.strerror}"
    if error.errno == errno.EEXIST:
        return BusyError(
            f"this {ready.fstype} is mounted already, and the kernel takes it only once",
            hint="use the mount that exists, or a kernel from 6.7 on",
        )
    if error.errno == errno.EBUSY:
        return BusyError(what)
    if error.errno in (errno.EPERM, errno.EACCES):
        return PermissionNeededError(what, hint="mount(2) needs CAP_SYS_ADMIN")
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MountPointError(what)
    return FormatError(what, hint=f"dmesg says more; {_NO_MOUNT}")

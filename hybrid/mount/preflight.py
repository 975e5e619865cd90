"""What can be refused before a server is started, each in one line that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from hybrid.core.bounded import run_bounded
from hybrid.errors import (
    BusyError,
    MountPointError,
    PermissionNeededError,
    SystemSupportError,
    UsageError,
)
from hybrid.mount.mountinfo import MountEntry, read_mountinfo, top_mount
from hybrid.mount.paths import is_mounted, resolve_outside
from hybrid.mount.state import MountRecord, read_records
from hybrid.mount.tcmu_support import prepare_tcmu, tcmu_obstacle

_FUSE = Path("/dev/fuse")
_LOOK_SECONDS = 3.0
MODES = ("auto", "fuse", "tcmu")


def choose_mode(wanted: str) -> tuple[str, str]:
    """The front end to use, and why. Loads the kernel's modules for mode tcmu where it may.

    Raises SystemSupportError or PermissionNeededError for a mode that cannot be had here.
    """
    if wanted == "fuse":
        return "fuse", "asked for with --mode fuse"
    if wanted == "tcmu":
        prepare_tcmu()
        return "tcmu", "asked for with --mode tcmu"
    if wanted == "auto":
        obstacle = tcmu_obstacle()
        if obstacle is None:
            return "tcmu", "TCMU is usable here"
        return "fuse", f"TCMU is not usable here: {obstacle.message}"
    raise UsageError(f"unknown mode {wanted}", hint=f"one of {', '.join(MODES)}")


def check_may_mount() -> None:
    """Raises PermissionNeededError unless we are root."""
    if os.geteuid() == 0:
        return
    raise PermissionNeededError(
        "mounting needs root: only root may mount a file system from an image",
        hint="use `sudo hybrid mount ...`, or --no-mount and read the file with fuse2fs or any "
        "other reader of raw images",
    )


def check_fuse() -> None:
    """Raises SystemSupportError or PermissionNeededError unless FUSE mounts can be made."""
    try:
        os.close(os.open(_FUSE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        raise PermissionNeededError(
            f"cannot open {_FUSE}: permission denied",
            hint=f"root can allow it: chmod 0666 {_FUSE}",
        ) from error
    except OSError as error:
        raise SystemSupportError(
            f"no FUSE on this machine: cannot open {_FUSE}: {error.strerror}",
            hint="load it with `modprobe fuse`; a container needs the device passed in",
        ) from error
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        raise SystemSupportError(
            "fusermount3 is missing, which FUSE mounts of ordinary users need",
            hint="install the package fuse3",
        )


def check_mountpoint(path: Path) -> Path:
    """The mount point, absolute and without symbolic links.

    Raises MountPointError, BusyError (something is mounted exactly there) or
    PermissionNeededError.
    """
    records = read_records()
    entries = read_mountinfo()
    # Asked before any stat: a dead mount would not answer that.
    outside = resolve_outside(str(path), {entry.mount_point for entry in entries} - {"/"})
    _check_not_mounted(path, outside, records, entries)
    resolved, mode = _look_at(path, outside)
    _check_not_mounted(path, resolved, records, entries)
    if not stat.S_ISDIR(mode):
        raise MountPointError(f"the mount point {path} is not a directory")
    return Path(resolved)


def check_claim(record: MountRecord) -> None:
    """Raises BusyError if another mount that is being made, or stands, has this mount point.

    Call it while nobody else can save a record.
    """
    entries = read_mountinfo()
    for other in read_records():
        if other.id == record.id or other.mountpoint != record.mountpoint:
            continue
        if other.server.is_alive() and (not other.ready or is_mounted(other, entries)):
            raise BusyError(
                f"{record.mountpoint} is being used for another mount ({other.image}, "
                f"id {other.id})",
                hint="choose another directory",
            )


def _check_not_mounted(
    path: Path, resolved: str, records: list[MountRecord], entries: list[MountEntry]
) -> None:
    entry = top_mount(entries, resolved)
    if entry is None:
        return
    ours = [record for record in records if record.mountpoint == resolved]
    owner = f"{ours[-1].image}, id {ours[-1].id}" if ours else entry.fstype
    raise BusyError(
        f"{path} is a mount point already ({owner})",
        hint=f"`hybrid umount {path}` takes it away" if ours else "choose another directory",
    )


def _look_at(path: Path, outside: str) -> tuple[str, int]:
    """The path without links, and its mode. Below a mount that does not answer this ends too."""
    try:
        resolved, mode = run_bounded(
            f"looking at the mount point {path}",
            lambda: [os.path.realpath(outside), os.stat(outside).st_mode],
            _LOOK_SECONDS,
        )
        return resolved, mode
    except PermissionError as error:
        raise PermissionNeededError(f"cannot reach {path}: permission denied") from error
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise MountPointError(
                f"the mount point {path} does not exist", hint=f"make it: mkdir -p {path}"
            ) from error
        raise MountPointError(f"cannot use {path} as mount point: {error.strerror}") from error

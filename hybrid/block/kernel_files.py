"""Directories and attribute files of configfs and sysfs, and what their errno mean for the user.

Every function may block in the kernel for as long as a device does not answer: callers bound it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid.errors import (
    BusyError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    SystemSupportError,
)


def write_token(path: Path, token: str) -> None:
    """Write one value to an attribute file. Raises a named HybridError."""
    try:
        write_raw(path, token)
    except OSError as error:
        raise explain(error, f"cannot write {token!r} to {path}") from error


def write_raw(path: Path, token: str) -> None:
    """Write one value in one write(2), which is how such files take it. Raises OSError."""
    # Never created: on a file system that is not the kernel's, nothing must appear.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, token.encode("ascii"))
    finally:
        os.close(descriptor)


def read_value(path: Path) -> str:
    """The content of an attribute file without its newline; "" if it is not there (any more).

    Raises PermissionNeededError.
    """
    try:
        return path.read_text(encoding="ascii", errors="replace").rstrip("\n")
    except PermissionError as error:
        raise explain(error, f"cannot read {path}") from error
    except OSError:
        # Files of a device that is going away answer ENOENT, ENODEV or EIO.
        return ""


def make_directory(path: Path) -> None:
    """mkdir(2), which makes an object of the kernel. Raises a named HybridError."""
    try:
        path.mkdir()
    except OSError as error:
        raise explain(error, f"cannot make {path}") from error


def remove_directory(path: Path) -> None:
    """rmdir(2) of an object of the kernel and its attributes; it may be gone already.

    Raises BusyError if something still uses it.
    """
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(error, f"cannot remove {path}") from error


def remove_link(path: Path) -> None:
    """unlink(2); it may be gone already, and so may the directory it was in."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain(error, f"cannot remove {path}") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold flock(2) on a directory, against other processes of hybrid. Ends with the process."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise explain(error, f"cannot open {directory}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def explain(error: OSError, what: str) -> HybridError:
    """The error of the branch that an errno of configfs or sysfs belongs to."""
    code = error.errno
    told = f"{what}: {error.strerror}"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionNeededError(told, hint="needs root, and a /sys that can be written to")
    if code == errno.EEXIST:
        return BusyError(f"{what}: the name is in use", hint="`hybrid gc` removes leftovers")
    if code in (errno.EBUSY, errno.ENOTEMPTY):
        return BusyError(told, hint="something else still uses it")
    if code == errno.EAGAIN:
        return BusyError(told, hint="another TCMU program holds it up; try again")
    if code in (errno.ENOENT, errno.ENODEV):
        return NotFoundError(told)
    if code in (errno.ENOSPC, errno.ENOMEM):
        return SystemSupportError(told, hint="the kernel has no room for one more device")
    return SystemSupportError(told, hint="dmesg says more")

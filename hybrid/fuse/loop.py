"""Loop devices over a FUSE file: with direct I/O, and cleared with their last user.

They offer no discard: FUSE would have to take fallocate(2) for that, which pyfuse3 does not.

Autoclear makes the kernel take the loop device away when the file system on it is unmounted, by
whomever. Nothing of ours has to be alive for that.

``struct loop_config`` (bytes): fd u32 at 0, block_size u32 at 4, struct loop_info64 at 8 (232
bytes; in it lo_flags u32 at 52 and lo_file_name at 56, 64 bytes), 64 reserved bytes at 240.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

from hybrid.errors import BusyError, PermissionNeededError, SystemSupportError

LOOP_CLR_FD = 0x4C01
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_FLAGS = _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO
_CONFIG = struct.Struct("=II 52x I 64s 176x")  # fd, block size, flags, name
_LOOP_MAJOR = 7
_ATTEMPTS = 64  # others may take the free device between our two ioctls
_NODE_SECONDS = 1.0
_BLOCK_SIZE = 512  # bytes
_CONTROL = Path("/dev/loop-control")
_HINT = "load the loop module, or use --no-mount to expose the disk as a file only"


class LoopDevice:
    """A configured loop device, held open. ``close()`` clears it unless it is mounted by then."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.path = Path(f"/dev/loop{number}")
        self._descriptor = descriptor

    def close(self) -> None:
        os.close(self._descriptor)


def attach_loop(backing: Path, *, writable: bool = False) -> LoopDevice:
    """Set up a loop device over ``backing``, read-only unless ``writable``.

    Raises SystemSupportError (no loop devices here, or none free, or no direct I/O) and
    PermissionNeededError.
    """
    backing_fd = _open_backing(backing, os.O_RDWR if writable else os.O_RDONLY)
    try:
        control_fd = _open_control()
        try:
            number, descriptor = _configure_free(control_fd, backing_fd, backing, writable=writable)
        finally:
            os.close(control_fd)
    finally:
        os.close(backing_fd)
    device = LoopDevice(number, descriptor)
    if not uses_direct_io(device.path):
        device.close()
        raise SystemSupportError(
            f"the kernel refuses direct I/O for {device.path} over {backing}", hint=_HINT
        )
    return device


def _open_backing(backing: Path, access: int) -> int:
    # O_DIRECT here makes the loop driver accept direct I/O for the file.
    try:
        return os.open(backing, access | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        raise SystemSupportError(
            f"cannot open {backing} for direct I/O: {error.strerror}"
        ) from error


def _open_control() -> int:
    try:
        return os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise PermissionNeededError(f"cannot open {_CONTROL}: permission denied") from error
    except OSError as error:
        raise SystemSupportError(
            f"no loop devices: cannot open {_CONTROL}: {error.strerror}", hint=_HINT
        ) from error


def _configure_free(
    control_fd: int, backing_fd: int, backing: Path, *, writable: bool
) -> tuple[int, int]:
    flags = _FLAGS if writable else _FLAGS | _LO_FLAGS_READ_ONLY
    config = _CONFIG.pack(backing_fd, _BLOCK_SIZE, flags, os.fsencode(backing)[:63])
    for _ in range(_ATTEMPTS):
        number = _free_number(control_fd)
        descriptor = _open_node(number, os.O_RDWR if writable else os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EBUSY:
                continue
            raise SystemSupportError(
                f"cannot set up /dev/loop{number} over {backing}: {error.strerror}", hint=_HINT
            ) from error
        return number, descriptor
    raise BusyError(
        f"no free loop device: lost {_ATTEMPTS} races for one against other processes",
        hint="try again",
    )


def _free_number(control_fd: int) -> int:
    try:
        return fcntl.ioctl(control_fd, LOOP_CTL_GET_FREE)
    except OSError as error:
        raise SystemSupportError(
            f"no free loop device: {error.strerror}",
            hint="detach one, or raise the loop module's max_loop",
        ) from error


def _open_node(number: int, access: int) -> int:
    path = Path(f"/dev/loop{number}")
    deadline = time.monotonic() + _NODE_SECONDS
    while True:
        try:
            return os.open(path, access | os.O_CLOEXEC)
        except FileNotFoundError:
            # Containers have no devtmpfs that would make the node.
            _make_node(path, number)
        except OSError as error:
            # ENXIO: another process removed the device again; udev may be changing the mode.
            if time.monotonic() > deadline:
                raise SystemSupportError(
                    f"cannot open {path}: {error.strerror}", hint=_HINT
                ) from error
            time.sleep(0.01)


def _make_node(path: Path, number: int) -> None:
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
    except FileExistsError:
        return
    except OSError as error:
        raise SystemSupportError(
            f"loop device {number} is free, but {path} does not exist and cannot be made: "
            f"{error.strerror}",
            hint=f"make it: mknod {path} b {_LOOP_MAJOR} {number}",
        ) from error


def uses_direct_io(device: Path) -> bool:
    """Whether the loop device reads its file with direct I/O, as the kernel reports it."""
    return _attribute(device, "dio") == "1"


def backing_file(device: Path) -> str:
    """Path of the file under a loop device, "" for a free device. Touches no file system."""
    return _attribute(device, "backing_file")


def _attribute(device: Path, name: str) -> str:
    try:
        return Path(f"/sys/block/{device.name}/loop/{name}").read_text().rstrip("\n")
    except OSError:
        # The directory "loop" exists only while a file is attached.
        return ""


def is_loop_over(device: Path, backing: Path) -> bool:
    """Whether ``device`` is (still) set up over ``backing``, mounted over or not."""
    return backing_file(device) == str(backing)


def clear_loop(device: Path) -> None:
    """Ask the kernel to clear the device now or with its last user. A free device is fine."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.ioctl(descriptor, LOOP_CLR_FD)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EBUSY):
            raise SystemSupportError(f"cannot clear {device}: {error.strerror}") from error
    finally:
        os.close(descriptor)

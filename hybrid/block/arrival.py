"""Waiting for the disk of a SCSI address to come, or to go.

The kernel's uevents (not udevd's, which need not run) say when to look; what is true stands in
sysfs. So first subscribe, then look, then wait. An event that is lost (a network namespace of our
own, too many disks at once) costs a moment, since sysfs is looked at again after that anyway.

The name of the disk is read, never guessed, and its node belongs to it by its device number.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyudev
import trio

from hybrid.block.kernel_files import read_value
from hybrid.errors import PermissionNeededError, SystemSupportError, TimeoutExpiredError

logger = logging.getLogger(__name__)

SCSI_DEVICES = Path("/sys/bus/scsi/devices")
DEV = Path("/dev")

_LOOK_SECONDS = 0.25
"""Look at sysfs at least this often."""
_NODE_SECONDS = 0.5
"""How long devtmpfs or udevd may take to make the node before it is made here."""

_Found = TypeVar("_Found")


async def wait_for_disk(address: str, seconds: float) -> Path:
    """The node (``/dev/sdb``) of the disk at the SCSI address ``3:0:1:0``, ready to be opened.

    Where neither devtmpfs nor udevd makes the node, it is made here. Raises TimeoutExpiredError
    (no disk within ``seconds``), SystemSupportError (no node for it) and PermissionNeededError.
    """
    arrival = _Arrival(address)
    found = await _watch(arrival.look, seconds)
    if found is None:
        raise arrival.failure(seconds)
    return found


async def _watch(look: Callable[[], _Found | None], seconds: float) -> _Found | None:
    """What ``look`` finds in the end; None if that is nothing after ``seconds``."""
    found = look()  # mostly it is there by now, and libudev need not be loaded
    if found:
        return found
    monitor = _subscribe()
    deadline = trio.current_time() + seconds
    while not (found := look()) and trio.current_time() < deadline:
        with trio.move_on_after(min(_LOOK_SECONDS, deadline - trio.current_time())):
            if monitor is None:
                await trio.sleep_forever()
            else:
                await trio.lowlevel.wait_readable(monitor.fileno())
                _drain(monitor)
    return found or None


def _subscribe() -> pyudev.Monitor | None:
    """The kernel's own events of block devices; None where libudev is missing."""
    try:
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        monitor.filter_by("block")
        monitor.start()
    except (ImportError, OSError) as error:
        logger.debug("no uevents, looking at sysfs only: %s", error)
        return None
    return monitor


def _drain(monitor: pyudev.Monitor) -> None:
    """Take the events; sysfs tells what they mean."""
    try:
        # A Device counts as false by its properties, which it does not like to be asked for.
        while monitor.poll(timeout=0) is not None:
            pass
    except OSError as error:
        logger.debug("uevents were lost: %s", error)


class _Arrival:
    """Looks for a disk, and remembers what is still missing."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._name = ""
        self._missing_since: float | None = None
        self._obstacle = ""

    def look(self) -> Path | None:
        """The node of the disk, if there is a disk with a size, and its node can be opened."""
        block = next((SCSI_DEVICES / self._address / "block").glob("*"), None)
        if block is None or read_value(block / "size") in ("", "0"):
            return None
        number = _device_number(read_value(block / "dev"))
        if number is None:
            return None
        self._name = block.name
        node = DEV / block.name
        return node if self._is_usable(node, number) else None

    def _is_usable(self, node: Path, number: int) -> bool:
        """Opened for real: between the directory in sysfs and the disk itself lies a moment."""
        try:
            descriptor = os.open(node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            self._obstacle = f"{node} does not exist"
            self._make_node(node, number)
            return False
        except PermissionError as error:
            raise PermissionNeededError(
                f"cannot open {node}: {error.strerror}",
                hint="a container needs the right to use block devices",
            ) from error
        except OSError as error:
            self._obstacle = f"cannot open {node}: {error.strerror}"
            return False
        found = os.fstat(descriptor)
        os.close(descriptor)
        self._obstacle = f"{node} belongs to another device"
        return stat.S_ISBLK(found.st_mode) and found.st_rdev == number

    def _make_node(self, node: Path, number: int) -> None:
        """A node made at once would be in the way of devtmpfs, which removes only its own."""
        now = trio.current_time()
        if self._missing_since is None:
            self._missing_since = now
        if now < self._missing_since + _NODE_SECONDS:
            return
        try:
            os.mknod(node, stat.S_IFBLK | 0o600, number)
        except OSError as error:
            if error.errno != errno.EEXIST:
                self._obstacle = f"{node} does not exist and cannot be made: {error.strerror}"

    def failure(self, seconds: float) -> TimeoutExpiredError | SystemSupportError:
        if self._name:
            return SystemSupportError(
                f"the disk {self._name} is there, but cannot be used: {self._obstacle}",
                hint="it needs a /dev with devtmpfs or udev, or the right to make nodes",
            )
        return TimeoutExpiredError(
            f"no disk came at SCSI address {self._address} within {seconds:g} seconds",
            hint="dmesg says what the kernel's scan found",
        )


def _device_number(text: str) -> int | None:
    major, colon, minor = text.partition(":")
    if not colon or not major.isdecimal() or not minor.isdecimal():
        return None
    return os.makedev(int(major), int(minor))

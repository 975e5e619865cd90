"""Mode tcmu, as the commands see it: a backstore, a loopback target, and a SCSI disk.

Everything that the kernel may hold up runs in a child with a bound (``hybrid.core.bounded``).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from hybrid.block import configfs, teardown
from hybrid.block.arrival import wait_for_disk
from hybrid.block.names import Target, wwn_of
from hybrid.core.bounded import BoundedTask, run_bounded
from hybrid.errors import (
    BusyError,
    FormatError,
    SystemSupportError,
    TimeoutExpiredError,
)
from hybrid.mount import kernel
from hybrid.mount.channel import Ready
from hybrid.mount.front import Front
from hybrid.mount.holders import describe_holders, find_holders, is_claimed_in_kernel
from hybrid.mount.last_flush import Waiting
from hybrid.mount.state import MountRecord, Recorder

_CREATE_SECONDS = 20.0
_LOOK_SECONDS = 1.0
_ARRIVAL_SECONDS = 20.0
_END_SECONDS = 5.0
DISK_TIMEOUT_SECONDS = 2147483
"""How long sd waits for an answer: practically for ever, since a server may come back. (spec:
snapshotter 12; milliseconds of it must fit 32 bits.)"""

T = TypeVar("T")


def target_of(record: MountRecord) -> Target:
    """The names that the disk of a mount has in the kernel."""
    return Target(record.id, wwn_of(record.id))


class TcmuFront(Front):
    def prepare(self, recorder: Recorder, ready: Ready) -> str:
        if not ready.size:
            raise FormatError(f"the disk of {recorder.record.image} is empty")
        target = target_of(recorder.record)
        try:
            name: str = run_bounded(
                "making the TCMU device",
                lambda: configfs.create_backstore(target, ready.size, not ready.writable),
                _CREATE_SECONDS,
            )
        except TimeoutExpiredError as error:
            raise TimeoutExpiredError(
                f"{error.message}: the kernel waits for another TCMU program to answer",
                hint="`hybrid doctor` tells the way out",
            ) from None
        return name

    def expose(self, recorder: Recorder) -> None:
        record = recorder.record
        disk = Path(_while_served(record, "making the SCSI disk", lambda: _make_disk(record)))
        _never_time_out(disk)
        recorder.note(device=str(disk), source=str(disk))

    def mount(self, recorder: Recorder, mountpoint: Path, ready: Ready) -> None:
        record = recorder.record
        device = Path(record.device)
        _while_served(record, "mounting", lambda: kernel.mount_device(device, mountpoint, ready))

    def unmount_exposed(self, record: MountRecord, lazy: bool) -> None:
        """Nothing stands for a mounted tree; ``withdraw`` looks for users."""

    def fail_reads(self, record: MountRecord) -> None:
        record.server.send(signal.SIGKILL)
        if record.server.wait_gone(_END_SECONDS):
            teardown.fail_pending(target_of(record))

    def withdraw(self, record: MountRecord, lazy: bool) -> bool:
        try:
            check_unused(record)
        except BusyError:
            if lazy:
                return False
            raise
        except TimeoutExpiredError:
            return False
        if record.writable:
            # sd flushes the disk first, and that may take any time.
            teardown.take_down(target_of(record), _alive_with_notices(record), math.inf)
        else:
            teardown.take_down(target_of(record), record.server.is_alive)
        record.server.wait_gone(_END_SECONDS)
        return record.has_ended()

    def abandon(self, record: MountRecord) -> None:
        teardown.take_down(target_of(record), record.server.is_alive)

    def force(self, record: MountRecord) -> None:
        teardown.take_down(target_of(record), lambda: False)


def _alive_with_notices(record: MountRecord) -> Callable[[], bool]:
    waiting = Waiting()

    def is_alive() -> bool:
        waiting.tell(f"the kernel writes the last changes to {record.device}")
        return record.server.is_alive()

    return is_alive


def _make_disk(record: MountRecord) -> str:
    address = configfs.export(target_of(record))
    return str(trio.run(wait_for_disk, address, _ARRIVAL_SECONDS))


def _while_served(record: MountRecord, name: str, work: Callable[[], T]) -> T:
    """``work`` in a child: without a server the kernel would hold it up for ever.

    How long it may take is up to the server, whose reads have bounds of their own.
    """
    task = BoundedTask(name, work)
    while True:
        try:
            result: T = task.wait(_LOOK_SECONDS)
        except TimeoutExpiredError:
            if record.server.is_alive():
                continue
            task.abandon()
            raise SystemSupportError(
                f"the server died while {name} of {record.image}", hint="try again"
            ) from None
        return result


def check_unused(record: MountRecord) -> None:
    """Raises BusyError if the disk is mounted anywhere, or open; needs a server that answers.

    Raises TimeoutExpiredError if it does not answer.
    """
    if not record.device:
        return
    name = record.device
    if record.mountpoint:
        name = f"{record.mountpoint} is unmounted, but {record.device}"
    holders = find_holders(record.device)
    if holders:
        raise BusyError(
            f"{name} is in use by {describe_holders(record.device)}",
            hint="end that, or use --lazy",
        )
    if is_claimed_in_kernel(record.device):
        raise BusyError(
            f"{name} is still in use elsewhere: by a mount in another namespace, a tree that was "
            "detached, or another driver",
            hint="its server ends with the last user; see `hybrid list`",
        )


def _never_time_out(disk: Path) -> None:
    path = Path(f"/sys/block/{disk.name}/device/timeout")
    try:
        path.write_text(str(DISK_TIMEOUT_SECONDS))
    except OSError as error:
        raise SystemSupportError(f"cannot set {path}: {error.strerror}") from error

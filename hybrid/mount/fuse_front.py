"""Mode fuse, as the commands see it: a FUSE file, and a loop device over it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from hybrid.errors import BusyError, SystemSupportError, TimeoutExpiredError
from hybrid.fuse.loop import attach_loop, clear_loop, is_loop_over
from hybrid.mount import control, kernel
from hybrid.mount.channel import Ready
from hybrid.mount.front import Front
from hybrid.mount.holders import describe_holders
from hybrid.mount.mountinfo import read_mountinfo, top_mount
from hybrid.mount.processes import wait_until
from hybrid.mount.state import MountRecord, Recorder
from hybrid.mount.unmounting import busy, unmount

_END_SECONDS = 3.0
_LAZY_SECONDS = 1.0
_ASK_SECONDS = 1.0
_FUSERMOUNT_SECONDS = 3.0
_MAX_STACKED = 8


class FuseFront(Front):
    def prepare(self, recorder: Recorder, ready: Ready) -> str:
        return ""

    def expose(self, recorder: Recorder) -> None:
        """The server's FUSE mount has it already."""

    def mount(self, recorder: Recorder, mountpoint: Path, ready: Ready) -> None:
        disk = recorder.note(source=str(recorder.record.disk)).disk
        if kernel.mount_file(disk, mountpoint, ready):
            return
        loop = attach_loop(disk, writable=ready.writable)
        try:
            recorder.note(loop=str(loop.path), source=str(loop.path))
            kernel.mount_device(loop.path, mountpoint, ready)
        finally:
            # The mount holds it now; without a mount this clears it.
            loop.close()

    def unmount_exposed(self, record: MountRecord, lazy: bool) -> None:
        if not _has_fuse_mount(record):
            return
        if os.geteuid() != 0:
            _fusermount(record, lazy)
        else:
            unmount(self, record, str(record.fuse_directory), lazy)

    def fail_reads(self, record: MountRecord) -> None:
        """The kernel fails the reads of a FUSE mount whose server is gone."""
        record.server.send(signal.SIGKILL)

    def withdraw(self, record: MountRecord, lazy: bool) -> bool:
        """The server ends by itself once nobody uses its disk."""
        if record.server.wait_gone(_LAZY_SECONDS if lazy else _END_SECONDS) or lazy:
            return record.has_ended()
        if not record.flushing.exists():
            _check_unused(record)
        return False

    def abandon(self, record: MountRecord) -> None:
        """The server takes its FUSE mount away itself, and the loop device goes with it."""

    def force(self, record: MountRecord) -> None:
        loop = Path(record.loop)
        if record.loop and is_loop_over(loop, record.disk):
            clear_loop(loop)
            wait_until(lambda: not is_loop_over(loop, record.disk), _ASK_SECONDS)
        for _ in range(_MAX_STACKED):
            if not _has_fuse_mount(record):
                return
            self.unmount_exposed(record, lazy=True)


def _has_fuse_mount(record: MountRecord) -> bool:
    return top_mount(read_mountinfo(), str(record.fuse_directory)) is not None


def _fusermount(record: MountRecord, lazy: bool) -> None:
    """The way for ordinary users, who may not call umount2."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(record.fuse_directory)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_FUSERMOUNT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise SystemSupportError("fusermount3 is missing", hint="install fuse3") from error
    except subprocess.TimeoutExpired as error:
        raise TimeoutExpiredError(f"{' '.join(command)} does not end") from error
    if done.returncode == 0 or not _has_fuse_mount(record):
        return
    if "busy" in done.stderr.lower():
        raise busy(str(record.fuse_directory))
    raise SystemSupportError(f"cannot unmount {record.fuse_directory}: {done.stderr.strip()}")


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

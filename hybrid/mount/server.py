"""The server process: opens the Device, exposes it through FUSE, ends when nobody needs it.

It ends orderly, with its FUSE mount and its state directory removed, when

* the last handle of the disk is closed after the mount stood (unmounted, by whomever),
* its FUSE mount is taken away (``hybrid umount`` of an exposed file, fusermount3 -u),
* its parent goes away before the mount stood,
* SIGTERM or the control command "stop" arrives and nothing is mounted on the disk. If something
  is, a separate ``hybrid umount`` takes that down first: this process must keep answering reads
  meanwhile, and never unmounts what it serves.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from hybrid.core.device import Device
from hybrid.errors import HybridError
from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.session import close_session, open_session, run_session
from hybrid.mount import control
from hybrid.mount.channel import ATTACHED, Ready, encode_error, encode_ready
from hybrid.mount.filesystems import HEAD_BYTES, detect
from hybrid.mount.state import MountRecord, remove_directory

_CLOSE_SECONDS = 5.0
_UNDO_SECONDS = 1.0

logger = logging.getLogger(__name__)

OpenDevice = Callable[[], Awaitable[Device]]


@dataclass(frozen=True)
class ServerJob:
    """What one server has to do."""

    record: MountRecord
    open_device: OpenDevice
    """Called once, in the server, inside its trio run."""
    will_be_mounted: bool
    """Whether the parent mounts the disk (or only exposes the file)."""
    log_level: int = logging.INFO
    common_log: Path | None = None
    """A log file that this server writes to besides its own."""


class MountServer:
    """One Device behind one FUSE session. All methods run in one trio task tree: no locks.

    ``channel`` leads to the parent, see ``hybrid.mount.channel``.
    """

    def __init__(self, job: ServerJob, channel: trio.SocketStream) -> None:
        self._job = job
        self._channel = channel
        self._scope = trio.CancelScope()
        self._disk: DiskFilesystem | None = None
        self._device: Device | None = None
        self._ends_when_idle = False
        self._umount: subprocess.Popen[bytes] | None = None

    async def run(self) -> None:
        """Serve until an orderly end. Leaves no FUSE mount and no state directory."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            nursery.start_soon(self._watch_parent)
            with self._scope:
                await self._serve()
            nursery.cancel_scope.cancel()
        remove_directory(self._job.record.directory)

    async def _serve(self) -> None:
        try:
            device = self._device = await self._job.open_device()
        except HybridError as error:
            await self._channel.send_all(encode_error(error))
            return
        # Only now: the image may have been named by a relative path. From here on no directory of
        # the user is kept busy.
        os.chdir("/")
        try:
            await self._serve_device(device)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                await device.aclose()

    async def _serve_device(self, device: Device) -> None:
        record = self._job.record
        disk = DiskFilesystem(device, self._on_release)
        try:
            ready = await _describe(device, disk.size)
            open_session(disk, record.fuse_directory, f"hybrid:{record.id}")
        except HybridError as error:
            await self._channel.send_all(encode_error(error))
            return
        self._disk = disk
        try:
            await self._run_session(ready)
        finally:
            close_session()

    async def _run_session(self, ready: Ready) -> None:
        listener = await control.listen(self._job.record.control)
        handlers = {"status": self._status, "stats": self._stats, "stop": self._stop}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener, handlers)
            nursery.start_soon(self._announce, ready)
            logger.info("serving %s, %d bytes", self._job.record.image, ready.size)
            await run_session()
            logger.info("the FUSE mount is gone")
            nursery.cancel_scope.cancel()

    async def _announce(self, ready: Ready) -> None:
        try:
            await self._channel.send_all(encode_ready(ready))
        except trio.BrokenResourceError:
            logger.warning("the starting process is gone")

    async def _watch_signals(
        self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT)
        with trio.open_signal_receiver(*numbers) as received:
            # Blocked since before the fork, so that none is lost.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            task_status.started()
            async for number in received:
                logger.info("%s: ending", signal.Signals(number).name)
                self._end_orderly()

    async def _watch_parent(self) -> None:
        try:
            message = await self._channel.receive_some(len(ATTACHED))
        except trio.BrokenResourceError:
            message = b""
        self._ends_when_idle = self._job.will_be_mounted or message != ATTACHED
        self._on_release()
        if message != ATTACHED:
            logger.info("the starting process went away: ending")
            # It may have undone its mount, and the kernel closes our file a little later.
            await trio.sleep(_UNDO_SECONDS)
            self._end_orderly()

    def _on_release(self) -> None:
        if self._ends_when_idle and not self._is_used():
            logger.info("nobody uses the disk: ending")
            self._scope.cancel()

    def _is_used(self) -> bool:
        return self._disk is not None and self._disk.open_handles > 0

    def _end_orderly(self) -> None:
        if not self._is_used():
            self._scope.cancel()
            return
        self._ends_when_idle = True
        if self._umount is None or self._umount.poll() is not None:
            self._umount = _start_umount(self._job.record)

    def _status(self) -> control.Answer:
        disk = self._disk
        return {
            "id": self._job.record.id,
            "pid": os.getpid(),
            "handles": disk.open_handles if disk else 0,
            "read_errors": disk.read_errors if disk else 0,
            **self._stats(),
        }

    def _stats(self) -> control.Answer:
        return {"stats": self._device.stats() if self._device else {}}

    def _stop(self) -> control.Answer:
        # After the answer has been sent, since this may end the run at its next checkpoint.
        trio.lowlevel.current_trio_token().run_sync_soon(self._end_orderly)
        return {"stopping": True}


async def _describe(device: Device, size: int) -> Ready:
    """Find the file system here, in the server: the parent need not read the disk for it."""
    found = detect(await device.pread(0, min(HEAD_BYTES, device.size)))
    return Ready(
        size=size,
        digest=getattr(device, "digest", ""),
        fstype=found.fstype if found else "",
        drivers=list(found.drivers) if found else [],
        options=found.options if found else "",
        notice=found.notice if found else "",
        mounts_files=bool(found and found.mounts_files),
    )


def _start_umount(record: MountRecord) -> subprocess.Popen[bytes]:
    """Run ``hybrid umount`` on ourselves; what it says goes to our log."""
    environment = {**os.environ, "HYBRID_STATE_DIR": str(record.directory.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "hybrid", "umount", record.id],
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )

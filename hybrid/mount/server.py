"""The server process: opens the Device, serves it through a front end, ends when nobody needs it.

It ends orderly, with its state directory removed, when

* the last handle of the disk is closed after the mount stood (unmounted, by whomever; mode fuse),
* the kernel's side is taken away (by ``hybrid umount``; of an exposed file also by fusermount3 -u),
* its parent goes away before the mount stood,
* SIGTERM or the control command "stop" arrives and nothing is mounted on the disk. If something
  is, a separate ``hybrid umount`` takes that down first: this process must keep answering reads
  meanwhile, and never unmounts what it serves.

A disk that could be written is flushed at the end, however long that takes (``last_flush``).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from hybrid.core.device import Device
from hybrid.core.upper_directory import WritableDisk
from hybrid.errors import HybridError, UnsupportedError
from hybrid.mount import control
from hybrid.mount.allocator import keep_freed_memory
from hybrid.mount.channel import Ready, ServerEnd
from hybrid.mount.filesystems import HEAD_BYTES, DetectedFilesystem, detect
from hybrid.mount.io_flusher import become_io_flusher
from hybrid.mount.last_flush import flush_and_close
from hybrid.mount.origin import OpenDevice
from hybrid.mount.serving import Serving, ServingTask, serving_of
from hybrid.mount.state import MountRecord, remove_directory

_CLOSE_SECONDS = 5.0
_UNDO_SECONDS = 1.0
_NOTHING = DetectedFilesystem("", ())

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerJob:
    """What one server has to do."""

    record: MountRecord
    open_device: OpenDevice
    will_be_mounted: bool
    """Whether the disk is mounted, or only exposed."""
    log_level: int = logging.INFO
    common_log: Path | None = None
    """A log file that this server writes to besides its own."""
    takes_over: bool = False
    """Whether a mount stands already, whose server has died: it outlives a failure to start."""


class MountServer:
    """One Device behind one front end. All methods run in one trio task tree: no locks."""

    def __init__(self, job: ServerJob, channel: ServerEnd) -> None:
        self._job = job
        self._channel = channel
        self._scope = trio.CancelScope()
        self._device: Device | None = None
        self._serving: Serving | None = None
        self._place = ""
        self._may_expose = trio.Event()
        self._parent_left = trio.Event()
        self._ends_when_idle = False
        self._is_attached = False
        self._is_over = False
        """Whether the kernel's side has been taken away."""
        self._is_closing = False
        self._has_lost_changes = False
        self._umount: subprocess.Popen[bytes] | None = None

    async def run(self) -> None:
        """Serve until an orderly end. Leaves nothing in the kernel, and no state directory.

        A server that took over and fails leaves all as it was, for the next one.
        """
        keep_freed_memory()
        if self._job.record.writable:
            become_io_flusher()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            nursery.start_soon(self._follow_parent)
            with self._scope:
                await self._serve()
            nursery.cancel_scope.cancel()
        if (self._is_over or not self._job.takes_over) and not self._has_lost_changes:
            remove_directory(self._job.record.directory)

    async def _serve(self) -> None:
        try:
            device = self._device = await self._job.open_device()
        except HybridError as error:
            await self._channel.send_error(error)
            # Until the parent has heard, it may be writing its record into our directory.
            await self._parent_left.wait()
            return
        # Only now: the image may have been named by a relative path. From here on no directory of
        # the user is kept busy.
        os.chdir("/")
        try:
            await self._serve_device(device)
        finally:
            self._is_closing = True
            await self._close(device)

    async def _close(self, device: Device) -> None:
        if device.writable:
            with trio.CancelScope(shield=True):
                self._has_lost_changes = not await flush_and_close(device, self._job.record)
        else:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _CLOSE_SECONDS):
                await device.aclose()

    async def _serve_device(self, device: Device) -> None:
        record = self._job.record
        serving = serving_of(ServingTask(device, record, self._on_release, self._end_orderly))
        try:
            await self._channel.send_ready(await _describe(device, serving.size))
            await self._may_expose.wait()
            serving.open(self._place, takes_over=self._job.takes_over)
        except HybridError as error:
            await self._channel.send_error(error)
            return
        self._serving = serving
        try:
            await self._answer(serving)
        finally:
            serving.close()

    async def _answer(self, serving: Serving) -> None:
        record = self._job.record
        record.control.unlink(missing_ok=True)  # of the server that died
        listener = await control.listen(record.control)
        handlers: dict[str, control.Handler] = {
            "status": self._answer_status,
            "stats": self._answer_stats,
            "stop": self._stop,
            "checkpoint": self._checkpoint,
            "snapshot": self._snapshot,
        }
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener, handlers)
            nursery.start_soon(self._channel.send_serving)
            logger.info("serving %s, %d bytes", record.image, serving.size)
            await serving.run()
            self._is_over = True
            nursery.cancel_scope.cancel()

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

    async def _follow_parent(self) -> None:
        message = await self._channel.receive()
        if "expose" in message:
            self._place = message["expose"]
            self._may_expose.set()
            message = await self._channel.receive()
        self._is_attached = "attached" in message
        if not self._is_attached:
            self._parent_left.set()
        self._ends_when_idle = self._job.will_be_mounted or not self._is_attached
        self._on_release()
        if not self._is_attached:
            logger.info("the starting process went away: ending")
            # It may have undone its mount, and the kernel closes our file a little later.
            await trio.sleep(_UNDO_SECONDS)
            self._end_orderly()

    def _on_release(self) -> None:
        if self._ends_when_idle and not self._is_used():
            logger.info("nobody uses the disk: ending")
            self._scope.cancel()

    def _is_used(self) -> bool:
        return self._serving is not None and self._serving.in_use

    def _end_orderly(self) -> None:
        if self._is_closing:
            return
        if not self._is_used() or (self._job.takes_over and not self._is_attached):
            self._scope.cancel()
            return
        self._ends_when_idle = True
        if self._umount is None or self._umount.poll() is not None:
            self._umount = _start_umount(self._job.record)

    async def _answer_status(self, request: control.Answer) -> control.Answer:
        return {
            "id": self._job.record.id,
            "pid": os.getpid(),
            **(self._serving.counters() if self._serving else {}),
            **await self._answer_stats(request),
        }

    async def _answer_stats(self, request: control.Answer) -> control.Answer:
        return {"stats": self._device.stats() if self._device else {}}

    async def _stop(self, request: control.Answer) -> control.Answer:
        # After the answer has been sent, since this may end the run at its next checkpoint.
        trio.lowlevel.current_trio_token().run_sync_soon(self._end_orderly)
        return {"stopping": True}

    async def _checkpoint(self, request: control.Answer) -> control.Answer:
        return {"point": await self._disk().checkpoint(Path(str(request.get("lock"))))}

    async def _snapshot(self, request: control.Answer) -> control.Answer:
        return {"sealed": str(await self._disk().snapshot())}

    def _disk(self) -> WritableDisk:
        if isinstance(self._device, WritableDisk):
            return self._device
        raise UnsupportedError(
            f"mount {self._job.record.id} has no directory of changes",
            hint="mount an image with --rw; the upper of a config is committed unmounted",
        )


async def _describe(device: Device, size: int) -> Ready:
    """Find the file system here, in the server: the parent need not read the disk for it."""
    # What a crashed user of the upper left, its file system may not know of.
    was_clean: bool = getattr(device, "was_clean", True)
    found = detect(await device.pread(0, min(HEAD_BYTES, device.size))) or _NOTHING
    writable = device.writable
    return Ready(
        size=size,
        digest=getattr(device, "digest", ""),
        identity=device.identity(),
        writable=writable,
        fstype=found.fstype,
        # A journal may be added, which ext4's driver knows about whatever the version.
        drivers=["ext4", *found.drivers] if found.is_ext and writable else list(found.drivers),
        options=found.writing_options if writable else found.options,
        notice="" if writable else found.notice,
        mounts_files=found.mounts_files and not writable,
        can_be_written=found.can_be_written,
        is_ext=found.is_ext,
        lacks_journal=found.lacks_journal,
        wants_check=found.wants_check or (found.is_ext and not was_clean),
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

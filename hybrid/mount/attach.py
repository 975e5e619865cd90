"""Making a mount: start the server, set up the loop device, mount, record. Or undo all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hybrid.errors import FormatError, HybridError, SystemSupportError
from hybrid.fuse.loop import attach_loop
from hybrid.mount import kernel, preflight
from hybrid.mount.channel import ATTACHED, Ready, receive_ready
from hybrid.mount.daemon import fork_server
from hybrid.mount.detach import force_end, unmount_ours
from hybrid.mount.foreground import SUPERVISED_SIGNALS
from hybrid.mount.server import OpenDevice, ServerJob
from hybrid.mount.state import MountRecord, create_record, exclusive_records

_STOP_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountRequest:
    """What ``hybrid mount`` is asked to do."""

    image: str
    open_device: OpenDevice
    """Opens the image; called in the server process, inside its trio run."""
    mountpoint: Path | None = None
    """None: only expose the disk as a file."""
    mode: str = "auto"
    foreground: bool = False
    """Log to stderr as well; the caller then supervises, see ``hybrid.mount.foreground``."""
    log_level: int = logging.INFO
    common_log: Path | None = None
    """A log file that all servers write to, besides the one of the mount."""


def attach(request: MountRequest) -> MountRecord:
    """Returns when the mount point (or the file) can be read.

    Call it outside any trio run, in a process with one thread: it forks. On any error, and on
    SIGINT or SIGTERM (KeyboardInterrupt), nothing is left behind.
    """
    mode, reason = preflight.choose_mode(request.mode)
    if request.mountpoint is not None:
        preflight.check_may_mount()
    preflight.check_fuse()
    mountpoint = preflight.check_mountpoint(request.mountpoint) if request.mountpoint else None
    logger.info("mode %s: %s", mode, reason)
    with _terminate_as_interrupt():
        return _Attachment(request, mountpoint).run(mode, reason)


class _Attachment:
    """The steps, with what undoing them needs."""

    def __init__(self, request: MountRequest, mountpoint: Path | None) -> None:
        self._request = request
        self._mountpoint = mountpoint
        self._record: MountRecord | None = None
        self._channel: socket.socket | None = None

    def run(self, mode: str, reason: str) -> MountRecord:
        try:
            record, channel = self._start(mode, reason)
            ready = receive_ready(channel)
            if ready is None:
                raise self._died(record)
            record = self._note(
                digest=ready.digest, fstype=ready.fstype, options=ready.options, size=ready.size
            )
            if self._mountpoint:
                kernel.check_mountable(ready, self._request.image)
                self._mount(self._mountpoint, ready)
            record = self._note(ready=True)
            record.save()
            if self._request.foreground:
                # From here on signals are for ``supervise``, which waits for them.
                signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
            channel.sendall(ATTACHED)
        except BaseException as error:
            with _signals_blocked():
                failure = self._explain(error)
                self._undo()
            raise failure from error.__cause__
        channel.close()
        return record

    def _start(self, mode: str, reason: str) -> tuple[MountRecord, socket.socket]:
        # A signal between two of these steps would lose track of a directory or a process.
        with _signals_blocked():
            self._record = create_record(self._request.image, mode, reason)
            job = ServerJob(
                self._record,
                self._request.open_device,
                self._mountpoint is not None,
                self._request.log_level,
                self._request.common_log,
            )
            server, self._channel = fork_server(job, foreground=self._request.foreground)
            record = self._note(
                pid=server.pid,
                pid_start_time=server.start_time,
                mountpoint=str(self._mountpoint or ""),
            )
            # Of two commands for one mount point that got here, the first to save wins.
            with exclusive_records():
                if record.mountpoint:
                    preflight.check_claim(record)
                record.save()
        return record, self._channel

    def _note(self, **changes: object) -> MountRecord:
        assert self._record is not None
        self._record = dataclasses.replace(self._record, **changes)  # type: ignore[arg-type]
        return self._record

    def _mount(self, mountpoint: Path, ready: Ready) -> None:
        record = self._note(source=str(self._record.disk if self._record else ""))
        record.save()
        if ready.notice:
            logger.info("%s", ready.notice)
        if kernel.mount_file(record.disk, mountpoint, ready):
            return
        loop = attach_loop(record.disk)
        try:
            self._note(loop=str(loop.path), source=str(loop.path)).save()
            kernel.mount_device(loop.path, mountpoint, ready)
        finally:
            # The mount holds it now; without a mount this clears it.
            loop.close()

    def _died(self, record: MountRecord) -> Exception:
        _, status = os.waitpid(record.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            name = signal.Signals(-code).name
            return SystemSupportError(f"the server was killed by {name} while it started")
        kept = record.directory.parent / f"failed-{record.id}.log"
        last = _last_line(record.log)
        with contextlib.suppress(OSError):
            record.log.rename(kept)
        return RuntimeError(f"the server failed while it started: {last}; its log is {kept}")

    def _explain(self, error: BaseException) -> BaseException:
        """A read that failed in the kernel's hands shows as a bare EIO; the log knows why."""
        if not isinstance(error, FormatError) or self._record is None:
            return error
        reason = _last_line(self._record.log)
        if " ERROR " not in reason:
            return error
        return FormatError(f"{error.message}: {reason.partition(': ')[2]}", hint=error.hint)

    def _undo(self) -> None:
        if self._record is None:
            return
        try:
            unmount_ours(self._record)
        except HybridError as error:
            logger.warning("%s", error)
        if self._channel:
            # The server takes this for our end, and ends itself.
            self._channel.close()
        self._record.server.wait_gone(_STOP_SECONDS)
        force_end(self._record)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM undoes what was begun, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

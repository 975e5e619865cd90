"""Making a mount: start the server, expose its disk, mount, record. Or undo all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hybrid.errors import FormatError, HybridError, SystemSupportError
from hybrid.mount import kernel, preflight, preparing
from hybrid.mount.changes import Changes
from hybrid.mount.channel import ParentEnd, Ready
from hybrid.mount.daemon import fork_server
from hybrid.mount.detach import force_end, unmount_ours
from hybrid.mount.foreground import SUPERVISED_SIGNALS
from hybrid.mount.front import front_of
from hybrid.mount.last_flush import wait_flushed
from hybrid.mount.origin import OpenDevice
from hybrid.mount.server import ServerJob
from hybrid.mount.state import MountRecord, Recorder, create_record, exclusive_records

_STOP_SECONDS = 3.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountRequest:
    """What ``hybrid mount`` is asked to do."""

    image: str
    open_device: OpenDevice
    """Opens the image; called in the server process, inside its trio run."""
    origin: dict[str, Any] = field(default_factory=dict)
    """How ``hybrid resume`` opens it again, for the record."""
    mountpoint: Path | None = None
    """None: only expose the disk."""
    mode: str = "auto"
    foreground: bool = False
    """Log to stderr as well; the caller then supervises, see ``hybrid.mount.foreground``."""
    log_level: int = logging.INFO
    common_log: Path | None = None
    """A log file that all servers write to, besides the one of the mount."""
    changes: Changes | None = None
    """None: the Device is read-only."""
    journal: bool = True
    """Whether a file system to be written to, which could have a journal, gets one."""


def attach(request: MountRequest) -> MountRecord:
    """Returns when the mount point (or the disk) can be read.

    Call it outside any trio run, in a process with one thread: it forks. On any error, and on
    SIGINT or SIGTERM (KeyboardInterrupt), nothing is left behind.
    """
    mode, reason = preflight.choose_mode(request.mode)
    if request.mountpoint is not None:
        preflight.check_may_mount()
    if mode == "fuse":
        preflight.check_fuse()
    mountpoint = preflight.check_mountpoint(request.mountpoint) if request.mountpoint else None
    if mountpoint and request.changes:
        request.changes.check_outside(mountpoint)
    logger.info("mode %s: %s", mode, reason)
    with terminate_as_interrupt():
        return _Attachment(request, mountpoint, mode).run(reason)


class _Attachment:
    """The steps, with what undoing them needs."""

    def __init__(self, request: MountRequest, mountpoint: Path | None, mode: str) -> None:
        self._request = request
        self._mountpoint = mountpoint
        self._front = front_of(mode)
        self._mode = mode
        self._recorder: Recorder | None = None
        self._channel: ParentEnd | None = None

    def run(self, reason: str) -> MountRecord:
        try:
            recorder, channel = self._start(reason)
            ready = channel.receive_ready()
            if ready is None:
                raise died(recorder.record)
            recorder.note(
                digest=ready.digest,
                identity=ready.identity,
                fstype=ready.fstype,
                options=ready.options,
                size=ready.size,
            )
            if self._mountpoint:
                kernel.check_mountable(ready, self._request.image)
            self._expose(recorder, channel, ready)
            recorder.note(ready=True)
            if self._request.foreground:
                # From here on signals are for ``supervise``, which waits for them.
                signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED_SIGNALS)
            channel.send_attached()
        except BaseException as error:
            with signals_blocked():
                failure = self._explain(error)
                self._undo()
            raise failure from error.__cause__
        channel.close()
        return recorder.record

    def _start(self, reason: str) -> tuple[Recorder, ParentEnd]:
        # A signal between two of these steps would lose track of a directory or a process.
        with signals_blocked():
            request = self._request
            if request.changes:
                request.changes.place.make()
            record = create_record(
                request.image,
                self._mode,
                reason,
                request.origin,
                upper=request.changes.name if request.changes else None,
            )
            recorder = self._recorder = Recorder(record)
            job = ServerJob(
                record,
                self._request.open_device,
                self._mountpoint is not None,
                self._request.log_level,
                self._request.common_log,
            )
            server, channel = fork_server(job, foreground=self._request.foreground)
            self._channel = ParentEnd(channel)
            recorder.record = dataclasses.replace(
                record,
                pid=server.pid,
                pid_start_time=server.start_time,
                mountpoint=str(self._mountpoint or ""),
            )
            # Of two commands for one mount point that got here, the first to save wins.
            with exclusive_records():
                if self._mountpoint:
                    preflight.check_claim(recorder.record)
                recorder.note()
        return recorder, self._channel

    def _expose(self, recorder: Recorder, channel: ParentEnd, ready: Ready) -> None:
        place = self._front.prepare(recorder, ready)
        if not channel.expose(place):
            raise died(recorder.record)
        self._front.expose(recorder)
        if self._mountpoint:
            if ready.notice:
                logger.info("%s", ready.notice)
            grows = bool(self._request.changes and self._request.changes.size)
            if ready.writable:
                journal = self._request.journal
                preparing.prepare(recorder.record, ready, journal=journal, grows=grows)
            self._front.mount(recorder, self._mountpoint, ready)
            if grows:
                preparing.grow_mounted(recorder.record, self._mountpoint, ready)

    def _explain(self, error: BaseException) -> BaseException:
        """A read that failed in the kernel's hands shows as a bare EIO; the log knows why."""
        if not isinstance(error, FormatError) or self._recorder is None:
            return error
        reason = last_trouble(self._recorder.record)
        return FormatError(f"{error.message}: {reason}", hint=error.hint) if reason else error

    def _undo(self) -> None:
        if self._recorder is not None:
            self._undo_mount(self._recorder.record)
        if self._request.changes:
            self._request.changes.place.take_back()

    def _undo_mount(self, record: MountRecord) -> None:
        try:
            unmount_ours(record)
        except HybridError as error:
            logger.warning("%s", error)
        self._front.abandon(record)
        if self._channel:
            # The server takes this for our end, and ends itself.
            self._channel.close()
        if record.writable:
            with contextlib.suppress(HybridError):
                wait_flushed(record, _STOP_SECONDS)
        else:
            record.server.wait_gone(_STOP_SECONDS)
        force_end(record)


def died(record: MountRecord) -> Exception:
    """What to tell of a server, a child of ours, that ended without a word."""
    _, status = os.waitpid(record.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    kept = record.directory.parent / f"failed-{record.id}.log"
    if code < 0:
        number = signal.Signals(-code)
        if number not in _CRASHES:
            return SystemSupportError(f"the server was killed by {number.name} while it started")
        with contextlib.suppress(OSError):
            record.log.rename(kept)
        return RuntimeError(f"the server crashed while it started ({number.name}); see {kept}")
    last = _last_line(record.log)
    with contextlib.suppress(OSError):
        record.log.rename(kept)
    return RuntimeError(f"the server failed while it started: {last}; its log is {kept}")


def last_trouble(record: MountRecord) -> str:
    """What the server of a mount has said last, if that was an error; else ""."""
    said = _last_line(record.log)
    return said.partition(": ")[2] if " ERROR " in said else ""


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM undoes what was begun, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Until the end of the block no SIGINT or SIGTERM interrupts a step."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Freezing a mounted file system for a moment, so that its disk is as if it had been unmounted.

FIFREEZE and FITHAW (linux/fs.h): everything dirty is written, the journal is emptied, and whoever
writes waits until the thaw. A frozen file system that is never thawed would be a trap for all its
users. So a child freezes and thaws: it ignores signals, and thaws when we say so, when we are gone,
or after a bound, whatever comes first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from hybrid.errors import (
    BusyError,
    HybridError,
    PermissionNeededError,
    SystemSupportError,
    TimeoutExpiredError,
    UnsupportedError,
)

_FIFREEZE = 0xC0045877
_FITHAW = 0xC0045878
_WRITE_BACK_SECONDS = 600.0
"""How long what is dirty may take to be written, before the freeze holds."""
_FROZEN_SECONDS = 30.0
"""How long others may have to wait at most."""
_MAX_DESCRIPTOR = (1 << 31) - 1


@contextlib.contextmanager
def frozen(
    mountpoint: Path, seconds: float = _FROZEN_SECONDS, *, device: int | None = None
) -> Iterator[None]:
    """Within the block the file system at ``mountpoint`` is frozen. Takes root.

    ``device`` is its number (st_dev); another file system is left alone (BusyError). Raises
    TimeoutExpiredError if the block takes longer than ``seconds``: what was done in it then was not
    done on a frozen file system. Also PermissionNeededError, BusyError (frozen by somebody else),
    UnsupportedError (it cannot be frozen) and SystemSupportError.
    """
    guard = _Guard(mountpoint, seconds, device)
    guard.wait_frozen()
    try:
        yield
    except BaseException:
        with contextlib.suppress(HybridError):
            guard.thaw()
        raise
    guard.thaw()


class _Guard:
    """The child, and our end of the pipes to it."""

    def __init__(self, mountpoint: Path, seconds: float, device: int | None) -> None:
        self._mountpoint = mountpoint
        self._seconds = seconds
        order_reader, self._order = os.pipe()
        self._answer, answer_writer = os.pipe()
        self._is_silent = False
        self._pid = os.fork()
        if self._pid == 0:
            _run_child(mountpoint, order_reader, answer_writer, seconds, device)
        os.close(order_reader)
        os.close(answer_writer)

    def wait_frozen(self) -> None:
        """Raises what is told in ``frozen``; then nothing is frozen by us, nor will be for long."""
        try:
            number = self._read_answer(_WRITE_BACK_SECONDS)
        except BaseException:
            with contextlib.suppress(HybridError):
                self._end()
            raise
        if number:
            self._end()
            if number == errno.ECHILD:
                _thaw(self._mountpoint)
            raise _freeze_error(number, self._mountpoint)

    def thaw(self) -> None:
        """Raises TimeoutExpiredError if it was not frozen until now, and SystemSupportError."""
        number = self._end()
        if number == errno.ECHILD:
            _thaw(self._mountpoint)
            raise SystemSupportError(
                f"the process that kept {self._mountpoint} frozen was killed", hint="try again"
            )
        if number:
            raise _too_long(self._mountpoint, self._seconds)

    def _end(self) -> int:
        # A word, not only an end: children of ours may have inherited this end of the pipe.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._order, b"thaw")
        os.close(self._order)
        try:
            return self._read_answer(self._seconds + 5)
        finally:
            os.close(self._answer)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, os.WNOHANG if self._is_silent else 0)

    def _read_answer(self, seconds: float) -> int:
        """One byte: 0, or an errno; ECHILD if the child is gone without one."""
        if not select.select([self._answer], [], [], seconds)[0]:
            self._is_silent = True
            raise TimeoutExpiredError(
                f"{self._mountpoint} cannot be frozen within {seconds:g} seconds",
                hint="what was written to it takes too long to reach its disk",
            )
        found = os.read(self._answer, 1)
        return found[0] if found else errno.ECHILD


def _thaw(mountpoint: Path) -> None:
    """Whatever was frozen there must not stay so. It may have been thawed already."""
    with contextlib.suppress(OSError):
        directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, _FITHAW, 0)
        finally:
            os.close(directory)


def _run_child(
    mountpoint: Path, order: int, answer: int, seconds: float, device: int | None
) -> None:
    """Never returns. Holds nothing of the parent but the pipes."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        for first, last in _gaps(order, answer):
            os.closerange(first, last)
        os.write(answer, bytes([_freeze_until(mountpoint, order, answer, seconds, device)]))
        code = 0
    finally:
        os._exit(code)


def _freeze_until(
    mountpoint: Path, order: int, answer: int, seconds: float, device: int | None
) -> int:
    """Freeze, say so, wait for the end of ``order``, thaw. 0, or an errno: it went wrong."""
    try:
        directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        if device not in (None, os.fstat(directory).st_dev):
            return errno.ENODEV
        fcntl.ioctl(directory, _FIFREEZE, 0)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        with contextlib.suppress(BrokenPipeError):
            os.write(answer, b"\0")
        in_time = bool(select.select([order], [], [], seconds)[0])
    finally:
        fcntl.ioctl(directory, _FITHAW, 0)
    return 0 if in_time else errno.ETIME


def _gaps(*kept: int) -> list[tuple[int, int]]:
    edges = [2, *sorted(kept), _MAX_DESCRIPTOR]
    return [(a + 1, b) for a, b in pairwise(edges)]


def _too_long(mountpoint: Path, seconds: float) -> TimeoutExpiredError:
    return TimeoutExpiredError(
        f"{mountpoint} was thawed after {seconds:g} seconds, before the work on it was done",
        hint="try again when the disk is less busy",
    )


def _freeze_error(number: int, mountpoint: Path) -> HybridError:
    what = f"cannot freeze the file system at {mountpoint}: {os.strerror(number)}"
    if number in (errno.EPERM, errno.EACCES):
        return PermissionNeededError(what, hint="that takes root")
    if number == errno.ENODEV:
        return BusyError(f"{mountpoint} is not mounted any more")
    if number == errno.EBUSY:
        return BusyError(what, hint="somebody else has frozen it")
    if number in (errno.EOPNOTSUPP, errno.ENOTTY):
        return UnsupportedError(what)
    return SystemSupportError(what)

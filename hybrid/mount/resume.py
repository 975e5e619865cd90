"""Giving a mount whose server died a new one: reads that wait since then go on.

Only in mode tcmu, where the disk stays in the kernel without its server. The record says how to
open the image; the new server must find the same content, and takes the ring over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import signal
from collections.abc import Callable

from hybrid.block import configfs
from hybrid.errors import (
    FormatError,
    HybridError,
    NotFoundError,
    SystemSupportError,
    UnsupportedError,
)
from hybrid.mount.attach import died, signals_blocked, terminate_as_interrupt
from hybrid.mount.channel import ParentEnd, Ready
from hybrid.mount.daemon import fork_server
from hybrid.mount.last_flush import wait_flushed
from hybrid.mount.origin import OpenDevice
from hybrid.mount.server import ServerJob
from hybrid.mount.state import MountRecord, claim, read_record
from hybrid.mount.tcmu_front import target_of

logger = logging.getLogger(__name__)

_STOP_SECONDS = 5.0

OpenerOf = Callable[[MountRecord], OpenDevice]
"""How to open the image that a record tells of."""


def resume(
    record: MountRecord, opener_of: OpenerOf, *, log_level: int = logging.INFO
) -> MountRecord:
    """Start a new server if the old one is dead. Returns the record as it is then.

    Call it outside any trio run, in a process with one thread: it forks. On any error everything
    stays as it was, and may be tried again. Raises UnsupportedError (mode fuse), NotFoundError
    (the mount or its disk is gone), FormatError (the image is not the same any more), and what
    opening an image raises.
    """
    with claim(record) as current:
        if current is None:
            raise NotFoundError(f"mount {record.id} is gone")
        _check(current)
        if current.server.is_alive():
            logger.info("server %d of mount %s is alive", current.pid, current.id)
            return current
        with terminate_as_interrupt():
            return _Takeover(current).run(opener_of(current), log_level)


def _check(record: MountRecord) -> None:
    if record.mode != "tcmu":
        raise UnsupportedError(
            f"mount {record.id} is of mode {record.mode or '?'}: its disk went with its server",
            hint=f"`hybrid umount {record.id}`, then mount again",
        )
    if not record.ready:
        raise NotFoundError(
            f"mount {record.id} was never finished", hint=f"`hybrid umount {record.id}` cleans up"
        )
    configfs.find_uio(target_of(record))


class _Takeover:
    def __init__(self, record: MountRecord) -> None:
        self._old = record
        self._record = record

    def run(self, open_device: OpenDevice, log_level: int) -> MountRecord:
        channel: ParentEnd | None = None
        try:
            channel = self._start(open_device, log_level)
            ready = channel.receive_ready()
            if ready is None:
                raise died(self._record)
            self._check_same(ready)
            if not channel.expose(configfs.find_uio(target_of(self._old))):
                raise died(self._record)
            with signals_blocked():
                self._record.save()
                channel.send_attached()
        except BaseException:
            with signals_blocked():
                self._undo(channel)
            raise
        channel.close()
        return self._record

    def _start(self, open_device: OpenDevice, log_level: int) -> ParentEnd:
        with signals_blocked():
            job = ServerJob(
                self._old, open_device, bool(self._old.mountpoint), log_level, takes_over=True
            )
            server, channel = fork_server(job, foreground=False)
            self._record = dataclasses.replace(
                self._old, pid=server.pid, pid_start_time=server.start_time
            )
            return ParentEnd(channel)

    def _check_same(self, ready: Ready) -> None:
        old = self._old
        if (ready.size, ready.digest, ready.identity) != (old.size, old.digest, old.identity):
            raise FormatError(
                f"{old.image} is not the image any more that mount {old.id} was made from",
                hint=f"put the old one back, or `hybrid umount {old.id}`",
            )

    def _undo(self, channel: ParentEnd | None) -> None:
        if channel is None:
            return
        # The server takes this for our end, and gives the disk up again.
        channel.close()
        server = self._record.server
        if self._old.writable:
            with contextlib.suppress(HybridError):
                wait_flushed(self._record, _STOP_SECONDS)
        if not server.wait_gone(_STOP_SECONDS):
            server.send(signal.SIGKILL)
            server.wait_gone(_STOP_SECONDS)
        self._old.save()


def wait_for_end(record: MountRecord) -> None:
    """Return when the mount has been taken away. Raises SystemSupportError if its server dies.

    For a supervisor, which then resumes. SIGTERM and SIGINT end the waiting (KeyboardInterrupt),
    and nothing else.
    """
    with terminate_as_interrupt():
        while True:
            _wait_process(record.pid, record)
            current = read_record(record.directory)
            if current is None:
                return
            if current.pid == record.pid:
                raise SystemSupportError(
                    f"server {record.pid} of mount {record.id} died",
                    hint=f"`hybrid resume {record.id}` starts another; the log is {record.log}",
                )
            record = current  # somebody else has resumed it


def _wait_process(pid: int, record: MountRecord) -> None:
    if not record.server.is_alive():
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if record.server.is_alive():
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll()
    finally:
        os.close(descriptor)

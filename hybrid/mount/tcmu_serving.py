"""Mode tcmu in the server: the ring of one TCMU device, and a look at the table of mounts.

No handle is closed here when the disk is unmounted, as FUSE has it. So the server watches the
table of mounts, and when its own mount has gone it starts ``hybrid umount`` for the rest: taking a
SCSI disk away waits for answers of this process.
"""

from __future__ import annotations

import logging
import os
import select
from pathlib import Path

import trio

from hybrid.block import configfs
from hybrid.block.names import Target, wwn_of
from hybrid.block.netlink import serve_events
from hybrid.block.scsi import LogicalUnit
from hybrid.block.server import RingServer
from hybrid.block.uio import Uio
from hybrid.mount.mountinfo import read_mountinfo
from hybrid.mount.paths import is_mounted
from hybrid.mount.serving import Serving, ServingTask
from hybrid.mount.state import is_claimed, read_record

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 0.5
"""From a change of the table of mounts to a look whether ours has gone."""
_MOST_SECONDS = 60.0
"""Between two tries to take a disk away that is unmounted, but still used elsewhere."""


class TcmuServing(Serving):
    def __init__(self, task: ServingTask) -> None:
        super().__init__(task)
        self._target = Target(task.record.id, wwn_of(task.record.id))
        self._uio: Uio | None = None
        self._server: RingServer | None = None

    @property
    def in_use(self) -> bool:
        """The device in the kernel has to be taken away by a command, used or not."""
        return self._uio is not None

    def counters(self) -> dict[str, int]:
        return {"handles": 0, "read_errors": self._server.read_errors if self._server else 0}

    def open(self, place: str, *, takes_over: bool) -> None:
        unit = LogicalUnit(
            size=self.task.device.size,
            writable=self.task.device.writable,
            write_cache=self.task.device.writable,
            wwn=self._target.wwn,
            serial=self._target.serial,
        )
        # Nobody else can have the uio device open: that makes what follows ours alone.
        self._uio = Uio.open(place)
        if takes_over:
            # Commands that the ring's last server left are tried again; some may have been
            # answered by halves, since answers are not in the order of the ring.
            configfs.block_device(self._target, True)
            configfs.reset_ring(self._target, 1)
        self._server = RingServer(self.task.device, unit, self._uio)
        if takes_over:
            configfs.block_device(self._target, False)

    async def run(self) -> None:
        assert self._server is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_events, self._target)
            nursery.start_soon(self._watch_mounts)
            await self._server.serve()
            logger.info("the TCMU device is gone")
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._uio is not None:
            self._uio.close()

    async def _watch_mounts(self) -> None:
        """Once the mount has stood: whenever it is seen to be gone, say so, less and less often."""
        with MountTable() as table:
            pause = _GRACE_SECONDS
            while True:
                await table.wait_changed()
                while self._has_lost_its_mount():
                    await trio.sleep(pause)
                    # A ``hybrid umount`` that is at work takes the disk away itself.
                    if self._has_lost_its_mount() and not is_claimed(self.task.record):
                        self.task.on_unmounted()
                        pause = min(2 * pause + 1, _MOST_SECONDS)

    def _has_lost_its_mount(self) -> bool:
        record = read_record(self.task.record.directory)
        return bool(
            record
            and record.ready
            and record.mountpoint
            and not is_mounted(record, read_mountinfo())
        )


class MountTable:
    """/proc/self/mountinfo, which tells of changes by EPOLLPRI (proc(5)).

    It can always be read, so that epoll, nested in trio's, has to wait for the priority event.
    """

    def __enter__(self) -> MountTable:
        self._table = os.open(Path("/proc/self/mountinfo"), os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._table, select.EPOLLPRI)
        self._is_new = True
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        os.close(self._table)

    async def wait_changed(self) -> None:
        """Return at the first call, and then after each change of the table.

        A server that takes over may come too late to see its mount go.
        """
        if self._is_new:
            self._is_new = False
            return
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        self._epoll.poll(0)

"""Mode fuse in the server: one FUSE session with one file, the disk."""

from __future__ import annotations

import logging

from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.session import close_session, open_session, run_session
from hybrid.mount.serving import Serving, ServingTask

logger = logging.getLogger(__name__)


class FuseServing(Serving):
    def __init__(self, task: ServingTask) -> None:
        super().__init__(task)
        self._disk = DiskFilesystem(task.device, task.on_release)
        self._is_open = False

    @property
    def size(self) -> int:
        return self._disk.size

    @property
    def in_use(self) -> bool:
        return self._disk.open_handles > 0

    def counters(self) -> dict[str, int]:
        disk = self._disk
        return {
            "handles": disk.open_handles,
            "read_errors": disk.read_errors,
            "write_errors": disk.write_errors,
        }

    def open(self, place: str, *, takes_over: bool) -> None:
        open_session(self._disk, self.task.record.fuse_directory, f"hybrid:{self.task.record.id}")
        self._is_open = True

    async def run(self) -> None:
        await run_session()
        logger.info("the FUSE mount is gone")

    def close(self) -> None:
        if self._is_open:
            close_session()

"""An in-memory Device behind hybrid's FUSE file system: the cost of the front end alone.

    python -m bench.server DISK DIRECTORY      serves DIRECTORY/disk until the FUSE mount goes away

Prints "ready" once the file is there. With HYBRID_BENCH_PROFILE set, a profile of the whole run is
written to the file of that name at the end.
"""

from __future__ import annotations

import cProfile
import os
import sys
from pathlib import Path

import trio

from hybrid.core.device import Buffer, Device, check_range
from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.session import close_session, open_session, run_session


class MemoryDevice(Device):
    """A disk in memory. Reads are views, without a copy."""

    def __init__(self, data: bytes) -> None:
        self.name = "memory"
        self.size = len(data)
        self._view = memoryview(data)

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        check_range(offset, length, self.size, self.name)
        return self._view[offset : offset + length]

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)


async def serve(device: Device, directory: Path) -> None:
    """Serve until the FUSE mount is taken away."""
    open_session(DiskFilesystem(device), directory, "hybrid:bench")
    try:
        print("ready", flush=True)
        await run_session()
    finally:
        close_session()


def main() -> None:
    disk, directory = map(Path, sys.argv[1:])
    device = MemoryDevice(disk.read_bytes())
    profile_file = os.environ.get("HYBRID_BENCH_PROFILE")
    if not profile_file:
        trio.run(serve, device, directory)
        return
    profile = cProfile.Profile()
    profile.runcall(trio.run, serve, device, directory)
    profile.dump_stats(profile_file)


if __name__ == "__main__":
    main()

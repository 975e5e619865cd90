"""A Device behind one of hybrid's front ends, and nothing else: what the front end alone costs.

    python -m bench.server fuse DEVICE DIRECTORY    serves DIRECTORY/disk
    python -m bench.server tcmu DEVICE ID UIO LOOK  serves the TCMU target ID through /dev/UIO

until that is taken away. DEVICE is a name for ``bench.devices``. LOOK is how many nanoseconds to
look for the next command before sleeping; "-" as hybrid has it. Prints "ready" once it serves. With
HYBRID_BENCH_PROFILE set, a profile of the whole run goes to the file of that name at the end.
"""

from __future__ import annotations

import cProfile
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from bench.devices import open_device
from hybrid.block.names import Target, wwn_of
from hybrid.block.scsi_unit import LogicalUnit
from hybrid.block.server import RingServer
from hybrid.block.uio import Uio
from hybrid.core.device import Device
from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.session import close_session, open_session, run_session


async def serve_fuse(device: Device, directory: str) -> None:
    """Serve until the FUSE mount is taken away."""
    open_session(DiskFilesystem(device), Path(directory), "hybrid:bench")
    try:
        print("ready", flush=True)
        await run_session()
    finally:
        close_session()


async def serve_tcmu(device: Device, target_id: str, uio_name: str, look: str) -> None:
    """Serve until the TCMU device is taken away."""
    target = Target(target_id, wwn_of(target_id))
    unit = LogicalUnit(size=device.size, wwn=target.wwn, serial=target.serial)
    uio = Uio.open(uio_name)
    server = RingServer(device, unit, uio, spin_ns=None if look == "-" else int(look))
    print("ready", flush=True)
    await server.serve()
    server.close()
    uio.close()


async def serve(arguments: Sequence[str]) -> None:
    front, name, *places = arguments
    device = await open_device(name)
    await (serve_fuse if front == "fuse" else serve_tcmu)(device, *places)
    await device.aclose()


def main() -> None:
    profile_file = os.environ.get("HYBRID_BENCH_PROFILE")
    if not profile_file:
        trio.run(serve, sys.argv[1:])
        return
    profile = cProfile.Profile()
    profile.runcall(trio.run, serve, sys.argv[1:])
    profile.dump_stats(profile_file)


if __name__ == "__main__":
    main()

"""Real TCMU disks for tests in the guest: a target, and a forked process that serves it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trio
from support.memory_device import MemoryDevice
from support.mounting import poll_until

from hybrid.block import configfs, names
from hybrid.block.configfs import Target
from hybrid.block.scsi_unit import LogicalUnit
from hybrid.block.server import RingServer
from hybrid.block.uio import Uio
from hybrid.core.bounded import run_bounded

MIB = 1 << 20
SIZE = 16 * MIB
SECONDS = 10.0
"""Bound of every step."""


def new_target() -> Target:
    target_id = os.urandom(4).hex()
    return Target(target_id, names.wwn_of(target_id))


def forked(work: Callable[[], None]) -> int:
    """Run ``work`` in a child; its pid. It exits with 0, or 1 after an exception."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int, seconds: float = SECONDS) -> int:
    """Wait for a child of ours, killed if it takes longer; its exit code or -signal."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"process {pid} did not end within {seconds:g} s")
        time.sleep(0.01)


async def serve(target: Target, uio_name: str) -> None:
    """Serve zeros from memory until the device is gone."""
    uio = Uio.open(uio_name)
    server = RingServer(MemoryDevice(SIZE), unit_of(target), uio)
    await server.serve()
    server.close()
    uio.close()


def unit_of(target: Target) -> LogicalUnit:
    return LogicalUnit(
        size=SIZE, wwn=target.wwn, serial=target.serial, writable=True, write_cache=True
    )


def disk_at(address: str) -> Path:
    """The node of the disk at a SCSI address, found without the code under test."""
    block = Path("/sys/bus/scsi/devices") / address / "block"
    poll_until(lambda: any(block.glob("sd*")), f"a disk at {address}")
    (found,) = block.glob("sd*")
    node = Path("/dev") / found.name
    poll_until(lambda: _can_be_opened(node), f"{node}")
    return node


def _can_be_opened(node: Path) -> bool:
    """The kernel makes the node a moment before the disk behind it answers (ENXIO till then)."""
    try:
        os.close(os.open(node, os.O_RDONLY))
    except OSError:
        return False
    return True


class LiveTarget:
    """A target with a handler of its own."""

    def __init__(self) -> None:
        self.target = new_target()
        self.uio = configfs.create_backstore(self.target, SIZE, read_only=False)
        self.handler = forked(lambda: trio.run(serve, self.target, self.uio))

    def export(self) -> str:
        """The SCSI address."""
        address: str = run_bounded("export", lambda: configfs.export(self.target), SECONDS)
        return address

    def disk(self, address: str) -> Path:
        return disk_at(address)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.handler, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.handler, 0)

    def clean_up(self) -> None:
        """By force, and without the code under test."""
        target = self.target
        self.kill()
        pid = forked(lambda: _remove(target))
        deadline = time.monotonic() + SECONDS
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline, f"cannot remove {target}"
            for name, value in (("block_dev", "0"), ("reset_ring", "2")):
                with contextlib.suppress(OSError):
                    (target.backstore / "action" / name).write_text(value)
            time.sleep(0.1)


def _remove(target: Target) -> None:
    with contextlib.suppress(OSError):
        (target.lun / target.name).unlink()
    for path in (
        target.lun,
        target.port_group,
        target.fabric,
        target.fabric.parent,
        target.backstore,
        target.hba,
    ):
        with contextlib.suppress(OSError):
            path.rmdir()


def leftovers() -> list[str]:
    """Whatever is in configfs; the tests begin and end with nothing."""
    root = names.ROOT
    found = [*root.glob("core/user_*"), *root.glob("loopback"), *root.glob("loopback/naa.*")]
    return sorted(str(path.relative_to(root)) for path in found)


@contextlib.contextmanager
def live_target() -> Iterator[LiveTarget]:
    made = LiveTarget()
    try:
        yield made
    finally:
        made.clean_up()

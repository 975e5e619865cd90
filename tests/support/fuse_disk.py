"""A MemoryDevice served through FUSE by a process of its own, which a test can give orders."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import trio
from support.memory_device import MemoryDevice

from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.session import close_session, open_session, run_session
from hybrid.mount.syscalls import MNT_DETACH, umount2


class FuseDisk:
    """The test's side. Its orders go past the kernel: they tell what has really arrived."""

    def __init__(self, directory: Path, orders: Connection) -> None:
        self.file = directory / "fuse" / "disk"
        self._directory = directory
        self._orders = orders

    def content(self) -> bytes:
        """All bytes of the Device."""
        answer: bytes = self._ask("content")
        return answer

    def calls(self) -> list[tuple[str, int, int]]:
        """What the Device was asked for since the last call, reads left out."""
        answer: list[tuple[str, int, int]] = self._ask("calls")
        return answer

    def waiting(self) -> int:
        answer: int = self._ask("waiting")
        return answer

    def set(self, **faults: Any) -> None:
        """Attributes of the MemoryDevice from now on; all others of its faults end."""
        self._ask("set", **faults)

    def log(self) -> str:
        return (self._directory / "log").read_text()

    def _ask(self, order: str, **values: Any) -> Any:
        self._orders.send((order, values))
        assert self._orders.poll(20), f"no answer to {order}"
        return self._orders.recv()


@contextmanager
def serving(directory: Path, size: int) -> Iterator[FuseDisk]:
    """A disk of zeros. Nothing of it is left after the block."""
    (directory / "fuse").mkdir()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(directory, size, theirs), daemon=True
    )
    process.start()
    theirs.close()
    disk = FuseDisk(directory, ours)
    try:
        assert ours.poll(20), "the server does not start"
        assert ours.recv() == "serving"
        yield disk
    finally:
        umount2(directory / "fuse", MNT_DETACH)
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(directory: Path, size: int, orders: Connection) -> None:
    logging.basicConfig(filename=directory / "log", force=True)
    device = MemoryDevice(size)
    open_session(DiskFilesystem(device), directory / "fuse", "hybrid:test")
    try:
        trio.run(_run, device, orders)
    finally:
        close_session()
        logging.shutdown()


async def _run(device: MemoryDevice, orders: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, device, orders)
        orders.send("serving")
        await run_session()
        nursery.cancel_scope.cancel()


async def _obey(device: MemoryDevice, orders: Connection) -> None:
    while True:
        await trio.lowlevel.wait_readable(orders.fileno())
        try:
            order, values = orders.recv()
        except EOFError:
            return
        orders.send(_carry_out(device, order, values))


def _carry_out(device: MemoryDevice, order: str, values: dict[str, Any]) -> Any:
    match order:
        case "content":
            return bytes(device.content)
        case "calls":
            made = [call for call in device.calls if call[0] != "read"]
            device.calls.clear()
            return made
        case "waiting":
            return device.waiting
    device.gate.set()
    device.gate = trio.Event()
    faults: dict[str, Any] = {"failing": [], "slow": [], "is_full": False, "bug": None}
    for name, value in {**faults, **values}.items():
        setattr(device, name, value)
    return None

"""Targets in the real configfs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support.live_target import (
    MIB,
    SIZE,
    LiveTarget,
    exit_code,
    forked,
    leftovers,
    live_target,
    new_target,
    unit_of,
)
from support.memory_device import MemoryDevice
from support.mounting import poll_until

from hybrid.block import configfs
from hybrid.block.configfs import Target
from hybrid.block.names import PARAMETERS
from hybrid.block.server import RingServer
from hybrid.block.teardown import take_down
from hybrid.block.uio import Uio
from hybrid.errors import BusyError, NotFoundError, TimeoutExpiredError

pytestmark = pytest.mark.guest


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    assert leftovers() == []
    yield
    assert leftovers() == []


@pytest.fixture
def live() -> Iterator[LiveTarget]:
    with live_target() as made:
        yield made


def read_attribute(target: Target, name: str) -> str:
    return (target.backstore / name).read_text().strip()


def test_the_kernel_has_what_was_written(live: LiveTarget) -> None:
    target = live.target
    expected = {
        "attrib/dev_config": f"hybrid/{target.id}",
        "attrib/dev_size": str(SIZE),
        "attrib/hw_block_size": "512",
        "attrib/hw_max_sectors": "2048",
        "attrib/max_data_area_mb": "64",
        "attrib/nl_reply_supported": "-1",
        "attrib/cmd_time_out": "0",
        "attrib/emulate_write_cache": "1",
        "wwn/vpd_unit_serial": f"T10 VPD Unit Serial Number: {target.wwn}",
        "action/block_dev": "unblocked",
        "enable": "1",
    }
    assert {name: read_attribute(target, name) for name in expected} == expected
    assert Path(f"/sys/class/uio/{live.uio}/name").read_text().strip() == target.uio_label


def test_a_disk_comes_and_goes(live: LiveTarget) -> None:
    target = live.target
    with pytest.raises(NotFoundError):
        configfs.address(target)
    address = live.export()
    assert configfs.address(target) == address
    assert configfs.list_targets() == [target]
    node = live.disk(address)
    assert node.read_bytes() == bytes(SIZE)
    with pytest.raises(BusyError, match="in use"):
        configfs.create_backstore(target, MIB, read_only=True)
    with pytest.raises(BusyError, match="in use"):
        configfs.export(target)
    with pytest.raises(BusyError):
        configfs.remove_backstore(target)
    assert node.read_bytes() == bytes(SIZE)
    take_down(target, lambda: True, 10)
    assert exit_code(live.handler) == 0
    assert configfs.list_targets() == []
    take_down(target, lambda: True, 10)  # idempotent


def test_the_device_is_blocked_and_unblocked(live: LiveTarget) -> None:
    configfs.block_device(live.target, True)
    configfs.block_device(live.target, True)
    assert read_attribute(live.target, "action/block_dev") == "blocked"
    configfs.block_device(live.target, False)
    assert read_attribute(live.target, "action/block_dev") == "unblocked"


def test_a_blocked_netlink_holds_nothing_up() -> None:
    """Programs block it while they restart; with nl_reply_supported=-1 there is no EAGAIN."""
    target = new_target()
    (PARAMETERS / "block_netlink").write_text("1")
    try:
        configfs.create_backstore(target, MIB, read_only=True)
    finally:
        (PARAMETERS / "block_netlink").write_text("0")
        configfs.remove_backstore(target)


def start_reading(node: Path) -> subprocess.Popen[str]:
    """Endless reads past the page cache; returned when they run."""
    command = ["dd", f"if={node}", "of=/dev/null", "bs=64k", "count=1000000", "iflag=direct"]
    looped = ["sh", "-c", f"while {' '.join(command)}; do :; done"]
    reader = subprocess.Popen(looped, stderr=subprocess.PIPE, text=True)
    reads = Path(f"/sys/block/{node.name}/stat")
    before = reads.read_text().split()[0]
    poll_until(lambda: int(reads.read_text().split()[0]) > int(before) + 4, "reads")
    return reader


def wait_in_flight(node: Path) -> None:
    """Until a read hangs: nobody answers any more."""
    inflight = Path(f"/sys/block/{node.name}/inflight")
    poll_until(lambda: inflight.read_text().split()[0] != "0", "a read in flight")


@pytest.mark.parametrize("blocked", [False, True], ids=["", "blocked"])
def test_teardown_takes_seconds_after_the_handler_was_killed(
    live: LiveTarget, blocked: bool
) -> None:
    node = live.disk(live.export())
    Path(f"/sys/block/{node.name}/device/timeout").write_text("2147483")
    reader = start_reading(node)
    os.kill(live.handler, signal.SIGKILL)
    os.waitpid(live.handler, 0)
    if blocked:
        configfs.block_device(live.target, True)
    else:
        wait_in_flight(node)
    start = time.monotonic()
    take_down(live.target, lambda: False, 10)
    assert time.monotonic() - start < 5
    _, told = reader.communicate(timeout=10)
    assert "Input/output error" in told
    assert configfs.list_targets() == []


def test_a_handler_that_is_stopped_holds_the_removal_up_until_it_is_ended(
    live: LiveTarget,
) -> None:
    node = live.disk(live.export())
    reader = start_reading(node)
    os.kill(live.handler, signal.SIGSTOP)
    wait_in_flight(node)
    with pytest.raises(TimeoutExpiredError, match="did not remove"):
        take_down(live.target, lambda: True, 0.5)
    assert configfs.list_targets() == [live.target]
    live.kill()
    take_down(live.target, lambda: False, 10)
    assert "Input/output error" in reader.communicate(timeout=10)[1]


def test_two_processes_remove_the_same_target(live: LiveTarget) -> None:
    live.export()
    removers = [forked(lambda: take_down(live.target, lambda: True, 10)) for _ in range(2)]
    assert [exit_code(pid, 20) for pid in removers] == [0, 0]


async def _come_and_go(target: Target) -> None:
    """A whole life in one process: made, served, exported, removed."""
    uio = Uio.open(configfs.create_backstore(target, SIZE, read_only=False))
    server = RingServer(MemoryDevice(SIZE), unit_of(target), uio, spin_ns=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        await trio.to_thread.run_sync(configfs.export, target)
        await trio.to_thread.run_sync(configfs.unexport, target)
        configfs.remove_backstore(target)
    assert server.commands > 0


def test_fifty_come_and_go_at_once() -> None:
    reader, writer = os.pipe()

    def life() -> None:
        os.close(writer)
        os.read(reader, 1)  # all begin at once: when the last writer is closed
        trio.run(_come_and_go, new_target())

    children = [forked(life) for _ in range(50)]
    os.close(reader)
    os.close(writer)
    start = time.monotonic()
    assert [exit_code(pid, 100) for pid in children] == [0] * 50
    print(f"fifty devices: {time.monotonic() - start:.1f} s")

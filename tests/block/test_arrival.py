"""Waiting for disks, over a fake sysfs. The node is a loop device's: a block device can be opened.

Real arrivals are in test_arrival_guest.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from hybrid.block import arrival
from hybrid.block.arrival import wait_for_disk
from hybrid.errors import PermissionNeededError, SystemSupportError, TimeoutExpiredError

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop0").is_block_device(),
    reason="needs root and a block device",
)

ADDRESS = "3:0:1:0"
LOOP = os.makedev(7, 0)


class Machine:
    """A sysfs with one SCSI device, and a /dev."""

    def __init__(self, directory: Path) -> None:
        self.scsi = directory / "scsi"
        self.dev = directory / "dev"
        self.dev.mkdir()
        (self.scsi / ADDRESS).mkdir(parents=True)

    def add_disk(self, name: str = "sdq", size: str = "2048", number: str = "7:0") -> None:
        block = self.scsi / ADDRESS / "block" / name
        block.mkdir(parents=True)
        (block / "size").write_text(size + "\n")
        (block / "dev").write_text(number + "\n")

    def add_node(self, name: str = "sdq", number: int = LOOP) -> Path:
        os.mknod(self.dev / name, stat.S_IFBLK | 0o600, number)
        return self.dev / name


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(arrival, "SCSI_DEVICES", made.scsi)
    monkeypatch.setattr(arrival, "DEV", made.dev)
    return made


@pytest.fixture
def no_uevents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the clock lets it look again."""
    monkeypatch.setattr(arrival, "_subscribe", lambda: None)


async def test_a_disk_that_is_there_is_found_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unneeded() -> None:
        raise AssertionError("subscribed")

    monkeypatch.setattr(arrival, "_subscribe", unneeded)
    machine.add_disk()
    node = machine.add_node()
    assert await wait_for_disk(ADDRESS, 0) == node


async def test_the_name_is_the_one_in_sysfs(machine: Machine) -> None:
    for name in ("sda", "sdz", "sdaa"):
        machine.add_node(name)
    machine.add_disk("sdaa")
    assert await wait_for_disk(ADDRESS, 0) == machine.dev / "sdaa"


async def test_a_disk_that_comes_late(
    machine: Machine, no_uevents: None, autojump_clock: trio.testing.MockClock
) -> None:
    node = machine.add_node()

    async def come() -> None:
        await trio.sleep(3)
        machine.add_disk()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come)
        assert await wait_for_disk(ADDRESS, 10) == node
    assert 3 <= trio.current_time() <= 3.25


async def test_an_event_makes_it_look_at_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()

    class Monitor:
        def fileno(self) -> int:
            return ours.fileno()

        def poll(self, timeout: float) -> None:
            assert timeout == 0
            ours.recv(1)

    monkeypatch.setattr(arrival, "_subscribe", Monitor)
    monkeypatch.setattr(arrival, "_LOOK_SECONDS", 1000.0)
    node = machine.add_node()

    async def come() -> None:
        await trio.testing.wait_all_tasks_blocked()
        machine.add_disk()
        theirs.send(b"\1")

    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            assert await wait_for_disk(ADDRESS, 10) == node


async def test_real_uevents_can_be_subscribed_to() -> None:
    monitor = arrival._subscribe()
    assert monitor is not None
    arrival._drain(monitor)  # with nothing there it does not wait


def test_without_libudev_it_looks_at_sysfs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ImportError("No library named udev")

    monkeypatch.setattr(arrival.pyudev, "Context", missing)
    assert arrival._subscribe() is None


async def test_lost_events_are_survived(machine: Machine) -> None:
    class Monitor:
        def poll(self, timeout: float) -> None:
            raise OSError(105, "No buffer space available")

    arrival._drain(Monitor())


def no_disk(machine: Machine) -> None:
    """The scan found nothing."""


def no_size(machine: Machine) -> None:
    machine.add_disk(size="0")
    machine.add_node()


def half_made(machine: Machine) -> None:
    machine.add_disk(number="")
    machine.add_node()


def no_device(machine: Machine) -> None:
    (machine.scsi / ADDRESS).rmdir()


@pytest.mark.parametrize("prepare", [no_disk, no_size, half_made, no_device])
async def test_no_disk_is_an_error_in_time(
    machine: Machine,
    no_uevents: None,
    autojump_clock: trio.testing.MockClock,
    prepare: Callable[[Machine], None],
) -> None:
    prepare(machine)
    with pytest.raises(TimeoutExpiredError, match="3:0:1:0 within 5 seconds"):
        await wait_for_disk(ADDRESS, 5)
    assert trio.current_time() == 5


async def test_a_node_that_nobody_makes_is_made(
    machine: Machine, no_uevents: None, autojump_clock: trio.testing.MockClock
) -> None:
    machine.add_disk()
    node = await wait_for_disk(ADDRESS, 5)
    assert node == machine.dev / "sdq"
    assert node.stat().st_rdev == LOOP
    assert stat.S_ISBLK(node.stat().st_mode)
    # devtmpfs would have had its chance first
    assert trio.current_time() >= 0.5


async def test_a_node_of_another_device_is_never_returned(
    machine: Machine, no_uevents: None, autojump_clock: trio.testing.MockClock
) -> None:
    machine.add_disk()
    machine.add_node(number=os.makedev(7, 1))
    with pytest.raises(SystemSupportError, match="another device"):
        await wait_for_disk(ADDRESS, 5)
    assert (machine.dev / "sdq").stat().st_rdev == os.makedev(7, 1)


async def test_a_file_in_the_place_of_the_node_is_never_returned(
    machine: Machine, no_uevents: None, autojump_clock: trio.testing.MockClock
) -> None:
    machine.add_disk()
    (machine.dev / "sdq").write_text("")
    with pytest.raises(SystemSupportError, match="another device"):
        await wait_for_disk(ADDRESS, 5)


async def test_a_dev_without_room_for_the_node(
    machine: Machine, no_uevents: None, autojump_clock: trio.testing.MockClock
) -> None:
    machine.add_disk()
    machine.dev.rmdir()
    with pytest.raises(SystemSupportError, match="cannot be made"):
        await wait_for_disk(ADDRESS, 5)


async def test_a_disk_that_may_not_be_opened(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container whose device control group forbids it; root is not refused otherwise."""

    def refused(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    machine.add_disk()
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionNeededError, match="Operation not permitted"):
        await wait_for_disk(ADDRESS, 5)

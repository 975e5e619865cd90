"""Disks of the kernel that come and go."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from support.live_target import LiveTarget, exit_code, forked, leftovers, live_target
from support.mounting import poll_until

from hybrid.block import arrival, configfs
from hybrid.block.arrival import wait_for_disk
from hybrid.block.teardown import take_down

pytestmark = pytest.mark.guest


@pytest.fixture
def live() -> Iterator[LiveTarget]:
    with live_target() as made:
        yield made
    assert leftovers() == []


def find(address: str) -> Path:
    return trio.run(wait_for_disk, address, 10)


def numbers(node: Path) -> tuple[int, str]:
    found = node.stat()
    assert stat.S_ISBLK(found.st_mode)
    return found.st_rdev, f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def test_a_disk_is_found_and_goes_again(live: LiveTarget) -> None:
    address = live.export()
    node = find(address)
    assert numbers(node)[1] == Path(f"/sys/block/{node.name}/dev").read_text().strip()
    with node.open("rb") as disk:
        assert disk.read(4096) == bytes(4096)
    take_down(live.target, lambda: True, 10)
    poll_until(lambda: not Path(f"/sys/block/{node.name}").exists(), "the end of the disk")


def test_events_of_the_kernel_are_enough(live: LiveTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait begins before there is a target, and nothing but events makes it look."""
    monkeypatch.setattr(arrival, "_LOOK_SECONDS", 1000.0)
    subscribed, tell = os.pipe()

    def later() -> None:
        os.read(subscribed, 1)
        configfs.export(live.target)

    exporter = forked(later)
    looks = 0

    def look() -> str:
        nonlocal looks
        looks += 1
        if looks == 2:  # the one after subscribing
            os.write(tell, b"\1")
        found = [path.name for path in Path("/sys/block").glob("sd*")]
        return found[0] if found else ""

    try:
        assert trio.run(arrival._watch, look, 10).startswith("sd")
    finally:
        assert exit_code(exporter) == 0
        os.close(subscribed)
        os.close(tell)
    assert looks >= 3


def test_without_devtmpfs_the_node_is_made(
    live: LiveTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = live.export()
    poll_until(lambda: live.disk(address).exists(), "the disk")
    dev = tmp_path / "dev"
    dev.mkdir()
    monkeypatch.setattr(arrival, "DEV", dev)
    node = find(address)
    assert node.parent == dev
    assert numbers(node) == numbers(live.disk(address))

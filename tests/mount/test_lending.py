"""Disks that are lent to conversions: a process that attaches them, and what others do to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
from support.commands import succeed
from support.ext4_disks import needs_root
from support.mounting import poll_until

from hybrid.build.convert.lower import LowerBlobs
from hybrid.config import load_global_config
from hybrid.errors import BusyError, HybridError, SystemSupportError
from hybrid.mount.lending import fork_lender
from hybrid.mount.lent_disk import LentDisk

pytestmark = needs_root
SIZE = 64 << 20


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A layer with an empty ext4. At the end nothing is left of a disk."""
    monkeypatch.setenv("HYBRID_STATE_DIR", str(tmp_path / "state"))
    raw, layer = tmp_path / "raw", tmp_path / "base"
    raw.touch()
    os.truncate(raw, SIZE)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", raw], check=True)
    succeed("layer", "import", "--no-tar", "--compress", "none", raw, "-o", layer)
    (tmp_path / "scratch").mkdir()
    yield layer
    poll_until(lambda: not [*(tmp_path / "scratch").iterdir()], "the directory is gone")
    assert not records(layer)


def records(base: Path) -> list[Path]:
    return [*base.parent.glob("state/*/state.json")]


def lend(base: Path, use: Callable[[LentDisk], Awaitable[None]]) -> None:
    blobs = LowerBlobs("oci:a:b", load_global_config(None), insecure=False)
    lender = fork_lender("image", blobs, base.parent / "scratch")
    try:
        trio.run(use, LentDisk(lender))
    finally:
        lender.close()


def kill_server(base: Path) -> None:
    (record,) = records(base)
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)


async def fill(disk: LentDisk) -> None:
    async with disk.mounted("ext4") as root:
        file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=root)
        os.write(file, b"x")
        os.close(file)


def test_a_dead_server_is_told_of_once(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def use(disk: LentDisk) -> None:
        await disk.attach([base])
        await fill(disk)
        kill_server(base)
        with pytest.raises(SystemSupportError, match="server of the disk died"):
            await disk.seal()
        await disk.detach()

    lend(base, use)
    assert capfd.readouterr().err == ""


def test_a_dead_server_is_no_damaged_image(base: Path) -> None:
    async def use(disk: LentDisk) -> None:
        await disk.attach([base])
        kill_server(base)
        with pytest.raises(HybridError, match="server of the disk died") as caught:
            await fill(disk)
        assert isinstance(caught.value, SystemSupportError)

    lend(base, use)


def test_a_snapshot_of_others_is_noticed(base: Path) -> None:
    """What it has of a layer would be missing there."""

    async def use(disk: LentDisk) -> None:
        await disk.attach([base])
        await fill(disk)
        await disk.seal()
        await fill(disk)
        (record,) = records(base)
        await trio.to_thread.run_sync(succeed, "snapshot", record.parent.name)
        with pytest.raises(BusyError, match="snapshot"):
            await disk.seal()
        await disk.detach()

    lend(base, use)


def test_two_disks_one_after_the_other(base: Path) -> None:
    async def use(disk: LentDisk) -> None:
        for _ in range(2):
            await disk.attach([base])
            await fill(disk)
            assert (await disk.seal()).stat().st_size
            await disk.detach()

    lend(base, use)


def test_a_disk_that_others_use(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends, and the disk once it is not used any more."""
    monkeypatch.setattr("hybrid.mount.lending._BUSY_SECONDS", 0.5)
    held: list[int] = []

    async def use(disk: LentDisk) -> None:
        await disk.attach([base])
        (record,) = records(base)
        found = json.loads(record.read_text())
        device = found["device"] or record.parent / "fuse/disk"
        held.append(os.open(device, os.O_RDONLY))
        await disk.detach()

    begin = time.monotonic()
    try:
        with pytest.raises(BusyError):
            lend(base, use)
        assert records(base)
        assert time.monotonic() - begin < 30
    finally:
        os.close(*held)
    poll_until(lambda: not records(base), "the disk is gone")

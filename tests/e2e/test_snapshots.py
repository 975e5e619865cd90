"""``hybrid snapshot`` of a mount in use: the mount goes on, and every layer is a whole disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import trio
from support.image_bench import ImageBench
from support.mounting import ImageMaker, images, poll_until
from support.raw_image import config_of
from support.tree import read_tree
from test_writable_images import bench, mount, upper

from hybrid.core.disk import LayeredDevice
from hybrid.core.opening import open_layer
from hybrid.core.pair import open_pair
from hybrid.core.source import FileSource
from hybrid.mount.live_point import frozen_point
from hybrid.mount.paths import find_target

__all__ = ["bench", "images", "upper"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


class Writer(threading.Thread):
    """Appends numbered lines to a file, each one synchronised, until told to stop."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("a")
        self._stopped = threading.Event()
        self.written = 0

    def run(self) -> None:
        while not self._stopped.is_set():
            self._file.write(f"{self.written}\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.written += 1

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        self._file.close()
        return self.written


async def write_disk(layers: list[Path], pair: tuple[Path, Path] | None, target: Path) -> None:
    """The disk that these layers make, as a raw file."""
    opened = [await open_layer(FileSource(path)) for path in layers]
    if pair:
        opened.append(open_pair(*pair))
    disk = LayeredDevice(opened, "disk")
    content = await disk.pread(0, disk.size)
    target.write_bytes(content)  # noqa: ASYNC240
    await disk.aclose()


def check_clean_ext4(raw: Path) -> None:
    done = subprocess.run(["e2fsck", "-fn", raw], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def image(images: ImageMaker, tmp_path: Path) -> Path:
    """An image with one layer, in which e2fsck finds nothing to complain of."""
    return config_of(images.get("ext4"), tmp_path / "image")


def base_of(config: Path) -> Path:
    (lower,) = json.loads(config.read_text())["lowers"]
    return config.parent / lower["file"]


def check_snapshots(
    bench: ImageBench, base: Path, writer: Writer, sealed: list[Path], raw: Path
) -> None:
    for number in range(3):
        (bench.mountpoint / f"before{number}").write_bytes(bytes([number]) * 50_000)
        least = writer.written
        sealed.append(Path(bench.succeed("snapshot", bench.mountpoint).strip()))
        trio.run(write_disk, [base, *sealed], None, raw)
        check_clean_ext4(raw)
        done = subprocess.run(
            ["debugfs", "-R", "cat /log", raw], capture_output=True, text=True, check=True
        )
        lines = done.stdout.splitlines()
        assert lines == [str(n) for n in range(len(lines))]
        assert len(lines) >= least


def test_snapshots_while_files_are_written(
    bench: ImageBench, image: Path, upper: Path, memory_path: Path
) -> None:
    mount(bench, "--mode", "fuse", "--upper", upper, image, bench.mountpoint)
    writer = Writer(bench.mountpoint / "log")
    writer.start()
    sealed: list[Path] = []
    try:
        check_snapshots(bench, base_of(image), writer, sealed, memory_path / "raw")
    finally:
        total = writer.stop()
    tree = read_tree(bench.mountpoint)
    bench.succeed("umount", bench.mountpoint)
    mount(bench, "--mode", "fuse", "--upper", upper, image, bench.mountpoint)
    assert read_tree(bench.mountpoint) == tree
    assert (bench.mountpoint / "log").read_text().split() == [str(n) for n in range(total)]
    bench.succeed("umount", bench.mountpoint)


def test_a_server_that_dies_after_a_snapshot(bench: ImageBench, image: Path, upper: Path) -> None:
    record = mount(bench, "--mode", "fuse", "--upper", upper, image, bench.mountpoint)
    (bench.mountpoint / "one").write_text("1")
    bench.succeed("snapshot", "--json", bench.mountpoint)
    with (bench.mountpoint / "two").open("w") as file:
        file.write("2")
        file.flush()
        os.fsync(file.fileno())
    os.kill(record["pid"], signal.SIGKILL)
    bench.succeed("umount", "--lazy", bench.mountpoint)
    poll_until(lambda: not bench.list(), "the end of the mount")
    mount(bench, "--mode", "fuse", "--upper", upper, image, bench.mountpoint)
    assert (bench.mountpoint / "one").read_text() == "1"
    assert (bench.mountpoint / "two").read_text() == "2"
    bench.succeed("umount", bench.mountpoint)


def test_a_point_of_a_mount_in_use(
    bench: ImageBench,
    image: Path,
    upper: Path,
    memory_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = mount(bench, "--mode", "fuse", "--upper", upper, image, bench.mountpoint)
    monkeypatch.setenv("HYBRID_STATE_DIR", bench.environment["HYBRID_STATE_DIR"])
    (bench.mountpoint / "kept").write_bytes(b"k" * 300_000)
    with frozen_point(find_target(record["id"])) as point:
        # The mount goes on, and what is read stays as it was.
        (bench.mountpoint / "kept").write_bytes(b"n" * 300_000)
        (bench.mountpoint / "later").write_text("later")
        os.sync()
        raw = memory_path / "raw"
        pair = Path(point["data"]), Path(point["index"])
        trio.run(write_disk, [base_of(image), *map(Path, point["sealed"])], pair, raw)
    check_clean_ext4(raw)
    listing = subprocess.run(
        ["debugfs", "-R", "cat /kept", raw], capture_output=True, check=True
    ).stdout
    assert listing == b"k" * 300_000
    found = subprocess.run(["debugfs", "-R", "ls /", raw], capture_output=True, check=True).stdout
    assert b"later" not in found
    bench.succeed("umount", bench.mountpoint)


def test_what_cannot_be_snapshotted(bench: ImageBench, image: Path) -> None:
    bench.mount(image, bench.mountpoint, "--json")
    assert "--rw" in bench.fail("snapshot", bench.mountpoint, code=8)
    bench.succeed("umount", bench.mountpoint)
    bench.fail("snapshot", bench.mountpoint, code=4)

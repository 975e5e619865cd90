"""Writes to an exposed disk: every size and alignment, flushes, discards, faults, file systems."""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.exposed import expose, exposed, reap
from support.mounting import MIB, ImageMaker

from hybrid.mount.detach import detach
from hybrid.mount.state import MountRecord

SIZES = (1, 511, 512, 513, 4095, 4096, 4097, 65536, 65537, MIB, MIB + 4096, 3 * MIB)
BAD = 5 * MIB


@dataclass(frozen=True)
class WritableDisk:
    """A disk over a raw file, which is the truth of what has arrived."""

    record: MountRecord
    raw: Path
    trace: Path
    full: Path

    @property
    def path(self) -> Path:
        return self.record.exposed

    def content(self) -> bytes:
        return self.raw.read_bytes()

    def calls(self) -> list[str]:
        """What was done to the Device since the last call: ``write OFFSET LENGTH`` and the like."""
        found = self.trace.read_text().splitlines() if self.trace.exists() else []
        self.trace.unlink(missing_ok=True)
        return found


@pytest.fixture(scope="module")
def disk(
    mode: str, truth: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WritableDisk]:
    directory = tmp_path_factory.mktemp("writable")
    raw, trace, full = (directory / name for name in ("raw.img", "trace", "full"))
    raw.write_bytes(truth)
    faults = {"trace": str(trace), "full": str(full), "error_at": f"{BAD}-{BAD + 4096}"}
    with exposed(raw, mode, writable=True, **faults) as record:
        yield WritableDisk(record, raw, trace, full)


@contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_direct(descriptor: int, offset: int, data: bytes) -> int:
    with mmap.mmap(-1, max(len(data), 4096)) as memory, memoryview(memory) as view:
        memory[: len(data)] = data
        with view[: len(data)] as part:
            return os.pwritev(descriptor, [part], offset)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_alignments(disk: WritableDisk, size: int) -> None:
    chance = random.Random(size)
    model = bytearray(disk.content())
    with opened(disk.path) as descriptor:
        for offset in (0, 1, 511, 512, 4095, 4096, 8191, 12345):
            data = chance.randbytes(size)
            assert os.pwrite(descriptor, data, offset) == size
            model[offset : offset + size] = data
            assert os.pread(descriptor, size, offset) == data
        end = chance.randbytes(min(size, 512))
        os.pwrite(descriptor, end, len(model) - len(end))
        model[-len(end) :] = end
        os.fsync(descriptor)
    assert disk.content() == model


@pytest.mark.parametrize("size", [512, 1024, 4096, 65536, MIB, 3 * MIB])
def test_writes_past_the_page_cache(disk: WritableDisk, size: int) -> None:
    chance = random.Random(size)
    model = bytearray(disk.content())
    with opened(disk.path, os.O_DIRECT) as descriptor:
        for offset in (0, 512, 4096, 65536 - 512):
            data = chance.randbytes(size)
            assert write_direct(descriptor, offset, data) == size
            model[offset : offset + size] = data
    assert disk.content() == model


def test_seeded_writes_at_random(disk: WritableDisk) -> None:
    chance = random.Random(5)
    model = bytearray(disk.content())
    with opened(disk.path) as descriptor:
        for _ in range(200):
            size = chance.choice((1, 100, 512, 4096, 5000, 70000))
            offset = chance.randrange(BAD - size)
            data = chance.randbytes(size)
            os.pwrite(descriptor, data, offset)
            model[offset : offset + size] = data
        os.fsync(descriptor)
    assert disk.content() == model


def test_many_writers_at_once(disk: WritableDisk) -> None:
    model = bytearray(disk.content())

    def write(number: int) -> None:
        data = bytes([number]) * 4096
        with opened(disk.path, os.O_DIRECT) as descriptor:
            for block in range(number, 64, 8):
                write_direct(descriptor, block * 4096, data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    for block in range(64):
        model[block * 4096 : (block + 1) * 4096] = bytes([block % 8]) * 4096
    assert disk.content() == model


def test_a_flush_reaches_the_device_after_what_was_written(disk: WritableDisk) -> None:
    with opened(disk.path) as descriptor:
        os.pwrite(descriptor, b"f" * 4096, 4096)
        disk.calls()
        os.fsync(descriptor)
        calls = disk.calls()
        assert calls[-1] == "flush"
    with opened(disk.path, os.O_DIRECT) as descriptor:
        write_direct(descriptor, 4096, b"g" * 4096)
        assert disk.calls() == ["write 4096 4096"]
        os.fdatasync(descriptor)
        assert disk.calls() == ["flush"]


def test_a_synchronous_write_is_flushed(disk: WritableDisk) -> None:
    """The kernel makes FUA of it, or a flush, or both."""
    with opened(disk.path, os.O_DIRECT | os.O_DSYNC) as descriptor:
        disk.calls()
        write_direct(descriptor, 8192, b"h" * 4096)
        write, *flushes = disk.calls()
        assert write == "write 8192 4096"
        assert set(flushes) == {"flush"}


def test_the_kernel_knows_of_the_write_cache(mode: str, disk: WritableDisk) -> None:
    if mode == "fuse":
        pytest.skip("a file has none")
    queue = Path("/sys/block") / disk.path.name / "queue"
    assert (queue / "write_cache").read_text() == "write back\n"
    assert (queue / "fua").read_text() == "1\n"


def test_a_full_disk_is_enospc(disk: WritableDisk) -> None:
    before = disk.content()
    with opened(disk.path, os.O_DIRECT) as descriptor:
        disk.full.touch()
        try:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                write_direct(descriptor, 0, b"i" * 4096)
        finally:
            disk.full.unlink()
        assert disk.content() == before
        assert write_direct(descriptor, 0, b"i" * 4096) == 4096
    assert disk.content() == b"i" * 4096 + before[4096:]


def test_a_failing_range_fails_alone(disk: WritableDisk) -> None:
    with opened(disk.path, os.O_DIRECT) as descriptor:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            write_direct(descriptor, BAD, b"j" * 4096)
        for offset in (BAD - 4096, BAD + 4096):
            assert write_direct(descriptor, offset, b"k" * 4096) == 4096
    assert "the disk below is broken" in disk.record.log.read_text()


def test_discard(mode: str, disk: WritableDisk) -> None:
    disk.calls()
    command = ["blkdiscard", "--offset", "1M", "--length", "2M", str(disk.path)]
    if mode == "fuse":
        command = ["fallocate", "--punch-hole", *command[1:]]
    before = disk.content()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if mode == "fuse":
        assert "unsupported" in done.stderr
        assert disk.content() == before
        return
    assert done.returncode == 0, done.stderr
    assert {call.split()[0] for call in disk.calls()} == {"discard"}
    assert disk.content() == before[:MIB] + bytes(2 * MIB) + before[3 * MIB :]


def test_a_read_only_disk_takes_no_write(mode: str, raw: Path, truth: bytes) -> None:
    with exposed(raw, mode) as record:
        with (
            pytest.raises(OSError, match=os.strerror(errno.EROFS)),
            opened(record.exposed, os.O_DIRECT) as descriptor,
        ):
            write_direct(descriptor, 0, b"x" * 4096)
        assert raw.read_bytes() == truth


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_mkfs_mount_write_and_mount_again(mode: str, tmp_path: Path, kind: str) -> None:
    raw, mountpoint = tmp_path / "raw.img", tmp_path / "mnt"
    raw.touch()
    os.truncate(raw, (64 if kind == "ext4" else 320) * MIB)
    mountpoint.mkdir()
    with exposed(raw, mode, writable=True) as record:
        force = "-F" if kind == "ext4" else "-f"
        subprocess.run([f"mkfs.{kind}", "-q", force, record.exposed], check=True)
        assert detach(record)
    blob = random.Random(9).randbytes(2 * MIB + 77)
    record = expose(raw, mode, mountpoint, writable=True)
    (mountpoint / "blob").write_bytes(blob)
    (mountpoint / "gone").write_bytes(blob)
    (mountpoint / "gone").unlink()
    assert detach(record)
    reap(record)
    record = expose(raw, mode, mountpoint)
    assert (mountpoint / "blob").read_bytes() == blob
    assert not (mountpoint / "gone").exists()
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (mountpoint / "new").touch()
    assert detach(record)
    reap(record)
    check = ["e2fsck", "-fn"] if kind == "ext4" else ["xfs_repair", "-n", "-f"]
    subprocess.run([*check, raw], check=True, capture_output=True)


def test_fio_verifies_what_it_writes(disk: WritableDisk) -> None:
    command = ["fio", "--name=verify", f"--filename={disk.path}", "--size=4M", "--io_size=4M",
               "--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--direct=1",
               "--ioengine=libaio", "--iodepth=8", "--verify=crc32c", "--verify_fatal=1",
               "--randseed=5", "--allow_file_create=0"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_itself_is_used_while_a_copy_is_written(
    mode: str, images: ImageMaker, tmp_path: Path
) -> None:
    """A writable mount and a read-only one beside it, of one UUID."""
    places = [tmp_path / name for name in ("ro", "rw")]
    for place in places:
        place.mkdir()
    copy = tmp_path / "copy.img"
    copy.write_bytes(images.get("ext4").read_bytes())
    with (
        exposed(images.get("ext4"), mode, places[0]),
        exposed(copy, mode, places[1], writable=True),
    ):
        (places[1] / "hello").write_text("other\n")
        images.check_tree(places[0])

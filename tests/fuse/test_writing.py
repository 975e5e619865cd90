"""Writes to the FUSE file and to a loop device over it: every size and alignment, errors, flushes.

The Device is in memory, in a server of this test's own.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyfuse3 import FileHandleT, FUSEError
from support.fuse_disk import FuseDisk, serving
from support.memory_device import MemoryDevice
from support.mounting import MIB, poll_until

from hybrid.errors import FormatError
from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.loop import attach_loop, backing_file

SIZE = 6 * MIB + 512
SIZES = (1, 511, 512, 513, 4095, 4096, 4097, 65537, MIB, MIB + 1, 3 * MIB)
HANDLE = FileHandleT(2)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuseDisk]:
    with serving(tmp_path_factory.mktemp("fuse"), SIZE) as made:
        yield made


@contextmanager
def loop_over(disk: FuseDisk) -> Iterator[Path]:
    loop = attach_loop(disk.file, writable=True)
    try:
        yield loop.path
    finally:
        loop.close()
    poll_until(lambda: backing_file(loop.path) != str(disk.file), "autoclear")


@pytest.fixture(params=["file", "loop"])
def writer(request: pytest.FixtureRequest, disk: FuseDisk) -> Iterator[Path]:
    if request.param == "file":
        yield disk.file
        return
    with loop_over(disk) as path:
        yield path


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_alignments(disk: FuseDisk, writer: Path, size: int) -> None:
    chance = random.Random(size)
    model = bytearray(disk.content())
    with open(writer, "r+b", buffering=0) as file:
        for offset in (0, 1, 511, 512, 4095, 4096, 12345, SIZE - size):
            data = chance.randbytes(size)
            assert os.pwrite(file.fileno(), data, offset) == size
            model[offset : offset + size] = data
            assert os.pread(file.fileno(), size, offset) == data
        os.fsync(file.fileno())
    assert disk.content() == model


def test_writes_at_random(disk: FuseDisk, writer: Path) -> None:
    chance = random.Random(4)
    model = bytearray(disk.content())
    with open(writer, "r+b", buffering=0) as file:
        for _ in range(300):
            size = chance.choice((1, 100, 512, 4096, 5000, 70000))
            offset = chance.randrange(SIZE - size)
            data = chance.randbytes(size)
            os.pwrite(file.fileno(), data, offset)
            model[offset : offset + size] = data
        os.fsync(file.fileno())
    assert disk.content() == model


@pytest.mark.parametrize("place", ["file", "loop"])
def test_the_kernel_sends_a_mebibyte_at_a_time(disk: FuseDisk, place: str) -> None:
    data = random.Random(6).randbytes(2 * MIB)
    with mmap.mmap(-1, len(data)) as memory:
        memory[:] = data
        if place == "file":
            sent = _write_direct(disk, disk.file, memory)
        else:
            with loop_over(disk) as path:
                sent = _write_direct(disk, path, memory)
    assert disk.content()[: len(data)] == data
    # A loop device takes 128 pieces of memory at a time, which may be single pages.
    assert max(length for _, _, length in sent) >= (MIB if place == "file" else MIB // 2)
    assert sum(length for _, _, length in sent) == len(data)


def _write_direct(disk: FuseDisk, path: Path, memory: mmap.mmap) -> list[tuple[str, int, int]]:
    descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT)
    disk.calls()  # forget what came before
    assert os.pwrite(descriptor, memory, 0) == len(memory)
    os.close(descriptor)
    return [call for call in disk.calls() if call[0] == "write"]


def test_a_flush_of_the_file_reaches_the_device(disk: FuseDisk) -> None:
    with open(disk.file, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 0)
        disk.calls()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
        assert disk.calls() == [("flush", 0, 0)] * 2
        disk.set(bug=FormatError("the disk below is broken"))
        for sync in (os.fsync, os.fdatasync):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                sync(file.fileno())
        disk.set()
        os.fsync(file.fileno())


@pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC])
def test_a_file_that_is_opened_to_be_synchronous(disk: FuseDisk, flag: int) -> None:
    descriptor = os.open(disk.file, os.O_RDWR | flag)
    disk.calls()
    os.pwrite(descriptor, b"s" * 100, 7)
    assert disk.calls() == [("write", 7, 100), ("flush", 0, 0)]
    os.close(descriptor)


def test_a_flush_of_the_loop_device_reaches_the_device_after_the_writes(disk: FuseDisk) -> None:
    with loop_over(disk) as path, open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"y" * 4096, 8192)
        disk.calls()
        os.fsync(file.fileno())
        calls = disk.calls()
        assert ("write", 8192, 4096) in calls
        assert calls[-1] == ("flush", 0, 0)
        # RWF_DSYNC becomes FUA or a flush: either way it is asked of the device before it returns.
        os.pwritev(file.fileno(), [b"z" * 4096], 0, os.RWF_DSYNC)
        assert disk.calls()[-2:] == [("write", 0, 4096), ("flush", 0, 0)]


@pytest.mark.parametrize("place", ["file", "loop"])
def test_a_full_disk_is_enospc_and_no_damage(disk: FuseDisk, place: str) -> None:
    before = disk.content()
    if place == "file":
        _fill(disk, disk.file)
    else:
        with loop_over(disk) as path:
            _fill(disk, path)
    assert disk.content() == b"A" * 4096 + before[4096:]


def _fill(disk: FuseDisk, path: Path) -> None:
    with mmap.mmap(-1, 4096) as memory:
        memory[:] = b"A" * 4096
        descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        disk.set(is_full=True)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
                os.pwrite(descriptor, memory, 0)
            assert caught.value.errno == errno.ENOSPC
        disk.set()
        assert os.pwrite(descriptor, memory, 0) == 4096
        os.close(descriptor)


def test_a_write_that_fails_is_eio_and_told_in_the_log(disk: FuseDisk) -> None:
    disk.set(failing=[(MIB, 512)])
    with open(disk.file, "r+b", buffering=0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(file.fileno(), b"x" * 1000, MIB)
        assert os.pwrite(file.fileno(), b"x" * 1000, MIB + 512) == 1000
    disk.set()
    assert f"EIO for WRITE 1000 bytes at {MIB} of memory: bad block" in disk.log()


def test_slow_writes_hold_up_nobody(disk: FuseDisk) -> None:
    disk.set(slow=[(2 * MIB, 4096)])
    late = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={disk.file}", "bs=4096", "count=1", "conv=notrunc",
         f"seek={2 * MIB // 4096}"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        poll_until(lambda: disk.waiting() == 1, "a write that waits")
        with open(disk.file, "rb", buffering=0) as file:
            assert len(os.pread(file.fileno(), 4096, 0)) == 4096
        assert late.poll() is None
    finally:
        disk.set()
    assert late.wait(10) == 0
    assert disk.content()[2 * MIB : 2 * MIB + 4096] == bytes(4096)


def test_nothing_but_the_content_can_be_changed(disk: FuseDisk) -> None:
    file = disk.file
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.access(file, os.W_OK)
    before = disk.content()
    for attempt in (
        lambda: os.truncate(file, 0),
        lambda: os.truncate(file, SIZE + 512),
        lambda: file.open("wb"),
        lambda: file.open("ab"),
        lambda: file.chmod(0o777),
        lambda: os.utime(file),
        file.unlink,
        lambda: file.rename(file.parent / "other"),
        lambda: (file.parent / "new").mkdir(),
        lambda: (file.parent / "new").symlink_to("disk"),
        lambda: os.link(file, file.parent / "new"),
        lambda: (file.parent / "new").touch(),
        file.parent.rmdir,
    ):
        with pytest.raises(OSError, match=r"not permitted|busy"):
            attempt()
    assert file.stat().st_size == SIZE
    assert disk.content() == before


def test_a_write_beyond_the_end_is_refused_whole(disk: FuseDisk) -> None:
    before = disk.content()
    with open(disk.file, "r+b", buffering=0) as file:
        for offset in (SIZE - 1, SIZE, SIZE + MIB):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                os.pwrite(file.fileno(), b"ab", offset)
    assert disk.file.stat().st_size == SIZE
    assert disk.content() == before


def test_a_loop_device_offers_no_discard(disk: FuseDisk) -> None:
    """As docs/writable.md says; zeros that are written arrive."""
    before = disk.content()
    assert any(before[:MIB])
    with loop_over(disk) as path:
        # The kernel learns from the first try, which it calls a success, that nothing comes of it.
        subprocess.run(["blkdiscard", path], check=False)
        done = subprocess.run(["blkdiscard", path], capture_output=True, text=True, check=False)
        assert "not supported" in done.stderr
        assert disk.content() == before
        subprocess.run(["blkdiscard", "--zeroout", "--length", "1M", path], check=True)
    assert disk.content()[:MIB] == bytes(MIB)


async def test_a_read_only_device_stays_read_only() -> None:
    device = MemoryDevice(4096, writable=False)
    filesystem = DiskFilesystem(device)
    assert not filesystem.writable
    with pytest.raises(FUSEError) as caught:
        await filesystem.write(HANDLE, 0, b"x")
    assert caught.value.errno == errno.EIO
    await filesystem.fsync(HANDLE, False)
    assert device.calls == []


async def test_a_bug_of_the_device_is_eio() -> None:
    device = MemoryDevice(4096)
    filesystem = DiskFilesystem(device)
    device.bug = KeyError("a bug")
    for attempt in (
        lambda: filesystem.write(HANDLE, 0, b"x"),
        lambda: filesystem.fsync(HANDLE, True),
    ):
        with pytest.raises(FUSEError) as caught:
            await attempt()
        assert caught.value.errno == errno.EIO
    assert filesystem.write_errors == 2

"""The TCMU server in a real kernel: a SCSI disk over memory, used as any disk is.

The server runs in a thread of the test, so that a test can look at the memory behind the disk and
choose which parts of it fail.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from support.memory_device import MemoryDevice
from support.mounting import poll_until

from hybrid.block import configfs
from hybrid.block.arrival import wait_for_disk
from hybrid.block.configfs import Target
from hybrid.block.scsi_unit import LogicalUnit
from hybrid.block.server import RingServer
from hybrid.block.uio import Uio

pytestmark = pytest.mark.guest
SIZE = 32 << 20
PAGE = 4096


@dataclass
class Disk:
    """A SCSI disk, and what is behind it."""

    path: Path
    device: MemoryDevice
    server: RingServer
    token: trio.lowlevel.TrioToken

    def open_gate(self) -> None:
        """Let go of the reads that wait."""
        trio.from_thread.run_sync(self.device.gate.set, trio_token=self.token)

    def read(self, offset: int, length: int) -> bytes:
        """Read past the page cache."""
        with _direct(self.path, os.O_RDONLY) as fd, mmap.mmap(-1, length) as buffer:
            assert os.preadv(fd, [buffer], offset) == length
            return buffer[:]

    def write(self, offset: int, data: bytes) -> None:
        with _direct(self.path, os.O_WRONLY) as fd, mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            assert os.pwritev(fd, [buffer], offset) == len(data)


@contextmanager
def _direct(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_DIRECT)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def served(device: MemoryDevice, number: int) -> Iterator[Disk]:
    """A disk over ``device``; ``number`` makes its names."""
    target = Target(f"{number:08x}", f"3687962{number:09x}")
    name = configfs.create_backstore(target, device.size, not device.writable)
    try:
        uio = Uio.open(name)
        unit = LogicalUnit(
            size=device.size,
            wwn=target.wwn,
            serial=target.serial,
            writable=device.writable,
            write_cache=device.writable,
        )
        server = RingServer(device, unit, uio)
        tokens: queue.Queue[trio.lowlevel.TrioToken] = queue.Queue()
        thread = threading.Thread(target=trio.run, args=(_serve, server, tokens))
        thread.start()
        try:
            path = trio.run(wait_for_disk, configfs.export(target), 30.0)
            yield Disk(path, device, server, tokens.get(timeout=5))
        finally:
            configfs.unexport(target)
    finally:
        configfs.remove_backstore(target)
    thread.join(5)
    assert not thread.is_alive(), "the server goes on although the device is gone"
    server.close()
    uio.close()


async def _serve(server: RingServer, tokens: queue.Queue[trio.lowlevel.TrioToken]) -> None:
    tokens.put(trio.lowlevel.current_trio_token())
    await server.serve()


@pytest.fixture(scope="module")
def _disk() -> Iterator[Disk]:
    with served(MemoryDevice(SIZE), 0xE5701) as made:
        yield made


@pytest.fixture
def disk(_disk: Disk) -> Iterator[Disk]:
    """A writable disk of random bytes, without faults."""
    device = _disk.device
    device.content[:] = random.Random(4).randbytes(1 << 20) * (SIZE >> 20)
    device.calls.clear()
    yield _disk
    device.failing, device.is_full = [], False


def run(*command: object, seconds: float = 30) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def error_of(action: Callable[[], object]) -> int:
    """The errno that something fails with; 0 if it does not."""
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0


def test_large_requests_arrive_whole(disk: Disk) -> None:
    start, end = 3 << 20, 4 << 20
    assert disk.read(start, 1 << 20) == disk.device.content[start:end]
    reads = [call for call in disk.device.calls if call[0] == "read" and start <= call[1] < end]
    assert reads == [("read", start, 1 << 20)]
    data = random.Random(6).randbytes(1 << 20)
    disk.write(start, data)
    assert disk.device.content[start:end] == data
    assert sum(size for what, _, size in disk.device.calls if what == "write") == 1 << 20


def test_fio_verifies_what_it_wrote_at_random(disk: Disk) -> None:
    common = ("--direct=1", "--ioengine=libaio", "--verify=crc32c", "--verify_fatal=1")
    run(
        "fio",
        "--name=random",
        f"--filename={disk.path}",
        f"--size={SIZE // 2}",
        "--io_size=4m",
        "--rw=randwrite",
        "--bsrange=4k-256k",
        "--iodepth=16",
        "--randseed=7",
        *common,
    )
    assert disk.server.writes > 16


def test_a_file_system_lives_on_it(disk: Disk, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    run("mkfs.ext4", "-q", "-E", "discard", disk.path)
    assert any(what == "discard" for what, *_ in disk.device.calls)
    blob = random.Random(8).randbytes(4 << 20)
    run("mount", "-t", "ext4", disk.path, mountpoint)
    try:
        (mountpoint / "blob").write_bytes(blob)
        (mountpoint / "gone").write_bytes(blob)
        os.sync()
        assert any(what == "flush" for what, *_ in disk.device.calls)
        (mountpoint / "gone").unlink()
        os.sync()
        disk.device.calls.clear()
        run("fstrim", mountpoint)
        discarded = sum(size for what, _, size in disk.device.calls if what == "discard")
        assert discarded > 4 << 20
        Path("/proc/sys/vm/drop_caches").write_text("3")
        assert (mountpoint / "blob").read_bytes() == blob
    finally:
        run("umount", mountpoint)
    run("e2fsck", "-f", "-n", disk.path)


@pytest.mark.parametrize("options", [(), ("-z",)], ids=["discard", "zeroout"])
def test_blkdiscard_makes_zeros(disk: Disk, options: tuple[str, ...]) -> None:
    run("blkdiscard", *options, "-o", 1 << 20, "-l", 4 << 20, disk.path)
    assert disk.device.content[1 << 20 : 5 << 20] == bytes(4 << 20)
    assert disk.read(1 << 20, 1 << 20) == bytes(1 << 20)
    assert {what for what, *_ in disk.device.calls} == {"discard", "read"}
    assert disk.read((1 << 20) - PAGE, PAGE) == disk.device.content[(1 << 20) - PAGE : 1 << 20]
    assert any(disk.device.content[5 << 20 : (5 << 20) + PAGE])


def test_an_error_reaches_the_reader_of_that_range_only(disk: Disk) -> None:
    content, bad = disk.device.content, 8 << 20
    disk.device.failing = [(bad, PAGE)]
    errors = disk.server.read_errors
    # What the block layer makes of an unrecovered read error, when nothing is in between.
    assert error_of(lambda: disk.read(bad, PAGE)) == errno.ENODATA
    assert disk.server.read_errors == errors + 1
    assert disk.read(bad - PAGE, PAGE) == content[bad - PAGE : bad]
    assert disk.read(bad + PAGE, PAGE) == content[bad + PAGE : bad + 2 * PAGE]
    with disk.path.open("rb", buffering=0) as cached:
        cached.seek(bad)
        assert error_of(lambda: cached.read(PAGE)) == errno.EIO
    disk.device.failing = []
    assert disk.read(bad, PAGE) == content[bad : bad + PAGE]


def test_a_full_disk_is_enospc(disk: Disk) -> None:
    disk.device.is_full = True
    assert error_of(lambda: disk.write(0, bytes(PAGE))) == errno.ENOSPC
    disk.device.is_full = False
    disk.write(0, bytes(PAGE))


def test_a_read_that_waits_holds_up_no_other(disk: Disk) -> None:
    device = disk.device
    device.gate = trio.Event()
    device.slow = [(0, PAGE)]
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(disk.read(0, PAGE)))
    reader.start()
    try:
        poll_until(lambda: device.waiting, "a read that waits")
        assert disk.read(PAGE, PAGE) == device.content[PAGE : 2 * PAGE]
        assert not found
    finally:
        device.slow = []
        disk.open_gate()
        reader.join(5)
    assert found == [device.content[:PAGE]]


def test_a_read_only_disk(disk: Disk) -> None:
    content = random.Random(5).randbytes(1 << 20)
    with served(MemoryDevice(content, writable=False), 0xE5702) as other:
        assert other.read(0, 1 << 20) == content
        assert (Path("/sys/block") / other.path.name / "ro").read_text() == "1\n"
        assert error_of(lambda: other.write(0, bytes(PAGE))) == errno.EROFS
    assert not other.path.exists()

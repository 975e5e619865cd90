"""The FUSE file and the loop device over it, against the bytes that they should show."""

import errno
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyfuse3 import FileHandleT, FUSEError
from support.mounting import MIB, ImageMaker, MountBench

from hybrid.core.device import Buffer, Device
from hybrid.fuse.filesystem import DiskFilesystem
from hybrid.fuse.loop import LoopDevice, attach_loop

Reader = Callable[[int, int], bytes]


@pytest.fixture(params=["nowait", "await"])
def exposed(
    request: pytest.FixtureRequest, bench: MountBench, images: ImageMaker
) -> Iterator[Path]:
    """The FUSE file of the image ``none``, by both ways that a Device answers."""
    options = ["--remote"] if request.param == "await" else []
    record = bench.mount(images.get("none"), *options)
    yield Path(record["file"])
    bench.succeed("umount", record["id"])


@pytest.fixture
def truth(images: ImageMaker) -> bytes:
    return images.get("none").read_bytes()


@pytest.fixture(params=["file", "loop"])
def reader(request: pytest.FixtureRequest, exposed: Path) -> Iterator[Reader]:
    loop: LoopDevice | None = attach_loop(exposed) if request.param == "loop" else None
    descriptor = os.open(loop.path if loop else exposed, os.O_RDONLY)
    yield lambda offset, length: os.pread(descriptor, length, offset)
    os.close(descriptor)
    if loop:
        loop.close()


def test_reads_give_the_bytes_of_the_device(reader: Reader, truth: bytes) -> None:
    rng = random.Random(1)
    sizes = [1, 511, 512, 513, 4095, 4096, 4097, 65537, MIB, MIB + 1]
    places = [(rng.randrange(len(truth)), rng.choice(sizes)) for _ in range(300)]
    for offset, length in [(0, len(truth)), (len(truth) - 1, 1), *places]:
        assert reader(offset, length) == truth[offset : offset + length], (offset, length)


def test_reads_beyond_the_end_are_short(reader: Reader, truth: bytes) -> None:
    assert reader(len(truth) - 100, 4096) == truth[-100:]
    assert reader(len(truth), 4096) == b""
    assert reader(len(truth) + MIB, 1) == b""


def test_concurrent_reads(reader: Reader, truth: bytes) -> None:
    def check(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(50):
            offset, length = rng.randrange(len(truth)), rng.randrange(1, 200_000)
            assert reader(offset, length) == truth[offset : offset + length]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(8)))


def test_the_directory_is_read_only(exposed: Path, truth: bytes) -> None:
    assert [path.name for path in exposed.parent.iterdir()] == ["disk"]
    assert exposed.stat().st_size == len(truth)
    assert os.statvfs(exposed).f_blocks * os.statvfs(exposed).f_frsize == len(truth)
    for attempt in (
        lambda: exposed.open("r+b"),
        lambda: (exposed.parent / "new").touch(),
        exposed.unlink,
        lambda: exposed.chmod(0o777),
        lambda: os.truncate(exposed, 0),
    ):
        with pytest.raises(OSError, match="Read-only") as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    assert not os.access(exposed, os.W_OK)
    with pytest.raises(FileNotFoundError):
        (exposed.parent / "other").stat()


@pytest.mark.parametrize("fault", ["--error-at", "--bug-at"])
def test_a_failed_range_is_eio_and_nothing_else_is(
    bench: MountBench, images: ImageMaker, truth: bytes, fault: str
) -> None:
    first, end = 2 * MIB + 4096, 2 * MIB + 8192
    record = bench.mount(images.get("none"), fault, f"{first}-{end}")
    with open(record["file"], "rb", buffering=0) as file:
        for _ in range(2):
            for offset in (first, first + 100, first - 10):
                with pytest.raises(OSError, match="Input/output") as caught:
                    os.pread(file.fileno(), 512, offset)
                assert caught.value.errno == errno.EIO
            assert os.pread(file.fileno(), first, 0) == truth[:first]
            assert os.pread(file.fileno(), MIB, end) == truth[end : end + MIB]
    log = Path(record["log"]).read_text()
    reason = "CRC mismatch" if fault == "--error-at" else "KeyError: 'a bug'"
    assert f"EIO for 512 bytes at {first} of raw none.img" in log
    assert reason in log
    assert ("Traceback" in log) == (fault == "--bug-at")
    bench.succeed("umount", record["id"])


def test_a_failed_range_under_the_loop_device(
    bench: MountBench, images: ImageMaker, truth: bytes
) -> None:
    first, end = 2 * MIB, 2 * MIB + 512
    record = bench.mount(images.get("none"), "--error-at", f"{first}-{end}")
    loop = attach_loop(Path(record["file"]))
    command = ["dd", f"if={loop.path}", "of=/dev/null", "bs=512", "count=1", "iflag=direct"]
    skips = {first // 512 - 1: 0, first // 512: 1, first // 512 + 1: 0}
    for skip, code in skips.items():
        done = subprocess.run([*command, f"skip={skip}"], capture_output=True, check=False)
        assert done.returncode == code, done.stderr
    loop.close()
    bench.succeed("umount", record["id"])


class OddDevice(Device):
    """Breaks the rule of whole sectors, and can give short answers."""

    name = "odd"

    def __init__(self, data: bytes, *, short: bool = False) -> None:
        self.size = len(data)
        self._data = data
        self._short = short

    def pread_nowait(self, offset: int, length: int) -> Buffer:
        return self._data[offset : offset + length - self._short]

    async def pread(self, offset: int, length: int) -> Buffer:
        return self.pread_nowait(offset, length)


async def test_the_size_is_rounded_up_with_zeros() -> None:
    filesystem = DiskFilesystem(OddDevice(b"x" * 700))
    handle = FileHandleT(2)
    assert filesystem.size == 1024
    assert await filesystem.read(handle, 0, 4096) == b"x" * 700 + bytes(324)
    assert await filesystem.read(handle, 699, 2) == b"x\0"
    assert await filesystem.read(handle, 700, 100) == bytes(100)
    assert await filesystem.read(handle, 1000, 100) == bytes(24)
    assert await filesystem.read(handle, 1024, 100) == b""
    assert await filesystem.read(handle, 5000, 100) == b""


async def test_a_short_answer_of_the_device_is_never_passed_on() -> None:
    filesystem = DiskFilesystem(OddDevice(bytes(1024), short=True))
    with pytest.raises(FUSEError) as caught:
        await filesystem.read(FileHandleT(2), 0, 512)
    assert caught.value.errno == errno.EIO
    assert filesystem.read_errors == 1

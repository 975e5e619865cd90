"""A writable disk over an image, against a bytearray: every kind of change, and reopening."""

from __future__ import annotations

import random
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.golden_disk import open_disk
from support.golden_image import layers as golden_layers

from hybrid.core import upper as upper_module
from hybrid.core.device import SECTOR
from hybrid.core.disk import LayeredDevice
from hybrid.core.layer import Layer
from hybrid.core.lsmt import LayerWriter
from hybrid.core.opening import open_layer
from hybrid.core.pair import open_pair
from hybrid.core.source import FaultySource, MemorySource
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.upper import MAX_PENDING, Upper, create_pair
from hybrid.core.writable import WritableDevice
from hybrid.errors import (
    BusyError,
    FormatError,
    StorageFailedError,
    StorageFullError,
    UnsupportedError,
)

BOOT = uuid.UUID(int=1)
DISK = 256 * SECTOR
BELOW = random.Random(1).randbytes(DISK // 2)


async def lower_layer(*, remote: bool = False) -> Layer:
    """A sealed layer that maps all but every fourth run of 16 sectors of the lower half."""
    writer = LayerWriter(DISK // 2)
    parts = [writer.header()]
    for sector in range(0, DISK // 2 // SECTOR, 16):
        if sector // 16 % 4 != 3:
            parts.append(writer.add(sector, BELOW[sector * SECTOR : (sector + 16) * SECTOR]))
    blob = b"".join([*parts, writer.finish()])
    return await open_layer(FaultySource(MemorySource(blob), remote=remote))


def content_below() -> bytearray:
    disk = bytearray(DISK)
    for sector in range(0, DISK // 2 // SECTOR, 16):
        if sector // 16 % 4 != 3:
            part = slice(sector * SECTOR, (sector + 16) * SECTOR)
            disk[part] = BELOW[part]
    return disk


async def new_disk(directory: Path, *, remote: bool = False) -> WritableDevice:
    create_pair(Storage(), directory / "data", directory / "index", DISK)
    return await reopened(directory, remote=remote)


async def reopened(directory: Path, *, remote: bool = False) -> WritableDevice:
    lower = LayeredDevice([await lower_layer(remote=remote)], "lower")
    upper = Upper.open(Storage(), directory / "data", directory / "index", BOOT)
    return WritableDevice(lower, upper, "disk")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@settings(suppress_health_check=list(HealthCheck), max_examples=40, stateful_step_count=30)
class Exerciser(RuleBasedStateMachine):
    """Every rule is one trio run: the device has no task of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(f"/dev/shm/hybrid-exerciser-{uuid.uuid4().hex}")
        if not Path("/dev/shm").is_dir():
            self.place = Path(f"/tmp/{self.place.name}")
        self.place.mkdir()
        self.model = content_below()
        self.disk = trio.run(new_disk, self.place)
        self.is_dirty = False

    def teardown(self) -> None:
        trio.run(self.disk.aclose)
        subprocess.run(["rm", "-r", self.place], check=True)

    @rule(offset=st.integers(0, DISK - 1), length=st.integers(1, 9000), byte=st.integers(0, 255))
    def write(self, offset: int, length: int, byte: int) -> None:
        data = bytes([byte]) * min(length, DISK - offset)
        trio.run(self.disk.pwrite, offset, data)
        self.model[offset : offset + len(data)] = data
        self.is_dirty = True

    @rule(sector=st.integers(0, 255), count=st.integers(1, 40), seed=st.integers(0, 1000))
    def write_sectors(self, sector: int, count: int, seed: int) -> None:
        count = min(count, 256 - sector)
        data = random.Random(seed).randbytes(count * SECTOR)
        assert self.disk.pwrite_nowait(sector * SECTOR, memoryview(data))
        self.model[sector * SECTOR : (sector + count) * SECTOR] = data
        self.is_dirty = True

    @rule(offset=st.integers(0, DISK - 1), length=st.integers(1, 9000))
    def discard(self, offset: int, length: int) -> None:
        length = min(length, DISK - offset)
        trio.run(self.disk.discard, offset, length)
        self.model[offset : offset + length] = bytes(length)
        self.is_dirty = True

    @precondition(lambda self: self.is_dirty)
    @rule()
    def flush(self) -> None:
        trio.run(self.disk.flush)
        self.is_dirty = False

    @rule(orderly=st.booleans())
    def reopen(self, orderly: bool) -> None:
        if orderly:
            trio.run(self.disk.aclose)
        else:
            self.disk.upper.close()  # as when the process dies
        self.disk = trio.run(reopened, self.place)

    @rule(offset=st.integers(0, DISK - 1), length=st.integers(0, DISK))
    def read(self, offset: int, length: int) -> None:
        length = min(length, DISK - offset)
        expected = self.model[offset : offset + length]
        assert self.disk.pread_nowait(offset, length) == expected
        assert trio.run(self.disk.pread, offset, length) == expected

    @invariant()
    def all_is_there(self) -> None:
        assert self.disk.pread_nowait(0, DISK) == self.model


TestExerciser = Exerciser.TestCase


async def test_reads_that_wait_for_the_lower(memory_path: Path) -> None:
    disk = await new_disk(memory_path, remote=True)
    expected = content_below()
    disk.upper.write(3, b"u" * SECTOR)
    expected[3 * SECTOR : 4 * SECTOR] = b"u" * SECTOR
    assert disk.pread_nowait(3 * SECTOR, SECTOR) == b"u" * SECTOR
    assert disk.pread_nowait(0, DISK) is None
    assert await disk.pread(0, DISK) == expected
    await disk.aclose()


async def test_partial_writes_at_the_same_time_lose_nothing(memory_path: Path) -> None:
    disk = await new_disk(memory_path, remote=True)
    expected = content_below()
    async with trio.open_nursery() as nursery:
        for number in range(2 * SECTOR):
            nursery.start_soon(disk.pwrite, number, bytes([number % 251]))
            expected[number] = number % 251
    assert await disk.pread(0, DISK) == expected
    await disk.aclose()


async def test_a_long_time_without_a_flush_is_bounded(memory_path: Path) -> None:
    disk = await new_disk(memory_path)
    for number in range(MAX_PENDING):
        # Backwards, so that no two can be joined.
        assert disk.pwrite_nowait((255 - number % 256) * SECTOR, b"x" * SECTOR)
    assert not disk.pwrite_nowait(0, b"y" * SECTOR)
    await disk.pwrite(0, b"y" * SECTOR)
    assert disk.stats()["upper_unflushed"] == 1
    await disk.aclose()


@pytest.mark.parametrize("pool", [0, 50_000])
async def test_space_comes_back(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, pool: int
) -> None:
    monkeypatch.setattr(upper_module, "_POOL_BYTES", pool)
    disk = await new_disk(memory_path)
    dice = random.Random(5)
    for _ in range(300):
        for _ in range(4):
            sector = dice.randrange(0, 256 - 16, 8)
            assert disk.pwrite_nowait(sector * SECTOR, dice.randbytes(16 * SECTOR))
        await disk.flush()
    written = 300 * 4 * 16 * SECTOR
    used = disk.stats()["upper_bytes_used"]
    assert written > 9_000_000
    assert used < DISK + 200_000, used
    await disk.discard(0, DISK)
    await disk.flush()
    assert (memory_path / "data").stat().st_blocks * 512 <= 8192 + pool
    await disk.aclose()
    assert (memory_path / "data").stat().st_blocks * 512 <= 8192 + pool
    # The log is as short as what it has to say.
    assert (memory_path / "index").stat().st_size < 4096 + 4096 * 16 + 16 * 16
    assert names_in(memory_path) == ["data", "index"]


async def test_zeros_take_no_space(memory_path: Path) -> None:
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, bytes(64 * SECTOR))
    await disk.flush()
    assert (memory_path / "data").stat().st_size == 4096
    assert disk.pread_nowait(0, 64 * SECTOR) == bytes(64 * SECTOR)
    await disk.aclose()


async def test_held_space_stays(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper_module, "_POOL_BYTES", 0)
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, b"a" * 16 * SECTOR)
    await disk.flush()
    disk.upper.hold()
    assert disk.pwrite_nowait(0, b"b" * 16 * SECTOR)
    await disk.flush()
    assert b"a" * 16 * SECTOR in (memory_path / "data").read_bytes()
    disk.upper.release()
    assert disk.pwrite_nowait(0, b"c" * 16 * SECTOR)
    await disk.flush()
    found = (memory_path / "data").read_bytes()
    assert b"a" * SECTOR not in found
    assert b"b" * SECTOR not in found
    await disk.aclose()


async def test_an_upper_is_used_once_at_a_time(memory_path: Path) -> None:
    disk = await new_disk(memory_path)
    with pytest.raises(BusyError, match=r"in use by process \d+"):
        Upper.open(Storage(), memory_path / "data", memory_path / "index", BOOT)
    await disk.aclose()
    await (await reopened(memory_path)).aclose()


async def test_readers_and_writers_keep_each_other_away(memory_path: Path) -> None:
    pair = memory_path / "data", memory_path / "index"
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, b"x" * SECTOR)
    with pytest.raises(BusyError, match="in use by process"):
        open_pair(*pair, lock=True)
    await disk.aclose()
    readers = [open_pair(*pair, lock=True) for _ in range(2)]
    with pytest.raises(BusyError):
        Upper.open(Storage(), *pair, BOOT)
    for reader in readers:
        assert await reader.parts(4096, SECTOR) == [b"x" * SECTOR]
        await reader.aclose()
    await (await reopened(memory_path)).aclose()


async def test_existing_files_are_not_overwritten(memory_path: Path) -> None:
    (memory_path / "index").write_text("mine")
    with pytest.raises(BusyError):
        create_pair(Storage(), memory_path / "data", memory_path / "index", DISK)
    assert names_in(memory_path) == ["index"]


# --- disks that are full or fail


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], check=False)
    if done.returncode:
        pytest.skip("a file system that is full takes root to mount")
    yield place
    subprocess.run(["umount", place], check=True)


async def test_a_full_disk_damages_nothing(small_disk: Path) -> None:
    disk = await new_disk(small_disk)
    expected = content_below()
    dice = random.Random(3)
    failures = 0
    for number in range(200):
        sector = dice.randrange(0, 240, 8)
        data = dice.randbytes(16 * SECTOR)
        try:
            assert disk.pwrite_nowait(sector * SECTOR, data)
        except StorageFullError:
            failures += 1
            await disk.flush()  # what was taken can be kept, on a full disk too
        else:
            expected[sector * SECTOR : (sector + 16) * SECTOR] = data
        if number % 7 == 0:
            await disk.flush()
        assert disk.pread_nowait(0, DISK) == expected
    assert failures
    await disk.aclose()
    disk = await reopened(small_disk)
    assert disk.pread_nowait(0, DISK) == expected
    await disk.aclose()


async def test_a_failed_synchronisation_is_final(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, b"x" * SECTOR)

    def fail(self: StoredFile) -> None:
        raise StorageFailedError("cannot synchronise")

    with monkeypatch.context() as patch:
        patch.setattr(StoredFile, "sync", fail)
        with pytest.raises(StorageFailedError, match="may be lost"):
            await disk.flush()
    with pytest.raises(StorageFailedError, match="may be lost"):
        await disk.flush()
    with pytest.raises(StorageFailedError, match="may be lost"):
        disk.pwrite_nowait(0, b"y" * SECTOR)
    assert disk.pread_nowait(0, SECTOR) == b"x" * SECTOR
    with pytest.raises(StorageFailedError):
        await disk.aclose()
    # Opened again, it is as of the last flush: what the kernel shows may not be what the disk has.
    disk = await reopened(memory_path)
    assert disk.pread_nowait(0, SECTOR) == content_below()[:SECTOR]
    await disk.aclose()


async def test_no_space_for_the_log_can_be_made_good(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, b"x" * SECTOR)
    write = StoredFile.write

    def full(self: StoredFile, offset: int, data: bytes) -> None:
        if self.path.name == "index":
            raise StorageFullError("no space")
        write(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(StoredFile, "write", full)
        with pytest.raises(StorageFullError):
            await disk.flush()
        assert disk.pwrite_nowait(SECTOR, b"y" * SECTOR)
    await disk.flush()
    disk.upper.close()
    (memory_path / "index.unflushed").unlink()
    disk = await reopened(memory_path)
    assert disk.pread_nowait(0, 2 * SECTOR) == b"x" * SECTOR + b"y" * SECTOR
    await disk.aclose()


# --- what others left


async def test_a_torn_index_is_cut_off_and_stays_readable(memory_path: Path) -> None:
    """The reference goes on behind stray bytes, and cannot read its own layer then (lsmt 8.5)."""
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, b"x" * SECTOR)
    await disk.aclose()
    with (memory_path / "index").open("ab") as file:
        file.write(b"\x07" * 7)
    disk = await reopened(memory_path)
    assert disk.pwrite_nowait(SECTOR, b"y" * SECTOR)
    await disk.aclose()
    assert (memory_path / "index").stat().st_size % 16 == 0
    disk = await reopened(memory_path)
    assert disk.pread_nowait(0, 2 * SECTOR) == b"x" * SECTOR + b"y" * SECTOR
    await disk.aclose()


async def test_entries_without_data_are_dropped(memory_path: Path) -> None:
    disk = await new_disk(memory_path)
    assert disk.pwrite_nowait(0, b"x" * SECTOR)
    await disk.flush()
    assert disk.pwrite_nowait(SECTOR, b"y" * SECTOR)
    await disk.aclose()
    with (memory_path / "data").open("r+b") as file:
        file.truncate(4096 + SECTOR)
    disk = await reopened(memory_path)
    assert disk.pread_nowait(0, 2 * SECTOR) == b"x" * SECTOR + bytes(content_below()[512:1024])
    await disk.aclose()


async def test_a_sparse_layer_is_not_written_to(memory_path: Path) -> None:
    create_pair(Storage(), memory_path / "data", memory_path / "index", DISK)
    with (memory_path / "data").open("r+b") as file:
        file.seek(28)
        file.write(b"\x13")
    with pytest.raises(UnsupportedError, match="sparse"):
        Upper.open(Storage(), memory_path / "data", memory_path / "index", BOOT)


@pytest.mark.parametrize("name", ["data", "index"])
@pytest.mark.parametrize("content", [b"", b"x" * 100, bytes(4096)])
async def test_other_files_are_refused(memory_path: Path, name: str, content: bytes) -> None:
    create_pair(Storage(), memory_path / "data", memory_path / "index", DISK)
    (memory_path / name).write_bytes(content)
    with pytest.raises(FormatError):
        Upper.open(Storage(), memory_path / "data", memory_path / "index", BOOT)


async def test_a_sealed_layer_says_what_the_disk_said(memory_path: Path) -> None:
    disk = await new_disk(memory_path)
    expected = content_below()
    dice = random.Random(9)
    for _ in range(50):
        sector, data = dice.randrange(200), dice.randbytes(dice.randint(1, 40) * SECTOR)
        assert disk.pwrite_nowait(sector * SECTOR, data)
        expected[sector * SECTOR : sector * SECTOR + len(data)] = data
    await disk.discard(10 * SECTOR, 3 * SECTOR)
    expected[10 * SECTOR : 13 * SECTOR] = bytes(3 * SECTOR)
    await disk.upper.seal()
    await disk.aclose()
    lower = await lower_layer()
    sealed = await open_layer(MemorySource((memory_path / "data").read_bytes()))
    stack = LayeredDevice([lower, sealed], "stack")
    assert await stack.pread(0, DISK) == expected
    # Other programs read the header too.
    assert (memory_path / "data").read_bytes()[28] == 3


async def test_over_a_real_image(memory_path: Path) -> None:
    async with open_disk(golden_layers()) as image:
        create_pair(Storage(), memory_path / "data", memory_path / "index", image.size)
        upper = Upper.open(Storage(), memory_path / "data", memory_path / "index", BOOT)
        disk = WritableDevice(image, upper, "disk")
        before = bytes(await image.pread(0, 1 << 20))
        assert await disk.pread(0, 1 << 20) == before
        await disk.pwrite(1000, b"changed")
        assert await disk.pread(0, 1 << 20) == before[:1000] + b"changed" + before[1007:]
        await disk.flush()
        upper.close()

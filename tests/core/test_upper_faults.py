"""Faults at the worst moments: what a writable layer must survive, and what it must refuse."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import threading
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from support.crash_storage import Fate, RecordingStorage, Replay

from hybrid.cli.layer.stacks import open_one
from hybrid.core import index_log, lsmt, upper_log, writable_image
from hybrid.core import upper as upper_module
from hybrid.core.checkpoints import locked_checkpoint
from hybrid.core.device import SECTOR
from hybrid.core.disk import LayeredDevice
from hybrid.core.image import ImageRequest
from hybrid.core.index_log import IndexLog, NewLog
from hybrid.core.pair import open_pair
from hybrid.core.segments import MOFFSET_MASK, SegmentMap
from hybrid.core.storage import Storage, StoredFile
from hybrid.core.unflushed import UnflushedFile
from hybrid.core.upper import Upper, create_pair
from hybrid.core.upper_directory import UpperDirectory
from hybrid.core.upper_manifest import Manifest
from hybrid.core.writable import WritableDevice
from hybrid.errors import (
    BusyError,
    FormatError,
    HybridError,
    StorageFailedError,
    StorageFullError,
    SystemSupportError,
)

BOOT = uuid.UUID(int=1)
NEXT = uuid.UUID(int=2)
DISK = 256 * SECTOR
BLOCK = 8 * SECTOR
NOTHING = Manifest("image", "", "", DISK)


def made(path: Path, storage: Storage | None = None, size: int = DISK) -> WritableDevice:
    create_pair(storage or Storage(), path / "data", path / "index", size)
    return again(path, storage=storage)


def again(path: Path, boot: uuid.UUID = BOOT, storage: Storage | None = None) -> WritableDevice:
    upper = Upper.open(storage or Storage(), path / "data", path / "index", boot)
    return WritableDevice(None, upper, "disk")


def put(disk: WritableDevice, block: int, letter: bytes, blocks: int = 1) -> None:
    assert disk.pwrite_nowait(block * BLOCK, letter * (BLOCK * blocks))


def get(disk: WritableDevice, block: int) -> bytes:
    found = disk.pread_nowait(block * BLOCK, BLOCK)
    assert found is not None
    return bytes(found)[:1]


# --- killed between the fsync of the index and the forgetting of the unflushed entries


async def test_killed_within_a_flush_live_data_is_freed(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")

    def die(self: UnflushedFile, *_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(UnflushedFile, "forget", die)
        with pytest.raises(KeyboardInterrupt):
            await disk.flush()
    disk.upper.close()  # as the kernel does it

    disk = again(memory_path)  # same boot
    assert get(disk, 0) == b"A"
    put(disk, 1, b"B")
    await disk.flush()
    put(disk, 2, b"C")  # goes where A is
    await disk.flush()
    assert get(disk, 0) == b"A"


# --- an error of tidying keeps flushed entries in the unflushed file: the same at the next opening


async def test_punch_fails_then_killed(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = made(memory_path)

    async def fail(self: Upper, count: int) -> None:
        raise SystemSupportError("cannot free space")

    with monkeypatch.context() as patch:
        patch.setattr(Upper, "_give_back", fail)
        put(disk, 0, b"A")
        await disk.flush()
    disk.upper.close()
    disk = again(memory_path)
    put(disk, 1, b"B")
    await disk.flush()
    put(disk, 2, b"C")
    assert get(disk, 0) == b"A"


# --- rename of the new log done, synchronising the directory fails: later flushes go to an orphan


async def test_log_rewritten_but_directory_not_synchronised(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 0)
    monkeypatch.setattr(upper_module, "_WHILE_OPEN", 1)

    class Failing(Storage):
        fails = False

        def sync_directory(self, path: Path) -> None:
            if self.fails:
                raise SystemSupportError("cannot synchronise: Too many open files")
            super().sync_directory(path)

    storage = Failing()
    disk = made(memory_path, storage)
    put(disk, 0, b"A")
    await disk.flush()
    put(disk, 0, b"B")
    storage.fails = True
    await disk.flush()  # rewrites the log; "All is safe", says the warning
    storage.fails = False
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 4096)
    put(disk, 1, b"C")
    await disk.flush()  # confirmed
    await disk.aclose()  # even an orderly end
    disk = again(memory_path, NEXT)
    assert (get(disk, 0), get(disk, 1)) == (b"B", b"C")


# --- a thread cannot be started: the batch is forgotten, the next flush says that all is well


async def test_no_thread_for_a_flush(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")

    async def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", no_thread)
        with pytest.raises(RuntimeError):
            await disk.flush()
    await disk.flush()  # confirmed
    disk.upper.close()
    disk = again(memory_path, NEXT)
    assert get(disk, 0) == b"A"


# --- zeroed entries whose location lies beyond the end of the file


async def test_zeros_after_a_failed_seal(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A", 4)
    await disk.flush()
    put(disk, 0, b"B", 4)
    await disk.flush()  # the space of A is free now

    def full(self: Upper, offset: int, tail: bytes) -> None:
        raise StorageFullError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Upper, "_store_tail", full)
        with pytest.raises(StorageFullError):
            await disk.upper.seal()  # `hybrid snapshot` on a full disk
    await disk.discard(10 * BLOCK, BLOCK)
    put(disk, 1, b"C")  # into free space, as a full disk has no other
    await disk.flush()  # confirmed
    disk.upper.close()
    disk = again(memory_path, NEXT)
    assert get(disk, 1) == b"C"


async def test_zeros_after_a_torn_end_of_the_data(memory_path: Path) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")
    await disk.aclose()
    with (memory_path / "data").open("ab") as file:
        file.write(b"x" * 100)  # a write cut off by a signal, a quota or the power
    disk = again(memory_path)
    await disk.discard(0, BLOCK)
    await disk.flush()  # confirmed
    disk.upper.close()
    disk = again(memory_path, NEXT)
    assert get(disk, 0) == b"\0"


# --- a snapshot whose manifest got its name, but whose directory could not be synchronised


async def test_snapshot_whose_last_sync_fails(memory_path: Path) -> None:
    class Failing(Storage):
        fails = False

        def sync_directory(self, path: Path) -> None:
            if (
                self.fails
                and not (path / "upper.json.new").exists()
                and '"number": 2' in (path / "upper.json").read_text()
            ):
                raise SystemSupportError("cannot synchronise: Too many open files")
            super().sync_directory(path)

    storage = Failing()
    UpperDirectory.create(memory_path, NOTHING)
    disk = await UpperDirectory(memory_path, storage).open(None, "image")
    put(disk, 0, b"A", 4)
    await disk.flush()
    put(disk, 0, b"B", 4)
    await disk.flush()
    storage.fails = True
    with pytest.raises(HybridError):
        await disk.snapshot()
    storage.fails = False
    # A power cut might bring the old manifest back: nothing more is confirmed.
    with pytest.raises(StorageFailedError):
        put(disk, 1, b"C")
    with pytest.raises(StorageFailedError):
        await disk.flush()
    assert get(disk, 0) == b"B"
    disk.upper.close()  # killed
    os.close(disk._lock)
    disk = await UpperDirectory(memory_path).open(None, "image")
    assert get(disk, 0) == b"B"
    await disk.aclose()


# --- after the snapshot counts, an old file cannot be removed: the mount is dead


async def test_snapshot_whose_clearing_up_fails(memory_path: Path) -> None:
    class Failing(Storage):
        def remove(self, path: Path) -> None:
            if path.name == "writable_index":
                raise SystemSupportError("cannot remove: Input/output error")
            super().remove(path)

    UpperDirectory.create(memory_path, NOTHING)
    disk = await UpperDirectory(memory_path, Failing()).open(None, "image")
    put(disk, 0, b"A")
    with contextlib.suppress(HybridError):
        await disk.snapshot()
    assert get(disk, 0) == b"A"
    put(disk, 1, b"B")


# --- a checkpoint that is read while the layer is opened again (resume, or umount and mount)


async def test_checkpoint_outlives_its_server(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, NOTHING)
    disk = await UpperDirectory(memory_path).open(None, "image")
    put(disk, 0, b"A", 8)
    put(disk, 16, b"Z", 8)
    with locked_checkpoint(memory_path) as lock:
        point = await disk.checkpoint(lock)
        reader = LayeredDevice([open_pair(Path(point["data"]), Path(point["index"]))], "point")
        assert bytes(await reader.pread(0, BLOCK))[:1] == b"A"
        put(disk, 0, b"B", 8)
        await disk.aclose()
        disk = await UpperDirectory(memory_path).open(None, "image")
        disk.upper._pool  # noqa: B018
        for block in range(8):
            put(disk, block, b"C")
        await disk.flush()
        for block in range(8):
            put(disk, block, b"D")
        await disk.flush()
        for block in range(16):
            found = bytes(await reader.pread(block * BLOCK, BLOCK))[:1]
            assert found == (b"A" if block < 8 else b"\0"), block
        await reader.aclose()
    await disk.aclose()


async def test_checkpoint_outlives_its_server_small_slack(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with more than 1 MiB of garbage (here: less is looked for)."""
    monkeypatch.setattr(upper_module, "_SLACK", 0)
    await test_checkpoint_outlives_its_server(memory_path)


# --- no free descriptor: a locked checkpoint counts as given up


async def test_too_many_files_free_a_checkpoint(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, NOTHING)
    disk = await UpperDirectory(memory_path).open(None, "image")
    put(disk, 0, b"A")
    with locked_checkpoint(memory_path) as lock:
        await disk.checkpoint(lock)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            disk._release_checkpoints()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert disk.upper._holds == 1
        assert lock.exists()


# --- a rename that is not synchronised, by a process that is killed; the next one confirms a flush


async def test_killed_while_rewriting_then_power_cut(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 0)
    monkeypatch.setattr(upper_module, "_WHILE_OPEN", 1)
    live = memory_path / "live"
    live.mkdir()
    storage = RecordingStorage(live)
    disk = made(live, storage)
    for letter in (b"A", b"A"):
        put(disk, 0, letter)
        await disk.flush()
    put(disk, 0, b"B")

    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "sync_directory", die)
        with pytest.raises(KeyboardInterrupt):
            await disk.flush()
    disk.upper.close()
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 4096)
    disk = again(live, storage=storage)
    put(disk, 1, b"C")
    await disk.flush()  # confirmed
    Replay(storage.log).write(memory_path / "cut", len(storage.log.ops), Fate.DROPPED)
    disk = again(memory_path / "cut", NEXT)
    assert get(disk, 1) == b"C"


# --- after EIO: what the kernel dropped counts again at the next opening


async def test_opened_again_after_a_failed_sync(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")
    await disk.flush()
    put(disk, 0, b"B")

    def fail(self: StoredFile) -> None:
        raise StorageFailedError("cannot synchronise")

    with monkeypatch.context() as patch:
        patch.setattr(StoredFile, "sync", fail)
        with pytest.raises(StorageFailedError):
            await disk.flush()
    with pytest.raises(StorageFailedError):
        await disk.aclose()
    # The kernel has dropped the page (fsync(2)): the disk has what was there before.
    with (memory_path / "data").open("r+b") as file:
        file.seek(4096 + BLOCK)
        file.write(bytes(BLOCK))
    disk = again(memory_path)
    assert get(disk, 0) in (b"A", b"B")


# --- another program wrote to the pair after hybrid was killed


async def test_another_writer_in_between(memory_path: Path) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")
    disk.upper.close()  # killed; A is unflushed
    with (memory_path / "data").open("ab") as data, (memory_path / "index").open("ab") as index:
        where = data.tell() // SECTOR
        data.write(b"N" * BLOCK)
        index.write(lsmt.pack_entry(0, 8, where))
    disk = again(memory_path)
    assert get(disk, 0) == b"N"


# --- a hole in the log after a power cut: the reference refuses the whole layer (lsmt 8.5)


async def test_a_hole_in_the_log_stays(memory_path: Path) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")
    await disk.aclose()
    with (memory_path / "index").open("ab") as file:
        file.write(bytes(512) + lsmt.pack_entry(8, 8, 8))
    disk = again(memory_path, NEXT)
    put(disk, 3, b"B")
    await disk.aclose()
    raw = (memory_path / "index").read_bytes()[4096:]
    for _, word1 in zip(*lsmt.read_entries(raw), strict=True):
        assert word1 & MOFFSET_MASK >= 8  # what the reference requires of every entry


# --- files of the user whose names begin like ours


async def test_files_of_the_user_are_removed(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, NOTHING)
    mine = ["writable_data.backup", "data-of-mine.tar", "upper.json.orig", "index-notes.txt"]
    for name in mine:
        (memory_path / name).write_text("x")
    disk = await UpperDirectory(memory_path).open(None, "image")
    await disk.aclose()
    assert set(mine) <= set(os.listdir(memory_path))


async def test_a_directory_with_such_a_name(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, NOTHING)
    (memory_path / "data-x").mkdir()
    disk = await UpperDirectory(memory_path).open(None, "image")
    await disk.aclose()


# --- two that make the same directory: one takes the other's away (open_over)


async def test_two_make_the_same_directory(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = memory_path / "upper"

    class Nothing(LayeredDevice):
        size = DISK

    async def open_image(request: object) -> LayeredDevice:
        image = Nothing([], "image")
        image.size, image.digest = DISK, ""
        return image

    monkeypatch.setattr(writable_image, "open_image", open_image)
    request = ImageRequest.__new__(ImageRequest)
    object.__setattr__(request, "image", "image")
    real = UpperDirectory.open
    others: list[Path] = []

    async def later(self: UpperDirectory, lower: LayeredDevice, name: str, **more: int) -> object:
        # The other process finds what we have just made, and wants it.
        if not others:
            others.append(path)
            with pytest.raises(BusyError):
                await writable_image.open_over(request, path)
        return await real(self, lower, name, **more)

    monkeypatch.setattr(UpperDirectory, "open", later)
    disk = await writable_image.open_over(request, path)
    assert others
    assert disk.pwrite_nowait(0, b"A" * BLOCK)
    await disk.aclose()


# --- a writer, while the thread of a flush puts the new log in place


async def test_write_while_the_log_is_exchanged(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 0)
    monkeypatch.setattr(upper_module, "_WHILE_OPEN", 1)
    monkeypatch.setattr(index_log, "_RESERVE", 0)
    disk = made(memory_path)
    for letter in (b"A", b"A"):
        put(disk, 0, letter)
        await disk.flush()
    put(disk, 0, b"B")
    made_it, go = threading.Event(), threading.Event()
    make = IndexLog.make

    def slow_make(self: IndexLog, segments: SegmentMap) -> NewLog:
        new = make(self, segments)
        made_it.set()
        go.wait(5)
        return new

    monkeypatch.setattr(IndexLog, "make", slow_make)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.flush)
        while not made_it.is_set():
            await trio.lowlevel.checkpoint()
        put(disk, 1, b"C")
        disk.stats()
        go.set()
    put(disk, 2, b"D")
    disk.upper.close()
    disk = again(memory_path)
    assert [get(disk, block) for block in range(3)] == [b"B", b"C", b"D"]
    await disk.flush()
    disk.upper.close()
    disk = again(memory_path, NEXT)
    assert [get(disk, block) for block in range(3)] == [b"B", b"C", b"D"]


# --- given by somebody else


async def test_a_fifo_named_checkpoint(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, NOTHING)
    os.mkfifo(memory_path / "checkpoint-1")
    done = []

    def run() -> None:
        async def go() -> None:
            disk = await UpperDirectory(memory_path).open(None, "image")
            await disk.aclose()

        trio.run(go)
        done.append(1)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(3)
    hangs = thread.is_alive()
    if hangs:
        os.close(os.open(memory_path / "checkpoint-1", os.O_WRONLY | os.O_NONBLOCK))
        thread.join(3)
    assert not hangs


@pytest.mark.parametrize(
    "entry",
    [(0, 8, 1), (0, 8, 1 << 54), (0, 8, (5 << 56) | 8), (0, 0, 0), (1 << 49, 8, 8), (0, 8, 10000)],
)
async def test_any_entry_in_the_unflushed_file(
    memory_path: Path, entry: tuple[int, int, int]
) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")
    disk.upper.close()
    path = memory_path / "index.unflushed"
    path.write_bytes(path.read_bytes()[:80] + lsmt.pack_entry(*entry))
    disk = again(memory_path)
    disk.pread_nowait(0, DISK)
    await disk.flush()
    disk.upper.close()
    disk = again(memory_path, NEXT)
    assert all(found.length for found in disk.upper.segments)
    await disk.aclose()


def test_a_huge_sparse_log(memory_path: Path) -> None:
    disk = made(memory_path)
    disk.upper.close()
    os.truncate(memory_path / "index", 4096 + 16 * (upper_log.MAX_LOG_ENTRIES + 1))
    read: list[int] = []
    real = StoredFile.read

    def counted(self: StoredFile, offset: int, length: int) -> bytes:
        read.append(length)
        if length > 1 << 30:
            raise AssertionError(f"reads {length} bytes at once, without looking at the limit")
        return real(self, offset, length)

    StoredFile.read = counted  # type: ignore[method-assign]
    try:
        with pytest.raises(FormatError):
            again(memory_path)
    finally:
        StoredFile.read = real  # type: ignore[method-assign]


# --- a size that is no multiple of 512, after a snapshot


async def test_odd_size_after_a_snapshot(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, replace(NOTHING, size=1000))
    disk = await UpperDirectory(memory_path).open(None, "image")
    assert disk.size == 1024
    assert disk.pwrite_nowait(512, b"A" * 512)
    await disk.snapshot()
    assert bytes(await disk.pread(512, 512)) == b"A" * 512
    await disk.aclose()


# --- modes


async def test_the_mode_of_the_log_stays(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 0)
    monkeypatch.setattr(upper_module, "_AT_REST", 1)
    disk = made(memory_path)
    (memory_path / "index").chmod(0o644)
    put(disk, 0, b"A")
    await disk.flush()
    put(disk, 0, b"B")
    await disk.aclose()
    assert (memory_path / "index").stat().st_mode & 0o777 == 0o644


# --- a log that cannot be made good for want of space: the layer cannot be opened at all


async def test_opening_on_a_full_disk(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = made(memory_path)
    put(disk, 0, b"A")
    await disk.flush()
    disk.upper.close()
    with (memory_path / "index").open("ab") as file:
        file.write(b"z" * 7)
    write = StoredFile.write

    def full(self: StoredFile, offset: int, data: bytes) -> None:
        if self.path.name.endswith(".new"):
            raise StorageFullError("no space")
        write(self, offset, data)

    monkeypatch.setattr(StoredFile, "write", full)
    disk = again(memory_path)
    assert get(disk, 0) == b"A"


async def test_no_half_log_stays_on_a_full_disk(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 0)
    monkeypatch.setattr(upper_module, "_WHILE_OPEN", 1)
    disk = made(memory_path)
    put(disk, 0, b"A")
    await disk.flush()
    put(disk, 0, b"B")
    write = StoredFile.write

    def full(self: StoredFile, offset: int, data: bytes) -> None:
        if self.path.name.endswith(".new") and offset:
            raise StorageFullError("no space")
        write(self, offset, data)

    monkeypatch.setattr(StoredFile, "write", full)
    await disk.flush()
    assert not (memory_path / "index.new").exists()


# --- what cannot be given back in one flush piles up (scaled: 128 KiB writes on 4 GiB are alike)


async def test_space_stays_near_live_data(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upper_module, "_MAX_REUSED", 4096)
    monkeypatch.setattr(upper_module, "_POOL_BYTES", 1 << 20)
    disk = made(memory_path, size=1024 * 8192)
    dice = random.Random(1)
    for round_ in range(16):
        for _ in range(1000):
            where = dice.randrange(1024)
            assert disk.pwrite_nowait(where * 8192, bytes([round_ + 1]) * 8192)
        await disk.flush()
    upper = disk.upper
    assert upper._data.used() < upper._live + max(upper._live // 8, 1 << 20) + (8 << 20)
    assert upper._pool.size <= max(upper._live // 8, 1 << 20)


# --- a log under writes that never pause is never shortened


async def test_the_log_is_shortened_while_writes_go_on(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 16)
    disk = made(memory_path)
    for number in range(200):
        for block in range(8):
            put(disk, block, bytes([number + 1]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            while not disk.upper._flying:
                await trio.lowlevel.checkpoint()
            put(disk, 9, bytes([number + 1]))  # while the flush is at it
    entries = disk.upper._log.entries
    assert entries < 16 + 17 * len(disk.upper.segments) + 20, entries


# --- `hybrid layer merge|dump|verify UPPER` of an upper that is mounted


async def test_layer_verbs_on_an_upper_in_use(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, NOTHING)
    disk = await UpperDirectory(memory_path).open(None, "image")
    put(disk, 0, b"A", 8)
    await disk.flush()
    async with AsyncExitStack() as stack:
        try:
            layers = await open_one(memory_path, stack)
        except BusyError:
            return
        reader = LayeredDevice(layers, "dump")
        put(disk, 0, b"B", 8)
        await disk.flush()
        for block in range(8, 16):
            put(disk, block, b"C")
        assert bytes(await reader.pread(0, BLOCK))[:1] in (b"A", b"B")

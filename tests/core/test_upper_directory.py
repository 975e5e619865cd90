"""The directory of changes: made, continued, sealed by snapshots; and a crash at every step."""

from __future__ import annotations

import fcntl
import json
import os
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from support.crash_storage import Fate, RecordingStorage, Replay

from hybrid.core import upper as upper_module
from hybrid.core import upper_directory
from hybrid.core.checkpoints import locked_checkpoint
from hybrid.core.device import SECTOR
from hybrid.core.disk import LayeredDevice
from hybrid.core.pair import open_pair
from hybrid.core.segments import MAX_LAYERS
from hybrid.core.storage import Storage
from hybrid.core.unflushed import running_boot
from hybrid.core.upper_directory import UpperDirectory, WritableDisk, destroy
from hybrid.core.upper_manifest import MANIFEST, Manifest, is_upper_directory
from hybrid.errors import (
    BusyError,
    FormatError,
    HybridError,
    NotFoundError,
    StorageFullError,
    UnsupportedError,
    UsageError,
)

SIZE = 128 * SECTOR
OLD, HELD = f"checkpoint-{'0' * 16}", f"checkpoint-{'1' * 16}"
MANIFEST_OF_NOTHING = Manifest("image", "", "", SIZE)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@asynccontextmanager
async def opened(path: Path, storage: Storage | None = None) -> AsyncIterator[WritableDisk]:
    disk = await UpperDirectory(path, storage).open(None, "image")
    try:
        yield disk
    finally:
        await disk.aclose()


def put(disk: WritableDisk, sector: int, data: bytes) -> None:
    assert disk.pwrite_nowait(sector * SECTOR, data)


async def content_of(path: Path) -> bytes:
    async with opened(path) as disk:
        return bytes(await disk.pread(0, SIZE))


async def test_made_closed_and_continued(memory_path: Path) -> None:
    path = memory_path / "new" / "upper"
    UpperDirectory.create(path, replace(MANIFEST_OF_NOTHING, origin={"image": "x"}))
    assert is_upper_directory(path)
    async with opened(path) as disk:
        assert disk.was_clean
        put(disk, 3, b"a" * SECTOR)
        identity = disk.identity()
        assert not UpperDirectory(path).manifest.clean
    assert UpperDirectory(path).manifest.clean
    assert names_in(path) == ["upper.json", "writable_data", "writable_index"]
    async with opened(path) as disk:
        assert disk.identity() == identity
        assert disk.pread_nowait(3 * SECTOR, SECTOR) == b"a" * SECTOR
    destroy(path)
    assert names_in(memory_path / "new") == []


async def test_an_end_that_is_not_orderly_is_remembered(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    disk = await UpperDirectory(memory_path).open(None, "image")
    disk.upper.close()
    os.close(disk._lock)
    async with opened(memory_path) as disk:
        assert not disk.was_clean
    async with opened(memory_path) as disk:
        assert disk.was_clean


async def test_one_user_at_a_time(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    async with opened(memory_path):
        with pytest.raises(BusyError, match="in use by process"):
            await UpperDirectory(memory_path).open(None, "image")


async def test_another_image_is_refused(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, replace(MANIFEST_OF_NOTHING, lower="of another"))
    with pytest.raises(FormatError, match="made over image"):
        await UpperDirectory(memory_path).open(None, "image")
    assert UpperDirectory(memory_path).manifest.clean


@pytest.mark.parametrize("name", ["file", "directory"])
def test_other_things_are_left_alone(memory_path: Path, name: str) -> None:
    if name == "file":
        (memory_path / "mine").write_text("x")
    else:
        (memory_path / "mine").mkdir()
    with pytest.raises(UsageError, match="neither empty nor"):
        UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    assert names_in(memory_path) == ["mine"]
    with pytest.raises(NotFoundError, match="no writable layer"):
        UpperDirectory(memory_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 2}', json.dumps({"version": 1, "image": 5}), "\udcff"],
)
def test_a_damaged_manifest_is_an_error(memory_path: Path, text: str) -> None:
    (memory_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError):
        UpperDirectory(memory_path)


@pytest.mark.parametrize("name", ["../data", "/etc/passwd", "", "..", "a/b", "mine"])
def test_files_elsewhere_are_refused(memory_path: Path, name: str) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    found = json.loads((memory_path / MANIFEST).read_text())
    for changed in ({"data": name}, {"sealed": [name]}, {"sealed": [5]}):
        (memory_path / MANIFEST).write_text(json.dumps(found | changed))
        with pytest.raises(FormatError, match="not in the directory"):
            UpperDirectory(memory_path)


async def test_snapshots(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    expected = bytearray(SIZE)
    dice = random.Random(2)
    sealed = []
    async with opened(memory_path) as disk:
        for _ in range(5):
            for _ in range(4):
                sector, data = dice.randrange(100), dice.randbytes(8 * SECTOR)
                put(disk, sector, data)
                expected[sector * SECTOR : sector * SECTOR + len(data)] = data
            await disk.discard(dice.randrange(100) * SECTOR, 0)
            identity = disk.identity()
            sealed.append((await disk.snapshot(), bytes(expected)))
            assert disk.identity() == identity
            assert await disk.pread(0, SIZE) == expected
    assert await content_of(memory_path) == expected
    # Each sealed layer, with those below it, is the disk as it was then.
    layers = []
    for path, content in sealed:
        layers.append(path)
        opened_layers = [await upper_directory.open_sealed(found) for found in layers]
        stack = LayeredDevice(opened_layers, "stack")
        assert await stack.pread(0, SIZE) == content
        await stack.aclose()


async def test_reads_and_writes_go_on_during_a_snapshot(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    async with opened(memory_path) as disk:
        done = [0] * 128

        async def write(worker: int) -> None:
            for number in range(1, 60):
                sector = worker * 32 + number % 32
                data = bytes([number]) * SECTOR
                if not disk.pwrite_nowait(sector * SECTOR, data):
                    await disk.pwrite(sector * SECTOR, data)
                done[sector] = number
                assert (await disk.pread(sector * SECTOR, SECTOR)) == data
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for worker in range(4):
                nursery.start_soon(write, worker)
            for _ in range(3):
                await disk.snapshot()
    content = await content_of(memory_path)
    assert content == b"".join(bytes([number]) * SECTOR for number in done)


async def test_a_snapshot_that_fails_changes_nothing(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    async with opened(memory_path) as disk:
        put(disk, 0, b"a" * SECTOR)

        def full(*_: object) -> None:
            raise StorageFullError("no space")

        with monkeypatch.context() as patch:
            patch.setattr(upper_directory, "place_manifest", full)
            with pytest.raises(StorageFullError):
                await disk.snapshot()
        put(disk, 1, b"b" * SECTOR)
        assert disk.pread_nowait(0, 2 * SECTOR) == b"a" * SECTOR + b"b" * SECTOR
        await disk.snapshot()
        put(disk, 2, b"c" * SECTOR)
    assert (await content_of(memory_path)).startswith(b"a" * SECTOR + b"b" * SECTOR + b"c" * SECTOR)


async def test_too_many_layers(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    async with opened(memory_path) as disk:
        put(disk, 0, b"a" * SECTOR)
        await disk.snapshot()
        assert disk.lower is not None
        disk.lower.layers += [disk.lower.layers[0]] * (MAX_LAYERS - 1)
        with pytest.raises(UnsupportedError, match="255 layers"):
            await disk.snapshot()
        del disk.lower.layers[1:]
        assert disk.pread_nowait(0, SECTOR) == b"a" * SECTOR


async def test_a_crash_at_every_step_of_snapshots(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old state or the new one: both say the same, and nothing flushed is lost."""
    live = memory_path / "live"
    UpperDirectory.create(live, MANIFEST_OF_NOTHING)
    storage = RecordingStorage(live)
    disk = await UpperDirectory(live, storage).open(None, "image")
    states: list[tuple[int, bytes]] = []
    expected = bytearray(SIZE)
    for number in range(3):
        for sector in (number, 40 + number, 7):
            data = bytes([number + 1]) * (4 * SECTOR)
            put(disk, sector, data)
            expected[sector * SECTOR : (sector + 4) * SECTOR] = data
        await disk.flush()
        states.append((len(storage.log.ops), bytes(expected)))
        await disk.snapshot()
        states.append((len(storage.log.ops), bytes(expected)))
    await disk.aclose()
    replay = Replay(storage.log)
    for count in range(states[0][0], len(storage.log.ops) + 1):
        for fate in Fate:
            crashed = memory_path / f"{count}-{fate.value}"
            replay.write(crashed, count, fate)
            boot = running_boot() if fate is Fate.KILLED else uuid.uuid4()
            with monkeypatch.context() as patch:
                patch.setattr(upper_directory, "running_boot", lambda boot=boot: boot)
                found = await content_of(crashed)
            least = max(i for i, (when, _) in enumerate(states) if when <= count)
            # What was written after the last flush may be there too, sector by sector.
            for sector in range(SIZE // SECTOR):
                part = slice(sector * SECTOR, (sector + 1) * SECTOR)
                allowed = {content[part] for _, content in states[least : least + 2]}
                assert found[part] in allowed, (count, fate, sector)
            known = names_in(crashed)
            assert not [name for name in known if name.endswith(".new")], known


# --- checkpoints


async def test_a_checkpoint_is_a_moment(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper_module, "_POOL_BYTES", 0)
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    dice = random.Random(4)
    async with opened(memory_path) as disk:
        put(disk, 0, dice.randbytes(32 * SECTOR))
        await disk.snapshot()
        put(disk, 16, dice.randbytes(32 * SECTOR))
        then = bytes(await disk.pread(0, SIZE))
        with locked_checkpoint(memory_path) as lock:
            point = await disk.checkpoint(lock)
            assert point["size"] == SIZE
            for _ in range(5):
                put(disk, 16, dice.randbytes(32 * SECTOR))
                await disk.flush()
            layers = [await upper_directory.open_sealed(Path(path)) for path in point["sealed"]]
            layers.append(open_pair(Path(point["data"]), Path(point["index"])))
            stack = LayeredDevice(layers, "point")
            assert await stack.pread(0, SIZE) == then
            used = disk.stats()["upper_bytes_used"]
            await stack.aclose()
        # Once nobody reads it any more, the space comes back.
        put(disk, 16, dice.randbytes(32 * SECTOR))
        await disk.flush()
        assert disk.stats()["upper_bytes_used"] < used - 4 * 32 * SECTOR
        assert not [name for name in names_in(memory_path) if name.startswith("checkpoint-")]


async def test_checkpoints_are_files_of_the_directory(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    async with opened(memory_path) as disk:
        for lock in (memory_path / "writable_data", Path("/etc/checkpoint-1"), Path("None")):
            with pytest.raises(UsageError):
                await disk.checkpoint(lock)
        with pytest.raises(HybridError):
            await disk.checkpoint(memory_path / "checkpoint-absent")
        put(disk, 0, b"x" * SECTOR)


async def test_what_a_dead_process_left_is_removed(memory_path: Path) -> None:
    UpperDirectory.create(memory_path, MANIFEST_OF_NOTHING)
    for name in (OLD, "data-7", "index-7", "upper.json.new", "mine"):
        (memory_path / name).write_text("x")
    held = os.open(memory_path / HELD, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    async with opened(memory_path):
        found = names_in(memory_path)
    os.close(held)
    assert {HELD, "mine"} <= set(found)
    assert not {OLD, "data-7", "index-7", "upper.json.new"} & set(found)

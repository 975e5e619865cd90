"""A crash at every boundary between two steps on the files of a writable layer.

The invariant (docs/writable.md): what a flush confirmed is there; what was acknowledged survives
the death of the process; what was not flushed is whole or absent after a power cut.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from support.crash_storage import Fate, Log, Op, RecordingStorage, Replay

from hybrid.core import index_log
from hybrid.core import upper as upper_module
from hybrid.core.device import SECTOR
from hybrid.core.storage import Storage
from hybrid.core.upper import Upper, create_pair
from hybrid.core.writable import WritableDevice

BOOT = uuid.UUID(int=1)
NEXT_BOOT = uuid.UUID(int=2)
SECTORS = 64
DISK = SECTORS * SECTOR
ZEROS = bytes(SECTOR)


@dataclass
class Step:
    """A change of the disk: ``data`` for ``[sector, sector + count)``."""

    sector: int
    count: int
    data: bytes
    begun: int = 0
    """Steps of the log when it was begun."""
    done: int | None = None
    """Steps of the log when it was acknowledged."""


@dataclass
class History:
    steps: list[Step] = field(default_factory=list)
    flushes: list[tuple[int, int]] = field(default_factory=list)
    """Of each flush that was confirmed: changes before it, steps of the log when it was."""


async def run_workload(directory: Path, seed: int) -> tuple[Log, History]:
    """Writes, discards and flushes, some of them at the same time."""
    storage = RecordingStorage(directory)
    data, index = directory / "data", directory / "index"
    dice = random.Random(seed)
    history = History()
    log = storage.log

    async def change(device: WritableDevice, number: int) -> None:
        sector = dice.randrange(SECTORS)
        count = min(dice.choice((1, 1, 2, 8, 8, 16, 24)), SECTORS - sector)
        if dice.random() < 0.2:
            step = Step(sector, count, bytes(count * SECTOR), len(log.ops))
            history.steps.append(step)
            await device.discard(sector * SECTOR, count * SECTOR)
        else:
            content = b"".join(
                f"{number:06} {sector + n:06} ".encode().ljust(SECTOR, b".") for n in range(count)
            )
            step = Step(sector, count, content, len(log.ops))
            history.steps.append(step)
            assert device.pwrite_nowait(sector * SECTOR, content)
        step.done = len(log.ops)

    async def flush(device: WritableDevice) -> None:
        # A change that is in flight may be the last one.
        before = sum(step.done is not None for step in history.steps)
        await device.flush()
        history.flushes.append((before, len(log.ops)))

    create_pair(storage, data, index, DISK)
    for _ in range(2):  # the second time over what the first one left, unflushed
        upper = Upper.open(storage, data, index, BOOT)
        device = WritableDevice(None, upper, "disk")
        for _ in range(12):
            for _ in range(dice.randint(1, 5)):
                await change(device, len(history.steps))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush, device)
                if dice.random() < 0.5:
                    await trio.lowlevel.checkpoint()
                    await change(device, len(history.steps))
        await change(device, len(history.steps))
        upper.close()
    return log, history


def small_limits(monkeypatch: pytest.MonkeyPatch, pool: int = 0) -> None:
    """So that logs are rewritten, and files cut, within a short history.

    ``pool``: bytes of free space that are kept to be used again rather than punched.
    """
    monkeypatch.setattr(upper_module, "_POOL_BYTES", pool)
    monkeypatch.setattr(index_log, "_MIN_HISTORY", 8)
    monkeypatch.setattr(upper_module, "_WHILE_OPEN", 0)
    # Without slack all that is unused is found at opening; with it, only what is left for later.
    monkeypatch.setattr(upper_module, "_SLACK", 0 if pool else 1 << 20)


async def disk_in(directory: Path, boot: uuid.UUID) -> bytes:
    upper = Upper.open(Storage(), directory / "data", directory / "index", boot)
    device = WritableDevice(None, upper, "disk")
    found = bytes(await device.pread(0, DISK))
    upper.close()
    return found


async def check_going_on(directory: Path, seed: int) -> None:
    """What the next process writes and flushes hurts nothing; then the power goes."""
    upper = Upper.open(Storage(), directory / "data", directory / "index", BOOT)
    device = WritableDevice(None, upper, "disk")
    expected = bytearray(await device.pread(0, DISK))
    dice = random.Random(seed)
    for _ in range(3):
        for _ in range(2):
            sector, data = dice.randrange(SECTORS - 8), dice.randbytes(8 * SECTOR)
            assert device.pwrite_nowait(sector * SECTOR, data)
            expected[sector * SECTOR : sector * SECTOR + len(data)] = data
        await device.flush()
    assert await device.pread(0, DISK) == expected, seed
    upper.close()
    assert await disk_in(directory, NEXT_BOOT) == expected, seed


def disk_after(steps: list[Step]) -> bytearray:
    disk = bytearray(DISK)
    for step in steps:
        disk[step.sector * SECTOR : (step.sector + step.count) * SECTOR] = step.data
    return disk


def check_killed(found: bytes, history: History, position: int) -> None:
    """All that was acknowledged, and the change in flight or not."""
    done = [step for step in history.steps if step.done is not None and step.done <= position]
    begun = [step for step in history.steps if step.begun <= position]
    assert found in (disk_after(done), disk_after(begun)), position


def check_power_cut(found: bytes, history: History, position: int) -> None:
    """What was flushed is there; each later change is whole or absent."""
    flushed = max((before for before, when in history.flushes if when <= position), default=0)
    base = disk_after(history.steps[:flushed])
    later = [step for step in history.steps[flushed:] if step.begun <= position]
    for sector in range(SECTORS):
        allowed = [base[sector * SECTOR : (sector + 1) * SECTOR]] + [
            step.data[(sector - step.sector) * SECTOR : (sector - step.sector + 1) * SECTOR]
            for step in later
            if step.sector <= sector < step.sector + step.count
        ]
        got = found[sector * SECTOR : (sector + 1) * SECTOR]
        assert got in allowed, (position, sector, got[:20], [bytes(a[:20]) for a in allowed])
    for step in later:
        check_whole_or_absent(found, base, step, later)


def check_whole_or_absent(found: bytes, base: bytearray, step: Step, later: list[Step]) -> None:
    own = [
        sector
        for sector in range(step.sector, step.sector + step.count)
        if not any(
            other is not step and other.sector <= sector < other.sector + other.count
            for other in later
        )
    ]
    seen = set()
    for sector in own:
        got = found[sector * SECTOR : (sector + 1) * SECTOR]
        new = step.data[(sector - step.sector) * SECTOR : (sector - step.sector + 1) * SECTOR]
        if new != base[sector * SECTOR : (sector + 1) * SECTOR]:
            seen.add(got == new)
    assert len(seen) < 2, "a write is there in part"


def positions(log: Log) -> Iterator[int]:
    """From the moment at which the layer exists."""
    first = next(i for i, op in enumerate(log.ops) if op.what == "sync_directory") + 1
    yield from range(first, len(log.ops) + 1)


@pytest.mark.parametrize(
    ("seed", "pool", "wanted"), [(0, 0, "punch"), (1, 0, "punch"), (2, 1 << 20, ""), (3, 4096, "")]
)
async def test_a_crash_at_every_step(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, pool: int, wanted: str
) -> None:
    small_limits(monkeypatch, pool)
    (memory_path / "live").mkdir()
    log, history = await run_workload(memory_path / "live", seed)
    kinds = {op.what for op in log.ops}
    assert kinds >= {"write", "sync", "truncate", "replace"} | {wanted} - {""}, "too tame"
    assert uses_again(log) or not pool
    replay = Replay(log)
    for position in positions(log):
        for fate in Fate:
            crashed = memory_path / f"{position}-{fate.value}"
            replay.write(crashed, position, fate, seed)
            if fate is Fate.KILLED:
                check_killed(await disk_in(crashed, BOOT), history, position)
                await check_going_on(crashed, position)
            else:
                check_power_cut(await disk_in(crashed, NEXT_BOOT), history, position)


def uses_again(log: Log) -> bool:
    """Whether data was written where other data had been."""
    end = 0
    for op in log.ops:
        if op.what == "write" and op.file == 0 and op.offset:
            if op.offset < end:
                return True
            end = op.offset + op.length
    return False


async def test_a_second_crash_while_the_first_is_made_good(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_limits(monkeypatch)
    (memory_path / "live").mkdir()
    log, history = await run_workload(memory_path / "live", 7)
    dice = random.Random(7)
    for position in dice.sample(list(positions(log)), 20):
        first = memory_path / f"{position}"
        Replay(log).write(first, position, Fate.SCATTERED, 1)
        storage = RecordingStorage(first)
        Upper.open(storage, first / "data", first / "index", NEXT_BOOT).close()
        for count in range(len(storage.log.ops) + 1):
            second = memory_path / f"{position}-{count}"
            Replay(storage.log).write(second, count, Fate.METADATA)
            found = await disk_in(second, uuid.UUID(int=3))
            check_power_cut(found, history, position)


# --- the test must be able to see what it looks for


async def broken_workload(
    memory_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    broken: object,
    pool: int = 0,
) -> None:
    small_limits(monkeypatch, pool)
    monkeypatch.setattr(Upper, name, broken)
    (memory_path / "live").mkdir()
    log, history = await run_workload(memory_path / "live", 0)
    for position in positions(log):
        for fate in (Fate.DROPPED, Fate.METADATA, Fate.SCATTERED):
            crashed = memory_path / f"{position}-{fate.value}"
            Replay(log).write(crashed, position, fate)
            check_power_cut(await disk_in(crashed, NEXT_BOOT), history, position)


async def test_punching_too_early_is_seen(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Upper._note

    def note_and_punch(self: Upper, start: int, count: int, location: int) -> None:
        note(self, start, count, location)
        dead, self._dead = self._dead, []
        self._punch(self._reclaimer.add(dead))

    with pytest.raises(AssertionError):
        await broken_workload(memory_path, monkeypatch, "_note", note_and_punch)


async def test_using_space_again_too_early_is_seen(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Upper._note

    def note_and_free(self: Upper, start: int, count: int, location: int) -> None:
        note(self, start, count, location)
        dead, self._dead = self._dead, []
        self._pool.add(self._reclaimer.add(dead))

    with pytest.raises(AssertionError):
        await broken_workload(memory_path, monkeypatch, "_note", note_and_free, pool=1 << 20)


async def test_an_index_before_its_data_is_seen(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(self: Upper, batch: list[tuple[int, int, int]]) -> None:
        self._log.append(b"".join(upper_module.lsmt.pack_entry(*entry) for entry in batch))
        self._data.sync()

    with pytest.raises(AssertionError):
        await broken_workload(memory_path, monkeypatch, "_store", store)


async def test_a_flush_without_synchronising_is_seen(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store(self: Upper, batch: list[tuple[int, int, int]]) -> None:
        raw = b"".join(upper_module.lsmt.pack_entry(*entry) for entry in batch)
        self._data.sync()
        self._log.file.write(self._log.end, raw)
        self._log.end += len(raw)

    with pytest.raises(AssertionError):
        await broken_workload(memory_path, monkeypatch, "_store", store)


def test_the_replay_tells_the_fates_apart(memory_path: Path) -> None:
    live = memory_path / "live"
    live.mkdir()
    storage = RecordingStorage(live)
    file = storage.create(live / "a")
    file.write(0, b"x" * 512)
    file.sync()
    storage.sync_directory(live)
    file.write(512, b"y" * 512)
    file.punch(0, 512)
    file.close()
    replay = Replay(storage.log)
    count = len(storage.log.ops)
    assert replay.found(count, Fate.KILLED) == {"a": bytes(512) + b"y" * 512}
    assert replay.found(count, Fate.DROPPED) == {"a": b"x" * 512}
    assert replay.found(count, Fate.METADATA) == {"a": bytes(1024)}
    assert Op("sync_directory") in storage.log.ops

"""The TCMU server over a kernel in memory: what the initiator gets, and when."""

from __future__ import annotations

import logging
import random
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.memory_device import MemoryDevice
from support.tcmu_kernel import CHECK_CONDITION, GOOD, Completion, FakeUio, TcmuKernel

from hybrid.block.ring import RingError
from hybrid.block.scsi_unit import LogicalUnit
from hybrid.block.server import RingServer
from hybrid.core.device import Buffer

SIZE = 4 << 20
BLOCK = 512
CONTENT = random.Random(9).randbytes(SIZE)
FUA = 0x08


def read10(offset: int, length: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", 0x28, flags, offset // BLOCK, 0, length // BLOCK, 0)


def write16(offset: int, length: int, flags: int = 0) -> bytes:
    return struct.pack(">BBQIBB", 0x8A, flags, offset // BLOCK, length // BLOCK, 0, 0)


def write_same16(offset: int, length: int, flags: int = 0) -> bytes:
    return struct.pack(">BBQIBB", 0x93, flags, offset // BLOCK, length // BLOCK, 0, 0)


def verify10(offset: int, length: int, flags: int = 0x02) -> bytes:
    return struct.pack(">BBIBHB", 0x2F, flags, offset // BLOCK, 0, length // BLOCK, 0)


def unmap(length: int) -> bytes:
    return struct.pack(">BB4xBHB", 0x42, 0, 0, length, 0)


def unmap_list(*ranges: tuple[int, int]) -> bytes:
    body = b"".join(struct.pack(">QI4x", at // BLOCK, size // BLOCK) for at, size in ranges)
    return struct.pack(">HH4x", len(body) + 6, len(body)) + body


SYNCHRONIZE_CACHE = b"\x35".ljust(10, b"\0")
TEST_UNIT_READY = bytes(6)


def key_and_code(completion: Completion) -> tuple[int, int]:
    """Sense key, and additional sense code with its qualifier."""
    assert completion.status == CHECK_CONDITION
    return completion.sense[2] & 15, int.from_bytes(completion.sense[12:14], "big")


def information(completion: Completion) -> int:
    assert completion.sense[0] & 0x80, "the information field is not valid"
    return int.from_bytes(completion.sense[3:7], "big")


def unit_of(device: MemoryDevice) -> LogicalUnit:
    return LogicalUnit(
        size=device.size,
        wwn="3687962000000001",
        serial="test",
        writable=device.writable,
        write_cache=device.writable,
    )


class Bench:
    """One device being served."""

    def __init__(self, device: MemoryDevice, kernel: TcmuKernel | None = None) -> None:
        self.device = device
        self.kernel = kernel or TcmuKernel()
        self.uio = FakeUio(self.kernel)
        self.server = RingServer(device, unit_of(device), self.uio, spin_ns=0)
        self.execute = self.uio.execute

    def submit(self, *cdbs: bytes, data_in: int = 4096) -> list[int]:
        """Place reads without waking the server."""
        return [self.kernel.submit(cdb, data_in=data_in) for cdb in cdbs]

    async def answered(self, *cmd_ids: int) -> list[Completion]:
        await self.until(lambda: all(cmd_id in self.kernel.completions for cmd_id in cmd_ids))
        return [self.kernel.completions[cmd_id] for cmd_id in cmd_ids]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Give other tasks their turns until this holds (bounded)."""
        with trio.fail_after(5):
            while not condition():
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(bench: Bench) -> AsyncIterator[Bench]:
    """Serve, and in the end take the device away, as the kernel does: serve() then returns."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.server.serve)
        try:
            yield bench
        finally:
            bench.uio.remove()
    assert not bench.kernel.broken


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(CONTENT)


@pytest.fixture
def bench(device: MemoryDevice) -> Iterator[Bench]:
    made = Bench(device)
    yield made
    made.server.close()
    made.uio.close()  # raises BufferError if a view of the ring is left over


# -- what comes back ---------------------------------------------------------------------------


@pytest.mark.parametrize("scatter", [None, random.Random(2)])
async def test_writes_and_reads_at_random_are_those_of_a_plain_buffer(
    scatter: random.Random | None,
) -> None:
    chance = random.Random(1)
    expected = bytearray(CONTENT)
    async with serving(Bench(MemoryDevice(CONTENT), TcmuKernel(scatter=scatter))) as bench:
        for _ in range(200):
            length = chance.choice((1, 3, 8, 64, 256)) * BLOCK
            offset = chance.randrange(0, SIZE - length + 1, BLOCK)
            if chance.random() < 0.5:
                data = chance.randbytes(length)
                expected[offset : offset + length] = data
                flags = chance.choice((0, FUA))
                done = await bench.execute(write16(offset, length, flags), data_out=data)
                assert done.status == GOOD
            else:
                done = await bench.execute(read10(offset, length), data_in=length)
                assert done == Completion(GOOD, data=bytes(expected[offset : offset + length]))
    assert bytes(bench.device.content) == bytes(expected)
    assert bench.server.commands == 200
    assert bench.server.reads + bench.server.writes == 200
    assert bench.server.read_errors == 0


async def test_a_reply_is_no_longer_than_it_is(bench: Bench) -> None:
    inquiry = bytes((0x12, 0, 0, 0, 255, 0))
    async with serving(bench):
        done = await bench.execute(inquiry, data_in=255)
    assert done.status == GOOD
    assert len(done.data) == 5 + done.data[4] < 255


async def test_a_buffer_that_is_longer_than_the_read_shows_nothing_else(bench: Bench) -> None:
    async with serving(bench):
        done = await bench.execute(read10(0, 4096), data_in=8192)
    assert done == Completion(GOOD, data=CONTENT[:4096])


async def test_a_buffer_that_is_too_short_gets_what_fits(bench: Bench) -> None:
    async with serving(bench):
        done = await bench.execute(read10(0, 4096), data_in=512)
    assert done == Completion(GOOD, data=CONTENT[:512])


async def test_commands_of_a_former_server_are_answered_without_an_event(bench: Bench) -> None:
    cmd_ids = bench.submit(read10(0, 4096), read10(4096, 4096))
    async with serving(bench):
        first, second = await bench.answered(*cmd_ids)
    assert first.data + second.data == CONTENT[:8192]


# -- waiting -----------------------------------------------------------------------------------


async def test_a_read_that_waits_holds_up_no_other(bench: Bench, device: MemoryDevice) -> None:
    device.slow = [(0, 4096)]
    async with serving(bench):
        (slow,) = bench.submit(read10(0, 4096))
        fast = await bench.execute(read10(8192, 4096), data_in=4096)
        assert fast.data == CONTENT[8192:12288]
        assert slow not in bench.kernel.completions
        device.gate.set()
        (done,) = await bench.answered(slow)
        assert done.data == CONTENT[:4096]


async def test_the_kernel_is_told_once_for_a_batch(bench: Bench, device: MemoryDevice) -> None:
    async with serving(bench):
        await bench.execute(TEST_UNIT_READY)
        before = bench.uio.notified
        cmd_ids = bench.submit(*(read10(n * 4096, 4096) for n in range(20)))
        bench.uio.poke()
        await bench.answered(*cmd_ids)
        assert bench.uio.notified - before <= 1 + 20 // 8  # turns may cut a batch in pieces
        assert bench.server.batches == 2


async def test_reads_that_end_together_are_told_once(bench: Bench, device: MemoryDevice) -> None:
    device.slow = [(0, SIZE)]
    async with serving(bench):
        cmd_ids = bench.submit(*(read10(n * 4096, 4096) for n in range(10)))
        bench.uio.poke()
        await bench.until(lambda: device.waiting == 10)
        before = bench.uio.notified
        device.gate.set()
        done = await bench.answered(*cmd_ids)
    assert b"".join(answer.data for answer in done) == CONTENT[:40960]
    assert bench.uio.notified == before + 1


async def test_a_write_that_waits_is_done_from_the_memory_of_the_ring(
    bench: Bench, device: MemoryDevice
) -> None:
    device.slow = [(0, 4096)]
    async with serving(bench):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: bench.execute(write16(0, 8192), data_out=b"a" * 8192))
            await bench.until(lambda: device.waiting == 1)
            other = await bench.execute(write16(16384, 4096), data_out=b"b" * 4096)
            assert other.status == GOOD
            assert device.content[:8192] == CONTENT[:8192]
            device.gate.set()
        done = await bench.execute(read10(0, 8192), data_in=8192)
    assert done.data == b"a" * 8192


async def test_other_tasks_get_their_turn_while_commands_never_end(bench: Bench) -> None:
    left, turns = 3000, 0

    def again(_: Completion) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            bench.kernel.submit(read10(0, 65536), data_in=65536, done=again)

    async def count() -> None:
        nonlocal turns
        while left > 0:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with serving(bench), trio.open_nursery() as nursery:
        again(Completion(GOOD))
        nursery.start_soon(count)
        bench.uio.poke()
    assert turns > 20


# -- flushing, discarding, filling, comparing --------------------------------------------------


async def test_flush_reaches_the_device(bench: Bench, device: MemoryDevice) -> None:
    async with serving(bench):
        await bench.execute(write16(0, 512), data_out=bytes(512))
        assert (await bench.execute(SYNCHRONIZE_CACHE)).status == GOOD
    assert [what for what, *_ in device.calls] == ["write", "flush"]


async def test_forced_unit_access_flushes_after_a_write_and_before_a_read(
    bench: Bench, device: MemoryDevice
) -> None:
    async with serving(bench):
        await bench.execute(write16(0, 512, FUA), data_out=bytes(512))
        await bench.execute(read10(0, 512, FUA), data_in=512)
    assert [what for what, *_ in device.calls] == ["write", "flush", "flush", "read"]


async def test_a_read_only_device_has_nothing_to_flush() -> None:
    device = MemoryDevice(CONTENT, writable=False)
    async with serving(Bench(device)) as bench:
        assert (await bench.execute(SYNCHRONIZE_CACHE)).status == GOOD
        assert (await bench.execute(read10(0, 512, FUA), data_in=512)).data == CONTENT[:512]
        done = await bench.execute(write16(0, 512), data_out=bytes(512))
        assert key_and_code(done) == (0x7, 0x2700)
    assert device.content == CONTENT


async def test_unmap_discards_its_ranges(bench: Bench, device: MemoryDevice) -> None:
    ranges = [(0, 8192), (1 << 20, 512)]
    parameters = unmap_list(*ranges)
    async with serving(bench):
        done = await bench.execute(unmap(len(parameters)), data_out=parameters)
        assert done.status == GOOD
        short = await bench.execute(unmap(len(parameters)), data_out=parameters[:20])
        assert key_and_code(short) == (0x5, 0x1A00)
    assert device.calls == [("discard", *found) for found in ranges]


@pytest.mark.parametrize("flags", [0, 0x08], ids=["plain", "unmap"])
async def test_write_same_of_zeros_discards(bench: Bench, device: MemoryDevice, flags: int) -> None:
    async with serving(bench):
        done = await bench.execute(write_same16(4096, 1 << 20, flags), data_out=bytes(512))
        assert done.status == GOOD
    assert device.calls == [("discard", 4096, 1 << 20)]


@pytest.mark.parametrize("flags", [0, 0x08], ids=["plain", "unmap"])
async def test_write_same_of_a_pattern_writes_it_in_pieces(
    bench: Bench, device: MemoryDevice, flags: int
) -> None:
    block = bytes(range(256)) * 2
    length = (5 << 19) + 512
    async with serving(bench):
        done = await bench.execute(write_same16(512, length, flags), data_out=block)
        assert done.status == GOOD
    assert device.content[512 : 512 + length] == block * (length // 512)
    assert device.content[512 + length :] == CONTENT[512 + length :]
    assert max(size for _, _, size in device.calls) <= 1 << 20


async def test_verify_compares(bench: Bench) -> None:
    data = bytearray(CONTENT[4096 : 4096 + 8192])
    async with serving(bench):
        same = await bench.execute(verify10(4096, 8192), data_out=bytes(data))
        assert same.status == GOOD
        data[5000] ^= 1
        other = await bench.execute(verify10(4096, 8192), data_out=bytes(data))
        assert key_and_code(other) == (0xE, 0x1D00)
        assert information(other) == 5000
        medium_only = await bench.execute(verify10(4096, 8192, 0))
        assert medium_only.status == GOOD


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
async def test_a_bad_block_fails_its_command_only(
    bench: Bench, device: MemoryDevice, caplog: pytest.LogCaptureFixture, waits: bool
) -> None:
    device.failing = [(1 << 20, 4096)]
    if waits:
        device.slow = [(0, SIZE)]
    async with serving(bench):
        cmd_ids = bench.submit(*((read10((1 << 20) + n * 4096, 4096)) for n in (-1, 0, 1)))
        bench.uio.poke()
        if waits:
            await bench.until(lambda: device.waiting == 3)
            device.gate.set()
        before, bad, after = await bench.answered(*cmd_ids)
    assert key_and_code(bad) == (0x3, 0x1100)
    assert information(bad) == (1 << 20) // BLOCK
    assert before.data == CONTENT[(1 << 20) - 4096 : 1 << 20]
    assert after.data == CONTENT[(1 << 20) + 4096 : (1 << 20) + 8192]
    assert bench.server.read_errors == 1
    (message,) = caplog.messages
    assert message == f"EIO for 4096 bytes at {1 << 20} of memory: bad block in read at {1 << 20}"


async def test_a_full_disk_and_a_bad_write(
    bench: Bench, device: MemoryDevice, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(bench):
        device.is_full = True
        full = await bench.execute(write16(0, 512), data_out=bytes(512))
        assert key_and_code(full) == (0x7, 0x2707)
        device.is_full = False
        device.failing = [(0, 512)]
        bad = await bench.execute(write16(0, 512), data_out=bytes(512))
        assert key_and_code(bad) == (0x3, 0x0C00)
        assert information(bad) == 0
    assert [message[:28] for message in caplog.messages] == [
        "ENOSPC for WRITE 512 bytes a",
        "EIO for WRITE 512 bytes at 0",
    ]
    assert bench.server.read_errors == 0


@pytest.mark.parametrize("waits", [False, True])
async def test_a_bug_is_a_hardware_error_with_a_traceback(
    bench: Bench, device: MemoryDevice, caplog: pytest.LogCaptureFixture, waits: bool
) -> None:
    async with serving(bench):
        device.bug = ZeroDivisionError("oops")
        cdb = SYNCHRONIZE_CACHE if waits else read10(0, 512)
        done = await bench.execute(cdb, data_in=0 if waits else 512)
        assert key_and_code(done) == (0x4, 0x4400)
        device.bug = None
        assert (await bench.execute(read10(0, 512), data_in=512)).data == CONTENT[:512]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_read_of_the_wrong_length_is_never_served(
    bench: Bench, device: MemoryDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(offset: int, length: int) -> Buffer:
        return CONTENT[offset : offset + length - 1]

    monkeypatch.setattr(device, "pread_nowait", short)
    async with serving(bench):
        done = await bench.execute(read10(0, 512), data_in=512)
    assert key_and_code(done) == (0x4, 0x4400)


async def test_a_write_with_too_little_data_changes_nothing(
    bench: Bench, device: MemoryDevice
) -> None:
    async with serving(bench):
        done = await bench.execute(write16(0, 4096), data_out=bytes(512))
        assert key_and_code(done) == (0x5, 0x2400)
    assert device.calls == []


async def test_a_malformed_command_is_answered(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (cmd_id,) = bench.submit(read10(0, 4096))
    struct.pack_into("=Q", bench.kernel.memory, 128 + 48, bench.kernel.size - 1)  # an iovec
    async with serving(bench):
        (done,) = await bench.answered(cmd_id)
        assert key_and_code(done) == (0x4, 0x4400)
        assert (await bench.execute(read10(0, 512), data_in=512)).data == CONTENT[:512]
    (message,) = caplog.messages
    assert message.startswith("malformed command of memory: iovec")


async def test_unknown_opcodes_are_refused_silently(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(bench):
        assert key_and_code(await bench.execute(b"\xff" * 10)) == (0x5, 0x2000)
    assert caplog.messages == []


# -- the end -----------------------------------------------------------------------------------


async def test_the_end_of_the_device_is_the_end_of_waiting_reads(
    bench: Bench, device: MemoryDevice
) -> None:
    device.slow = [(0, SIZE)]
    async with serving(bench):
        bench.submit(read10(0, 4096))
        bench.uio.poke()
        await bench.until(lambda: device.waiting == 1)
    assert device.waiting == 0


async def test_cancelled_commands_stay_for_the_next_server(
    bench: Bench, device: MemoryDevice
) -> None:
    device.slow = [(0, 4096)]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.server.serve)
            (read,) = bench.submit(read10(0, 4096))
            write = bench.kernel.submit(write16(0, 4096), data_out=bytes(4096))
            assert (await bench.execute(read10(8192, 512), data_in=512)).status == GOOD
            await bench.until(lambda: device.waiting == 2)
            scope.cancel()
    assert scope.cancelled_caught
    assert set(bench.kernel.open) == {read, write}
    bench.kernel.handle_completions()
    assert set(bench.kernel.open) == {read, write}
    assert not bench.kernel.broken


async def test_a_broken_ring_ends_the_server_with_its_error(
    bench: Bench, device: MemoryDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.slow = [(0, 4096)]

    async def break_ring() -> None:
        await bench.until(lambda: device.waiting == 1)
        bench.kernel.set_u32(12, 4)  # cmd_head within an entry
        bench.uio.poke()

    bench.submit(read10(0, 4096))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(break_ring)
        with pytest.raises(RingError, match="cmd_head"):
            await bench.server.serve()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("cannot go on serving memory: TCMU ring")
    assert device.waiting == 0


async def test_a_ring_that_is_reset_under_a_waiting_read_ends_the_server(
    bench: Bench, device: MemoryDevice
) -> None:
    device.slow = [(0, 4096)]

    async def reset() -> None:
        await bench.until(lambda: device.waiting == 1)
        bench.kernel.reset_ring()
        device.gate.set()

    # Such that the ring does not begin at 0, where a reset sets it back to.
    bench.submit(TEST_UNIT_READY, read10(0, 4096))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reset)
        with pytest.raises(RingError, match="reset"):
            await bench.server.serve()


# -- looking for the next command ----------------------------------------------------------------


@pytest.mark.parametrize(("spin_ns", "sleeps"), [(0, range(20, 30)), (2_000_000_000, range(4))])
async def test_commands_that_come_fast_are_met_awake(
    device: MemoryDevice, spin_ns: int, sleeps: range
) -> None:
    bench = Bench(device)
    server = RingServer(device, unit_of(device), bench.uio, spin_ns=spin_ns)
    answered = threading.Semaphore(0)

    def initiator() -> None:
        """Another thread places the next command once one is answered, while the server looks."""
        for _ in range(20):
            bench.kernel.submit(TEST_UNIT_READY, done=lambda _: answered.release())
            bench.uio.poke()
            answered.acquire(timeout=5)
        seen.append(server.sleeps)
        bench.uio.remove()

    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        await trio.to_thread.run_sync(initiator)
    assert seen[0] in sleeps
    assert server.commands == 20

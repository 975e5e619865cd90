"""The ring codec against a model of the kernel's side, which was written from the ABI alone."""

import mmap
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tcmu_kernel import (
    BUSY,
    CAP_OOOC,
    CAP_READ_LEN,
    CHECK_CONDITION,
    CMDR_OFF,
    GOOD,
    Completion,
    NoSpace,
    TcmuKernel,
)

from hybrid.block.ring import Command, Ring, RingError

READ_10 = bytes.fromhex("28000000000000000800")
WRITE_10 = bytes.fromhex("2a000000000000000800")
TEST_UNIT_READY = bytes(6)
SENSE = bytes.fromhex("70000300000000 0a0000000011 00000000 00")


def make(**options: Any) -> tuple[TcmuKernel, Ring]:
    kernel = TcmuKernel(**options)
    return kernel, Ring(memoryview(kernel.memory))


def answer(kernel: TcmuKernel, ring: Ring) -> None:
    """Complete all that is there, and tell the kernel."""
    for command in ring.take(1000):
        ring.complete(command.cmd_id)
    kernel.handle_completions()
    assert kernel.broken == ""


# -- taking and answering ----------------------------------------------------------------------


def test_a_read() -> None:
    kernel, ring = make()
    assert not ring.has_new
    assert ring.take(10) == []
    cmd_id = kernel.submit(READ_10, data_in=4096)
    assert ring.has_new
    (command,) = ring.take(10)
    assert command == Command(cmd_id, READ_10, ((kernel.data_offset, 4096),))
    assert (ring.in_flight, ring.has_new) == (1, False)
    data = random.Random(1).randbytes(4096)
    assert ring.put(command, [data]) == 4096
    ring.complete(cmd_id)
    assert ring.in_flight == 0
    assert kernel.completions == {}
    kernel.handle_completions()
    assert kernel.completions == {cmd_id: Completion(GOOD, b"", data)}


def test_a_write_is_seen_without_a_copy() -> None:
    kernel, ring = make(scatter=random.Random(2))
    data = random.Random(3).randbytes(5 * 4096 + 512)
    kernel.submit(WRITE_10, data_out=data)
    (command,) = ring.take(10)
    assert len(command.iovs) > 1
    views = ring.views(command, len(data))
    assert b"".join(views) == data
    kernel.memory[command.iovs[0][0]] ^= 1
    assert views[0][0] == data[0] ^ 1


def test_no_more_than_the_limit_is_taken() -> None:
    kernel, ring = make()
    ids = [kernel.submit(TEST_UNIT_READY) for _ in range(5)]
    assert [command.cmd_id for command in ring.take(2)] == ids[:2]
    assert ring.has_new
    assert [command.cmd_id for command in ring.take(10)] == ids[2:]
    assert not ring.has_new


def test_completion_in_any_order() -> None:
    kernel, ring = make()
    first, second, third = (kernel.submit(READ_10, data_in=512) for _ in range(3))
    commands = {command.cmd_id: command for command in ring.take(10)}
    for cmd_id in (second, third, first):
        ring.put(commands[cmd_id], [bytes([cmd_id]) * 512])
        ring.complete(cmd_id)
        kernel.handle_completions()
        assert kernel.completions[cmd_id] == Completion(GOOD, b"", bytes([cmd_id]) * 512)
    assert kernel.head == kernel.tail
    assert not kernel.broken


def test_errors_carry_sense_data_and_no_rest_of_the_request() -> None:
    kernel, ring = make()
    with_sense, without = (kernel.submit(READ_10, data_in=512) for _ in range(2))
    ring.take(10)
    ring.complete(with_sense, CHECK_CONDITION, SENSE)
    ring.complete(without, CHECK_CONDITION)
    kernel.handle_completions()
    assert kernel.completions == {
        with_sense: Completion(CHECK_CONDITION, SENSE.ljust(96, b"\0")),
        without: Completion(CHECK_CONDITION, bytes(96)),
    }


def test_a_reply_that_is_shorter_than_the_buffer() -> None:
    kernel, ring = make()
    kernel.memory[kernel.data_offset : kernel.data_offset + 255] = b"!" * 255  # another's data
    cmd_id = kernel.submit(bytes.fromhex("12000000ff00"), data_in=255)
    (command,) = ring.take(1)
    ring.complete(cmd_id, read_length=ring.put(command, [b"x" * 36]))
    kernel.handle_completions()
    assert kernel.completions[cmd_id].data == b"x" * 36


def test_only_what_is_in_flight_can_be_completed() -> None:
    kernel, ring = make()
    cmd_id = kernel.submit(TEST_UNIT_READY)
    with pytest.raises(ValueError, match=f"command {cmd_id} is not in flight"):
        ring.complete(cmd_id)  # not taken yet
    ring.take(1)
    with pytest.raises(ValueError, match="97 bytes of sense data; 96 fit"):
        ring.complete(cmd_id, CHECK_CONDITION, bytes(97))
    ring.complete(cmd_id)
    with pytest.raises(ValueError, match="not in flight"):
        ring.complete(cmd_id)
    kernel.handle_completions()
    assert kernel.completions == {cmd_id: Completion(GOOD)}


def test_task_management_and_unknown_entries_are_passed_over() -> None:
    kernel, ring = make()
    kernel.submit_tmr(5)
    first = kernel.submit(TEST_UNIT_READY)
    kernel.submit_tmr(1, first)
    kernel.submit_entry(5, bytes(16), cmd_id=0x7777)
    last = kernel.submit(TEST_UNIT_READY)
    assert [command.cmd_id for command in ring.take(10)] == [first, last]
    unknown = kernel.memory.find(struct.pack("=H", 0x7777)) - 4
    assert kernel.memory[unknown + 7] == 1  # UNKNOWN_OP
    ring.complete(last)
    ring.complete(first)
    kernel.handle_completions()
    assert kernel.completions == {
        first: Completion(GOOD),
        last: Completion(GOOD),
        0x7777: Completion(CHECK_CONDITION),
    }
    assert kernel.head == kernel.tail
    assert not kernel.broken


CDBS = {
    0x00: 6, 0x12: 6, 0x28: 10, 0x42: 10, 0x5A: 10, 0x60: 12, 0x88: 16, 0x9E: 16,
    0xA0: 12, 0xA8: 12, 0xC1: 10, 0xE1: 10,
}  # fmt: skip


@pytest.mark.parametrize(("opcode", "length"), CDBS.items())
def test_cdb_lengths(opcode: int, length: int) -> None:
    kernel, ring = make()
    cdb = bytes([opcode]) + random.Random(opcode).randbytes(31)
    kernel.submit(cdb)
    assert ring.take(1)[0].cdb == cdb[:length]


@pytest.mark.parametrize(("additional", "length"), [(0, 8), (24, 32), (252, 260), (255, 260)])
def test_variable_length_cdbs(additional: int, length: int) -> None:
    kernel, ring = make()
    cdb = bytes([0x7F, 0, 0, 0, 0, 0, 0, additional]) + random.Random(0).randbytes(260)
    kernel.submit(cdb)
    assert ring.take(1)[0].cdb == cdb[:length]


# -- the ring against the model ----------------------------------------------------------------


@st.composite
def _workloads(draw: st.DrawFn) -> list[tuple[str, int]]:
    kinds = st.sampled_from(["read", "write", "none", "tmr", "take", "answer", "fail", "tell"])
    return draw(st.lists(st.tuples(kinds, st.integers(0, 3000)), min_size=50, max_size=200))


class Bench:
    """Runs a workload on a small ring and a small data area, checking each answer."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kernel, self.ring = make(
            ring_size=2048, data_blocks=64, block_size=128, scatter=self.random
        )
        self.expected: dict[int, Completion] = {}
        self.written: dict[int, bytes] = {}
        self.taken: list[Command] = []
        self.answers = 0

    def run(self, kind: str, number: int) -> None:
        step: Callable[[int], None] = getattr(self, f"_{kind}")
        try:
            step(number)
        except NoSpace:
            self.kernel.handle_completions()
            self.check()

    def _read(self, length: int) -> None:
        self.kernel.submit(READ_10, data_in=max(length, 1))

    def _write(self, length: int) -> None:
        data = self.random.randbytes(max(length, 1))
        self.written[self.kernel.submit(WRITE_10, data_out=data)] = data

    def _none(self, _: int) -> None:
        self.kernel.submit(TEST_UNIT_READY)

    def _tmr(self, count: int) -> None:
        self.kernel.submit_tmr(5, *range(1, 1 + count % 4))

    def _take(self, limit: int) -> None:
        self.taken += self.ring.take(limit % 8)
        assert len(self.taken) == self.ring.in_flight

    def _answer(self, number: int) -> None:
        if not self.taken:
            return
        command = self.taken.pop(number % len(self.taken))
        assert command.malformed == ""
        data = b""
        if command.cdb == READ_10:
            length = sum(length for _, length in command.iovs)
            data = self.random.randbytes(length)
            assert self.ring.put(command, self.cut(data)) == length
        elif command.cdb == WRITE_10:
            data = self.written.pop(command.cmd_id)
            assert b"".join(self.ring.views(command, len(data))) == data
            data = b""
        self.ring.complete(command.cmd_id)
        self.expected[command.cmd_id] = Completion(GOOD, b"", data)

    def _fail(self, number: int) -> None:
        if not self.taken:
            return
        command = self.taken.pop(number % len(self.taken))
        self.ring.complete(command.cmd_id, CHECK_CONDITION, SENSE)
        self.expected[command.cmd_id] = Completion(CHECK_CONDITION, SENSE.ljust(96, b"\0"))

    def _tell(self, _: int) -> None:
        self.kernel.handle_completions()
        self.check()

    def cut(self, data: bytes) -> list[bytes]:
        at = sorted(self.random.randrange(len(data) + 1) for _ in range(self.random.randrange(4)))
        return [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]

    def check(self) -> None:
        """All answers given so far have arrived, as they were given."""
        assert self.kernel.broken == ""
        assert self.kernel.completions == self.expected
        self.answers += len(self.expected)
        self.kernel.completions.clear()
        self.expected.clear()

    def drain(self) -> None:
        while self.ring.has_new or self.taken:
            self.taken += self.ring.take(100)
            while self.taken:
                self._answer(self.random.randrange(100))
        self._tell(0)
        assert not self.kernel.open
        assert len(self.kernel.free) == self.kernel.data_blocks


@given(_workloads(), st.integers(0, 2**32))
def test_any_workload_is_answered_rightly(workload: list[tuple[str, int]], seed: int) -> None:
    bench = Bench(seed)
    for kind, number in workload:
        bench.run(kind, number)
    bench.drain()


def test_many_rounds_of_the_ring() -> None:
    bench = Bench(7)
    kinds = ["read", "write", "none", "tmr", "take", "take", "answer", "answer", "fail", "tell"]
    choose = random.Random(8)
    for _ in range(6000):
        bench.run(choose.choice(kinds), choose.randrange(3000))
    bench.drain()
    assert bench.answers > 1000  # of some 150 bytes each, in a ring of 2048


# -- data buffers ------------------------------------------------------------------------------

_lengths = st.lists(st.integers(0, 40), max_size=6)


def _buffers(lengths: list[int]) -> tuple[memoryview, Ring, Command]:
    """A command whose data buffer has iovecs of these lengths, with gaps between them."""
    kernel = TcmuKernel(ring_size=1024, data_blocks=1, block_size=1024)
    iovs, base = [], kernel.data_offset
    for length in lengths:
        iovs.append((base, length))
        base += length + 3
    view = memoryview(kernel.memory)
    return view[kernel.data_offset :], Ring(view), Command(1, READ_10, tuple(iovs))


@given(_lengths, _lengths, st.booleans())
def test_parts_over_iovecs(room: list[int], parts: list[int], as_views: bool) -> None:
    area, ring, command = _buffers(room)
    data = random.Random(0).randbytes(sum(parts))
    pieces, at = [], 0
    for length in parts:
        piece = data[at : at + length]
        pieces.append(memoryview(bytearray(piece)) if as_views else piece)
        at += length
    copied = min(len(data), sum(room))
    assert ring.put(command, pieces) == copied
    expected, at = bytearray(len(area)), 0
    for base, length in command.iovs:
        base -= command.iovs[0][0]
        chunk = data[at : min(at + length, copied)]
        expected[base : base + len(chunk)] = chunk
        at += length
    assert area.tobytes() == bytes(expected)


@pytest.mark.parametrize("parts", [[b"x" * 100], [b"x" * 9, b"x" * 91]])
def test_what_does_not_fit_is_left_out(parts: list[bytes]) -> None:
    area, ring, command = _buffers([10])
    assert ring.put(command, parts) == 10
    assert area.tobytes() == (b"x" * 10).ljust(len(area), b"\0")


@given(_lengths, st.integers(0, 250))
def test_views_of_iovecs(room: list[int], length: int) -> None:
    area, ring, command = _buffers(room)
    area[:] = random.Random(0).randbytes(len(area))
    start = 1024 + CMDR_OFF
    joined = b"".join(area[base - start : base - start + size] for base, size in command.iovs)
    assert b"".join(ring.views(command, length)) == joined[:length]


# -- what must not be trusted ------------------------------------------------------------------


def test_mailboxes_that_cannot_be_used() -> None:
    with pytest.raises(RingError, match="version 3, not 2"):
        Ring(memoryview(bytearray(struct.pack("=HHII", 3, 1, 128, 64).ljust(4096, b"\0"))))
    with pytest.raises(RingError, match="no out-of-order completions") as caught:
        make(flags=CAP_READ_LEN)
    assert "--mode fuse" in caught.value.hint
    with pytest.raises(RingError, match="a map of 67 bytes"):
        Ring(memoryview(bytearray(67)))
    assert make(flags=CAP_OOOC)


@pytest.mark.parametrize(
    ("offset", "size"),
    [(64, 128), (130, 128), (128, 0), (128, 100), (128, 3976), (4096, 8), (2**32 - 8, 2**32 - 8)],
)
def test_rings_that_leave_the_map(offset: int, size: int) -> None:
    mailbox = struct.pack("=HHII", 2, 1, offset, size)
    with pytest.raises(RingError, match=f"{size} bytes at {offset} of a map of 4096 bytes"):
        Ring(memoryview(bytearray(mailbox.ljust(4096, b"\0"))))


@pytest.mark.parametrize("value", [4, 16 << 10, 2**32 - 8])
def test_pointers_that_leave_the_ring(value: int) -> None:
    kernel, ring = make()
    kernel.set_u32(12, value)
    with pytest.raises(RingError, match=f"cmd_head is {value} in a ring of 16384 bytes"):
        ring.take(1)
    kernel.set_u32(64, value)
    with pytest.raises(RingError, match=f"cmd_tail is {value}"):
        Ring(memoryview(kernel.memory))


@pytest.mark.parametrize("len_op", [0, 1, 2, 5, 104 | 1, 8 | 1, 136 | 1, 136, 2**32 - 8 | 1])
def test_entries_of_impossible_length(len_op: int) -> None:
    kernel, ring = make()
    kernel.submit(READ_10, data_in=4096)  # 128 bytes
    kernel.set_u32(CMDR_OFF, len_op)
    for _ in range(2):
        with pytest.raises(RingError, match=rf"entry of {len_op & ~7} bytes, with room for 128"):
            ring.take(1)


def test_an_entry_that_wraps_around() -> None:
    kernel, ring = make(ring_size=1024)
    while kernel.head < 1024 - 128:
        kernel.submit(TEST_UNIT_READY)
        answer(kernel, ring)
    at = kernel.head
    kernel.submit(TEST_UNIT_READY)
    kernel.set_u32(CMDR_OFF + at, 1024 - at + 8 | 1)
    kernel.set_u32(12, 120)
    with pytest.raises(RingError, match=f"with room for {1024 - at}, at byte {CMDR_OFF + at}"):
        ring.take(1)


def test_a_command_that_comes_twice() -> None:
    kernel, ring = make()
    for _ in range(2):
        kernel.submit(TEST_UNIT_READY)
    struct.pack_into("=H", kernel.memory, CMDR_OFF + 120 + 4, 1)
    with pytest.raises(RingError, match="command 1 comes twice"):
        ring.take(2)


IOVECS = [
    (0, 4096),  # the mailbox
    (CMDR_OFF, 8),  # the ring
    (CMDR_OFF + (16 << 10) - 1, 2),
    (TcmuKernel().size - 4095, 4096),
    (TcmuKernel().size + 8, 0),
    (2**64 - 1, 2),
    (2**64 - 4096, 2**64 - 1),
]


@pytest.mark.parametrize(("base", "length"), IOVECS)
@pytest.mark.parametrize("count", [1, 2])
def test_iovecs_out_of_the_data_area(base: int, length: int, count: int) -> None:
    kernel, ring = make(scatter=random.Random(11))
    cmd_id = kernel.submit(READ_10, data_in=count * 4096)
    struct.pack_into("=QQ", kernel.memory, CMDR_OFF + 48 + 16 * (count - 1), base, length)
    before = bytes(kernel.memory)
    (command,) = ring.take(1)
    assert command == (cmd_id, b"", (), f"iovec of {length} bytes at {base:#x}")
    assert ring.put(command, [b"x" * 4096]) == 0
    assert ring.views(command, 4096) == []
    assert bytes(kernel.memory) == before
    ring.complete(cmd_id, CHECK_CONDITION, SENSE)
    kernel.handle_completions()
    assert kernel.completions[cmd_id].status == CHECK_CONDITION


@pytest.mark.parametrize("count", [6, 2**28, 2**32 - 1])
def test_more_iovecs_than_an_entry_has_room_for(count: int) -> None:
    kernel, ring = make()
    cmd_id = kernel.submit(READ_10, data_in=4096)
    kernel.set_u32(CMDR_OFF + 8, count)
    reason = f"{count} iovecs in an entry of 128 bytes"
    assert ring.take(1) == [(cmd_id, b"", (), reason)]


@pytest.mark.parametrize(
    "offset", [0, CMDR_OFF - 1, CMDR_OFF + (16 << 10) - 1, CMDR_OFF + (16 << 10), 2**64 - 1]
)
@pytest.mark.parametrize("opcode", [0x28, 0x7F])
def test_cdbs_out_of_the_command_ring(offset: int, opcode: int) -> None:
    kernel, ring = make()
    cmd_id = kernel.submit(READ_10, data_in=4096)
    kernel.memory[CMDR_OFF + (16 << 10) - 1] = opcode
    struct.pack_into("=Q", kernel.memory, CMDR_OFF + 24, offset)
    assert ring.take(1) == [(cmd_id, b"", (), f"CDB at {offset:#x}")]


def test_a_cdb_at_the_very_end_of_the_map() -> None:
    kernel, ring = make(data_blocks=0)
    kernel.submit(TEST_UNIT_READY)
    kernel.memory[kernel.size - 1] = 0x7F
    struct.pack_into("=Q", kernel.memory, CMDR_OFF + 24, kernel.size - 1)
    assert ring.take(1)[0].malformed == f"CDB at {kernel.size - 1:#x}"


_odd = st.one_of(
    st.sampled_from([0, 1, 64, 1152, 2**31, 2**32 - 8, 2**64 - 1]), st.integers(0, 3000)
)


def _mostly(right: int | st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    """``right``, but one time in sixteen anything."""
    strategy = st.just(right) if isinstance(right, int) else right
    return st.integers(0, 15).flatmap(lambda n: _odd if n == 7 else strategy)


@st.composite
def _entries(draw: st.DrawFn, cmd_id: int, at: int) -> bytes:
    """Something like an entry at ``at``: mostly right, any number of it may be wrong."""
    op = draw(st.sampled_from([0, 1, 1, 1, 1, 2, 5]))
    count = draw(st.integers(0, 6)) if op == 1 else 0
    base_size = max(48 + 16 * count, 112) if op == 1 else 8
    size = base_size + 16
    len_op = draw(_mostly(size)) & 0xFFFFFFF8 | op
    head = struct.pack(
        "=IHBBIIIIQQQ", len_op, draw(_mostly(cmd_id)) & 0xFFFF, 0, 0,
        draw(_mostly(count)) & 0xFFFFFFFF, 0, 0, 0, draw(_mostly(at + base_size)), 0, 0,
    )  # fmt: skip
    base, length = _mostly(st.integers(1152, 2000)), _mostly(st.integers(0, 900))
    iovs = b"".join(struct.pack("=QQ", draw(base), draw(length)) for _ in range(count))
    return (head + iovs).ljust(base_size, b"\0")[:base_size] + draw(
        st.binary(min_size=16, max_size=16)
    )


@st.composite
def _maps(draw: st.DrawFn) -> bytes:
    ring = b""
    if draw(st.integers(0, 9)):
        for cmd_id in range(draw(st.integers(1, 8))):
            ring += draw(_entries(cmd_id, 128 + len(ring)))
        ring = ring[:1024]
    else:
        ring = draw(st.binary(max_size=1024))
    tail, head = draw(_mostly(0)), draw(_mostly(len(ring) % 1024))
    numbers = [n & 0xFFFFFFFF for n in (draw(_mostly(128)), draw(_mostly(1024)), head, tail)]
    return struct.pack("=HHIII48xI60x", 2, 1, *numbers) + ring.ljust(2872, b"\xee")


@settings(max_examples=300)
@given(_maps(), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_bytes_give_the_declared_error_or_are_served(
    content: bytes, limit: int, chance: random.Random
) -> None:
    memory = bytearray(content)
    with suppress(RingError):
        ring = Ring(memoryview(memory))
        serve(ring, memory, limit, chance)
        assert (ring.in_flight, ring.has_new) == (0, False)
    assert memory[:64] == content[:64], "the kernel's part of the mailbox"


def serve(ring: Ring, memory: bytearray, limit: int, chance: random.Random) -> None:
    """Answer whatever comes, at random and with too much data, until nothing is left."""
    data_start = sum(struct.unpack_from("=II", memory, 4))
    taken: list[Command] = []
    for _ in range(300):
        taken += ring.take(limit + 1)
        if not taken:
            return
        for command in taken:
            for base, length in command.iovs:
                assert data_start <= base <= base + length <= len(memory)
            assert bool(command.cdb) != bool(command.malformed)
            ring.put(command, [b"\xaa" * 40, b"\xbb" * 900])
            assert sum(map(len, ring.views(command, 100))) <= 100
        chance.shuffle(taken)
        while taken and chance.random() < 0.7:
            ring.complete(taken.pop().cmd_id, chance.choice([0, 2]), b"\xcc" * 18)
    raise AssertionError("no end")


# -- resets, crashes, ends ---------------------------------------------------------------------


@pytest.mark.parametrize("answered", [0, 1])
def test_a_reset_under_a_server_ends_it(answered: int) -> None:
    kernel, ring = make()
    for _ in range(3):
        kernel.submit(READ_10, data_in=512)
    commands = ring.take(10)
    for command in commands[:answered]:
        ring.complete(command.cmd_id)
    kernel.reset_ring(1)
    kernel.submit(READ_10, data_in=512)
    before = bytes(kernel.memory)
    with pytest.raises(RingError, match=r"it was reset with \d commands open"):
        ring.take(10)
    if answered:  # else cmd_tail was at 0 anyway
        with pytest.raises(RingError, match="it was reset with 2 commands open"):
            ring.put(commands[1], [b"x" * 512])
        with pytest.raises(RingError, match="it was reset"):
            ring.complete(commands[1].cmd_id)
    assert bytes(kernel.memory) == before


def test_a_reset_of_an_idle_ring_ends_its_server_too() -> None:
    kernel, ring = make()
    kernel.submit(TEST_UNIT_READY)
    answer(kernel, ring)
    kernel.reset_ring(1)
    with pytest.raises(RingError, match="it was reset with 0 commands open"):
        ring.take(1)


def test_a_server_goes_on_where_one_ended_that_answered_in_order() -> None:
    kernel, ring = make()
    ids = [kernel.submit(TEST_UNIT_READY) for _ in range(3)]
    ring.take(2)
    ring.complete(ids[0])
    successor = Ring(memoryview(kernel.memory))
    assert [command.cmd_id for command in successor.take(10)] == ids[1:]
    for cmd_id in ids[1:]:
        successor.complete(cmd_id)
    kernel.handle_completions()
    assert sorted(kernel.completions) == ids


def test_why_a_crash_needs_a_reset_of_the_ring() -> None:
    kernel, ring = make()
    first, second = (kernel.submit(READ_10, data_in=512) for _ in range(2))
    ring.take(10)
    ring.complete(second)
    kernel.handle_completions()
    # Crash. The successor finds the second one again, and would answer it a second time.
    successor = Ring(memoryview(kernel.memory))
    assert [command.cmd_id for command in successor.take(10)] == [second]
    successor.complete(second)
    kernel.handle_completions()
    assert kernel.broken == f"cmd_id {second} not found"
    # The way out: the initiator gets BUSY for what is open, and sends it again.
    kernel.reset_ring(1)
    assert kernel.completions[first].status == BUSY
    kernel.completions.clear()
    successor = Ring(memoryview(kernel.memory))
    kernel.submit(READ_10, data_in=512)
    answer(kernel, successor)
    assert [completion.status for completion in kernel.completions.values()] == [GOOD]


def test_a_closed_ring_lets_go_of_the_map() -> None:
    memory = mmap.mmap(-1, 8192)
    memory[0:12] = struct.pack("=HHII", 2, 1, 128, 1024)
    view = memoryview(memory)
    ring = Ring(view)
    view.release()
    left_over = ring.views(Command(1, b"", ((2048, 10),)), 10)
    ring.close()
    with pytest.raises(BufferError):
        memory.close()
    left_over[0].release()
    memory.close()
    with pytest.raises(ValueError, match="released"):
        ring.take(1)


# -- the model is no yes-man -------------------------------------------------------------------


def test_the_model_finds_wrong_answers() -> None:
    kernel, _ = make()
    kernel.submit(TEST_UNIT_READY)
    kernel.set_u32(64, 240)
    kernel.handle_completions()
    assert kernel.broken == "tail 240 is beyond head 120, or within an entry"
    kernel, _ = make()
    kernel.submit(TEST_UNIT_READY)
    struct.pack_into("=H", kernel.memory, CMDR_OFF + 4, 9)
    kernel.set_u32(64, 120)
    kernel.handle_completions()
    assert kernel.broken == "cmd_id 9 not found"

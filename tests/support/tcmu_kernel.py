"""The kernel's side of a TCMU ring, in memory: what target_core_user does, from the ABI alone.

Written from linux/target_core_user.h and Documentation/target/tcmu-design.rst, and deliberately
without anything of hybrid.block: offsets are spelled out again. All numbers are bytes.

``TcmuKernel`` places commands and consumes responses; ``FakeUio`` puts the interface of
``hybrid.block.uio.Uio`` on it, so that a server can be run where there is no target core.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import trio

CMDR_OFF = 128
PAD, CMD, TMR = 0, 1, 2
CAP_OOOC, CAP_READ_LEN, CAP_TMR, CAP_KEEP_BUF = 1, 2, 4, 8
UFLAG_UNKNOWN_OP, UFLAG_READ_LEN = 1, 2
GOOD, CHECK_CONDITION, BUSY = 0, 2, 8
SENSE_SIZE = 96


class NoSpace(Exception):
    """Ring, data area or command ids are used up: the kernel would queue the command."""


@dataclass(frozen=True)
class Completion:
    """What the initiator gets."""

    status: int
    sense: bytes = b""
    data: bytes = b""
    """Data-in, as long as the data buffer, or shorter if the handler said so."""


@dataclass
class _Open:
    blocks: list[int]
    data_in: int
    done: Callable[[Completion], None]


@dataclass
class TcmuKernel:
    """One device. ``scatter`` chooses data blocks at random, which breaks buffers into iovecs;
    else the lowest free ones are taken, as the kernel does."""

    ring_size: int = 16 << 10
    data_blocks: int = 512
    block_size: int = 4096
    flags: int = CAP_OOOC | CAP_READ_LEN | CAP_TMR | CAP_KEEP_BUF
    scatter: random.Random | None = None
    broken: str = ""
    """Why the ring is broken; like the kernel, nothing is done until it is reset."""
    blocked: bool = False
    completions: dict[int, Completion] = field(default_factory=dict)
    """By cmd_id, for commands placed without ``done``."""

    def __post_init__(self) -> None:
        assert self.ring_size % 8 == 0
        self.data_offset = CMDR_OFF + self.ring_size
        self.size = self.data_offset + self.data_blocks * self.block_size
        self.memory = mmap.mmap(-1, self.size)
        self.memory[0:12] = struct.pack("=HHII", 2, self.flags, CMDR_OFF, self.ring_size)
        self.last_cleaned = 0
        self.open: dict[int, _Open] = {}
        self.free = set(range(self.data_blocks))

    # -- shared memory -------------------------------------------------------------------------

    def u32(self, offset: int) -> int:
        return int(struct.unpack_from("=I", self.memory, offset)[0])

    def set_u32(self, offset: int, value: int) -> None:
        struct.pack_into("=I", self.memory, offset, value)

    @property
    def head(self) -> int:
        return self.u32(12)

    @property
    def tail(self) -> int:
        return self.u32(64)

    def _advance_head(self, length: int) -> None:
        self.set_u32(12, (self.head + length) % self.ring_size)

    # -- placing entries -----------------------------------------------------------------------

    def submit(
        self,
        cdb: bytes,
        *,
        data_in: int = 0,
        data_out: bytes = b"",
        done: Callable[[Completion], None] | None = None,
    ) -> int:
        """Place one command; its cmd_id. ``data_in`` is the length of the initiator's buffer.

        Raises NoSpace. The handler is not told: see FakeUio.poke.
        """
        assert not self.blocked
        assert not self.broken
        assert not (data_in and data_out)
        length = data_in or len(data_out)
        cmd_id = next((i for i in range(1, 0x10000) if i not in self.open), 0)
        blocks = self._choose_blocks(-(-length // self.block_size))
        iovs = list(self._iovecs(blocks, length))
        base_size = max(48 + 16 * len(iovs), 112)
        size = base_size + -(-len(cdb) // 8) * 8
        if not cmd_id or size > self.ring_size // 2:
            raise NoSpace
        start = CMDR_OFF + self._make_room(size)
        self.free.difference_update(blocks)
        for offset, part in _cut(data_out, iovs):
            self.memory[offset : offset + len(part)] = part
        entry = bytearray(size)
        struct.pack_into("=IHBB", entry, 0, size | CMD, cmd_id, 0, 0)
        struct.pack_into("=III4xQ", entry, 8, len(iovs), 0, 0, start + base_size)
        for i, iovec in enumerate(iovs):
            struct.pack_into("=QQ", entry, 48 + 16 * i, *iovec)
        entry[base_size : base_size + len(cdb)] = cdb
        self.memory[start : start + size] = bytes(entry)
        self.open[cmd_id] = _Open(blocks, data_in, done or self._recorder(cmd_id))
        self._advance_head(size)
        return cmd_id

    def submit_entry(self, op: int, body: bytes = b"", cmd_id: int = 0) -> None:
        """Place an entry of another kind: a TMR, or an operation that nobody knows. With a cmd_id
        it wants an answer, as a command does."""
        size = 8 + -(-len(body) // 8) * 8
        start = CMDR_OFF + self._make_room(size)
        header = struct.pack("=IHBB", size | op, cmd_id, 0, 0)
        self.memory[start : start + size] = header + body.ljust(size - 8, b"\0")
        if cmd_id:
            self.open[cmd_id] = _Open([], 0, self._recorder(cmd_id))
        self._advance_head(size)

    def submit_tmr(self, kind: int, *cmd_ids: int) -> None:
        """A task management notification (5: LUN reset) about the given commands."""
        ids = struct.pack(f"={len(cmd_ids)}H", *cmd_ids)
        self.submit_entry(TMR, struct.pack("=B3xI16x", kind, len(cmd_ids)) + ids)

    def _recorder(self, cmd_id: int) -> Callable[[Completion], None]:
        return lambda completion: self.completions.__setitem__(cmd_id, completion)

    def _make_room(self, size: int) -> int:
        """Where in the ring an entry of ``size`` goes, after a PAD where the end is too near."""
        used = (self.head - self.last_cleaned) % self.ring_size
        to_end = self.ring_size - self.head
        needed = size if to_end >= size else size + to_end
        if self.ring_size - used - 1 < needed:
            raise NoSpace
        if to_end < size:
            start = CMDR_OFF + self.head
            self.memory[start : start + 8] = struct.pack("=IHBB", to_end | PAD, 0, 0, 0)
            self._advance_head(to_end)
            assert self.head == 0
        return self.head

    def _choose_blocks(self, count: int) -> list[int]:
        if count > len(self.free):
            raise NoSpace
        free = sorted(self.free)
        return self.scatter.sample(free, count) if self.scatter else free[:count]

    def _iovecs(self, blocks: list[int], length: int) -> Iterator[tuple[int, int]]:
        """Blocks that follow each other become one iovec; the last one may be cut."""
        base = size = 0
        for block in blocks:
            offset = self.data_offset + block * self.block_size
            part = min(length, self.block_size)
            length -= part
            if size and base + size == offset:
                size += part
            else:
                if size:
                    yield base, size
                base, size = offset, part
        if size:
            yield base, size

    # -- consuming responses -------------------------------------------------------------------

    def handle_completions(self) -> None:
        """What the handler's write(2) to the uio device does."""
        while not self.broken and self.last_cleaned != self.tail:
            if self.last_cleaned == self.head:
                self.broken = f"tail {self.tail} is beyond head {self.head}, or within an entry"
                return
            start = CMDR_OFF + self.last_cleaned
            len_op, cmd_id, _, uflags = struct.unpack("=IHBB", self.memory[start : start + 8])
            if len_op & 7 not in (PAD, TMR):
                opened = self.open.pop(cmd_id, None)
                if opened is None:
                    self.broken = f"cmd_id {cmd_id} not found"
                    return
                self._finish(opened, start, uflags)
            self.last_cleaned = (self.last_cleaned + (len_op & ~7)) % self.ring_size

    def _finish(self, opened: _Open, start: int, uflags: int) -> None:
        status, read_len = struct.unpack("=B3xI", self.memory[start + 8 : start + 16])
        length = opened.data_in
        short = opened.data_in and uflags & UFLAG_READ_LEN and read_len
        if uflags & UFLAG_UNKNOWN_OP:
            completion = Completion(CHECK_CONDITION)
        else:
            if short:
                length = min(length, read_len)
            checked = status == CHECK_CONDITION
            sense = self.memory[start + 16 : start + 16 + SENSE_SIZE] if checked else b""
            data = b"" if checked and not short else self._gather(opened.blocks, length)
            completion = Completion(status, sense, data)
        self.free.update(opened.blocks)
        opened.done(completion)

    def _gather(self, blocks: list[int], length: int) -> bytes:
        """Data-in by the kernel's own list of blocks, never by the iovecs in shared memory."""
        data = b"".join(
            self.memory[offset : offset + self.block_size]
            for offset in (self.data_offset + block * self.block_size for block in blocks)
        )
        return data[:length]

    # -- what an administrator does ------------------------------------------------------------

    def reset_ring(self, level: int = 1) -> None:
        """``action/reset_ring``: 1 gives open commands back as BUSY, 2 fails them."""
        gone, self.open = self.open, {}
        for opened in gone.values():
            self.free.update(opened.blocks)
            opened.done(Completion(BUSY if level == 1 else CHECK_CONDITION))
        self.last_cleaned = 0
        self.set_u32(64, 0)
        self.set_u32(12, 0)
        self.broken = ""

    def block_dev(self, blocked: bool) -> None:
        """``action/block_dev``: takes what is completed, then nothing is placed any more."""
        if blocked and not self.blocked:
            self.handle_completions()
        self.blocked = blocked


def _cut(data: bytes, iovs: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
    for base, length in iovs:
        if not data:
            return
        yield base, data[:length]
        data = data[length:]


class FakeUio:
    """``hybrid.block.uio.Uio`` over a TcmuKernel, and the initiator's side of it."""

    def __init__(self, kernel: TcmuKernel | None = None, name: str = "uio0") -> None:
        self.kernel = kernel or TcmuKernel()
        self.name = name
        self.size = self.kernel.size
        self.view = memoryview(self.kernel.memory)
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.notified = 0
        """How many times the handler has told the kernel."""
        self._gone = False

    # The interface of Uio

    def notify(self) -> None:
        self.notified += 1
        if not self._gone:
            self.kernel.handle_completions()

    def consume(self) -> bool:
        if self._gone:
            return False
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        return True

    def close(self) -> None:
        """A view that is left over raises BufferError here; the real one lets the map be."""
        os.close(self.fd)
        self.view.release()
        self.kernel.memory.close()

    # The other side

    def poke(self) -> None:
        """Wake the handler, as the kernel does after placing commands."""
        os.eventfd_write(self.fd, 1)

    def remove(self) -> None:
        """The device goes away: the handler is woken and finds EIO."""
        self._gone = True
        self.poke()

    async def execute(
        self, cdb: bytes, *, data_in: int = 0, data_out: bytes = b"", seconds: float = 5.0
    ) -> Completion:
        """Place a command, wake the handler, wait for the answer (bounded)."""
        answers: list[Completion] = []
        answered = trio.Event()

        def done(completion: Completion) -> None:
            answers.append(completion)
            answered.set()

        self.kernel.submit(cdb, data_in=data_in, data_out=data_out, done=done)
        self.poke()
        with trio.fail_after(seconds):
            await answered.wait()
        return answers[0]

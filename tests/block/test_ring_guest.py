"""Ring and uio against the real kernel: a handler of a few lines, without the code above them."""

from __future__ import annotations

import errno
import mmap
import os
import random
import select
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.live_target import disk_at

from hybrid.block import configfs, names
from hybrid.block.configfs import Target
from hybrid.block.ring import Command, Ring
from hybrid.block.uio import Uio
from hybrid.core.bounded import run_bounded
from hybrid.errors import BusyError, NotFoundError

pytestmark = pytest.mark.guest

BLOCK = 512
SIZE = 4 << 20
SECONDS = 15.0
GOOD, CHECK_CONDITION = 0, 2
INVALID_OPCODE = bytes.fromhex("700005000000000a00000000200000000000")
MEDIUM_ERROR = bytes.fromhex("700003000000000a00000000110000000000")
INQUIRY = bytes.fromhex("000005021f000002") + b"LIO-ORG TCMU device     0001"
BAD_BLOCK = 4096
"""Reads of this block fail."""


class Handler(threading.Thread):
    """Serves ``content``, the newest command first. The oldest waits for others up to 5 ms, which
    leaves holes in the data area that later buffers are put together from."""

    def __init__(self, uio: Uio, content: bytearray) -> None:
        super().__init__(daemon=True)
        self.content = content
        self.uio = uio
        self.ring = Ring(uio.view)
        self.reversed = self.iovecs = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            self.failure = error

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self.uio.fd, select.POLLIN)
        held: list[Command] = []
        while True:
            held += self.ring.take(64)
            if len(held) > 1:
                self._answer_to(held, 1)
                self.reversed += 1
            elif not poll.poll(5 if held else None):
                self._answer_to(held, 0)
            if not self.uio.consume():
                return

    def _answer_to(self, held: list[Command], left: int) -> None:
        while len(held) > left:
            self._answer(held.pop())
        self.uio.notify()

    def _answer(self, command: Command) -> None:
        assert not command.malformed
        cdb = command.cdb
        self.iovecs = max(self.iovecs, len(command.iovs))
        if cdb[0] in (0x28, 0x2A):  # READ(10), WRITE(10)
            block, count = struct.unpack(">xxIxHx", cdb)
            begin, length = block * BLOCK, count * BLOCK
            if cdb[0] == 0x2A:
                self.content[begin : begin + length] = b"".join(self.ring.views(command, length))
            elif block <= BAD_BLOCK < block + count:
                return self.ring.complete(command.cmd_id, CHECK_CONDITION, MEDIUM_ERROR)
            else:
                data = memoryview(self.content)[begin : begin + length]
                self.ring.put(command, [data[:100], data[100:]])
        elif cdb[0] == 0x12 and not cdb[1] & 1:  # INQUIRY
            copied = self.ring.put(command, [INQUIRY[: cdb[4]]])
            return self.ring.complete(command.cmd_id, read_length=copied)
        elif cdb[0] == 0x25:  # READ CAPACITY(10)
            self.ring.put(command, [struct.pack(">II", len(self.content) // BLOCK - 1, BLOCK)])
        elif cdb[0] not in (0x00, 0x35):  # TEST UNIT READY, SYNCHRONIZE CACHE
            return self.ring.complete(command.cmd_id, CHECK_CONDITION, INVALID_OPCODE)
        return self.ring.complete(command.cmd_id)


class Disk:
    """A target whose handler is a thread of this process."""

    def __init__(self) -> None:
        target_id = os.urandom(4).hex()
        self.target = Target(target_id, names.wwn_of(target_id))
        self.content = bytearray(random.Random(1).randbytes(SIZE))
        self.name = configfs.create_backstore(self.target, SIZE, read_only=False)
        self.uio = Uio.open(self.name)
        self.handler = Handler(self.uio, self.content)
        self.handler.start()

    def export(self) -> int:
        """Open the disk, with direct I/O."""
        address = run_bounded("export", lambda: configfs.export(self.target), SECONDS)
        return os.open(disk_at(address), os.O_RDWR | os.O_DIRECT)

    def remove(self) -> None:
        run_bounded("unexport", lambda: configfs.unexport(self.target), SECONDS)
        configfs.remove_backstore(self.target)
        self.handler.join(SECONDS)
        assert not self.handler.is_alive()
        self.handler.ring.close()
        self.uio.close()


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.remove()
    assert made.handler.failure is None


@pytest.fixture(scope="module")
def opened(disk: Disk) -> Iterator[int]:
    descriptor = disk.export()
    yield descriptor
    os.close(descriptor)


def read(descriptor: int, offset: int, length: int) -> bytes:
    with mmap.mmap(-1, length) as aligned:
        assert os.preadv(descriptor, [aligned], offset) == length
        return aligned[:]


def test_one_handler_at_a_time(disk: Disk) -> None:
    with pytest.raises(BusyError, match=f"/dev/{disk.name} is in use"):
        Uio.open(disk.name)
    with pytest.raises(NotFoundError):
        Uio.open("uio999")


def test_reads_of_every_size(disk: Disk, opened: int) -> None:
    for shift in range(12):
        length = BLOCK << shift  # up to 1 MiB
        for offset in (0, BLOCK, SIZE // 2 - length, SIZE - length):
            assert read(opened, offset, length) == disk.content[offset : offset + length]


def test_a_failed_read_fails_alone(disk: Disk, opened: int) -> None:
    # So the kernel translates the sense data 3/11/00; a file system makes EIO of it.
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        read(opened, BAD_BLOCK * BLOCK, BLOCK)
    around = (BAD_BLOCK + 1) * BLOCK
    assert read(opened, around, BLOCK) == disk.content[around : around + BLOCK]


def test_reads_and_writes_at_once_answered_in_reverse_order(disk: Disk, opened: int) -> None:
    """Buffers of many sizes that come and go break the data area into many iovecs."""
    part = SIZE // 2 // 8

    def work(number: int) -> None:
        chance = random.Random(number)
        with mmap.mmap(-1, part) as aligned:
            for _ in range(12):
                length = chance.randrange(1, 200) * BLOCK
                offset = number * part + chance.randrange((part - length) // BLOCK) * BLOCK
                if chance.random() < 0.5:
                    assert read(opened, offset, length) == disk.content[offset : offset + length]
                    continue
                aligned[:length] = data = chance.randbytes(length)
                os.pwritev(opened, [memoryview(aligned)[:length]], offset)
                assert disk.content[offset : offset + length] == data

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert disk.handler.reversed > 0
    assert disk.handler.iovecs > 1


def test_the_end_of_a_device() -> None:
    disk = Disk()
    disk.remove()  # the handler thread has seen the end, else this would not return
    assert disk.handler.failure is None
    with pytest.raises(NotFoundError, match=f"no TCMU device {disk.name}"):
        Uio.open(disk.name)


def test_the_device_is_free_again_once_it_is_closed() -> None:
    target_id = os.urandom(4).hex()
    target = Target(target_id, names.wwn_of(target_id))
    name = configfs.create_backstore(target, SIZE, read_only=True)
    uio = Uio.open(name)
    uio.close()
    uio = Uio.open(name)
    assert uio.consume()  # nothing came, but it is there
    configfs.remove_backstore(target)
    assert not uio.consume()
    uio.notify()  # of no use, and no harm
    uio.close()

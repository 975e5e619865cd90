"""Compaction: a stack of layers becomes one, without garbage, zeros and history.

Two passes over the data, both in ascending order of the disk:

    plan_layer    reads what is mapped; finds the 4 KiB blocks of zeros; sums the rest up (CRC-32C).
                  After it everything about the layer is known: its segments, its size, its uuid.
    write_layer   reads again what is kept, and gives the bytes of the layer to a sink.

Why two: the uuid stands in the header, in front of the data, and is to follow from the data; and
a layer with too many segments should be refused before hours of compressing. The first pass costs
a tenth of the second: it only reads, compares and sums up. The second sums up again, so that data
that was changed between the two passes cannot go unnoticed.

The result follows from what the stack maps, and to what: not from the order of writes, their
sizes, or how the layers are compressed. Nothing in it is random, and no time.
"""

from __future__ import annotations

import hashlib
import uuid as uuids
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import trio
from crc32c import crc32c

from hybrid.build.runs import BLOCK_SECTORS, Runs, data_of, merged, split_index, windows
from hybrid.core.device import SECTOR, Buffer
from hybrid.core.lsmt import BLOCK, ENTRY_SIZE, MAX_ENTRIES, MAX_LENGTH, LayerWriter
from hybrid.core.segments import SegmentMap
from hybrid.errors import BusyError, UnsupportedError

Advance = Callable[[int], None]
"""Told how many bytes of data were dealt with."""
Put = Callable[[Buffer], Awaitable[None]]
"""Takes the next bytes of a stream."""

WINDOW_SECTORS = 2048
"""Sectors that are read at a time, and summed up together."""
_BLOCK_BYTES = BLOCK_SECTORS * SECTOR
_ZERO_BLOCK = bytes(_BLOCK_BYTES)
_UUID_DOMAIN = b"hybrid layer 1\0"


class Stack(Protocol):
    """What is compacted: a LayeredDevice of the layers that become one, and of no others."""

    name: str
    segments: SegmentMap

    async def pread(self, offset: int, length: int) -> Buffer: ...


@dataclass(frozen=True)
class Below:
    """What lies below the new layer: whether zeros have anything to hide.

    ``data``: the sectors that the layers below map to data; None if that is not known, and then
    all zeros are kept.
    """

    data: Runs | None = None

    @classmethod
    def nothing(cls) -> Below:
        """The new layer is the bottom one."""
        return cls(Runs())

    @classmethod
    def of(cls, segments: SegmentMap) -> Below:
        """The merged index of the layers below is this one."""
        return cls(data_of(segments))

    def hidden_by(self, zeros: Runs) -> Runs:
        """What of the zeros is needed."""
        return zeros if self.data is None else zeros.intersect(self.data)


@dataclass(frozen=True)
class LayerText:
    """What stands in the header of a new layer, besides its size. uuids are text, "" for none."""

    uuid: str = ""
    """"": derived from what the layer is and from its parent."""
    parent_uuid: str = ""
    parent: str = ""
    """Tells the parent where it has no uuid: the digest of its image, or anything like it."""
    user_tag: bytes = b""


@dataclass(frozen=True)
class LayerPlan:
    """A layer that is about to be written. Ranges are sectors of the disk."""

    virtual_size: int
    """Bytes."""
    data: Runs
    zeros: Runs
    checksums: array[int] = field(repr=False)
    """CRC-32C of the data, piece by piece."""

    @property
    def data_bytes(self) -> int:
        return self.data.sectors() * SECTOR

    def derive_uuid(self, text: LayerText) -> str:
        """The same for the same content over the same parent, and for nothing else.

        A UUID of version 8 (RFC 9562: of one's own making), from a SHA-256 over parent, size, tag,
        segments and checksums. How the layer is compressed and wrapped does not matter.
        """
        parent = (text.parent_uuid or text.parent).upper().encode()
        digest = hashlib.sha256(_UUID_DOMAIN)
        for part in (
            parent,
            text.user_tag,
            self.virtual_size.to_bytes(8, "little"),
            *map(_packed, (self.data.starts, self.data.ends, self.zeros.starts, self.zeros.ends)),
            _packed(self.checksums),
        ):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        raw = bytearray(digest.digest()[:16])
        raw[6] = 0x80 | raw[6] & 0x0F
        raw[8] = 0x80 | raw[8] & 0x3F
        return str(uuids.UUID(bytes=bytes(raw))).upper()


async def plan_layer(
    stack: Stack,
    size: int,
    *,
    below: Below | None = None,
    free: Runs | None = None,
    advance: Advance = lambda count: None,
) -> LayerPlan:
    """Read the stack, and decide what the new layer holds.

    ``size``: bytes of the disk. ``free``: sectors whose content does not matter, since the file
    system does not use them. Raises UnsupportedError if the layer would have more segments than
    readers accept, and what reading raises.
    """
    data, zeros = split_index(stack.segments, size // SECTOR)
    if free is not None:
        unused = free.whole_blocks()
        zeros = zeros.union(data.intersect(unused))
        data = data.subtract(unused)
    kept, found = Runs(), Runs()
    checksums = array("I")
    for group in windows(data, WINDOW_SECTORS):
        base = group[0][0]
        content = await _read(stack, base, group[-1][1])
        for start, end in group:
            for first, last, is_zero in _split(content, base, start, end):
                if is_zero:
                    found.add(first, last)
                else:
                    kept.add(first, last)
                    checksums.append(_checksum(content, base, first, last))
            advance((end - start) * SECTOR)
    plan = LayerPlan(size, kept, (below or Below()).hidden_by(zeros.union(found)), checksums)
    _check_count(plan, stack.name)
    return plan


async def write_layer(
    stack: Stack,
    plan: LayerPlan,
    text: LayerText,
    put: Put,
    advance: Advance = lambda count: None,
) -> None:
    """Give the bytes of the layer, from the first to the last, to ``put``.

    Raises BusyError if the data is another than it was when the plan was made, what reading raises,
    and ValueError for a uuid or tag that the format cannot hold.
    """
    writer = LayerWriter(
        plan.virtual_size,
        uuid=text.uuid or plan.derive_uuid(text),
        parent_uuid=text.parent_uuid,
        user_tag=text.user_tag,
    )
    await put(writer.header())
    expected = iter(plan.checksums)
    zeros = _Zeros(plan.zeros, writer)
    for group in windows(plan.data, WINDOW_SECTORS):
        base = group[0][0]
        content = memoryview(await _read(stack, base, group[-1][1]))
        for start, end in group:
            piece = content[(start - base) * SECTOR : (end - base) * SECTOR]
            if crc32c(piece) != next(expected, None):
                raise BusyError(
                    f"{stack.name} was changed while it was read, at sector {start} of its disk",
                    hint="something else writes to it: end that first",
                )
            zeros.add_before(start)
            await put(writer.add(start, piece))
            advance(len(piece))
    zeros.add_before(plan.virtual_size // SECTOR)
    await put(writer.finish())


class _Zeros:
    """Zeroed segments go to the writer between those with data."""

    def __init__(self, zeros: Runs, writer: LayerWriter) -> None:
        self._waiting = iter(zeros)
        self._next = next(self._waiting, None)
        self._writer = writer

    def add_before(self, sector: int) -> None:
        while self._next is not None and self._next[0] < sector:
            start, end = self._next
            self._writer.add_zeros(start, end - start)
            self._next = next(self._waiting, None)


async def _read(stack: Stack, start: int, end: int) -> bytes:
    """Sectors [start, end) of the disk, as bytes: slices of those compare fast."""
    await trio.lowlevel.checkpoint()
    # Not the nowait path: that gives up on many small pieces, which then would be looked up twice.
    found = await stack.pread(start * SECTOR, (end - start) * SECTOR)
    return found if isinstance(found, bytes) else bytes(found)


def _split(content: bytes, base: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Cut [start, end) into runs of blocks that are zero and that are not.

    ``content`` begins at sector ``base``. A block that is covered in part counts as well.
    """
    position = start
    for block in _zero_blocks(content, base, start, end):
        stop = min(end, (block // BLOCK_SECTORS + 1) * BLOCK_SECTORS)
        if block > position:
            yield position, block, False
        yield block, stop, True
        position = stop
    if position < end:
        yield position, end, False


def _zero_blocks(content: bytes, base: int, start: int, end: int) -> Iterator[int]:
    """Where blocks of zeros begin. Most data has no zero byte at the start of a block."""
    first_whole = min(end, -(-start // BLOCK_SECTORS) * BLOCK_SECTORS)
    if first_whole > start and _is_zero(content, base, start, first_whole):
        yield start
    begin, stop = (first_whole - base) * SECTOR, (end - base) * SECTOR
    sample = content[begin:stop:_BLOCK_BYTES]
    number = sample.find(0)
    while number >= 0:
        block = first_whole + number * BLOCK_SECTORS
        if _is_zero(content, base, block, min(end, block + BLOCK_SECTORS)):
            yield block
        number = sample.find(0, number + 1)


def _is_zero(content: bytes, base: int, first: int, last: int) -> bool:
    begin, end = (first - base) * SECTOR, (last - base) * SECTOR
    if content[begin] or content[end - 1]:
        return False
    size = end - begin
    return content[begin:end] == (_ZERO_BLOCK if size == _BLOCK_BYTES else _ZERO_BLOCK[:size])


def _checksum(content: bytes, base: int, first: int, last: int) -> int:
    return crc32c(memoryview(content)[(first - base) * SECTOR : (last - base) * SECTOR])


def _packed(numbers: array[int]) -> bytes:
    return numbers.tobytes()


def _check_count(plan: LayerPlan, name: str) -> None:
    """Refuse before anything is written what no reader would open (spec: lsmt 18)."""
    padding = BLOCK // ENTRY_SIZE
    at_least = sum(-(-(end - start) // MAX_LENGTH) for start, end in merged(plan.data, plan.zeros))
    if at_least > MAX_ENTRIES - padding:
        raise UnsupportedError(
            f"{name} would become a layer of {at_least} segments; readers accept {MAX_ENTRIES}",
            hint="it is too scattered: copy its files to a new image in place of this layer",
        )

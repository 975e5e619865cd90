"""UNMAP parameter lists: built by hand, cut off, too large, and any bytes."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scsi_judges import Sense, hex_cdb, logical_unit, parse_sense, refusal

from hybrid.block.scsi import CheckCondition, LogicalUnit, Op, Request, decode, unmap_ranges

GIB = 1 << 30
UNIT = logical_unit(size=8 * GIB)
BLOCKS = 8 * GIB // 512
BIG_BLOCKS = logical_unit(size=8 * GIB, block_size=4096)
LENGTH_ERROR = Sense(5, 0x1A00)


def parameters(*ranges: tuple[int, int], descriptors: int | None = None) -> bytes:
    body = b"".join(struct.pack(">QII", lba, count, 0) for lba, count in ranges)
    length = len(body) if descriptors is None else descriptors
    return struct.pack(">HHI", len(body) + 6, length, 0) + body


def refused(data: bytes, unit: LogicalUnit = UNIT) -> Sense:
    with pytest.raises(CheckCondition) as caught:
        unmap_ranges(unit, data)
    return parse_sense(caught.value.sense)


def test_the_command() -> None:
    cdb = "42 00 00000000 00 0018 00"
    assert decode(UNIT, hex_cdb(cdb)) == Request(Op.UNMAP, 0, 24)
    through = logical_unit(write_cache=False)
    assert decode(through, hex_cdb(cdb)) == Request(Op.UNMAP, 0, 24, fua=True)
    assert refusal(logical_unit(writable=False), cdb) == Sense(7, 0x2700)


def test_a_command_without_parameters() -> None:
    assert decode(UNIT, hex_cdb("42 00 00000000 00 0000 00")) == Request(Op.NOTHING)
    for length in (1, 7):
        assert refusal(UNIT, f"42 00 00000000 00 {length:04x} 00") == LENGTH_ERROR


def test_what_linux_sends() -> None:
    # sd: one descriptor; here for LBA 100h and 8 blocks.
    data = bytes.fromhex("0016 0010 00000000 0000000000000100 00000008 00000000")
    assert unmap_ranges(UNIT, data) == [(0x100 * 512, 8 * 512)]


def test_ranges() -> None:
    data = parameters((0, 8), (100, 0), (BLOCKS - 1, 1), (4, 8), (BLOCKS, 0))
    assert unmap_ranges(UNIT, data) == [(0, 4096), (8 * GIB - 512, 512), (2048, 4096)]
    assert unmap_ranges(BIG_BLOCKS, parameters((3, 2))) == [(3 * 4096, 2 * 4096)]
    assert unmap_ranges(UNIT, parameters()) == []


def test_a_descriptor_that_is_cut_off_is_ignored() -> None:
    data = parameters((0, 8), (100, 8), descriptors=31)
    assert unmap_ranges(UNIT, data) == [(0, 4096)]
    # Nor does it matter what follows the descriptors.
    assert unmap_ranges(UNIT, parameters((0, 8)) + b"\xff" * 16) == [(0, 4096)]


@pytest.mark.parametrize(
    "bad", [(BLOCKS, 1), (BLOCKS - 1, 2), (0, 0xFFFFFFFF), ((1 << 64) - 1, 1), (BLOCKS + 1, 0)]
)
def test_a_range_outside_of_the_unit(bad: tuple[int, int]) -> None:
    assert refused(parameters((0, 8), bad)) == Sense(5, 0x2100)


def test_as_many_blocks_as_allowed() -> None:
    half = GIB // 512 // 2
    assert unmap_ranges(UNIT, parameters((0, half), (half, half))) == [
        (0, GIB // 2),
        (GIB // 2, GIB // 2),
    ]
    # The field that is one too many: the blocks of the second descriptor.
    assert refused(parameters((0, half), (half, half + 1))) == Sense(5, 0x2600, field="list 32")


def test_as_many_descriptors_as_allowed() -> None:
    assert len(unmap_ranges(UNIT, parameters(*[(7, 1)] * 255))) == 255
    assert refused(parameters(*[(7, 1)] * 256)) == Sense(5, 0x2600, field="list 2")


def test_lists_that_are_cut_off() -> None:
    whole = parameters((0, 8), (100, 8))
    for length in range(len(whole)):
        assert refused(whole[:length]) == LENGTH_ERROR


@given(st.binary(max_size=120))
def test_any_bytes(data: bytes) -> None:
    with suppress(CheckCondition):  # and no other exception
        for offset, length in unmap_ranges(UNIT, data):
            assert length > 0
            assert offset + length <= UNIT.size


@given(st.lists(st.tuples(st.integers(0, BLOCKS), st.integers(0, 10_000)), max_size=20))
def test_any_ranges(ranges: list[tuple[int, int]]) -> None:
    data = parameters(*ranges)
    if any(lba + count > BLOCKS for lba, count in ranges):
        assert refused(data) == Sense(5, 0x2100)
    else:
        expected = [(lba * 512, count * 512) for lba, count in ranges if count]
        assert unmap_ranges(UNIT, data) == expected

"""From CDBs to requests: fields at the places where SBC-3 and SPC-4 put them, and any bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.scsi_judges import Sense, hex_cdb, logical_unit, outcome, refusal, reply

from hybrid.block.scsi import LogicalUnit, Op, Request, decode

MIB = 1 << 20
TIB = 1 << 40
BLOCK = 512
CACHED = logical_unit(size=4 * TIB)
WRITE_THROUGH = logical_unit(size=4 * TIB, write_cache=False)
READ_ONLY = logical_unit(size=4 * TIB, writable=False)
TINY = logical_unit(size=100 * BLOCK)
BIG_BLOCKS = logical_unit(size=4 * TIB, block_size=4096)
LAST = 4 * TIB // BLOCK - 1
UNITS = [CACHED, WRITE_THROUGH, READ_ONLY, TINY, BIG_BLOCKS]

OUT_OF_RANGE = Sense(5, 0x2100)
WRITE_PROTECTED = Sense(7, 0x2700)

COMMANDS = {
    0x00: 6, 0x03: 6, 0x08: 6, 0x0A: 6, 0x12: 6, 0x15: 6, 0x1A: 6, 0x1B: 6, 0x1E: 6, 0x25: 10,
    0x28: 10, 0x2A: 10, 0x2E: 10, 0x2F: 10, 0x35: 10, 0x41: 10, 0x42: 10, 0x55: 10, 0x5A: 10,
    0x88: 16, 0x8A: 16, 0x8E: 16, 0x8F: 16, 0x91: 16, 0x93: 16, 0x9E: 16, 0xA0: 12, 0xA3: 12,
    0xA8: 12, 0xAA: 12,
}  # fmt: skip
"""Bytes of the CDB of each operation code that is supported."""
WRITING = {0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x8A, 0x8E, 0x93, 0xAA}


def request(unit: LogicalUnit, cdb: str) -> Request:
    return decode(unit, hex_cdb(cdb))


# --- reads and writes


@pytest.mark.parametrize(
    ("cdb", "lba", "blocks"),
    [
        ("08 1fffff 10 00", 0x1FFFFF, 16),
        ("08 000000 00 00", 0, 256),  # no length field is 0: that means 256
        ("28 00 12345678 00 0102 00", 0x12345678, 0x102),
        ("28 00 00000007 00 0000 00", 7, 0),
        ("28 10 12345678 00 0102 00", 0x12345678, 0x102),  # DPO
        ("88 00 0000000112345678 00000800 00 00", 0x112345678, 0x800),
        ("88 18 0000000112345678 00000001 00 00", 0x112345678, 1),
        ("88 00 00000001ffffffff 00000001 00 00", LAST, 1),
        ("88 00 0000000200000000 00000000 00 00", LAST + 1, 0),
        ("a8 00 12345678 00000003 00 00", 0x12345678, 3),
    ],
)
def test_reads(cdb: str, lba: int, blocks: int) -> None:
    expected = Request(Op.READ, lba * BLOCK, blocks * BLOCK)
    assert request(WRITE_THROUGH, cdb) == expected
    assert request(READ_ONLY, cdb) == expected


@pytest.mark.parametrize(
    ("cdb", "lba", "blocks", "fua"),
    [
        ("0a 1fffff 10 00", 0x1FFFFF, 16, False),
        ("0a 000000 00 00", 0, 256, False),
        ("2a 00 12345678 00 0102 00", 0x12345678, 0x102, False),
        ("2a 08 12345678 00 0102 00", 0x12345678, 0x102, True),
        ("2a 10 12345678 00 0102 00", 0x12345678, 0x102, False),  # DPO
        ("8a 00 0000000112345678 00000800 00 00", 0x112345678, 0x800, False),
        ("8a 18 0000000112345678 00000800 00 00", 0x112345678, 0x800, True),
        ("aa 00 12345678 00000003 00 00", 0x12345678, 3, False),
        ("aa 08 12345678 00000003 00 00", 0x12345678, 3, True),
        ("2e 00 12345678 00 0102 00", 0x12345678, 0x102, True),  # WRITE AND VERIFY
        ("8e 10 0000000112345678 00000800 00 00", 0x112345678, 0x800, True),
    ],
)
def test_writes(cdb: str, lba: int, blocks: int, fua: bool) -> None:
    expected = Request(Op.WRITE, lba * BLOCK, blocks * BLOCK, fua)
    assert request(CACHED, cdb) == expected
    # Without a write cache, all writes are durable when they are answered.
    assert request(WRITE_THROUGH, cdb) == expected._replace(fua=True)
    assert refusal(READ_ONLY, cdb) == WRITE_PROTECTED


@pytest.mark.parametrize(
    "flag", ["28 08 00000001 00 0001 00", "88 08 0000000000000001 00000001 0000"]
)
def test_a_read_from_the_medium(flag: str) -> None:
    assert request(CACHED, flag) == Request(Op.READ, BLOCK, BLOCK, fua=True)
    assert request(WRITE_THROUGH, flag) == Request(Op.READ, BLOCK, BLOCK)


def test_blocks_of_4096_bytes() -> None:
    cdb = "28 00 00000003 00 0002 00"
    assert request(BIG_BLOCKS, cdb) == Request(Op.READ, 3 * 4096, 2 * 4096)


@pytest.mark.parametrize(
    "cdb",
    [
        "08 {lba:06x} {blocks:02x} 00",
        "28 00 {lba:08x} 00 {blocks:04x} 00",
        "88 00 {lba:016x} {blocks:08x} 00 00",
        "a8 00 {lba:08x} {blocks:08x} 00 00",
        "2a 00 {lba:08x} 00 {blocks:04x} 00",
        "8a 00 {lba:016x} {blocks:08x} 00 00",
        "2f 00 {lba:08x} 00 {blocks:04x} 00",
        "8f 02 {lba:016x} {blocks:08x} 00 00",
        "35 00 {lba:08x} 00 {blocks:04x} 00",
        "91 00 {lba:016x} {blocks:08x} 00 00",
        "41 00 {lba:08x} 00 {blocks:04x} 00",
        "93 08 {lba:016x} {blocks:08x} 00 00",
    ],
)
def test_the_end_of_the_unit(cdb: str) -> None:
    for lba, blocks in ((0, 100), (99, 1), (50, 50)):
        request(TINY, cdb.format(lba=lba, blocks=blocks))
    for lba, blocks in ((0, 101), (99, 2), (100, 1), (101, 1), (0x1FFFFF, 255)):
        assert refusal(TINY, cdb.format(lba=lba, blocks=blocks)) == OUT_OF_RANGE


def test_addresses_do_not_wrap_around() -> None:
    for opcode in ("88", "8a", "8f", "91", "93"):
        assert refusal(CACHED, f"{opcode} 00 ffffffffffffffff 00000001 00 00") == OUT_OF_RANGE
        assert refusal(CACHED, f"{opcode} 00 0020000000000000 00000001 00 00") == OUT_OF_RANGE


@pytest.mark.parametrize(
    ("cdb", "field"),
    [
        ("28 00 00000000 00 {:04x} 00", "cdb 7"),
        ("2a 00 00000000 00 {:04x} 00", "cdb 7"),
        ("2e 00 00000000 00 {:04x} 00", "cdb 7"),
        ("2f 02 00000000 00 {:04x} 00", "cdb 7"),
        ("88 00 0000000000000000 {:08x} 00 00", "cdb 10"),
        ("8a 00 0000000000000000 {:08x} 00 00", "cdb 10"),
        ("a8 00 00000000 {:08x} 00 00", "cdb 6"),
        ("aa 00 00000000 {:08x} 00 00", "cdb 6"),
    ],
)
def test_the_maximum_transfer_length(cdb: str, field: str) -> None:
    assert request(CACHED, cdb.format(2048)).length == MIB
    assert refusal(CACHED, cdb.format(2049)) == Sense(5, 0x2400, field=field)


def test_a_small_maximum_transfer_length() -> None:
    unit = LogicalUnit(size=MIB, wwn="3" * 16, serial="1", max_transfer=64 * BLOCK)
    assert request(unit, "08 000000 40 00").length == 64 * BLOCK
    assert refusal(unit, "08 000000 41 00") == Sense(5, 0x2400, field="cdb 4")
    assert refusal(unit, "08 000000 00 00") == Sense(5, 0x2400, field="cdb 4")


@given(
    st.sampled_from(UNITS),
    st.sampled_from([0x28, 0x2A, 0x88, 0x8A]),
    st.integers(0, LAST + 2) | st.integers(0, 200),
    st.integers(0, 3000),
    st.sampled_from([0x00, 0x08, 0x10, 0x18]),
)
@example(CACHED, 0x88, LAST, 1, 0)
def test_reads_and_writes_by_arithmetic(
    unit: LogicalUnit, opcode: int, lba: int, blocks: int, flags: int
) -> None:
    is_short = opcode < 0x80
    lba &= 0xFFFFFFFF if is_short else -1
    cdb = bytes((opcode, flags)) + (
        lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
        if is_short
        else lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + b"\0\0"
    )
    writes = opcode in (0x2A, 0x8A)
    if writes and not unit.writable:
        assert refusal(unit, cdb) == WRITE_PROTECTED
    elif blocks * unit.block_size > MIB:
        assert refusal(unit, cdb) == Sense(5, 0x2400, field=f"cdb {7 if is_short else 10}")
    elif (lba + blocks) * unit.block_size > unit.size:
        assert refusal(unit, cdb) == OUT_OF_RANGE
    else:
        fua = flags & 8 != 0 if unit.write_cache else writes
        op = Op.WRITE if writes else Op.READ
        block_size = unit.block_size
        assert decode(unit, cdb) == Request(op, lba * block_size, blocks * block_size, fua)


# --- other commands for blocks


def test_verify() -> None:
    # Without a comparison: a read that has no data-in.
    assert request(READ_ONLY, "2f 00 00000003 00 0002 00") == Request(Op.READ, 1536, 1024)
    assert request(READ_ONLY, "8f 10 0000000000000003 00000002 0000") == Request(
        Op.READ, 1536, 1024
    )
    assert request(READ_ONLY, "2f 02 00000003 00 0002 00") == Request(Op.VERIFY, 1536, 1024)
    assert request(CACHED, "8f 12 0000000000000003 00000002 0000") == Request(Op.VERIFY, 1536, 1024)


@pytest.mark.parametrize("cdb", ["2f 04 00000003 00 0002 00", "2f 06 00000003 00 0002 00"])
def test_verify_with_a_reserved_byte_check(cdb: str) -> None:
    assert refusal(CACHED, cdb) == Sense(5, 0x2400, field="cdb 1.2")


@pytest.mark.parametrize(
    "cdb",
    [
        "35 00 00000000 00 0000 00",
        "35 02 00000007 00 0001 00",  # IMMED
        "91 00 0000000000000000 00000000 00 00",
        "1b 00 00 00 00 00",  # START STOP UNIT: stop
        "1b 01 00 00 00 00",
    ],
)
def test_flushes(cdb: str) -> None:
    assert request(CACHED, cdb) == Request(Op.FLUSH)
    assert request(WRITE_THROUGH, cdb) == Request(Op.FLUSH)
    assert request(READ_ONLY, cdb) == Request(Op.NOTHING)


@pytest.mark.parametrize(
    ("cdb", "length", "unmap"),
    [
        ("41 00 00000002 00 0001 00", 512, False),
        ("41 08 00000002 00 ffff 00", 0xFFFF * 512, True),
        ("93 00 0000000000000002 00000001 00 00", 512, False),
        ("93 08 0000000000000002 00010000 00 00", 32 * MIB, True),
    ],
)
def test_write_same(cdb: str, length: int, unmap: bool) -> None:
    expected = Request(Op.WRITE_SAME, 1024, length, unmap=unmap)
    assert request(CACHED, cdb) == expected
    assert request(WRITE_THROUGH, cdb) == expected._replace(fua=True)
    assert refusal(READ_ONLY, cdb) == WRITE_PROTECTED


@pytest.mark.parametrize(("flags", "unmap"), [("01", False), ("09", True)])
def test_write_same_without_data_out(flags: str, unmap: bool) -> None:
    # NDOB: a block of zeros is meant, and no data-out comes.
    cdb = f"93 {flags} 0000000000000002 00000004 00 00"
    expected = Request(Op.WRITE_SAME, 1024, 2048, unmap=unmap, data=bytes(512))
    assert request(CACHED, cdb) == expected
    assert request(BIG_BLOCKS, cdb).data == bytes(4096)


@pytest.mark.parametrize(
    ("cdb", "field"),
    [
        ("41 00 00000002 00 0000 00", "cdb 7"),  # WSNZ
        ("93 00 0000000000000002 00000000 00 00", "cdb 10"),
        ("93 08 0000000000000002 00010001 00 00", "cdb 10"),  # more than page B0h allows
        ("41 10 00000002 00 0001 00", "cdb 1.4"),  # ANCHOR
        ("41 18 00000002 00 0001 00", "cdb 1.4"),
        ("93 18 0000000000000002 00000001 00 00", "cdb 1.4"),
        ("41 01 00000002 00 0001 00", "cdb 1.0"),  # NDOB is for WRITE SAME(16)
    ],
)
def test_write_same_refused(cdb: str, field: str) -> None:
    assert refusal(CACHED, cdb) == Sense(5, 0x2400, field=field)


# --- commands about the unit


@pytest.mark.parametrize(
    "cdb",
    [
        "00 00 00 00 00 00",  # TEST UNIT READY
        "1b 00 00 00 01 00",  # START STOP UNIT: start
        "1b 01 00 00 05 00",
        "1e 00 00 00 00 00",  # PREVENT ALLOW MEDIUM REMOVAL
        "1e 00 00 00 01 00",
    ],
)
def test_nothing_to_do(cdb: str) -> None:
    for unit in UNITS:
        assert request(unit, cdb) == Request(Op.NOTHING)


def test_request_sense() -> None:
    no_sense = bytes.fromhex("70 00 00 00000000 0a" + 10 * "00")
    assert request(CACHED, "03 00 0000 ff 00") == Request(Op.REPLY, data=no_sense)
    assert reply(CACHED, "03 00 0000 08 00") == no_sense[:8]
    # The descriptor format.
    assert refusal(CACHED, "03 01 0000 ff 00") == Sense(5, 0x2400, field="cdb 1.0")


@pytest.mark.parametrize(
    ("selection", "data"),
    [("00", "00000008" + 24 * "0"), ("02", "00000008" + 24 * "0"), ("01", "00000000" + 8 * "0")],
)
def test_report_luns(selection: str, data: str) -> None:
    for allocation in (16, 0x100, 1 << 24):
        cdb = f"a0 00 {selection} 000000 {allocation:08x} 00 00"
        assert reply(CACHED, cdb) == bytes.fromhex(data)


@pytest.mark.parametrize(
    ("cdb", "field"),
    [
        ("a0 00 03 000000 00000100 00 00", "cdb 2"),
        ("a0 00 00 000000 0000000f 00 00", "cdb 6"),
        ("1b 00 00 00 02 00", "cdb 4.1"),  # LOEJ: the medium stays
        ("1b 00 00 00 31 00", "cdb 4.5"),  # POWER CONDITION
        ("1e 00 00 00 02 00", "cdb 4.1"),
        ("25 00 00000001 0000 00 00", "cdb 5.0"),
        ("25 00 00000000 0000 01 00", "cdb 8.0"),  # PMI
        ("9e 10 0000000000000000 00000020 01 00", "cdb 14.0"),
        ("12 02 00 00ff 00", "cdb 1.1"),  # CMDDT
        ("00 00 00 00 00 04", "cdb 5.2"),  # NACA
        ("28 20 00000000 00 0001 00", "cdb 1.5"),  # RDPROTECT
        ("28 e0 00000000 00 0001 00", "cdb 1.7"),
        ("88 20 0000000000000000 00000001 00 00", "cdb 1.5"),
        ("a8 80 00000000 00000001 00 00", "cdb 1.7"),
        ("2a 20 00000000 00 0001 00", "cdb 1.5"),  # WRPROTECT
        ("8a 60 0000000000000000 00000001 00 00", "cdb 1.6"),
        ("2f 20 00000000 00 0001 00", "cdb 1.5"),  # VRPROTECT
        ("41 20 00000000 00 0001 00", "cdb 1.5"),
        ("28 00 00000000 01 0001 00", "cdb 6.0"),  # group number
        ("28 00 00000000 00 0001 04", "cdb 9.2"),
        ("88 00 0000000000000000 00000001 1f 00", "cdb 14.4"),
        ("88 00 0000000000000000 00000001 00 80", "cdb 15.7"),
        ("42 01 00000000 00 0018 00", "cdb 1.0"),  # UNMAP: ANCHOR
        ("08 200000 01 00", "cdb 1.5"),  # once a LUN
    ],
)
def test_bits_that_are_not_supported(cdb: str, field: str) -> None:
    assert refusal(CACHED, cdb) == Sense(5, 0x2400, field=field)


# --- commands that are not there, and CDBs that are none


def test_operation_codes() -> None:
    for opcode in range(256):
        cdb = bytes((opcode,)).ljust(16, b"\0")
        if opcode not in COMMANDS:
            assert refusal(CACHED, cdb) == Sense(5, 0x2000)
        elif opcode in (0x9E, 0xA3):  # no service action 0
            assert refusal(CACHED, cdb) == Sense(5, 0x2400, field="cdb 1.4")


@pytest.mark.parametrize("opcode", COMMANDS)
def test_a_cdb_that_is_too_short(opcode: int) -> None:
    action = {0x9E: b"\x10", 0xA3: b"\x0c"}.get(opcode, b"\0")
    whole = (bytes((opcode,)) + action).ljust(COMMANDS[opcode], b"\0")
    for length in range(1, len(whole)):
        if length == 1 and opcode in (0x9E, 0xA3):
            assert refusal(CACHED, whole[:1]) == Sense(5, 0x2400, field="cdb 1.4")
        else:
            assert refusal(CACHED, whole[:length]) == Sense(5, 0x2400, field=f"cdb {length}")
    # What stands behind the CDB does not matter.
    assert outcome(CACHED, whole + b"\xff") == outcome(CACHED, whole)


def test_an_empty_cdb() -> None:
    assert refusal(CACHED, b"") == Sense(5, 0x2000)


def test_a_read_only_unit_refuses_all_that_writes() -> None:
    for opcode, length in COMMANDS.items():
        cdb = bytes((opcode,)).ljust(length, b"\0")
        assert (outcome(READ_ONLY, cdb) == WRITE_PROTECTED) == (opcode in WRITING)


ALLOCATION = {
    0x03: slice(4, 5), 0x12: slice(3, 5), 0x1A: slice(4, 5), 0x5A: slice(7, 9),
    0x9E: slice(10, 14), 0xA0: slice(6, 10), 0xA3: slice(6, 10),
}  # fmt: skip


def check_answer(unit: LogicalUnit, cdb: bytes) -> None:
    """A CDB is answered with sense data, or with a request that can be carried out."""
    answer = outcome(unit, cdb)
    if isinstance(answer, Sense):
        assert answer.key in (5, 7)
        return
    assert len(cdb) >= COMMANDS[cdb[0]]
    assert answer.offset >= 0
    assert answer.length >= 0
    if answer.op in (Op.READ, Op.WRITE, Op.WRITE_SAME, Op.VERIFY):
        assert answer.offset + answer.length <= unit.size
        assert answer.offset % unit.block_size == answer.length % unit.block_size == 0
        assert answer.length <= (32 * MIB if answer.op == Op.WRITE_SAME else MIB)
    if answer.op in (Op.WRITE, Op.WRITE_SAME, Op.UNMAP, Op.FLUSH):
        assert unit.writable
    if answer.op in (Op.UNMAP, Op.MODE_SELECT):
        assert 0 < answer.length <= 0xFFFF
    if answer.op == Op.REPLY:
        field = ALLOCATION.get(cdb[0])
        allowed = 8 if field is None else int.from_bytes(cdb[field], "big")
        assert len(answer.data) <= allowed
    else:
        assert answer.data in (b"", bytes(unit.block_size))


@given(st.sampled_from(UNITS), st.binary(max_size=260))
def test_any_bytes(unit: LogicalUnit, cdb: bytes) -> None:
    check_answer(unit, cdb)


@given(st.sampled_from(UNITS), st.data())
def test_any_fields_of_a_known_command(unit: LogicalUnit, data: st.DataObject) -> None:
    opcode = data.draw(st.sampled_from(sorted(COMMANDS)))
    # Mostly zeros, so that not every CDB ends at its first reserved byte.
    byte = st.sampled_from([0, 0, 0, 0, 1, 8, 0x0C, 0x10, 0x3F, 0xFF])
    rest = data.draw(st.lists(byte, min_size=0, max_size=17))
    check_answer(unit, bytes((opcode, *rest)))

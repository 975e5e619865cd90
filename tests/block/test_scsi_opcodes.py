"""REPORT SUPPORTED OPERATION CODES (SPC-4 6.35): what it lists is what is accepted."""

from __future__ import annotations

import pytest
from support.scsi_judges import Sense, logical_unit, outcome, refusal, reply

from hybrid.block.scsi import LogicalUnit, Request

UNIT = logical_unit()
READ_ONLY = logical_unit(writable=False)
WRITING = {0x0A, 0x2A, 0x2E, 0x41, 0x42, 0x8A, 0x8E, 0x93, 0xAA}
NOT_SUPPORTED = bytes.fromhex("00 01 0000")
NO_TIMEOUTS = bytes.fromhex("000a 00 00 00000000 00000000")


USAGE = [
    "00 00 00 00 00 00",  # TEST UNIT READY
    "03 00 00 00 ff 00",  # REQUEST SENSE: allocation length
    "08 1f ff ff ff 00",  # READ(6): LBA, blocks
    "0a 1f ff ff ff 00",  # WRITE(6)
    "12 01 ff ff ff 00",  # INQUIRY: EVPD, page, allocation length
    "15 10 00 00 ff 00",  # MODE SELECT(6): PF, list length
    "1a 08 ff ff ff 00",  # MODE SENSE(6): DBD, control and page, subpage, allocation length
    "1b 01 00 00 05 00",  # START STOP UNIT: IMMED, NO_FLUSH and START
    "1e 00 00 00 01 00",  # PREVENT ALLOW MEDIUM REMOVAL
    "25 00 00 00 00 00 00 00 00 00",  # READ CAPACITY(10)
    "28 18 ff ff ff ff 00 ff ff 00",  # READ(10): DPO and FUA, LBA, group, blocks
    "2a 18 ff ff ff ff 00 ff ff 00",  # WRITE(10)
    "2e 10 ff ff ff ff 00 ff ff 00",  # WRITE AND VERIFY(10): DPO
    "2f 12 ff ff ff ff 00 ff ff 00",  # VERIFY(10): DPO and BYTCHK
    "35 02 ff ff ff ff 00 ff ff 00",  # SYNCHRONIZE CACHE(10): IMMED
    "41 08 ff ff ff ff 00 ff ff 00",  # WRITE SAME(10): UNMAP
    "42 00 00 00 00 00 00 ff ff 00",  # UNMAP: list length
    "55 10 00 00 00 00 00 ff ff 00",  # MODE SELECT(10)
    "5a 18 ff ff 00 00 00 ff ff 00",  # MODE SENSE(10): LLBAA and DBD
    "88 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",  # READ(16): LBA, blocks, group
    "8a 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",  # WRITE(16)
    "8e 10 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",  # WRITE AND VERIFY(16)
    "8f 12 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",  # VERIFY(16)
    "91 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",  # SYNCHRONIZE CACHE(16)
    "93 09 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",  # WRITE SAME(16): UNMAP and NDOB
    "9e 10 00 00 00 00 00 00 00 00 ff ff ff ff 00 00",  # READ CAPACITY(16): allocation length
    "a0 00 ff 00 00 00 ff ff ff ff 00 00",  # REPORT LUNS: selection, allocation length
    "a3 0c 87 ff ff ff ff ff ff ff 00 00",  # this command: RCTD and option, opcode, action
    "a8 18 ff ff ff ff ff ff ff ff 00 00",  # READ(12)
    "aa 18 ff ff ff ff ff ff ff ff 00 00",  # WRITE(12)
]
"""CDB usage data of all commands: for each bit, whether it may be set (SBC-3, SPC-4)."""


def report(unit: LogicalUnit, option: int, opcode: int = 0, action: int = 0) -> bytes:
    return reply(unit, f"a3 0c {option:02x} {opcode:02x} {action:04x} 00002000 00 00")


def listed(unit: LogicalUnit) -> dict[tuple[int, int | None], int]:
    """CDB lengths by operation code and service action."""
    data = report(unit, 0)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    found: dict[tuple[int, int | None], int] = {}
    for at in range(4, len(data), 8):
        opcode, action, flags = data[at], int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 5]
        assert flags in (0, 1)
        found[opcode, action if flags else None] = int.from_bytes(data[at + 6 : at + 8], "big")
    return found


def test_all() -> None:
    found = listed(UNIT)
    assert found[0x28, None] == 10
    assert found[0x9E, 0x10] == 16
    assert found[0xA3, 0x0C] == 12
    assert len(found) == len(USAGE)
    assert found.keys() - listed(READ_ONLY).keys() == {(opcode, None) for opcode in WRITING}


@pytest.mark.parametrize("unit", [UNIT, READ_ONLY])
def test_what_is_not_listed_is_not_accepted(unit: LogicalUnit) -> None:
    found = listed(unit)
    for opcode in range(256):
        for action in range(32):
            cdb = bytes((opcode, action)).ljust(16, b"\0")
            if isinstance(outcome(unit, cdb), Request):
                assert (opcode, None) in found or (opcode, action) in found


@pytest.mark.parametrize("usage", USAGE)
def test_usage_data(usage: str) -> None:
    mask = bytes.fromhex(usage)
    option, action = (2, mask[1]) if mask[0] in (0x9E, 0xA3) else (1, 0)
    head = b"\x00\x03" + len(mask).to_bytes(2, "big")
    assert report(UNIT, option, mask[0], action) == head + mask


@pytest.mark.parametrize("usage", USAGE)
def test_usage_data_is_what_is_accepted(usage: str) -> None:
    mask = bytes.fromhex(usage)
    opcode, has_action = mask[0], mask[0] in (0x9E, 0xA3)
    plain = bytearray((mask[:2] if has_action else mask[:1]).ljust(len(mask), b"\0"))
    if opcode in (0x1A, 0x5A):
        plain[2] = 0x3F  # all mode pages, since there is no page 0
    for at in range(2 if has_action else 1, len(mask)):
        for bit in range(8):
            if (opcode, at, bit) == (0xA3, 2, 2):
                continue  # the field may have this bit, but no value of it has
            cdb = plain.copy()
            cdb[at] |= 1 << bit
            wrong_bit = Sense(5, 0x2400, field=f"cdb {at}.{bit}")
            assert (outcome(UNIT, bytes(cdb)) != wrong_bit) == bool(mask[at] & 1 << bit)


def test_all_with_timeouts() -> None:
    plain, timed = report(UNIT, 0), report(UNIT, 0x80)
    assert len(timed) == int.from_bytes(timed[:4], "big") + 4
    first = bytes.fromhex("00 00 0000 00 02 0006") + NO_TIMEOUTS
    assert timed[4:24] == first
    assert timed.count(NO_TIMEOUTS) == (len(plain) - 4) // 8


@pytest.mark.parametrize(
    ("option", "opcode", "action", "data"),
    [
        (1, 0x28, 0, "00 03 000a 28 18 ffffffff 00 ffff 00"),
        (3, 0x28, 0, "00 03 000a 28 18 ffffffff 00 ffff 00"),
        (1, 0x93, 0, "00 03 0010 93 09 ffffffffffffffff ffffffff 00 00"),
        (1, 0x42, 0, "00 03 000a 42 00 00000000 00 ffff 00"),
        (2, 0x9E, 0x10, "00 03 0010 9e 10 0000000000000000 ffffffff 00 00"),
        (3, 0x9E, 0x10, "00 03 0010 9e 10 0000000000000000 ffffffff 00 00"),
        (0x81, 0x12, 0, "00 83 0006 12 01 ff ffff 00" + NO_TIMEOUTS.hex()),
    ],
)
def test_one(option: int, opcode: int, action: int, data: str) -> None:
    assert report(UNIT, option, opcode, action) == bytes.fromhex(data)


@pytest.mark.parametrize(
    ("option", "opcode", "action"),
    [(1, 0x04, 0), (2, 0x04, 1), (3, 0x04, 0), (2, 0x9E, 0x12), (3, 0x9E, 0), (3, 0x28, 1),
     (3, 0x9E, 0x110), (0x81, 0x04, 0)],
)  # fmt: skip
def test_one_that_is_not_supported(option: int, opcode: int, action: int) -> None:
    assert report(UNIT, option, opcode, action) == NOT_SUPPORTED


def test_a_read_only_unit_reports_no_writes() -> None:
    for opcode in WRITING:
        assert report(READ_ONLY, 1, opcode) == NOT_SUPPORTED
        assert report(UNIT, 1, opcode)[1] == 3


@pytest.mark.parametrize(
    ("option", "opcode"),
    [
        (1, 0x9E),  # has service actions
        (2, 0x28),  # has none
        (4, 0x28),
        (7, 0x28),
    ],
)
def test_questions_that_make_no_sense(option: int, opcode: int) -> None:
    cdb = f"a3 0c {option:02x} {opcode:02x} 0000 00002000 00 00"
    assert refusal(UNIT, cdb) == Sense(5, 0x2400, field="cdb 2.2")


def test_the_answer_is_cut_to_the_allocation_length() -> None:
    whole = report(UNIT, 0)
    for allocation in (0, 4, 100, len(whole), len(whole) + 1, 1 << 24):
        cdb = f"a3 0c 00 00 0000 {allocation:08x} 00 00"
        assert reply(UNIT, cdb) == whole[:allocation]

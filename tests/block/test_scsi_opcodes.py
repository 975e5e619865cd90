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
    assert len(found) == 30
    assert found.keys() - listed(READ_ONLY).keys() == {(opcode, None) for opcode in WRITING}


@pytest.mark.parametrize("unit", [UNIT, READ_ONLY])
def test_what_is_not_listed_is_not_accepted(unit: LogicalUnit) -> None:
    found = listed(unit)
    for opcode in range(256):
        for action in range(32):
            cdb = bytes((opcode, action)).ljust(16, b"\0")
            if isinstance(outcome(unit, cdb), Request):
                assert (opcode, None) in found or (opcode, action) in found


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
    for allocation in (0, 4, 100, len(whole), len(whole) + 1):
        cdb = f"a3 0c 00 00 0000 {allocation:08x} 00 00"
        assert reply(UNIT, cdb) == whole[:allocation]

"""Sense data: bytes laid out by hand (SPC-4 4.5.3), and what sg_decode_sense reads in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scsi_judges import Sense, judge, parse_sense

from hybrid.block import sense

GOLDEN = {
    "no sense": (sense.no_sense(), "70 00 00 00000000 0a 00000000 0000 00 000000"),
    "read": (
        sense.medium_read_error(0x12345678),
        "f0 00 03 12345678 0a 00000000 1100 00 000000",
    ),
    "read, no LBA": (sense.medium_read_error(), "70 00 03 00000000 0a 00000000 1100 00 000000"),
    "read, LBA 0": (sense.medium_read_error(0), "f0 00 03 00000000 0a 00000000 1100 00 000000"),
    "write": (sense.medium_write_error(1), "f0 00 03 00000001 0a 00000000 0c00 00 000000"),
    "hardware": (sense.hardware_error(), "70 00 04 00000000 0a 00000000 4400 00 000000"),
    "full": (sense.space_exhausted(), "70 00 07 00000000 0a 00000000 2707 00 000000"),
    "protected": (sense.write_protected(), "70 00 07 00000000 0a 00000000 2700 00 000000"),
    "miscompare": (sense.miscompare(77), "f0 00 0e 0000004d 0a 00000000 1d00 00 000000"),
    "opcode": (sense.invalid_opcode(), "70 00 05 00000000 0a 00000000 2000 00 000000"),
    "range": (sense.out_of_range(), "70 00 05 00000000 0a 00000000 2100 00 000000"),
    "field": (sense.invalid_field(7), "70 00 05 00000000 0a 00000000 2400 00 c00007"),
    "field bit": (sense.invalid_field(1, bit=7), "70 00 05 00000000 0a 00000000 2400 00 cf0001"),
    "parameter": (sense.invalid_parameter(258), "70 00 05 00000000 0a 00000000 2600 00 800102"),
    "list length": (sense.parameter_list_length(), "70 00 05 00000000 0a 00000000 1a00 00 000000"),
    "saving": (sense.saving_not_supported(), "70 00 05 00000000 0a 00000000 3900 00 000000"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes(name: str) -> None:
    made, expected = GOLDEN[name]
    assert made == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            sense.medium_read_error(0x12345678),
            ["Medium Error", "Unrecovered read error", "Info fld=0x12345678"],
        ),
        (sense.medium_write_error(9), ["Medium Error", "Write error", "Info fld=0x9"]),
        (sense.hardware_error(), ["Hardware Error", "Internal target failure"]),
        (sense.space_exhausted(), ["Data Protect", "Space allocation failed write protect"]),
        (sense.write_protected(), ["Data Protect", "Write protected"]),
        (sense.miscompare(77), ["Miscompare during verify operation", "Info fld=0x4d"]),
        (sense.invalid_opcode(), ["Illegal Request", "Invalid command operation code"]),
        (sense.out_of_range(), ["Illegal Request", "Logical block address out of range"]),
        (
            sense.invalid_field(7, bit=3),
            ["Invalid field in cdb", "Error in Command: byte 7 bit 3"],
        ),
        (
            sense.invalid_parameter(258),
            ["Invalid field in parameter list", "Error in Data parameters: byte 258"],
        ),
        (sense.parameter_list_length(), ["Parameter list length error"]),
        (sense.saving_not_supported(), ["Saving parameters not supported"]),
    ],
)
def test_sg_decode_sense_reads_it(made: bytes, words: list[str], tmp_path: Path) -> None:
    text = judge("sg_decode_sense", made, tmp_path)
    assert "Fixed format, current" in text
    for word in words:
        assert word in text


@given(st.integers(0, (1 << 64) - 1))
def test_an_lba_that_does_not_fit_is_left_out(lba: int) -> None:
    expected = lba if lba < 1 << 32 else None
    assert parse_sense(sense.medium_read_error(lba)) == Sense(3, 0x1100, expected)


def test_check_condition_shows_its_bytes() -> None:
    error = sense.CheckCondition(sense.invalid_opcode())
    assert error.sense == sense.invalid_opcode()
    assert str(error).startswith("70 00 05")

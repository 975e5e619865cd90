"""INQUIRY, VPD pages and capacities: bytes laid out by hand, and as sg_inq and sg_vpd read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.scsi_judges import SERIAL, WWN, Sense, judge, logical_unit, refusal, reply

from hybrid.block.scsi import LogicalUnit

WRITABLE = logical_unit()
READ_ONLY = logical_unit(writable=False)
BIG_BLOCKS = logical_unit(block_size=4096)


def vpd(unit: LogicalUnit, page: int) -> bytes:
    return reply(unit, f"12 01 {page:02x} 01 00 00")


# --- standard INQUIRY


def test_standard_inquiry() -> None:
    data = reply(WRITABLE, "12 00 00 01 00 00")
    assert data[:8] == bytes.fromhex("00 00 06 02 5b 00 00 02")
    assert data[8:36] == b"HYBRID  overlaybd disk  0001"
    assert data[36:58] == bytes(22)
    assert data[58:64] == bytes.fromhex("00a0 0460 04c0")
    assert data[64:] == bytes(32)


def test_sg_inq_reads_the_standard_inquiry(tmp_path: Path) -> None:
    text = judge("sg_inq", reply(WRITABLE, "12 00 00 01 00 00"), tmp_path, "-d")
    for words in (
        "PDT=0 RMB=0", "version=0x06 [SPC-4]", "Resp_data_format=2", "3PC=0 Protect=0", "CmdQue=1",
        "length=96", "disk", "Vendor identification: HYBRID", "overlaybd disk", "level: 0001",
        "SAM-5 (no version claimed)", "SPC-4 (no version claimed)", "SBC-3 (no version claimed)",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("allocation", [0, 1, 5, 36, 95, 96, 97, 0xFFFF])
def test_inquiry_is_cut_to_the_allocation_length(allocation: int) -> None:
    whole = reply(WRITABLE, "12 00 00 01 00 00")
    assert reply(WRITABLE, f"12 00 00 {allocation:04x} 00") == whole[:allocation]


def test_a_page_code_needs_evpd() -> None:
    assert refusal(WRITABLE, "12 00 80 00 ff 00") == Sense(5, 0x2400, field="cdb 2")


# --- VPD pages


def test_pages_are_listed_and_all_there() -> None:
    assert vpd(WRITABLE, 0) == bytes.fromhex("00 00 0006 00 80 83 b0 b1 b2")
    assert vpd(READ_ONLY, 0) == bytes.fromhex("00 00 0005 00 80 83 b0 b1")
    for unit in (WRITABLE, READ_ONLY):
        listed = set(vpd(unit, 0)[4:])
        for page in range(256):
            if page in listed:
                data = vpd(unit, page)
                assert data[:2] == bytes((0, page))
                assert int.from_bytes(data[2:4], "big") == len(data) - 4
            else:
                sense = refusal(unit, f"12 01 {page:02x} 00 ff 00")
                assert sense == Sense(5, 0x2400, field="cdb 2")


def test_serial_number(tmp_path: Path) -> None:
    assert vpd(WRITABLE, 0x80) == b"\x00\x80\x00\x08" + SERIAL.encode()
    text = judge("sg_vpd", vpd(WRITABLE, 0x80), tmp_path, "--page=0x80")
    assert f"Unit serial number: {SERIAL}" in text


def test_identification(tmp_path: Path) -> None:
    assert vpd(WRITABLE, 0x83) == (
        bytes.fromhex("00 83 0020")
        + bytes.fromhex("01 03 00 08 3123456789abcdef")
        + bytes.fromhex("02 01 00 10")
        + b"HYBRID  "
        + SERIAL.encode()
    )
    text = judge("sg_vpd", vpd(WRITABLE, 0x83), tmp_path, "--page=0x83")
    assert "Addressed logical unit:" in text
    assert f"NAA, code set: Binary\n 0x{WWN}" in text
    assert f"vendor id: HYBRID \n vendor specific: {SERIAL}" in text


def test_block_limits(tmp_path: Path) -> None:
    assert vpd(WRITABLE, 0xB0) == bytes.fromhex(
        "00 b0 003c 01 00 0008 00000800 00000000 00000000 00200000 000000ff 00000008 80000000"
        "0000000000010000" + 20 * "00"
    )
    text = judge("sg_vpd", vpd(WRITABLE, 0xB0), tmp_path, "--page=0xb0")
    for words in (
        "(WSNZ): 1", "write length: 0 blocks [Command not implemented]", "granularity: 8 blocks",
        "Maximum transfer length: 2048 blocks", "Optimal transfer length: 0 blocks [not reported]",
        "Maximum unmap LBA count: 2097152", "Maximum unmap block descriptor count: 255",
        "Optimal unmap granularity: 8 blocks", "alignment valid: true", "alignment: 0",
        "Maximum write same length: 0x10000 blocks",
    ):  # fmt: skip
        assert words in text


def test_block_limits_in_blocks_of_4096_bytes() -> None:
    assert vpd(BIG_BLOCKS, 0xB0)[:44] == bytes.fromhex(
        "00 b0 003c 01 00 0001 00000100 00000000 00000000 00040000 000000ff 00000001 80000000"
        "0000000000002000"
    )


def test_block_limits_of_a_read_only_unit(tmp_path: Path) -> None:
    assert vpd(READ_ONLY, 0xB0) == bytes.fromhex("00 b0 003c 01 00 0008 00000800" + 52 * "00")
    text = judge("sg_vpd", vpd(READ_ONLY, 0xB0), tmp_path, "--page=0xb0")
    assert "Maximum unmap LBA count: 0 [Unmap command not implemented]" in text


def test_characteristics(tmp_path: Path) -> None:
    assert vpd(READ_ONLY, 0xB1) == bytes.fromhex("00 b1 003c 0001" + 58 * "00")
    text = judge("sg_vpd", vpd(READ_ONLY, 0xB1), tmp_path, "--page=0xb1")
    assert "Non-rotating medium" in text


def test_provisioning(tmp_path: Path) -> None:
    assert vpd(WRITABLE, 0xB2) == bytes.fromhex("00 b2 0004 00 e4 02 00")
    text = judge("sg_vpd", vpd(WRITABLE, 0xB2), tmp_path, "--page=0xb2")
    for words in ("(LBPU): 1", "(LBPWS): 1", "(LBPWS10): 1", "(LBPRZ): 1", "(ANC_SUP): 0"):
        assert words in text
    assert "2 (thin provisioned)" in text


# --- capacity


@pytest.mark.parametrize(
    ("unit", "short", "long"),
    [
        (WRITABLE, "013fffff 00000200", "00000000013fffff 00000200 00 03 c000"),
        (READ_ONLY, "013fffff 00000200", "00000000013fffff 00000200 00 03 0000"),
        (BIG_BLOCKS, "0027ffff 00001000", "000000000027ffff 00001000 00 00 c000"),
        (
            logical_unit(size=512 << 32),
            "ffffffff 00000200",
            "00000000ffffffff 00000200 00 03 c000",
        ),
        (
            logical_unit(size=(512 << 32) + 512),
            "ffffffff 00000200",
            "0000000100000000 00000200 00 03 c000",
        ),
        (logical_unit(size=512), "00000000 00000200", "0000000000000000 00000200 00 03 c000"),
    ],
)
def test_capacity(unit: LogicalUnit, short: str, long: str) -> None:
    assert reply(unit, "25 00 00000000 0000 00 00") == bytes.fromhex(short)
    whole = bytes.fromhex(long) + bytes(16)
    assert reply(unit, "9e 10 0000000000000000 00000020 00 00") == whole
    assert reply(unit, "9e 10 0000000000000000 ff000000 00 00") == whole
    assert reply(unit, "9e 10 0000000000000000 0000000c 00 00") == whole[:12]


# --- units that cannot be


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0}, {"size": -512}, {"size": 513}, {"block_size": 1024}, {"max_transfer": 0},
        {"max_transfer": 700}, {"block_size": 4096, "size": 512}, {"wwn": "6123456789abcdef"},
        {"wwn": "312345"}, {"wwn": "3123456789abcdeg"}, {"wwn": "3123456789abcdef\n"},
        {"serial": ""}, {"serial": "x" * 65}, {"serial": "ä"}, {"serial": "a\n"},
        {"revision": "1"}, {"write_cache": True},
    ],
)  # fmt: skip
def test_a_unit_that_contradicts_itself(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"size": 1 << 20, "wwn": WWN, "serial": SERIAL}
    LogicalUnit(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a logical unit cannot have"):
        LogicalUnit(**(fields | change))  # type: ignore[arg-type]

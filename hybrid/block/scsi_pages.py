"""What a unit says about itself: INQUIRY, its VPD pages, READ CAPACITY (SPC-4, SBC-3). PURE.

Bytes only, without regard to allocation lengths. The unit claims SPC-4 and SBC-3, which is what
Linux expects of a thin disk: a newer version would promise commands and pages that it lacks.

    page 80h  unit serial number           page B0h  block limits
    page 83h  device identification        page B1h  block device characteristics
    page 00h  which pages there are        page B2h  logical block provisioning (writable units)

Read-only units say nothing about provisioning: no page B2h, no LBPME, no UNMAP limits. Then no
initiator tries to discard, and there is nothing that could contradict the write protection.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from hybrid.block.scsi_unit import (
    MAX_UNMAP,
    MAX_UNMAP_RANGES,
    MAX_WRITE_SAME,
    PHYSICAL_BLOCK,
    LogicalUnit,
)

VENDOR = b"HYBRID  "
PRODUCT = b"overlaybd disk  "
_SPC_4 = 0x06
_RESPONSE_FORMAT = 0x02
_COMMAND_QUEUE = 0x02
_VERSION_DESCRIPTORS = (0x00A0, 0x0460, 0x04C0)
"""SAM-5, SPC-4, SBC-3, no version of them claimed."""
_INQUIRY_LENGTH = 96
_ASCII = 2
_BINARY = 1
_T10_VENDOR_ID = 1
_NAA = 3
_NON_ROTATING = 1
_WRITE_SAME_NON_ZERO = 0x01
_ALIGNMENT_VALID = 1 << 31
_LBPU, _LBPWS, _LBPWS10, _LBPRZ = 0x80, 0x40, 0x20, 0x04
_THIN = 2
_LBPME, _CAPACITY_LBPRZ = 0x80, 0x40
_LAST_SHORT_LBA = 0xFFFFFFFF


def standard_inquiry(unit: LogicalUnit) -> bytes:
    """The standard INQUIRY data, 96 bytes."""
    head = bytes((0, 0, _SPC_4, _RESPONSE_FORMAT, _INQUIRY_LENGTH - 5, 0, 0, _COMMAND_QUEUE))
    names = VENDOR + PRODUCT + unit.revision.encode("ascii")
    versions = struct.pack(">3H", *_VERSION_DESCRIPTORS)
    return (head + names + bytes(22) + versions).ljust(_INQUIRY_LENGTH, b"\0")


def vpd_page(unit: LogicalUnit, code: int) -> bytes | None:
    """The vital product data page ``code``, with its header; None if the unit has no such page."""
    if code not in _page_codes(unit):
        return None
    body = _PAGES[code](unit)
    return struct.pack(">BBH", 0, code, len(body)) + body


def read_capacity_10(unit: LogicalUnit) -> bytes:
    """The last LBA, or FFFFFFFFh: ask READ CAPACITY(16); then bytes of a logical block."""
    return struct.pack(">II", min(unit.blocks - 1, _LAST_SHORT_LBA), unit.block_size)


def read_capacity_16(unit: LogicalUnit) -> bytes:
    """The last LBA and how blocks are made up, 32 bytes. The lowest aligned LBA is 0."""
    provisioning = _LBPME | _CAPACITY_LBPRZ if unit.writable else 0
    return struct.pack(
        ">QIBBBB16x",
        unit.blocks - 1,
        unit.block_size,
        0,  # no protection information
        _physical_exponent(unit),
        provisioning,
        0,
    )


def _page_codes(unit: LogicalUnit) -> list[int]:
    return [code for code in _PAGES if unit.writable or code != 0xB2]


def _supported_pages(unit: LogicalUnit) -> bytes:
    return bytes(_page_codes(unit))


def _serial_number(unit: LogicalUnit) -> bytes:
    return unit.serial.encode("ascii")


def _identification(unit: LogicalUnit) -> bytes:
    """Two designators of the unit itself (association 0): a number, and vendor and serial."""
    return _designator(_BINARY, _NAA, bytes.fromhex(unit.wwn)) + _designator(
        _ASCII, _T10_VENDOR_ID, VENDOR + unit.serial.encode("ascii")
    )


def _designator(code_set: int, kind: int, value: bytes) -> bytes:
    return bytes((code_set, kind, 0, len(value))) + value


def _block_limits(unit: LogicalUnit) -> bytes:
    """No optimal transfer length: Linux would double it into its read-ahead, and a lazy image would
    fetch that much for each small file."""
    physical_block = PHYSICAL_BLOCK // unit.block_size
    unmap, write_same = (0, 0, 0, 0), 0
    if unit.writable:
        write_same = MAX_WRITE_SAME // unit.block_size
        unmap = (
            MAX_UNMAP // unit.block_size, MAX_UNMAP_RANGES, physical_block, _ALIGNMENT_VALID
        )  # fmt: skip
    return struct.pack(
        ">BBHIII4IQ20x",
        _WRITE_SAME_NON_ZERO,
        0,  # no COMPARE AND WRITE
        physical_block,  # the optimal transfer granularity
        unit.max_blocks,
        0,
        0,  # no PRE-FETCH
        *unmap,
        write_same,
    )


def _characteristics(unit: LogicalUnit) -> bytes:
    return struct.pack(">H58x", _NON_ROTATING)


def _provisioning(unit: LogicalUnit) -> bytes:
    return bytes((0, _LBPU | _LBPWS | _LBPWS10 | _LBPRZ, _THIN, 0))


def _physical_exponent(unit: LogicalUnit) -> int:
    """Logical blocks of a physical block, as a power of two."""
    return (PHYSICAL_BLOCK // unit.block_size).bit_length() - 1


_PAGES: dict[int, Callable[[LogicalUnit], bytes]] = {
    0x00: _supported_pages,
    0x80: _serial_number,
    0x83: _identification,
    0xB0: _block_limits,
    0xB1: _characteristics,
    0xB2: _provisioning,
}

"""Commands that read, write or name blocks: their CDBs and the ranges in them (SBC-3). PURE.

Each function gets a CDB that is exactly as long as its opcode says, with no unknown bits set, and
returns a Request or raises CheckCondition. Ranges become bytes here.

    READ, WRITE, ... (6)    LBA in 21 bits from byte 1, blocks in byte 4 (0: 256)
                    (10)    LBA in bytes 2-5, blocks in 7-8
                    (12)    LBA in bytes 2-5, blocks in 6-9
                    (16)    LBA in bytes 2-9, blocks in 10-13
"""

from __future__ import annotations

from hybrid.block.scsi_unit import MAX_WRITE_SAME, LogicalUnit, Op, Request
from hybrid.block.sense import CheckCondition, invalid_field, out_of_range

_FUA = 0x08
_BYTE_CHECK = 0x02
_UNMAP = 0x08
_NO_DATA_OUT = 0x01


def read(unit: LogicalUnit, cdb: bytes) -> Request:
    offset, length = _transfer(unit, cdb)
    # Nothing stands in front of the medium without a write cache.
    return Request(Op.READ, offset, length, _has_fua(cdb) and unit.write_cache)


def write(unit: LogicalUnit, cdb: bytes) -> Request:
    offset, length = _transfer(unit, cdb)
    return Request(Op.WRITE, offset, length, _has_fua(cdb) or not unit.write_cache)


def write_and_verify(unit: LogicalUnit, cdb: bytes) -> Request:
    """The blocks are safe on the medium; they are not read again."""
    offset, length = _transfer(unit, cdb)
    return Request(Op.WRITE, offset, length, fua=True)


def verify(unit: LogicalUnit, cdb: bytes) -> Request:
    """Without a comparison, VERIFY is a read whose data nobody wants, but which may fail."""
    offset, length = _transfer(unit, cdb)
    return Request(Op.VERIFY if cdb[1] & _BYTE_CHECK else Op.READ, offset, length)


def synchronize_cache(unit: LogicalUnit, cdb: bytes) -> Request:
    """Flushes all of the unit, at once even with IMMED: both are allowed."""
    _range(unit, *_extent(cdb))
    return flush(unit)


def flush(unit: LogicalUnit) -> Request:
    return Request(Op.FLUSH if unit.writable else Op.NOTHING)


def write_same(unit: LogicalUnit, cdb: bytes) -> Request:
    """No blocks does not mean all blocks here: page B0h says so (WSNZ)."""
    lba, count = _extent(cdb)
    offset, length = _range(unit, lba, count)
    if not 0 < length <= MAX_WRITE_SAME:
        raise CheckCondition(invalid_field(_count_position(cdb)))
    block = bytes(unit.block_size) if cdb[1] & _NO_DATA_OUT else b""
    unmap = bool(cdb[1] & _UNMAP)
    return Request(Op.WRITE_SAME, offset, length, not unit.write_cache, unmap, block)


def _transfer(unit: LogicalUnit, cdb: bytes) -> tuple[int, int]:
    """Offset and length in bytes of a command whose blocks travel through memory."""
    lba, count = _extent(cdb)
    if count > unit.max_blocks:
        raise CheckCondition(invalid_field(_count_position(cdb)))
    return _range(unit, lba, count)


def _range(unit: LogicalUnit, lba: int, count: int) -> tuple[int, int]:
    if lba + count > unit.blocks:
        raise CheckCondition(out_of_range())
    return lba * unit.block_size, count * unit.block_size


def _extent(cdb: bytes) -> tuple[int, int]:
    """The first LBA and the number of blocks that a CDB names, by the length of the CDB."""
    if len(cdb) == 6:
        return int.from_bytes(cdb[1:4], "big"), cdb[4] or 256
    if len(cdb) == 10:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
    if len(cdb) == 12:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
    return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")


def _count_position(cdb: bytes) -> int:
    return {6: 4, 10: 7, 12: 6, 16: 10}[len(cdb)]


def _has_fua(cdb: bytes) -> bool:
    # A CDB of 6 bytes has no such bit: there the LBA begins.
    return len(cdb) > 6 and bool(cdb[1] & _FUA)

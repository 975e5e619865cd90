"""UNMAP and its parameter list (SBC-3 5.28). PURE.

offset size                              each descriptor, 16 bytes
     0    2 bytes that follow this one        0    8 first LBA
     2    2 bytes of descriptors              8    4 blocks
     8      descriptors                      12    4 reserved
"""

from __future__ import annotations

import struct

from hybrid.block.scsi_unit import MAX_UNMAP, MAX_UNMAP_RANGES, LogicalUnit, Op, Request
from hybrid.block.sense import (
    CheckCondition,
    invalid_parameter,
    out_of_range,
    parameter_list_length,
)

_HEADER = 8
_DESCRIPTOR = struct.Struct(">QI4x")
_DESCRIPTORS_LENGTH_AT = 2


def unmap_request(unit: LogicalUnit, cdb: bytes) -> Request:
    """The request for an UNMAP CDB. Raises CheckCondition."""
    length = int.from_bytes(cdb[7:9], "big")
    if not length:
        return Request(Op.NOTHING)
    if length < _HEADER:
        raise CheckCondition(parameter_list_length())
    return Request(Op.UNMAP, 0, length, not unit.write_cache)


def unmap_ranges(unit: LogicalUnit, parameters: bytes) -> list[tuple[int, int]]:
    """(offset, length) in bytes of each range to discard, in the order given, empty ones left out.

    ``parameters`` is data-out of an UNMAP request. Raises CheckCondition if a range leaves the unit
    or there are more than page B0h allows; then nothing may be discarded.
    """
    if len(parameters) < _HEADER:
        raise CheckCondition(parameter_list_length())
    length = int.from_bytes(parameters[2:4], "big")
    if _HEADER + length > len(parameters):
        raise CheckCondition(parameter_list_length())
    count = length // _DESCRIPTOR.size  # one that is cut off is to be ignored
    if count > MAX_UNMAP_RANGES:
        raise CheckCondition(invalid_parameter(_DESCRIPTORS_LENGTH_AT))
    return _check(unit, parameters[_HEADER : _HEADER + count * _DESCRIPTOR.size])


def _check(unit: LogicalUnit, descriptors: bytes) -> list[tuple[int, int]]:
    ranges = []
    total = 0
    for index, (lba, count) in enumerate(_DESCRIPTOR.iter_unpack(descriptors)):
        if lba + count > unit.blocks:
            raise CheckCondition(out_of_range())
        total += count * unit.block_size
        if total > MAX_UNMAP:
            at = _HEADER + index * _DESCRIPTOR.size + 8
            raise CheckCondition(invalid_parameter(at))
        if count:
            ranges.append((lba * unit.block_size, count * unit.block_size))
    return ranges

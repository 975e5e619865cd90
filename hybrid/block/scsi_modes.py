"""Mode pages: MODE SENSE and MODE SELECT (SPC-4 6.11, 7.5; SBC-3 6.5). PURE.

    page 01h  read-write error recovery, all zeros: nothing can be recovered by trying again
    page 08h  caching: WCE says truthfully whether there is a volatile write cache
    page 0Ah  control: commands are reordered freely, sense data have the fixed format

No value can be changed and none saved. There are no block descriptors, and subpage 00h only.
"""

from __future__ import annotations

import struct

from hybrid.block.scsi_unit import LogicalUnit, Op, Request
from hybrid.block.sense import (
    CheckCondition,
    invalid_field,
    invalid_parameter,
    parameter_list_length,
    saving_not_supported,
)

_ALL_PAGES = 0x3F
_ALL_SUBPAGES = 0xFF
_CHANGEABLE = 1
_SAVED = 3
_WRITE_PROTECT = 0x80
_DPO_AND_FUA = 0x10
_WRITE_CACHE = 0x04
_SAVABLE = 0x80
_GLOBAL_LOG_SAVE_DISABLE = 0x02
_UNRESTRICTED_REORDERING = 0x10
_BUSY_WITHOUT_LIMIT = b"\xff\xff"

MODE_SENSE_6 = 0x1A
MODE_SELECT_6 = 0x15
_HEADER_6 = 4
_HEADER_10 = 8


def mode_sense(unit: LogicalUnit, cdb: bytes) -> bytes:
    """The mode data that a MODE SENSE(6) or (10) asks for, uncut. Raises CheckCondition.

    ``cdb`` is exactly as long as its opcode says.
    """
    control, code, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
    if control == _SAVED:
        raise CheckCondition(saving_not_supported())
    if subpage not in (0, _ALL_SUBPAGES):
        raise CheckCondition(invalid_field(3))
    pages = _pages(unit)
    if code != _ALL_PAGES and code not in pages:
        raise CheckCondition(invalid_field(2, bit=5))
    wanted = pages if code == _ALL_PAGES else {code: pages[code]}
    body = b"".join(
        page[:2] + bytes(len(page) - 2) if control == _CHANGEABLE else page
        for page in wanted.values()
    )
    return _header(unit, len(body), short=cdb[0] == MODE_SENSE_6) + body


def check_mode_select(unit: LogicalUnit, request: Request, parameters: bytes) -> None:
    """Accept parameters that change nothing. Raises CheckCondition for all others.

    ``parameters`` is data-out of a MODE_SELECT request: ``request.length`` bytes, or fewer if the
    initiator sent fewer.
    """
    header = request.offset
    if len(parameters) < max(header, request.length):
        raise CheckCondition(parameter_list_length())
    medium_type, descriptors_length = (1, 3) if header == _HEADER_6 else (2, 6)
    if parameters[medium_type]:
        raise CheckCondition(invalid_parameter(medium_type))
    if any(parameters[descriptors_length:header]):
        raise CheckCondition(invalid_parameter(descriptors_length))
    _check_pages(unit, parameters, header)


def mode_select(unit: LogicalUnit, cdb: bytes) -> Request:
    """The request for a MODE SELECT(6) or (10)."""
    short = cdb[0] == MODE_SELECT_6
    length = cdb[4] if short else int.from_bytes(cdb[7:9], "big")
    if not length:
        return Request(Op.NOTHING)
    return Request(Op.MODE_SELECT, _HEADER_6 if short else _HEADER_10, length)


def _check_pages(unit: LogicalUnit, parameters: bytes, position: int) -> None:
    pages = _pages(unit)
    while position < len(parameters):
        page = pages.get(parameters[position] & ~_SAVABLE)
        if page is None:
            raise CheckCondition(invalid_parameter(position))
        given = parameters[position + 1 : position + len(page)]
        if len(given) < len(page) - 1:
            raise CheckCondition(parameter_list_length())
        for at, (new, old) in enumerate(zip(given, page[1:], strict=True), position + 1):
            if new != old:
                raise CheckCondition(invalid_parameter(at))
        position += len(page)


def _header(unit: LogicalUnit, length: int, short: bool) -> bytes:
    """The mode parameter header for ``length`` bytes of pages. It counts what follows its count."""
    specific = _DPO_AND_FUA | (0 if unit.writable else _WRITE_PROTECT)
    if short:
        return bytes((_HEADER_6 - 1 + length, 0, specific, 0))
    return struct.pack(">HBBHH", _HEADER_10 - 2 + length, 0, specific, 0, 0)


def _pages(unit: LogicalUnit) -> dict[int, bytes]:
    """The current values, which are the default values too."""
    caching = _WRITE_CACHE if unit.write_cache else 0
    control = bytes((_GLOBAL_LOG_SAVE_DISABLE, _UNRESTRICTED_REORDERING, 0, 0, 0, 0))
    return {
        0x01: b"\x01\x0a" + bytes(10),
        0x08: b"\x08\x12" + bytes((caching,)) + bytes(17),
        0x0A: b"\x0a\x0a" + control + _BUSY_WITHOUT_LIMIT + bytes(2),
    }

"""SCSI commands of a disk: from a CDB to a Request, or to sense data (SBC-3, SPC-4). PURE.

``decode`` says what the server has to do. Everything that can be known from the CDB is checked
here: bits that must be zero, ranges, lengths, write protection. A server that gets a Request has
only to do it; if it cannot, it answers with one of the sense data of ``hybrid.block.sense``.

A command that is missing in the table below ends with INVALID COMMAND OPERATION CODE. The kernel
answers some that never come here: REPORT LUNS, PERSISTENT RESERVE (kernel: target_core_device.c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from hybrid.block import scsi_blocks
from hybrid.block.scsi_modes import check_mode_select, mode_select, mode_sense
from hybrid.block.scsi_opcodes import SERVICE_ACTION, Command, Key, report_operation_codes
from hybrid.block.scsi_pages import (
    read_capacity_10,
    read_capacity_16,
    standard_inquiry,
    vpd_page,
)
from hybrid.block.scsi_unit import LogicalUnit, Op, Request
from hybrid.block.scsi_unmap import unmap_ranges, unmap_request
from hybrid.block.sense import (
    CheckCondition,
    invalid_field,
    invalid_opcode,
    no_sense,
    write_protected,
)

__all__ = [
    "CheckCondition",
    "LogicalUnit",
    "Op",
    "Request",
    "check_mode_select",
    "decode",
    "unmap_ranges",
]

_EVPD = 0x01
_START = 0x01
_ONLY_WELL_KNOWN_LUNS = 1
_MAX_LUN_SELECTION = 2
_MIN_LUN_ALLOCATION = 16

_LIKE_10 = (0x28, 0x2A)
_LIKE_16 = (0x88, 0x8A)
_READS = (0x28, 0x88)
_READ, _WRITE = Op.READ, Op.WRITE
# The fields behind the opcode: flags, LBA, group number, blocks, control.
_fields_10 = struct.Struct(">BIBHB").unpack_from
_fields_16 = struct.Struct(">BQIBB").unpack_from


def decode(unit: LogicalUnit, cdb: bytes) -> Request:
    """What a CDB asks for. Raises CheckCondition; bytes behind the CDB's end are ignored."""
    # Almost all commands are plain reads and writes: those take this short way. Whatever is
    # special about a command sends it down the long one, which gives the same answer for all.
    opcode = cdb[0] if len(cdb) >= 10 else None
    if opcode in _LIKE_10:
        flags, lba, group, count, control = _fields_10(cdb, 1)
    elif opcode in _LIKE_16 and len(cdb) >= 16:
        flags, lba, count, group, control = _fields_16(cdb, 1)
    else:
        return _decode_any(unit, cdb)
    if flags or group or control or count > unit.max_blocks or lba + count > unit.blocks:
        return _decode_any(unit, cdb)
    block_size = unit.block_size
    if opcode in _READS:
        return Request(_READ, lba * block_size, count * block_size)
    if not unit.writable:
        return _decode_any(unit, cdb)
    return Request(_WRITE, lba * block_size, count * block_size, not unit.write_cache)


def _decode_any(unit: LogicalUnit, cdb: bytes) -> Request:
    command = _find(cdb)
    if command.writes and not unit.writable:
        raise CheckCondition(write_protected())
    cut = cdb[: len(command.usage)]
    if len(cut) < len(command.usage):
        raise CheckCondition(invalid_field(len(cut)))
    for position, (given, allowed) in enumerate(zip(cut, command.usage, strict=True)):
        if given & ~allowed:
            raise CheckCondition(invalid_field(position, (given & ~allowed).bit_length() - 1))
    return command.decode(unit, cut)


def _find(cdb: bytes) -> Command:
    opcode = cdb[0] if cdb else -1
    has_actions = opcode in _WITH_SERVICE_ACTION
    action = cdb[1] & SERVICE_ACTION if has_actions and len(cdb) > 1 else None
    command = _COMMANDS.get((opcode, action))
    if command is None:
        raise CheckCondition(invalid_field(1, bit=4) if has_actions else invalid_opcode())
    return command


# --- commands about the unit


def _nothing(unit: LogicalUnit, cdb: bytes) -> Request:
    return Request(Op.NOTHING)


def _reply(data: bytes, allocation: bytes) -> Request:
    """``allocation`` is the field of the CDB that says how much the initiator has room for."""
    return Request(Op.REPLY, data=data[: int.from_bytes(allocation, "big")])


def _request_sense(unit: LogicalUnit, cdb: bytes) -> Request:
    return _reply(no_sense(), cdb[4:5])


def _inquiry(unit: LogicalUnit, cdb: bytes) -> Request:
    if cdb[1] & _EVPD:
        page = vpd_page(unit, cdb[2])
        if page is None:
            raise CheckCondition(invalid_field(2))
        return _reply(page, cdb[3:5])
    if cdb[2]:
        raise CheckCondition(invalid_field(2))
    return _reply(standard_inquiry(unit), cdb[3:5])


def _start_stop(unit: LogicalUnit, cdb: bytes) -> Request:
    """The unit never stops; a stop makes sure that nothing would be lost."""
    return Request(Op.NOTHING) if cdb[4] & _START else scsi_blocks.flush(unit)


def _mode_sense_6(unit: LogicalUnit, cdb: bytes) -> Request:
    return _reply(mode_sense(unit, cdb), cdb[4:5])


def _mode_sense_10(unit: LogicalUnit, cdb: bytes) -> Request:
    return _reply(mode_sense(unit, cdb), cdb[7:9])


def _capacity_10(unit: LogicalUnit, cdb: bytes) -> Request:
    return Request(Op.REPLY, data=read_capacity_10(unit))


def _capacity_16(unit: LogicalUnit, cdb: bytes) -> Request:
    return _reply(read_capacity_16(unit), cdb[10:14])


def _report_luns(unit: LogicalUnit, cdb: bytes) -> Request:
    """LUN 0 and no other, and no well known logical units."""
    if cdb[2] > _MAX_LUN_SELECTION:
        raise CheckCondition(invalid_field(2))
    if int.from_bytes(cdb[6:10], "big") < _MIN_LUN_ALLOCATION:
        raise CheckCondition(invalid_field(6))
    luns = b"" if cdb[2] == _ONLY_WELL_KNOWN_LUNS else bytes(8)
    return _reply(len(luns).to_bytes(4, "big") + bytes(4) + luns, cdb[6:10])


def _report_operation_codes(unit: LogicalUnit, cdb: bytes) -> Request:
    return _reply(report_operation_codes(_COMMANDS, unit, cdb), cdb[6:10])


def _command(
    usage: str, decode: Callable[[LogicalUnit, bytes], Request], *, writes: bool = False
) -> Command:
    mask = bytes.fromhex(usage)
    return Command(mask[0], mask, decode, writes=writes)


def _action(usage: str, decode: Callable[[LogicalUnit, bytes], Request]) -> Command:
    """As ``_command``; byte 1 of the usage data is the service action."""
    mask = bytes.fromhex(usage)
    return Command(mask[0], mask, decode, service_action=mask[1])


# CDB usage data: the opcode, then the bits that may be set. Not among them, since nothing of that
# kind is supported: protection information (RDPROTECT ...), ANCHOR, group numbers, NACA, saving.
_COMMANDS: dict[Key, Command] = {
    (entry.opcode, entry.service_action): entry
    for entry in (
        _command("00 00 000000 00", _nothing),  # TEST UNIT READY
        _command("03 00 0000 ff 00", _request_sense),
        _command("08 1f ffff ff 00", scsi_blocks.read),
        _command("0a 1f ffff ff 00", scsi_blocks.write, writes=True),
        _command("12 01 ff ffff 00", _inquiry),
        _command("15 10 0000 ff 00", mode_select),
        _command("1a 08 ff ff ff 00", _mode_sense_6),
        _command("1b 01 00 00 05 00", _start_stop),
        _command("1e 00 0000 01 00", _nothing),  # PREVENT ALLOW MEDIUM REMOVAL: not removable
        _command("25 00 00000000 0000 00 00", _capacity_10),
        _command("28 18 ffffffff 00 ffff 00", scsi_blocks.read),
        _command("2a 18 ffffffff 00 ffff 00", scsi_blocks.write, writes=True),
        _command("2e 10 ffffffff 00 ffff 00", scsi_blocks.write_and_verify, writes=True),
        _command("2f 12 ffffffff 00 ffff 00", scsi_blocks.verify),
        _command("35 02 ffffffff 00 ffff 00", scsi_blocks.synchronize_cache),
        _command("41 08 ffffffff 00 ffff 00", scsi_blocks.write_same, writes=True),
        _command("42 00 00000000 00 ffff 00", unmap_request, writes=True),
        _command("55 10 00 00000000 ffff 00", mode_select),
        _command("5a 18 ff ff 000000 ffff 00", _mode_sense_10),
        _command("88 18 ffffffffffffffff ffffffff 00 00", scsi_blocks.read),
        _command("8a 18 ffffffffffffffff ffffffff 00 00", scsi_blocks.write, writes=True),
        _command(
            "8e 10 ffffffffffffffff ffffffff 00 00", scsi_blocks.write_and_verify, writes=True
        ),
        _command("8f 12 ffffffffffffffff ffffffff 00 00", scsi_blocks.verify),
        _command("91 02 ffffffffffffffff ffffffff 00 00", scsi_blocks.synchronize_cache),
        _command("93 09 ffffffffffffffff ffffffff 00 00", scsi_blocks.write_same, writes=True),
        _action("9e 10 0000000000000000 ffffffff 00 00", _capacity_16),
        _command("a0 00 ff 000000 ffffffff 00 00", _report_luns),
        _action("a3 0c 87 ff ffff ffffffff 00 00", _report_operation_codes),
        _command("a8 18 ffffffff ffffffff 00 00", scsi_blocks.read),
        _command("aa 18 ffffffff ffffffff 00 00", scsi_blocks.write, writes=True),
    )
}
_WITH_SERVICE_ACTION = {opcode for opcode, action in _COMMANDS if action is not None}

"""Which commands there are: the description of one, and REPORT SUPPORTED OPERATION CODES. PURE.

(SPC-4 6.35.) The same table decides what is accepted and what is reported, so that both agree.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hybrid.block.scsi_unit import LogicalUnit, Request
from hybrid.block.sense import CheckCondition, invalid_field

SERVICE_ACTION = 0x1F
"""The bits of CDB byte 1 that hold a service action."""
_TIMEOUTS_WANTED = 0x80
_OPTIONS = 0x07
_ALL, _BY_OPCODE, _BY_SERVICE_ACTION, _BY_EITHER = range(4)
_TIMEOUTS_PRESENT = 0x80
_NOT_SUPPORTED, _SUPPORTED = 1, 3
_HAS_SERVICE_ACTION, _HAS_TIMEOUTS = 0x01, 0x02
_NO_TIMEOUTS = struct.pack(">HBBII", 10, 0, 0, 0, 0)
"""A command timeouts descriptor: no time is stated."""

Key = tuple[int, int | None]
"""Operation code, and service action where the operation code has such."""


@dataclass(frozen=True)
class Command:
    """A command that is supported."""

    opcode: int
    usage: bytes
    """The CDB usage data: a CDB as long as this one, with the bits set that may be set."""
    decode: Callable[[LogicalUnit, bytes], Request]
    """Called with a CDB of just this length that has no other bits set. Raises CheckCondition."""
    service_action: int | None = None
    writes: bool = False
    """Changes the medium: a read-only unit refuses it."""

    def reported_by(self, unit: LogicalUnit) -> bool:
        """A command that this unit always refuses is not reported, so that nobody counts on it."""
        return unit.writable or not self.writes


def report_operation_codes(commands: dict[Key, Command], unit: LogicalUnit, cdb: bytes) -> bytes:
    """The answer to a REPORT SUPPORTED OPERATION CODES, uncut. Raises CheckCondition."""
    options, opcode, action = cdb[2] & _OPTIONS, cdb[3], int.from_bytes(cdb[4:6], "big")
    timeouts = _NO_TIMEOUTS if cdb[2] & _TIMEOUTS_WANTED else b""
    reported = {key: entry for key, entry in commands.items() if entry.reported_by(unit)}
    if options == _ALL:
        return _list(reported.values(), timeouts)
    if options > _BY_EITHER:
        raise CheckCondition(invalid_field(2, bit=2))
    has_actions = any(code == opcode and sub is not None for code, sub in reported)
    is_known = has_actions or (opcode, None) in reported
    if is_known and options == (_BY_OPCODE if has_actions else _BY_SERVICE_ACTION):
        raise CheckCondition(invalid_field(2, bit=2))
    if has_actions:
        return _describe(reported.get((opcode, action)), timeouts)
    by_opcode = options == _BY_OPCODE or action == 0
    return _describe(reported.get((opcode, None)) if by_opcode else None, timeouts)


def _list(commands: Iterable[Command], timeouts: bytes) -> bytes:
    descriptors = b"".join(_descriptor(command, timeouts) for command in commands)
    return len(descriptors).to_bytes(4, "big") + descriptors


def _descriptor(command: Command, timeouts: bytes) -> bytes:
    flags = (_HAS_TIMEOUTS if timeouts else 0) | (
        0 if command.service_action is None else _HAS_SERVICE_ACTION
    )
    action = command.service_action or 0
    return struct.pack(">BxHxBH", command.opcode, action, flags, len(command.usage)) + timeouts


def _describe(command: Command | None, timeouts: bytes) -> bytes:
    """One command in full."""
    if command is None:
        return struct.pack(">BBH", 0, _NOT_SUPPORTED, 0)
    flags = _SUPPORTED | (_TIMEOUTS_PRESENT if timeouts else 0)
    return struct.pack(">BBH", 0, flags, len(command.usage)) + command.usage + timeouts

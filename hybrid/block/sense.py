"""Sense data in the fixed format, and what Linux makes of it (SPC-4 4.5.3). PURE.

    byte 0    70h, bit 7 (VALID): the information field says something
    byte 2    sense key                      byte 12   additional sense code
    byte 3    information (32 bits)          byte 13   ... and its qualifier
    byte 7    additional length (10)         byte 15   sense key specific: a field pointer

Everything is big-endian. How a disk driver (kernel: drivers/scsi/scsi_error.c, sd.c) reads it:

    medium error 11h/00h      not retried, ENODATA for direct I/O, EIO through the page cache
    medium error 0Ch/00h      retried five times, then EIO
    hardware error 44h/00h    not retried, EREMOTEIO for direct I/O, EIO through the page cache
    data protect 27h/07h      not retried, ENOSPC
    illegal request           not retried, EREMOTEIO; some codes switch a feature of the disk off

**The information field is a promise.** The LBA in it says that all blocks of the command in front
of it were transferred, and sd completes that part of a read as good. TCMU however copies no data-in
for a command that ends in CHECK CONDITION, so that readers would get memory that nobody filled:
tried on Linux 6.12 with adjacent reads that the kernel had merged into one command. Therefore only
ever give the *first* LBA of the command.
"""

from __future__ import annotations

from enum import IntEnum

LENGTH = 18
"""Bytes of all sense data made here."""
_FIXED = 0x70
_VALID = 0x80
_MAX_INFORMATION = 0xFFFFFFFF
_POINTER_VALID = 0x80
_IN_CDB = 0x40
_BIT_VALID = 0x08


class SenseKey(IntEnum):
    NO_SENSE = 0x0
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    DATA_PROTECT = 0x7
    MISCOMPARE = 0xE


class CheckCondition(Exception):
    """A command ends with the status CHECK CONDITION and these sense data (fixed format)."""

    def __init__(self, sense: bytes) -> None:
        super().__init__(sense.hex(" "))
        self.sense = sense


def no_sense() -> bytes:
    """What REQUEST SENSE answers: there is nothing to tell."""
    return _fixed(SenseKey.NO_SENSE, 0x0000)


def medium_read_error(lba: int | None = None) -> bytes:
    """Unrecovered read error. ``lba``: the first block of the command, nothing else (see above)."""
    return _fixed(SenseKey.MEDIUM_ERROR, 0x1100, information=lba)


def medium_write_error(lba: int | None = None) -> bytes:
    """Write error. ``lba`` as for ``medium_read_error``."""
    return _fixed(SenseKey.MEDIUM_ERROR, 0x0C00, information=lba)


def hardware_error() -> bytes:
    """Internal target failure: ours, not that of the data."""
    return _fixed(SenseKey.HARDWARE_ERROR, 0x4400)


def space_exhausted() -> bytes:
    """Space allocation failed write protect: there is no room for the new data (ENOSPC)."""
    return _fixed(SenseKey.DATA_PROTECT, 0x2707)


def write_protected() -> bytes:
    return _fixed(SenseKey.DATA_PROTECT, 0x2700)


def miscompare(offset: int | None = None) -> bytes:
    """VERIFY found other data. ``offset``: bytes of data-out in front of the first difference."""
    return _fixed(SenseKey.MISCOMPARE, 0x1D00, information=offset)


def invalid_opcode() -> bytes:
    return _fixed(SenseKey.ILLEGAL_REQUEST, 0x2000)


def out_of_range() -> bytes:
    """Logical block address out of range."""
    return _fixed(SenseKey.ILLEGAL_REQUEST, 0x2100)


def invalid_field(byte: int, bit: int | None = None) -> bytes:
    """Invalid field in CDB, at ``byte``; ``bit``: its highest bit, if it is no whole byte."""
    return _fixed(SenseKey.ILLEGAL_REQUEST, 0x2400, pointer=_pointer(_IN_CDB, byte, bit))


def invalid_parameter(byte: int, bit: int | None = None) -> bytes:
    """Invalid field in parameter list, at ``byte`` of it."""
    return _fixed(SenseKey.ILLEGAL_REQUEST, 0x2600, pointer=_pointer(0, byte, bit))


def parameter_list_length() -> bytes:
    """Parameter list length error: the list ends within a field."""
    return _fixed(SenseKey.ILLEGAL_REQUEST, 0x1A00)


def saving_not_supported() -> bytes:
    """Saving parameters not supported."""
    return _fixed(SenseKey.ILLEGAL_REQUEST, 0x3900)


def _pointer(where: int, byte: int, bit: int | None) -> bytes:
    head = _POINTER_VALID | where | (0 if bit is None else _BIT_VALID | bit)
    return head.to_bytes(1, "big") + byte.to_bytes(2, "big")


def _fixed(
    key: SenseKey, code: int, *, information: int | None = None, pointer: bytes = b"\0\0\0"
) -> bytes:
    """``code`` is the additional sense code and its qualifier, as 16 bits."""
    # The fixed format has no room for a larger number: then the field stays empty.
    valid = information is not None and information <= _MAX_INFORMATION
    return (
        bytes((_FIXED | (_VALID if valid else 0), 0, key))
        + ((information or 0) if valid else 0).to_bytes(4, "big")
        + bytes((LENGTH - 8, 0, 0, 0, 0))
        + code.to_bytes(2, "big")
        + b"\0"
        + pointer
    )

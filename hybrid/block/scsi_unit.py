"""A logical unit, and what a CDB asks of it: the words that all of the SCSI code shares. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

PHYSICAL_BLOCK = 4096
"""Bytes of the physical block that a unit claims to have; logical blocks may be smaller."""
_BLOCK_SIZES = (512, PHYSICAL_BLOCK)
MAX_WRITE_SAME = 32 << 20
"""Bytes that one WRITE SAME may fill: they may have to be written, so this bounds its time."""
MAX_UNMAP = 1 << 30
"""Bytes that one UNMAP may discard in all."""
MAX_UNMAP_RANGES = 255
"""Ranges of one UNMAP; the parameters then take less than a page."""
_MAX_TRANSFER = 1 << 20


class Op(IntEnum):
    """What the server has to do for a command."""

    REPLY = 0
    """Send ``data`` (data-in). It is never longer than the allocation length."""
    READ = 1
    """Send the range. VERIFY without a comparison is such a read with no data-in buffer."""
    WRITE = 2
    """Write data-out, ``length`` bytes."""
    FLUSH = 3
    """Make durable what was written before."""
    UNMAP = 4
    """Collect ``length`` bytes of parameters for ``scsi.unmap_ranges``, discard these ranges."""
    WRITE_SAME = 5
    """Fill the range with the block in ``data``, or in data-out if that is empty."""
    VERIFY = 6
    """Compare data-out, ``length`` bytes, with the range; ``sense.miscompare`` if they differ."""
    MODE_SELECT = 7
    """Collect ``length`` bytes of parameters for ``scsi.check_mode_select``. ``offset`` is how long
    their header is: that differs between the two commands, and cannot be seen from the bytes."""
    NOTHING = 8
    """Answer GOOD."""


class Request(NamedTuple):
    """A decoded CDB. Offset and length are bytes, and the range of an op lies within the unit."""

    op: Op
    offset: int = 0
    length: int = 0
    fua: bool = False
    """Flush before the answer (WRITE, UNMAP, WRITE_SAME), or in front of it (READ)."""
    unmap: bool = False
    """WRITE SAME may discard the range, if the block is all zeros; else the block is written."""
    data: bytes = b""


@dataclass(frozen=True, kw_only=True)
class LogicalUnit:
    """What a unit says about itself. Never changes while it is exported.

    A read-only unit is fully provisioned: it offers no UNMAP and no VPD page B2h. A writable one is
    thin, and what was unmapped reads as zeros. Raises ValueError if it contradicts itself.
    """

    size: int
    """Bytes, a multiple of block_size."""
    wwn: str
    """16 hexadecimal digits, the first one 3 (NAA locally assigned). Unique on this machine."""
    serial: str
    """1-64 printable ASCII characters. Unique on this machine."""
    block_size: int = 512
    """Bytes of a logical block: 512 or 4096."""
    writable: bool = False
    write_cache: bool = False
    """Whether a write may be answered before it is durable. Without, writes come with fua."""
    max_transfer: int = _MAX_TRANSFER
    """Bytes that a command may read or write."""
    revision: str = "0001"
    """4 printable ASCII characters."""
    blocks: int = field(init=False)
    """Logical blocks."""
    max_blocks: int = field(init=False)
    """Logical blocks that a command may read or write."""

    def __post_init__(self) -> None:
        _check(self.block_size in _BLOCK_SIZES, f"a logical block of {self.block_size} bytes")
        _check(re.fullmatch("3[0-9a-fA-F]{15}", self.wwn) is not None, f"WWN {self.wwn!r}")
        _check(re.fullmatch("[ -~]{1,64}", self.serial) is not None, f"serial {self.serial!r}")
        _check(re.fullmatch("[ -~]{4}", self.revision) is not None, f"revision {self.revision!r}")
        _check(self.writable or not self.write_cache, "a write cache without writes")
        for name, value in (("size", self.size), ("max_transfer", self.max_transfer)):
            whole = value > 0 and value % self.block_size == 0
            _check(whole, f"{name} of {value} bytes in blocks of {self.block_size}")
        object.__setattr__(self, "blocks", self.size // self.block_size)
        object.__setattr__(self, "max_blocks", self.max_transfer // self.block_size)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"a logical unit cannot have {what}")

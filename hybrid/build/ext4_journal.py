"""Which blocks of an ext4 hold what its journal does not need any more. PURE.

After an unmount, and while a file system is frozen, the journal is empty: its superblock, the first
of its blocks, says that the log begins nowhere. The rest is history, up to all of the journal. In
doubt there is none: nothing is found for anything but a journal in inode 8, mapped by at most four
extents, without fast commits.

    in the superblock        92   4 feature_compat      224   4 journal inode
    in an inode               0   2 mode   32   4 flags    40   60 extents
    an extent tree            0   2 magic (0xF30A)   2   2 entries   6   2 depth   12   entries:
        an entry              0   4 first block of the file   4   2 blocks   6   2 and 8   4 place
    in a journal superblock, big-endian:
                              0   4 magic   4   4 type (4)   12   4 block size   28   4 log begins
"""

from __future__ import annotations

import struct

from hybrid.build.ext4_bitmap import Geometry
from hybrid.build.runs import Runs
from hybrid.core.device import Buffer

INODE = 8
INODE_BYTES = 128
_COMPAT_HAS_JOURNAL = 0x4
_COMPAT_FAST_COMMIT = 0x400
_REGULAR = 0x8000
_EXTENTS = 0x80000
_EXTENT_MAGIC = 0xF30A
_MAX_EXTENT = 32768
_JOURNAL_MAGIC = 0xC03B3998
_SUPERBLOCK_V2 = 4


def has_journal(superblock: Buffer) -> bool:
    """Whether there is one that this module understands."""
    (compat,) = struct.unpack_from("<I", superblock, 92)
    (inode,) = struct.unpack_from("<I", superblock, 224)
    features = compat & (_COMPAT_HAS_JOURNAL | _COMPAT_FAST_COMMIT)
    return bool(features == _COMPAT_HAS_JOURNAL and inode == INODE)


def inode_offset(superblock: Buffer, inode_table: int, geometry: Geometry) -> int:
    """Where the inode of the journal lies on the disk, in bytes; ``inode_table``: of group 0."""
    (size,) = struct.unpack_from("<H", superblock, 88)
    return inode_table * geometry.block_size + (INODE - 1) * int(size)


def journal_extents(inode: Buffer, geometry: Geometry) -> list[tuple[int, int]]:
    """The blocks of the journal in their order, as ranges; [] if that cannot be told."""
    (mode,) = struct.unpack_from("<H", inode, 0)
    (flags,) = struct.unpack_from("<I", inode, 32)
    magic, count, _, depth = struct.unpack_from("<HHHH", inode, 40)
    if mode & 0xF000 != _REGULAR or not flags & _EXTENTS:
        return []
    if magic != _EXTENT_MAGIC or depth or not 0 < count <= 4:
        return []
    found = []
    expected = 0
    for number in range(count):
        first, length, high, low = struct.unpack_from("<IHHI", inode, 52 + 12 * number)
        place = high << 32 | low
        if first != expected or not 0 < length <= _MAX_EXTENT:
            return []
        if not geometry.first_block < place <= place + length <= geometry.blocks:
            return []
        found.append((place, place + length))
        expected += length
    return found


def unneeded_blocks(extents: list[tuple[int, int]], superblock: Buffer, geometry: Geometry) -> Runs:
    """All but the first block of a journal that is empty. ``superblock``: that of the journal."""
    magic, kind, _, block_size = struct.unpack_from(">IIII", superblock, 0)
    (log_begins,) = struct.unpack_from(">I", superblock, 28)
    if (magic, kind, block_size) != (_JOURNAL_MAGIC, _SUPERBLOCK_V2, geometry.block_size):
        return Runs()
    if log_begins:
        return Runs()
    (first, end), *others = extents
    return Runs(sorted([(first + 1, end), *others]))

"""Inodes and the superblock of an erofs. PURE."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hybrid.build.erofs.names import BLOCK
from hybrid.build.erofs.tree import Node
from hybrid.core import zblocks

INODE_SIZE = 64
SLOT = 32
"""Inodes are numbered by the slots of this size that they begin in, from the start of the disk."""
PLAIN, INLINE = 0, 2
"""Where the last bytes of a file are: with the others, or behind its inode."""
_INODE = struct.Struct("<HHHHQIIIIQII16x")
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI40x")
_SUPERBLOCK_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
_HAS_CHECKSUM = 1
_BLOCK_BITS = 12
_TYPE_BITS = {1: 0o100000, 2: 0o040000, 3: 0o020000, 4: 0o060000, 5: 0o010000, 6: 0o140000,
              7: 0o120000}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What an inode says of a file's content. ``size`` in bytes; ``block``: where it begins, or
    the number of a device."""

    layout: int
    size: int
    block: int
    links: int


def pack_inode(node: Node, number: int, xattrs: int, place: Place) -> bytes:
    """An extended inode. ``number`` is what stat tells; ``xattrs`` as ``xattr_count`` has it."""
    return _INODE.pack(
        1 | place.layout << 1, xattrs, _TYPE_BITS[node.kind] | node.mode, 0, place.size,
        place.block, number, node.uid, node.gid, node.seconds & (1 << 64) - 1, node.ns,
        place.links,
    )  # fmt: skip


def device_number(major: int, minor: int) -> int:
    """As Linux writes it in 32 bits."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def pack_superblock(*, root: int, inodes: int, blocks: int, uuid: bytes) -> bytes:
    """The first block. ``root``: nid of the root directory, below 2^16."""
    fields = (
        _HAS_CHECKSUM, _BLOCK_BITS, 0, root, inodes, 0, 0, blocks, 0, 0, uuid, bytes(16), 0,
    )  # fmt: skip
    block = _SUPERBLOCK.pack(_MAGIC, 0, *fields).ljust(BLOCK - _SUPERBLOCK_OFFSET, b"\0")
    # Linux takes the sum without the inversion at its end.
    checksum = zblocks.active.crc32c(block, 0) ^ 0xFFFFFFFF
    packed = _SUPERBLOCK.pack(_MAGIC, checksum, *fields)
    return (bytes(_SUPERBLOCK_OFFSET) + packed).ljust(BLOCK, b"\0")

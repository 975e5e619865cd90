"""Reading from a disk which of its sectors the ext4 file system on it does not need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hybrid.build import ext4_bitmap, ext4_journal
from hybrid.build.ext4_bitmap import CannotTellError, Descriptor, Geometry
from hybrid.build.runs import Runs
from hybrid.core.device import Buffer

Read = Callable[[int, int], Awaitable[Buffer]]
"""Bytes of the disk: offset, length."""


async def find_free_space(read: Read, size: int) -> Runs | None:
    """The sectors of a disk of ``size`` bytes that its ext4 does not need; None if it has no ext4.

    Those are the free blocks, and what an empty journal has left.
    Raises CannotTellError, with the reason, if its bitmaps cannot be relied on, and what reading
    raises.
    """
    end = ext4_bitmap.SUPERBLOCK_OFFSET + ext4_bitmap.SUPERBLOCK_SIZE
    if size < end:
        return None
    superblock = await read(ext4_bitmap.SUPERBLOCK_OFFSET, ext4_bitmap.SUPERBLOCK_SIZE)
    if not ext4_bitmap.is_ext(superblock):
        return None
    geometry = ext4_bitmap.parse_superblock(superblock)
    offset, length = geometry.descriptors
    if geometry.blocks * geometry.block_size > size or offset + length > size:
        raise CannotTellError(
            f"it has {geometry.blocks} blocks of {geometry.block_size} bytes, and the disk ends "
            f"before that, at {size} bytes"
        )
    descriptors = ext4_bitmap.parse_descriptors(await read(offset, length), geometry)
    metadata = ext4_bitmap.metadata_of(descriptors, geometry)
    free = Runs()
    for group, found in enumerate(descriptors):
        bitmap = await _read_bitmap(read, found, geometry)
        for start, stop in ext4_bitmap.free_runs(bitmap, group, geometry, found, metadata):
            free.add(start, stop)
    journal = await _unneeded_journal(read, bytes(superblock), descriptors[0], geometry)
    if len(journal.intersect(free)):
        raise CannotTellError("blocks of its journal are marked as free")
    return ext4_bitmap.to_sectors(free.union(journal), geometry)


async def _unneeded_journal(
    read: Read, superblock: bytes, first_group: Descriptor, geometry: Geometry
) -> Runs:
    if not ext4_journal.has_journal(superblock):
        return Runs()
    where = ext4_journal.inode_offset(superblock, first_group.inode_table, geometry)
    inode = await read(where, ext4_journal.INODE_BYTES)
    extents = ext4_journal.journal_extents(inode, geometry)
    if not extents:
        return Runs()
    block = await read(extents[0][0] * geometry.block_size, geometry.block_size)
    return ext4_journal.unneeded_blocks(extents, block, geometry)


async def _read_bitmap(read: Read, found: Descriptor, geometry: Geometry) -> Buffer | None:
    if not found.has_bitmap:
        return None
    return await read(found.block_bitmap * geometry.block_size, geometry.block_size)

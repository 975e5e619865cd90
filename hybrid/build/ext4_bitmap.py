"""Which blocks an ext2, ext3 or ext4 file system does not use, by its block bitmaps. PURE.

    geometry = parse_superblock(the 1024 bytes at byte 1024 of the disk)
    descriptors = parse_descriptors(the bytes at ``geometry.descriptors``, geometry)
    runs += free_runs(bitmap of a group, or None if it has none, group, geometry, descriptors)

Free blocks hold nothing but what was deleted, or was never written. A mistake here would lose data,
so whatever is not understood, or does not agree with itself, is an error (CannotTellError), and the
caller then keeps every block: features that move metadata about, a file system that is mounted or
was not cleanly unmounted (its journal would change the bitmaps), a checksum that is wrong, a count
of free blocks that is not that of the bitmap.

Layout (Linux, Documentation/filesystems/ext4): groups of ``blocks_per_group`` blocks, each with a
descriptor; little-endian. Fields used of the superblock:

    offset size field                    offset size field
         4    4 blocks_count, low            92    4 feature_compat
        20    4 first_data_block             96    4 feature_incompat
        24    4 log2(block size) - 10       100    4 feature_ro_compat
        32    4 blocks_per_group            104   16 uuid
        40    4 inodes_per_group            206    2 reserved_gdt_blocks
        56    2 magic (0xEF53)              254    2 descriptor size
        58    2 state (1: clean)            336    4 blocks_count, high
        76    4 revision                    588    8 backup groups (sparse_super2)
        88    2 inode size                  624    4 checksum seed
                                           1020    4 checksum

and of a descriptor (the high halves only if it has 64 bytes):

         0    4 block bitmap              18    2 flags (2: block bitmap not initialised)
         4    4 inode bitmap              24    2 checksum of the block bitmap, low
         8    4 inode table               30    2 checksum
        12    2 free blocks, low          32, 36, 40, 44, 56: high halves of 0, 4, 8, 12, 24
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from crc32c import crc32c

from hybrid.build.runs import Runs
from hybrid.core.device import SECTOR, Buffer

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_SIZE = 1024
MAX_GROUPS = 1 << 21
"""Groups that are looked at: 256 TiB in usual groups of 128 MiB."""

_MAGIC = 0xEF53
_CLEAN, _ERRORS = 1, 2
_COMPAT_SPARSE_SUPER2 = 0x200
_INCOMPAT_RECOVER = 0x4
_INCOMPAT_JOURNAL_DEVICE = 0x8
_INCOMPAT_META_BG = 0x10
_INCOMPAT_64BIT = 0x80
_INCOMPAT_CSUM_SEED = 0x2000
# filetype, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed, largedir, inline_data,
# encrypt, casefold: none of them changes where free blocks are noted.
_INCOMPAT_KNOWN = 0x2 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000
_INCOMPAT_KNOWN |= 0x8000 | 0x10000 | 0x20000
_RO_SPARSE_SUPER = 0x1
_RO_GDT_CSUM = 0x10
_RO_SNAPSHOT = 0x80
_RO_BIGALLOC = 0x200
_RO_METADATA_CSUM = 0x400
_BLOCK_UNINIT = 2
_ALL_ONES = 0xFFFFFFFF


class CannotTellError(Exception):
    """Why the bitmaps cannot be used; the text is for the user."""


@dataclass(frozen=True)
class Geometry:
    """What the superblock says. Block numbers are those of the file system."""

    block_size: int
    """Bytes."""
    blocks: int
    first_block: int
    """Of group 0."""
    per_group: int
    """Blocks of a group."""
    inode_table_blocks: int
    descriptor_size: int
    reserved_blocks: int
    """Behind the descriptors, for more of them."""
    sparse: bool
    backup_groups: tuple[int, int] | None
    """With sparse_super2: the only two groups with copies of the superblock."""
    checksum_seed: int | None
    """None: there are no checksums."""
    may_lack_bitmaps: bool

    @property
    def groups(self) -> int:
        return -(-(self.blocks - self.first_block) // self.per_group)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Offset and length of the descriptors, in bytes of the disk."""
        return (self.first_block + 1) * self.block_size, self.groups * self.descriptor_size

    def extent(self, group: int) -> tuple[int, int]:
        """First block of a group, and the block behind its last."""
        first = self.first_block + group * self.per_group
        return first, min(first + self.per_group, self.blocks)

    def has_superblock(self, group: int) -> bool:
        """Whether a copy of the superblock, and of the descriptors, is at the start of a group."""
        if group == 0:
            return True
        if self.backup_groups is not None:
            return group in self.backup_groups
        return not self.sparse or group == 1 or any(_is_power(group, base) for base in (3, 5, 7))


@dataclass(frozen=True)
class Descriptor:
    """What is known of one group. Block numbers are those of the file system."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    free_blocks: int
    bitmap_checksum: int
    has_bitmap: bool


def is_ext(superblock: Buffer) -> bool:
    """Whether these bytes, from byte 1024 of a disk on, are a superblock of the family."""
    return len(superblock) >= 58 and int.from_bytes(superblock[56:58], "little") == _MAGIC


def parse_superblock(raw: Buffer) -> Geometry:
    """Understand the superblock. Raises CannotTellError."""
    block = bytes(raw)
    if len(block) != SUPERBLOCK_SIZE or not is_ext(block):
        raise CannotTellError("it is no ext4 file system")
    compat, incompat, ro_compat = struct.unpack_from("<III", block, 92)
    if _u32(block, 76) < 1:
        compat = incompat = ro_compat = 0  # the first revision has no features
    _check_features(block, incompat, ro_compat)
    log_size = _u32(block, 24)
    if log_size > 6:
        raise CannotTellError(f"its block size of 2^{log_size + 10} bytes is impossible")
    size = 1024 << log_size
    is_64bit = bool(incompat & _INCOMPAT_64BIT)
    inode_size = _u16(block, 88) if _u32(block, 76) >= 1 else 128
    geometry = Geometry(
        block_size=size,
        blocks=_u32(block, 4) | (_u32(block, 336) << 32 if is_64bit else 0),
        first_block=_u32(block, 20),
        per_group=_u32(block, 32),
        inode_table_blocks=-(-_u32(block, 40) * inode_size // size),
        descriptor_size=_u16(block, 254) if is_64bit else 32,
        reserved_blocks=_u16(block, 206),
        sparse=bool(ro_compat & _RO_SPARSE_SUPER),
        backup_groups=(
            struct.unpack_from("<II", block, 588) if compat & _COMPAT_SPARSE_SUPER2 else None
        ),
        checksum_seed=_checksum_seed(block, incompat, ro_compat),
        may_lack_bitmaps=bool(ro_compat & (_RO_GDT_CSUM | _RO_METADATA_CSUM)),
    )
    _check_geometry(geometry)
    return geometry


def parse_descriptors(raw: Buffer, geometry: Geometry) -> list[Descriptor]:
    """Understand the descriptors of all groups. Raises CannotTellError."""
    size = geometry.descriptor_size
    if len(raw) != geometry.descriptors[1]:
        raise CannotTellError("its group descriptors are cut off")
    block = bytes(raw)
    return [
        _parse_descriptor(block[group * size : (group + 1) * size], group, geometry)
        for group in range(geometry.groups)
    ]


def metadata_of(descriptors: Sequence[Descriptor], geometry: Geometry) -> Runs:
    """Blocks that hold bitmaps and inode tables, and those at the start of groups."""
    ranges = []
    in_front = 1 + -(-geometry.descriptors[1] // geometry.block_size) + geometry.reserved_blocks
    for group, found in enumerate(descriptors):
        ranges.append((found.block_bitmap, found.block_bitmap + 1))
        ranges.append((found.inode_bitmap, found.inode_bitmap + 1))
        ranges.append((found.inode_table, found.inode_table + geometry.inode_table_blocks))
        if geometry.has_superblock(group):
            first, last = geometry.extent(group)
            ranges.append((first, min(last, first + in_front)))
    return Runs(sorted(ranges))


def free_runs(
    bitmap: Buffer | None, group: int, geometry: Geometry, found: Descriptor, metadata: Runs
) -> Runs:
    """The free blocks of one group. ``bitmap``: its block, None if ``has_bitmap`` is false.

    Raises CannotTellError.
    """
    first, last = geometry.extent(group)
    free = Runs([(first, last)])
    if bitmap is not None:
        _check_bitmap(bitmap, group, geometry, found)
        # Bit 0 of byte 0 is the first block: as one number, the last digit.
        digits = f"{int.from_bytes(bitmap, 'little'):0{len(bitmap) * 8}b}"[::-1][: last - first]
        free = Runs((first + run.start(), first + run.end()) for run in re.finditer("0+", digits))
    unused = free.subtract(metadata)
    counted = free if bitmap is not None else unused
    if counted.sectors() != found.free_blocks or (bitmap is not None and unused != free):
        raise CannotTellError(
            f"its group {group} has {found.free_blocks} free blocks by one count, and "
            f"{counted.sectors()} by another"
        )
    return unused


def to_sectors(blocks: Runs, geometry: Geometry) -> Runs:
    """Ranges of blocks as ranges of sectors."""
    factor = geometry.block_size // SECTOR
    return Runs((start * factor, end * factor) for start, end in blocks)


def _check_features(block: bytes, incompat: int, ro_compat: int) -> None:
    state = _u16(block, 58)
    if incompat & _INCOMPAT_RECOVER:
        raise CannotTellError(
            "its journal was not replayed; mount it with --rw and unmount it, so that it is"
        )
    if not state & _CLEAN or state & _ERRORS:
        raise CannotTellError("it was not unmounted cleanly, or has errors")
    if ro_compat & _RO_BIGALLOC:
        raise CannotTellError("it counts clusters, not blocks (bigalloc)")
    if incompat & _INCOMPAT_META_BG:
        raise CannotTellError("its descriptors are spread out (meta_bg)")
    if (
        incompat & _INCOMPAT_JOURNAL_DEVICE
        or incompat & ~_INCOMPAT_KNOWN
        or (ro_compat & _RO_SNAPSHOT)
    ):
        raise CannotTellError(f"it has features that hybrid does not know ({incompat:#x})")


def _checksum_seed(block: bytes, incompat: int, ro_compat: int) -> int | None:
    if not ro_compat & _RO_METADATA_CSUM:
        return None
    if _crc(_ALL_ONES, block[:1020]) != _u32(block, 1020):
        raise CannotTellError("the checksum of its superblock is wrong")
    if incompat & _INCOMPAT_CSUM_SEED:
        return _u32(block, 624)
    return _crc(_ALL_ONES, block[104:120])


def _check_geometry(found: Geometry) -> None:
    possible = (
        found.first_block == (1 if found.block_size == 1024 else 0)
        and found.first_block < found.blocks
        and 0 < found.per_group <= found.block_size * 8
        and found.descriptor_size in (32, 64)
        and found.groups <= MAX_GROUPS
    )
    if not possible:
        raise CannotTellError("its superblock makes no sense")


def _parse_descriptor(block: bytes, group: int, geometry: Geometry) -> Descriptor:
    low = struct.unpack_from("<IIIH4xHxxxxHxx", block)
    numbers = [low[0], low[1], low[2], low[3], low[5]]
    if geometry.descriptor_size == 64:
        high = struct.unpack_from("<IIIH10xH", block, 32)
        shifts = (32, 32, 32, 16, 16)
        numbers = [n | h << s for n, h, s in zip(numbers, high, shifts, strict=True)]
    if geometry.checksum_seed is not None:
        blanked = block[:30] + bytes(2) + block[32:]
        actual = _crc(_crc(geometry.checksum_seed, group.to_bytes(4, "little")), blanked)
        if actual & 0xFFFF != _u16(block, 30):
            raise CannotTellError(f"the checksum of its descriptor {group} is wrong")
    has_bitmap = not (geometry.may_lack_bitmaps and low[4] & _BLOCK_UNINIT)
    bitmap, inodes, table, free, checksum = numbers
    found = Descriptor(bitmap, inodes, table, free, checksum, has_bitmap)
    places = (found.block_bitmap, found.inode_bitmap, found.inode_table)
    if not all(geometry.first_block < place < geometry.blocks for place in places):
        raise CannotTellError(f"its descriptor {group} points outside of it")
    return found


def _check_bitmap(bitmap: Buffer, group: int, geometry: Geometry, found: Descriptor) -> None:
    if len(bitmap) != geometry.block_size:
        raise CannotTellError(f"its block bitmap {group} is cut off")
    if geometry.checksum_seed is None:
        return
    actual = _crc(geometry.checksum_seed, bytes(bitmap[: geometry.per_group // 8]))
    mask = _ALL_ONES if geometry.descriptor_size == 64 else 0xFFFF
    if actual & mask != found.bitmap_checksum:
        raise CannotTellError(f"the checksum of its block bitmap {group} is wrong")


def _crc(seed: int, data: bytes) -> int:
    """CRC-32C as ext4 has it: a bare register, which begins with all ones and is not inverted."""
    return crc32c(data, seed ^ _ALL_ONES) ^ _ALL_ONES


def _is_power(number: int, base: int) -> bool:
    while number > 1 and number % base == 0:
        number //= base
    return number == 1


def _u16(block: bytes, offset: int) -> int:
    return int.from_bytes(block[offset : offset + 2], "little")


def _u32(block: bytes, offset: int) -> int:
    return int.from_bytes(block[offset : offset + 4], "little")

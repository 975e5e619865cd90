"""Which file system a disk holds, and the mount options that it needs (pure).

Offsets of the superblocks, in bytes from the start of the disk:

    xfs 0, squashfs 0 (magic at the start)      btrfs 65536 (magic 64, log tree 96 bytes in)
    erofs 1024 (magic at its start)             ext2/3/4 1024 (magic 56, state 58, features 92-103)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hybrid.core.device import Buffer

HEAD_BYTES = 128 * 1024
"""How much of the disk ``detect`` needs (less if the disk is shorter)."""

_SUPERBLOCK = 1024
_EXT_MAGIC = 0xEF53
_EXT_COMPAT_HAS_JOURNAL = 0x4
_EXT_INCOMPAT_NEEDS_RECOVERY = 0x4
_EXT_CLEAN = 1
"""The state of a file system that was unmounted, and in which the kernel met no error."""
# Features that ext3 has; any other incompatible or read-only-compatible one makes it an ext4.
_EXT3_INCOMPAT = 0x2 | 0x4 | 0x8 | 0x10  # filetype, recover, journal_dev, meta_bg
_EXT3_RO_COMPAT = 0x1 | 0x2 | 0x4  # sparse_super, large_file, btree_dir
_EROFS_MAGIC = 0xE0F5E1E2
_BTRFS_SUPERBLOCK = 64 * 1024


_NOLOAD = (
    "the {} journal is dirty and cannot be replayed on a read-only disk: mounted "
    "without it (noload), so the last changes before the image was made may be missing"
)


@dataclass(frozen=True)
class DetectedFilesystem:
    """What to give to mount(2), besides MS_RDONLY, and what to do before it is written to."""

    fstype: str
    """The name people use: ``ext4``, ``xfs``, ..."""
    drivers: tuple[str, ...]
    """Kernel drivers that can mount it, best first."""
    options: str = ""
    """Options of the driver for a read-only disk, comma separated."""
    notice: str = ""
    """What the user should know about these options, in one line."""
    writing_options: str = ""
    """Options of the driver for a disk that can be written."""
    can_be_written: bool = True
    lacks_journal: bool = False
    """Whether it could have a journal (``tune2fs``) and has none."""
    wants_check: bool = False
    """Whether ``e2fsck`` has to look at it before it is mounted to be written."""
    is_ext: bool = False
    """Whether it is one of ext2, ext3 and ext4."""
    mounts_files: bool = False
    """Whether newer kernels mount it from a regular file, without a block device."""


def detect(head: Buffer) -> DetectedFilesystem | None:
    """Recognise the file system by the first HEAD_BYTES of the disk; None if it is none of ours."""
    view = bytes(head)
    for probe in (_detect_ext, _detect_xfs, _detect_erofs, _detect_squashfs, _detect_btrfs):
        found = probe(view)
        if found:
            return found
    return None


def _detect_ext(head: bytes) -> DetectedFilesystem | None:
    if len(head) < _SUPERBLOCK + 104:
        return None
    (magic,) = struct.unpack_from("<H", head, _SUPERBLOCK + 56)
    if magic != _EXT_MAGIC:
        return None
    compat, incompat, ro_compat = struct.unpack_from("<III", head, _SUPERBLOCK + 92)
    fstype = _ext_version(compat, incompat, ro_compat)
    is_dirty = bool(incompat & _EXT_INCOMPAT_NEEDS_RECOVERY)
    (state,) = struct.unpack_from("<H", head, _SUPERBLOCK + 58)
    return DetectedFilesystem(
        fstype,
        (fstype,) if fstype == "ext4" else (fstype, "ext4"),
        "noload" if is_dirty else "",
        _NOLOAD.format(fstype) if is_dirty else "",
        lacks_journal=not compat & _EXT_COMPAT_HAS_JOURNAL,
        wants_check=is_dirty or state != _EXT_CLEAN,
        is_ext=True,
    )


def _ext_version(compat: int, incompat: int, ro_compat: int) -> str:
    if incompat & ~_EXT3_INCOMPAT or ro_compat & ~_EXT3_RO_COMPAT:
        return "ext4"
    return "ext3" if compat & _EXT_COMPAT_HAS_JOURNAL else "ext2"


def _detect_xfs(head: bytes) -> DetectedFilesystem | None:
    if not head.startswith(b"XFSB"):
        return None
    # norecovery: the log cannot be replayed on a read-only disk. nouuid: the same image may be
    # mounted more than once, which xfs refuses otherwise.
    return DetectedFilesystem("xfs", ("xfs",), "norecovery,nouuid", writing_options="nouuid")


def _detect_erofs(head: bytes) -> DetectedFilesystem | None:
    magic = struct.pack("<I", _EROFS_MAGIC)
    if head[_SUPERBLOCK : _SUPERBLOCK + 4] != magic:
        return None
    return DetectedFilesystem("erofs", ("erofs",), mounts_files=True, can_be_written=False)


def _detect_squashfs(head: bytes) -> DetectedFilesystem | None:
    if not head.startswith(b"hsqs"):
        return None
    return DetectedFilesystem("squashfs", ("squashfs",), can_be_written=False)


def _detect_btrfs(head: bytes) -> DetectedFilesystem | None:
    superblock = head[_BTRFS_SUPERBLOCK : _BTRFS_SUPERBLOCK + 128]
    if len(superblock) < 128 or superblock[64:72] != b"_BHRfS_M":
        return None
    (log_root,) = struct.unpack_from("<Q", superblock, 96)
    if not log_root:
        return DetectedFilesystem("btrfs", ("btrfs",))
    return DetectedFilesystem(
        "btrfs",
        ("btrfs",),
        "rescue=nologreplay",
        "the btrfs log tree is not empty and cannot be replayed on a read-only disk: mounted "
        "without it, so the last changes before the image was made may be missing",
    )

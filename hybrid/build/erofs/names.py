"""Directories and extended attributes as they stand in an erofs. PURE."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from hybrid.build.ext4.native import NativeError

BLOCK = 4096
_ENTRY = struct.Struct("<QHBB")
_XATTR = struct.Struct("<BBH")
_XATTR_HEAD = bytes(12)
"""No shared attributes."""
_PREFIXES = (
    (b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3), (b"user.", 1),
    (b"trusted.", 4), (b"security.", 6),
)  # fmt: skip
_MAX_XATTRS = (1 << 16) - 1
"""Words of 4 bytes, as an inode counts them."""


class Name(NamedTuple):
    """An entry of a directory. ``nid``: number of the inode; ``kind``: the type in the entry."""

    name: bytes
    nid: int
    kind: int


def directory_size(lengths: Sequence[int]) -> int:
    """Bytes of a directory whose names, in order, have these lengths."""
    full, used = 0, 0
    for length in lengths:
        needed = _ENTRY.size + length
        if used + needed > BLOCK:
            full, used = full + BLOCK, 0
        used += needed
    return full + used


def pack_directory(names: Sequence[Name]) -> bytes:
    """The bytes of a directory: ``names`` with ``.`` and ``..``, sorted as bytes."""
    blocks = []
    block: list[Name] = []
    used = 0
    for name in names:
        needed = _ENTRY.size + len(name.name)
        if used + needed > BLOCK:
            blocks.append(_pack_block(block).ljust(BLOCK, b"\0"))
            block, used = [], 0
        block.append(name)
        used += needed
    blocks.append(_pack_block(block))
    return b"".join(blocks)


def _pack_block(names: Sequence[Name]) -> bytes:
    offset = _ENTRY.size * len(names)
    entries = []
    for name in names:
        entries.append(_ENTRY.pack(name.nid, offset, name.kind, 0))
        offset += len(name.name)
    return b"".join(entries) + b"".join(name.name for name in names)


def pack_xattrs(attributes: dict[bytes, bytes] | None) -> bytes:
    """What follows the inode; empty without attributes. Raises NativeError if they are too many."""
    parts = []
    for name, value in sorted((attributes or {}).items()):
        prefix, number = next(found for found in _PREFIXES if name.startswith(found[0]))
        rest = name[len(prefix) :]
        if len(value) > 0xFFFF:
            raise NativeError("limit", f"an extended attribute of {len(value)} bytes")
        part = _XATTR.pack(len(rest), number, len(value)) + rest + value
        parts.append(part + bytes(-len(part) % 4))
    if not parts:
        return b""
    packed = _XATTR_HEAD + b"".join(parts)
    if xattr_count(packed) > _MAX_XATTRS:
        raise NativeError("limit", "extended attributes of more than 256 KiB")
    return packed


def xattr_count(packed: bytes) -> int:
    """As the inode has it."""
    return (len(packed) - len(_XATTR_HEAD)) // 4 + 1 if packed else 0

"""Which extended attributes of an archive's entry a file system of an image can have. Pure."""

from __future__ import annotations

import struct

from hybrid.build.ext4.native import NativeError
from hybrid.build.tar.entry import Entry, Kind

_ACCESS_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
_NAMESPACES = (b"security.", b"trusted.", b"user.")
_NAME_LIMIT = 255
"""Bytes of a whole name, as Linux has it."""
_ACL_VERSION = struct.pack("<I", 2)
_ACL_ENTRY = struct.Struct("<HHI")
"""Tag, permissions, id."""
_ACL_TAGS = frozenset((1, 2, 4, 8, 16, 32))
"""Owner, user, group of the file, group, mask, others: Linux reads no others."""


def kept_xattrs(entry: Entry) -> dict[bytes, bytes]:
    """Those that Linux would let root set on this file; the others are dropped, as by ``tar``.

    The kernel refuses ``user.*`` except on files and directories, ACLs on symbolic links, default
    ACLs except on directories, and namespaces that ext4 does not know. In order of the names.

    Raises NativeError (format) for what is no ACL: one file system would store it as it is, the
    other would not, and no file with it could be opened.
    """
    return {
        name: value
        for name, value in sorted(entry.xattrs.items())
        if _is_kept(name, entry.kind) and not _is_empty_acl(name, value)
    }


def _is_kept(name: bytes, kind: Kind) -> bool:
    if name == _DEFAULT_ACL:
        return kind is Kind.DIRECTORY
    if name == _ACCESS_ACL:
        return kind is not Kind.SYMLINK
    space = next((space for space in _NAMESPACES if name.startswith(space)), None)
    if space is None or not len(space) < len(name) <= _NAME_LIMIT:
        return False
    # Whether a hard link is one to a file is not known here, but nearly all are.
    return space != b"user." or kind in (Kind.FILE, Kind.DIRECTORY, Kind.HARD_LINK)


def _is_empty_acl(name: bytes, value: bytes) -> bool:
    """Linux takes an ACL without entries for none. Raises NativeError for what is no ACL."""
    if name not in (_ACCESS_ACL, _DEFAULT_ACL):
        return False
    entries = value[len(_ACL_VERSION) :]
    if (
        not value.startswith(_ACL_VERSION)
        or len(entries) % _ACL_ENTRY.size
        or any(tag not in _ACL_TAGS for tag, _, _ in _ACL_ENTRY.iter_unpack(entries))
    ):
        raise NativeError("format", f"invalid value of the extended attribute {name.decode()}")
    return not entries

"""Which extended attributes of an archive's entry an ext4 file system can have. Pure."""

from __future__ import annotations

from hybrid.build.tar.entry import Entry, Kind

_ACCESS_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
_NAMESPACES = (b"security.", b"trusted.", b"user.")
_NAME_LIMIT = 255


def kept_xattrs(entry: Entry) -> dict[bytes, bytes]:
    """Those that Linux would let root set on this file; the others are dropped, as by ``tar``.

    The kernel refuses ``user.*`` except on files and directories, ACLs on symbolic links, default
    ACLs except on directories, and namespaces that ext4 does not know. In order of the names.
    """
    return {
        name: value for name, value in sorted(entry.xattrs.items()) if _is_kept(name, entry.kind)
    }


def _is_kept(name: bytes, kind: Kind) -> bool:
    if name == _DEFAULT_ACL:
        return kind is Kind.DIRECTORY
    if name == _ACCESS_ACL:
        return kind is not Kind.SYMLINK
    space = next((space for space in _NAMESPACES if name.startswith(space)), None)
    if space is None or not 0 < len(name) - len(space) <= _NAME_LIMIT:
        return False
    # Whether a hard link is one to a file is not known here, but nearly all are.
    return space != b"user." or kind in (Kind.FILE, Kind.DIRECTORY, Kind.HARD_LINK)

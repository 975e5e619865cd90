"""What an entry of a tar archive is, whatever dialect it was written in."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

_SHOWN = 300
"""Bytes of a name that messages show."""


class Kind(IntEnum):
    FILE = 0
    HARD_LINK = 1
    SYMLINK = 2
    CHARACTER_DEVICE = 3
    BLOCK_DEVICE = 4
    DIRECTORY = 5
    FIFO = 6


@dataclass(slots=True)
class Entry:
    """One file of an archive. Names are bytes, as they stand there: not cleaned, any encoding."""

    name: bytes
    kind: Kind
    mode: int
    """Permissions with suid, sgid and sticky (12 bits); the type is in ``kind``."""
    uid: int
    gid: int
    mtime: int
    """Seconds since 1970; may be negative."""
    mtime_ns: int
    """Nanoseconds to be added to ``mtime``, 0 to 999,999,999."""
    size: int
    """Bytes of the file, with its holes. 0 if it is no regular file."""
    link: bytes
    """The target of a symbolic or hard link, else empty."""
    offset: int
    """Where the entry's own header begins, in bytes of the (uncompressed) archive."""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    """Full names, like ``security.capability``."""
    stored: int = 0
    """Bytes of data in the archive: less than ``size`` for a sparse file."""
    sparse: list[tuple[int, int]] | None = None
    """(offset, length) in the file of each piece of stored data, ascending; None: not sparse."""


def shown(name: bytes) -> str:
    """A name for messages: one line that is not too long, whatever it is."""
    text = name[:_SHOWN].decode("utf-8", "backslashreplace")
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) or "an empty name"
    return line if len(name) <= _SHOWN else f"{line}..."

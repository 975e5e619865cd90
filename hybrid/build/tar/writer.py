"""Entries of an archive as bytes: ustar, with PAX records where that does not suffice. Pure.

Extended attributes are written as star has them, sparse files as GNU tar does (format 1.0).
"""

from __future__ import annotations

from hybrid.build.tar.entry import Entry, Kind
from hybrid.build.tar.header import BLOCK
from hybrid.build.tar.pax import SCHILY

END = bytes(2 * BLOCK)
"""What follows the last entry."""

_TYPES = {
    Kind.FILE: b"0", Kind.HARD_LINK: b"1", Kind.SYMLINK: b"2", Kind.CHARACTER_DEVICE: b"3",
    Kind.BLOCK_DEVICE: b"4", Kind.DIRECTORY: b"5", Kind.FIFO: b"6",
}  # fmt: skip
_NAME = 100
"""Bytes of a name that fit into a header."""
_ID = 8**7
_LONG = 8**11
"""Numbers from here on do not fit into fields of 8 and 12 bytes."""
_SECOND = 10**9


def padding(length: int) -> bytes:
    """What follows ``length`` bytes of data, up to a whole block."""
    return bytes(-length % BLOCK)


def entry_head(entry: Entry) -> bytes:
    """All that stands in front of the data of an entry, which has ``stored`` bytes.

    The same entry gives the same bytes. ``offset`` is not looked at.
    """
    records: list[bytes] = []
    name, body = entry.name, b""
    if entry.sparse is not None:
        body = _sparse_map(entry.sparse, entry.size)
        records += [
            _record(b"GNU.sparse.major", b"1"),
            _record(b"GNU.sparse.minor", b"0"),
            _record(b"GNU.sparse.name", name),
            _record(b"GNU.sparse.realsize", b"%d" % entry.size),
        ]
        name = b"GNUSparseFile.0"
    if len(name) > _NAME:
        records.append(_record(b"path", name))
    if len(entry.link) > _NAME:
        records.append(_record(b"linkpath", entry.link))
    size = len(body) + entry.stored
    numbers = ((b"uid", entry.uid, _ID), (b"gid", entry.gid, _ID), (b"size", size, _LONG))
    records += [_record(key, b"%d" % number) for key, number, limit in numbers if number >= limit]
    if entry.mtime_ns or not 0 <= entry.mtime < _LONG:
        records.append(_record(b"mtime", _time(entry.mtime, entry.mtime_ns)))
    for attribute, value in sorted(entry.xattrs.items()):
        key = attribute.replace(b"%", b"%25").replace(b"=", b"%3D")
        records.append(_record(SCHILY + key, value))
    head = _header(
        _TYPES[entry.kind], name, entry.link, size, mode=entry.mode, uid=entry.uid, gid=entry.gid,
        mtime=entry.mtime, device=(entry.major, entry.minor),
    )  # fmt: skip
    return _pax(records) + head + body


def _pax(records: list[bytes]) -> bytes:
    if not records:
        return b""
    body = b"".join(records)
    return _header(b"x", b"././@PaxHeader", b"", len(body)) + body + padding(len(body))


def _record(key: bytes, value: bytes) -> bytes:
    """The length in front of a record counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _time(seconds: int, nanoseconds: int) -> bytes:
    """As ``numbers.timestamp`` reads it: the fraction has the sign of the whole."""
    sign = b""
    if seconds < 0:
        sign, total = b"-", -(seconds * _SECOND + nanoseconds)
        seconds, nanoseconds = divmod(total, _SECOND)
    return b"%s%d.%09d" % (sign, seconds, nanoseconds) if nanoseconds else b"%s%d" % (sign, seconds)


def _sparse_map(pieces: list[tuple[int, int]], size: int) -> bytes:
    """GNU tar takes the end of the last piece, which may be empty, for that of the file."""
    pieces = [*pieces, (size, 0)]
    numbers = [len(pieces), *(number for piece in pieces for number in piece)]
    text = b"".join(b"%d\n" % number for number in numbers)
    return text + padding(len(text))


def _header(
    kind: bytes, name: bytes, link: bytes, size: int, *, mode: int = 0o644, uid: int = 0,
    gid: int = 0, mtime: int = 0, device: tuple[int, int] = (0, 0),
) -> bytes:  # fmt: skip
    """One block. Numbers and names that do not fit are in the records in front of it."""
    front = b"".join(
        (
            name[:_NAME].ljust(_NAME, b"\0"),
            b"%07o\0%07o\0%07o\0" % (mode, uid if uid < _ID else 0, gid if gid < _ID else 0),
            b"%011o\0" % (size if size < _LONG else 0),
            b"%011o\0" % (mtime if 0 <= mtime < _LONG else 0),
        )
    )
    back = b"".join(
        (
            kind,
            link[:_NAME].ljust(_NAME, b"\0"),
            b"ustar\00000",
            bytes(64),
            b"%07o\0%07o\0" % device,
            bytes(167),
        )
    )
    total = sum(front) + sum(back) + 8 * 0x20
    return b"%s%06o\0 %s" % (front, total, back)

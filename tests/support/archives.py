"""An independent writer of tar archives, in the dialects that layers are found in.

Names are bytes. Everything that a test wants to be wrong can be given raw.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

from support.build_tar import BLOCK, pad, tar_header

from hybrid.build.tar.entry import Entry
from hybrid.build.tar.reader import TarReader

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
END = bytes(2 * BLOCK)
GNU = {"magic": b"ustar ", "version": b" \0"}
V7 = {"magic": b"", "version": b""}


def number(value: int, width: int) -> bytes:
    """Octal where it fits, else base-256 as GNU tar writes it."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return bytes([0xFF if value < 0 else 0x80]) + (value % (1 << (8 * width - 8))).to_bytes(
        width - 1, "big"
    )


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record; the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length += len(str(length)) > len(str(rest))
    return b"%d %s=%s\n" % (length, key, value)


def special(kind: bytes, body: bytes, name: bytes = b"././@special") -> bytes:
    """A header that says something about the next one: ``x``, ``g``, ``L``, ``K``."""
    fields = {"name": name, "typeflag": kind, "size": number(len(body), 12)}
    return tar_header(fields) + pad(body)


def pax(
    records: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]], kind: bytes = b"x"
) -> bytes:
    items = records.items() if isinstance(records, Mapping) else records
    return special(kind, b"".join(record(key, value) for key, value in items))


def member(
    name: bytes,
    data: bytes = b"",
    kind: bytes = FILE,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    link: bytes = b"",
    device: tuple[int, int] | None = None,
    size: int | None = None,
    xattrs: Mapping[bytes, bytes] | None = None,
    records: Mapping[bytes, bytes] | None = None,
    fields: Mapping[str, bytes] | None = None,
) -> bytes:
    """An entry in PAX format; names of more than 100 bytes go into records."""
    extra = {b"SCHILY.xattr." + key: value for key, value in (xattrs or {}).items()}
    extra |= records or {}
    if len(name) > 100:
        extra[b"path"] = name
    if len(link) > 100:
        extra[b"linkpath"] = link
    header: dict[str, bytes] = {
        "name": name[:100], "typeflag": kind, "mode": number(mode, 8), "uid": number(uid, 8),
        "gid": number(gid, 8), "mtime": number(mtime, 12), "linkname": link[:100],
        "size": number(len(data) if size is None else size, 12),
    }  # fmt: skip
    if device is not None:
        header |= {"devmajor": number(device[0], 8), "devminor": number(device[1], 8)}
    header |= fields or {}
    return (pax(extra) if extra else b"") + tar_header(header) + pad(data)


def archive(*members: bytes) -> bytes:
    return b"".join(members) + END


def read_with(data: bytes, step: int = 1 << 20) -> TarReader:
    """A reader over these bytes, which get at most ``step`` at once."""
    stream = io.BytesIO(data)
    return TarReader(lambda size: stream.read(min(size, step)), "layer.tar")


def entries_of(data: bytes, step: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """All entries with their stored data."""
    reader = read_with(data, step)
    return [(entry, b"".join(bytes(part) for part in reader.data())) for entry in reader]


def expanded(entry: Entry, stored: bytes) -> bytes:
    """The content of a file whose data may be sparse."""
    if entry.sparse is None:
        return stored
    content = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        content[offset : offset + length] = stored[at : at + length]
        at += length
    return bytes(content)

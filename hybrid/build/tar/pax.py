"""PAX extended headers (POSIX.1-2001), with the extensions of star, libarchive and GNU. Pure."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from hybrid.errors import FormatError

Records = list[tuple[bytes, bytes]]
"""In the order of the archive: GNU's first sparse format repeats keys."""

SCHILY = b"SCHILY.xattr."
LIBARCHIVE = b"LIBARCHIVE.xattr."
_MAX_DIGITS = 10


def parse_records(body: bytes) -> Records:
    """``LEN key=value\\n`` repeated. NULs may follow. Raises FormatError, without the offset."""
    records: Records = []
    at = 0
    while at < len(body) and body[at]:
        space = body.find(b" ", at, at + _MAX_DIGITS + 1)
        digits = body[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise FormatError("damaged PAX header (length of a record)")
        end = at + int(digits)
        if end > len(body) or end < space + 3 or body[end - 1] != 0x0A:
            raise FormatError("damaged PAX header (end of a record)")
        # No key of this format has "=" in it: star and GNU write "%3D" in names of attributes.
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise FormatError("damaged PAX header (record without a key)")
        records.append((key, value))
        at = end
    return records


def xattrs_of(records: Records) -> dict[bytes, bytes]:
    """The extended attributes among the records. Those of star win over those of libarchive."""
    found: dict[bytes, bytes] = {}
    for key, value in records:
        if key.startswith(LIBARCHIVE):
            found.setdefault(unquote_to_bytes(key[len(LIBARCHIVE) :]), _decode(value))
    for key, value in records:
        if key.startswith(SCHILY):
            name = key[len(SCHILY) :].replace(b"%3D", b"=").replace(b"%25", b"%")
            found[name] = value
    for name in found:
        if not name or b"\0" in name:
            raise FormatError(f"invalid name of an extended attribute: {name[:80]!r}")
    return found


def _decode(value: bytes) -> bytes:
    """Base-64 without the padding."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error:
        raise FormatError(f"damaged extended attribute: {value[:40]!r}") from None

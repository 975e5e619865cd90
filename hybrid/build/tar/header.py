"""One 512-byte header of a tar archive (POSIX.1-1988 ustar, GNU, star, v7). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import adler32

from hybrid.build.tar.numbers import clamped, header_number
from hybrid.errors import FormatError

BLOCK = 512
"""Bytes: all parts of an archive are multiples of this."""
ZEROS = bytes(BLOCK)
_OCTAL = b"01234567 \0"


@dataclass(slots=True)
class Header:
    """The fields that hybrid uses. ``block`` is kept for those that few entries need."""

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    link: bytes
    block: bytes

    @property
    def device(self) -> tuple[int, int]:
        """Major and minor number. Elsewhere than in devices the fields may hold anything."""
        return (
            header_number(self.block[329:337], "major device number"),
            header_number(self.block[337:345], "minor device number"),
        )


def parse_header(block: bytes) -> Header:
    """``block`` has BLOCK bytes and is not all zeros. Raises FormatError, without the offset."""
    _check_sum(block)
    numbers = block[100:148]
    if numbers.translate(None, _OCTAL):
        mode = header_number(numbers[0:8], "mode")
        uid = header_number(numbers[8:16], "uid")
        gid = header_number(numbers[16:24], "gid")
        size = header_number(numbers[24:36], "size")
        mtime = clamped(header_number(numbers[36:48], "mtime"))
    else:
        mode, uid, gid = _octal(numbers[0:8]), _octal(numbers[8:16]), _octal(numbers[16:24])
        size, mtime = _octal(numbers[24:36]), _octal(numbers[36:48])
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        # star keeps times behind a prefix that is shorter, and signs at the end.
        prefix = block[345 : 476 if block[508:] == b"tar\0" else 500]
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    link = block[157:257].split(b"\0", 1)[0]
    return Header(name, block[156:157], mode, uid, gid, size, mtime, link, block)


def _octal(field: bytes) -> int:
    """As header_number, where only octal digits, blanks and NULs are there."""
    text = field.split(b"\0", 1)[0].strip(b" ")
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise FormatError(f"{field!r} is no number") from None


def _check_sum(block: bytes) -> None:
    stated = header_number(block[148:156], "checksum")
    # The low half of Adler-32 is 1 + the sum of the bytes, exactly so below 65521: a fast sum.
    plain = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    actual = plain - sum(block[148:156]) + 8 * 0x20
    if stated != actual and stated != _signed_sum(block):
        raise FormatError("damaged header (its checksum does not match)")


def _signed_sum(block: bytes) -> int:
    """As some old programs have it, which summed signed characters."""
    rest = block[:148] + b" " * 8 + block[156:]
    return sum(rest) - 256 * sum(byte > 127 for byte in rest)

"""The tar wrapper around a layer blob: an archive with exactly one member (spec: tar-and-blob).

Pure: no I/O. Readers skip the headers and take the member's bytes as the blob; the writer makes
the same 1536 bytes of headers as the reference, apart from the file-type bits in the mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hybrid.core.device import Buffer
from hybrid.errors import FormatError

BLOCK = 512
HEAD_SIZE = 16384
"""Bytes from the start of a file within which all headers must lie."""
MEMBER_NAME = "overlaybd.commit"
WRAPPER_SIZE = 3 * BLOCK
"""Bytes in front of the payload, in the wrapper that this module writes."""
_MAX_PAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class TarMember:
    """The (first) member of a tar archive. Offset and size in bytes of the archive."""

    name: str
    offset: int
    size: int


def is_tar(head: Buffer) -> bool:
    """True if ``head`` begins with a tar header (POSIX or GNU) whose checksum is right."""
    block = bytes(head[:BLOCK])
    return len(block) == BLOCK and block[257:262] == b"ustar" and _checksum_matches(block)


def parse_tar(head: Buffer, total_size: int, name: str) -> TarMember:
    """Find the first member behind any number of PAX, global PAX and GNU long-name headers.

    ``head`` is the start of a file of ``total_size`` bytes, HEAD_SIZE long where the file is.
    Raises FormatError if a header is damaged or the member does not fit into the file.
    """
    view = bytes(head)
    position = 0
    pax_size: int | None = None
    long_name = ""
    while True:
        block = view[position : position + BLOCK]
        if not is_tar(block):
            raise FormatError(f"{name}: damaged tar header at byte {position}", offset=position)
        kind = block[156:157]
        size = _number(block[124:136], name, position + 124)
        position += BLOCK
        if kind not in b"xgLK":
            break
        body = view[position : position + size]
        if len(body) != size:
            raise FormatError(f"{name}: tar headers are longer than {len(view)} bytes")
        if kind == b"x":
            pax_size = _pax_size(body, name)
        elif kind == b"L":
            long_name = body.rstrip(b"\0").decode("utf-8", "replace")
        position += -(-size // BLOCK) * BLOCK
    size = pax_size or size
    if position + size > total_size:
        raise FormatError(
            f"{name}: tar member of {size} bytes at {position} does not fit into "
            f"{total_size} bytes: the file is truncated",
            offset=position,
        )
    member = long_name or block[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    return TarMember(member, position, size)


def wrap_head(payload_size: int) -> bytes:
    """The WRAPPER_SIZE bytes to put in front of a payload of ``payload_size`` bytes."""
    record = _pax_record(payload_size)
    pax = _header("overlaybd.pax", {124: f"{len(record):11o} ".encode()}, b"x")
    numbers = {
        100: b"   644 \0", 108: b"     0 \0", 116: b"     0 \0",
        124: b"          0 ", 136: b"          0 ", 265: b"root", 297: b"root",
    }  # fmt: skip
    return pax + record.ljust(BLOCK, b"\0") + _header(MEMBER_NAME, numbers, b"0")


def wrap_tail(payload_size: int) -> bytes:
    """The padding and the two zero blocks to put behind the payload."""
    return bytes(-payload_size % BLOCK + 2 * BLOCK)


def _header(name: str, fields: dict[int, bytes], kind: bytes) -> bytes:
    block = bytearray(BLOCK)
    for offset, value in {0: name.encode(), 257: b"ustar\x0000", 156: kind, **fields}.items():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):6o} \0".encode()
    return bytes(block)


def _pax_record(payload_size: int) -> bytes:
    text = f" size={payload_size}\n"
    length = len(text) + 1
    while len(str(length)) + len(text) != length:
        length += 1
    return f"{length}{text}".encode()


def _checksum_matches(block: bytes) -> bool:
    stated = _octal(block[148:156])
    if stated is None:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    # Some old tars summed signed characters.
    return stated in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes, name: str, offset: int) -> int:
    if field[0] & 0x80:  # base-256, for sizes that octal cannot hold
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    value = _octal(field)
    if value is None:
        raise FormatError(f"{name}: tar size field is no number", offset=offset)
    return value


def _octal(field: bytes) -> int | None:
    """The number of a header field, padded with spaces or NULs; None if there is none."""
    digits = field.strip(b" \0") or b"0"
    # int() would take signs, underscores and prefixes as well.
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None


def _pax_size(body: bytes, name: str) -> int | None:
    """The value of the ``size`` record of a PAX body, None if it has none."""
    found = None
    end = len(body.rstrip(b"\0"))
    position = 0
    while position < end:
        digits, _, _ = body[position : position + _MAX_PAX_DIGITS].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = body[position + len(digits) + 1 : position + length]
        key, equals, value = record[:-1].partition(b"=")
        whole = len(digits) + 1 < length <= len(body) - position
        if not whole or not key or not equals or not record.endswith(b"\n"):
            raise FormatError(f"{name}: damaged PAX header")
        if key == b"size":
            if not value.isdigit() or len(value) > _MAX_PAX_DIGITS:
                raise FormatError(f"{name}: PAX size is no number")
            found = int(value)
        position += length
    return found

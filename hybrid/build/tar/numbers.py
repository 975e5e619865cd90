"""Numbers in tar archives. Pure; all raise FormatError."""

from __future__ import annotations

import re

from hybrid.errors import FormatError

_DECIMAL = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:[.,]([0-9]*))?")
_TIME_LIMIT = 1 << 62


def header_number(field: bytes, what: str) -> int:
    """Octal text with blanks or NUL around it (empty: 0), or base-256 with the first bit set."""
    if field[0] & 0x80:
        # Seven bits of the first byte belong to the number; the second says whether it is negative.
        number = int.from_bytes(field, "big", signed=True)
        return number if field[0] & 0x40 else number + (1 << (8 * len(field) - 1))
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise FormatError(f"{what} is no number: {field!r}")
    return int(text, 8)


def decimal(text: bytes, what: str) -> int:
    """A number of a PAX record: digits only, at most 20."""
    if _DECIMAL.fullmatch(text) is None:
        raise FormatError(f"{what} is no number: {text[:40]!r}")
    return int(text)


def timestamp(text: bytes, what: str) -> tuple[int, int]:
    """Seconds and nanoseconds of a PAX time such as ``-1.5`` (which is -2 s and 500,000,000 ns)."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise FormatError(f"{what} is no time: {text[:40]!r}")
    sign, whole, fraction = match.groups()
    seconds, nanoseconds = int(whole), int((fraction or b"0")[:9].ljust(9, b"0"))
    if sign:
        seconds, nanoseconds = (-seconds - 1, 10**9 - nanoseconds) if nanoseconds else (-seconds, 0)
    return clamped(seconds), nanoseconds


def clamped(seconds: int) -> int:
    """Times that no file system has fit into 64 bits all the same."""
    return max(-_TIME_LIMIT, min(seconds, _TIME_LIMIT))

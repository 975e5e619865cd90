"""Sizes on the command line."""

from __future__ import annotations

import re

from hybrid.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MULTIPLE = 4096
_MOST = 1 << 50


def parse_size(text: str | None) -> int:
    """Bytes of a disk, given as ``64G``, ``512M`` or a number of bytes; 0 for None.

    Raises UsageError.
    """
    if text is None:
        return 0
    found = re.fullmatch(r"(\d{1,18})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(found[1]) * _UNITS[found[2].upper()] if found else 0
    if not 0 < size <= _MOST or size % _MULTIPLE:
        raise UsageError(
            f"--size {text} is no size of a disk",
            hint=f"give a multiple of {_MULTIPLE} bytes, at most 1024T, such as 64G or 512M",
        )
    return size

"""Is the answer to a range request exactly what was asked for? PURE. RFC 9110, section 14."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hybrid.errors import FormatError, NetworkError

_CONTENT_RANGE = re.compile(
    r"bytes\s+(?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE
)
OTHER_SIZE_HINT = "the blob is damaged or was replaced; push the image again"


def range_header(offset: int, length: int) -> str:
    """The Range header for ``length`` (> 0) bytes at ``offset``."""
    return f"bytes={offset}-{offset + length - 1}"


def parse_content_range(value: str | None) -> tuple[int, int, int | None] | None:
    """(first byte, last byte, total bytes or None if unknown) of a Content-Range; None if bad."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None or match[1] is None:
        return None
    return int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])


def unsatisfied_total(value: str | None) -> int | None:
    """The total bytes that a 416 answer states (``bytes */N``)."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    return None if match is None or match[3] == "*" else int(match[3])


def check_range_answer(
    status: int, headers: Mapping[str, str], offset: int, length: int, size: int, what: str
) -> None:
    """Raise unless a 200, 206 or 416 answer carries exactly these bytes of a ``size`` bytes blob.

    Raises FormatError if the blob has another size than the manifest says, NetworkError if the
    server does not do ranges properly.
    """
    check_encoding(headers, what)
    if status == 416:
        total = unsatisfied_total(headers.get("content-range"))
        seen = "" if total is None else f" ({total} bytes instead of {size})"
        raise FormatError(
            f"{what}: the blob is shorter than the manifest says{seen}", hint=OTHER_SIZE_HINT
        )
    if status == 200:
        _check_whole(headers, offset, length, size, what)
        return
    got = parse_content_range(headers.get("content-range"))
    if got is None:
        raise NetworkError(f"{what}: the answer does not say which bytes it has (Content-Range)")
    first, last, total = got
    if total is not None and total != size:
        raise FormatError(
            f"{what}: the blob has {total} bytes, the manifest says {size}", hint=OTHER_SIZE_HINT
        )
    # An unknown total is allowed: the bytes are named, and there are as many as asked for.
    if (first, last) != (offset, offset + length - 1):
        raise NetworkError(
            f"{what}: bytes {offset}-{offset + length - 1}/{size} were asked for, but the answer "
            f"has {first}-{last}/{'*' if total is None else total}"
        )


def check_encoding(headers: Mapping[str, str], what: str) -> None:
    """Raise NetworkError if the body is compressed: its bytes would be other bytes."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise NetworkError(
            f"{what}: the answer is encoded ({encoding[:40]!r}) though that was refused",
            hint="a proxy in between may do that",
        )


def _check_whole(
    headers: Mapping[str, str], offset: int, length: int, size: int, what: str
) -> None:
    if offset != 0 or length != size:
        raise NetworkError(
            f"{what}: the server ignores Range requests and sends the whole blob",
            hint="lazy reading needs a registry (and proxy) with Range support",
        )
    stated = headers.get("content-length", "")
    if stated.isdecimal() and int(stated) != size:
        raise FormatError(
            f"{what}: the blob has {stated} bytes, the manifest says {size}", hint=OTHER_SIZE_HINT
        )

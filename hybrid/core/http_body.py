"""Reading the body of an answer, but never more of it than allowed."""

from __future__ import annotations

import httpx


async def read_up_to(response: httpx.Response, limit_bytes: int) -> tuple[bytes, bool]:
    """(the body or its first part, whether it is longer than ``limit_bytes``). Not decoded.

    Raises what httpx raises, for instance if the body is cut.
    """
    parts: list[bytes] = []
    total = 0
    too_long = False
    try:
        async for part in response.aiter_raw():
            if too_long:
                continue
            parts.append(part)
            total += len(part)
            if total > limit_bytes:
                # Leaving the loop here would leave the nested generators of httpx unfinished.
                # After closing they end by themselves, with what was received already.
                too_long = True
                await response.aclose()
    except (httpx.HTTPError, httpx.StreamError):
        if not too_long:
            raise
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return (body[:limit_bytes] if too_long else body), too_long

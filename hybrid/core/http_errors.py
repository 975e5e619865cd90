"""HTTP statuses become errors here: host, status, the server's own words, and what to do.

The only place that knows which status is worth another attempt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http import HTTPStatus

import httpx
import trio

from hybrid.core.http_body import read_up_to
from hybrid.core.retry import TransientError, parse_retry_after
from hybrid.errors import AuthError, HybridError, NetworkError, NotFoundError

MAX_ERROR_BODY_BYTES = 65536
MAX_TEXT_CHARACTERS = 200
ERROR_BODY_SECONDS = 5.0
TRANSIENT_STATUSES = frozenset({408, 425, 429, *range(500, 600)})


async def status_error(
    response: httpx.Response, what: str, wall_clock: Callable[[], float] = time.time
) -> HybridError | TransientError:
    """The error for a status that ``what`` ("blob x of y", for the message) cannot live with.

    Reads at most 64 KiB of the body for the registry's explanation.
    """
    status = response.status_code
    text = server_text(response.headers.get("content-type", ""), await _body(response))
    message = f"{what}: {response.url.netloc.decode()} answers {status} {_phrase(status)}"
    if text:
        message += f" ({text})"
    if status in TRANSIENT_STATUSES:
        after = parse_retry_after(response.headers.get("retry-after"), wall_clock())
        hint = "too many requests: log in, or wait" if status == 429 else "the server has a problem"
        return TransientError(NetworkError(message, hint=hint), after)
    if status == HTTPStatus.UNAUTHORIZED:
        hint = "check the name (some registries hide what does not exist) and your login"
        return AuthError(message, hint=hint)
    if status == HTTPStatus.FORBIDDEN:
        return AuthError(message, hint="this user may not read it; ask its owner, or log in again")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return NotFoundError(message, hint="check the name, the tag and that you may read it")
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return AuthError(message, hint="the proxy wants a login; see HTTPS_PROXY and NO_PROXY")
    return NetworkError(message, hint="is this host a registry, and is the name right?")


def server_text(content_type: str, body: bytes) -> str:
    """What the server says about its error, in one bounded line without control characters."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or body.lstrip()[:1] == b"{":
        return _clean(_registry_errors(body))
    return _clean(body.decode(errors="replace")) if kind == "text/plain" else ""


def _registry_errors(body: bytes) -> str:
    """The first of the OCI ``errors`` as ``CODE: message``; token servers say it otherwise."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else document
    if not isinstance(first, dict):
        return ""
    words = [first.get("code") or first.get("error"), first.get("message") or first.get("details")]
    return ": ".join(str(word) for word in words if isinstance(word, str | int) and word)


def _clean(text: str) -> str:
    words = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_TEXT_CHARACTERS]).split()
    line = " ".join(words)
    if len(line) > MAX_TEXT_CHARACTERS:
        line = line[: MAX_TEXT_CHARACTERS - 3] + "..."
    return line


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(no such status in HTTP)"


async def _body(response: httpx.Response) -> bytes:
    # The status is known already: a body that does not come must not hide it.
    with trio.move_on_after(ERROR_BODY_SECONDS):
        try:
            body, _ = await read_up_to(response, MAX_ERROR_BODY_BYTES)
        except httpx.HTTPError:
            return b""
        return body
    return b""

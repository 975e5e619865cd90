"""What a registry says to a push it does not want becomes an error for the user here."""

from __future__ import annotations

import re
from http import HTTPStatus

import httpx

from hybrid.core.http_errors import status_error
from hybrid.core.reference import RegistryReference
from hybrid.core.retry import TransientError
from hybrid.errors import (
    AuthError,
    HybridError,
    NetworkError,
    NotFoundError,
    StorageFullError,
    UnsupportedError,
)

_QUOTA = re.compile(r"quota|storage limit|insufficient storage", re.IGNORECASE)
QUOTA_HINT = "the registry has no space left for this repository"
READ_ONLY_HINT = "it is read-only, or a mirror of another registry; push to another one"
TOO_LARGE_HINT = "raise the limit of the registry, or of the proxy before it"
LOST_HINT = "the registry lost the upload"
PUSH_HINT = "log in as a user who may push there, or check the name"


async def push_error(
    response: httpx.Response, what: str, ref: RegistryReference
) -> HybridError | TransientError:
    """The error for an answer that ``what`` (an upload, for the message) cannot live with."""
    status = response.status_code
    error = await status_error(response, what)
    found = error.error if isinstance(error, TransientError) else error
    message = found.message
    if status == HTTPStatus.INSUFFICIENT_STORAGE or (status < 500 and _QUOTA.search(message)):
        return StorageFullError(message, hint=QUOTA_HINT)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return no_permission(ref, AuthError(message))
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return UnsupportedError(message, hint=READ_ONLY_HINT)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return UnsupportedError(message, hint=TOO_LARGE_HINT)
    if "DIGEST_INVALID" in message:
        hint = "the bytes were changed on their way"
        return TransientError(NetworkError(message, hint=hint))
    if re.search("BLOB_UPLOAD_(UNKNOWN|INVALID)|RANGE_INVALID", message):
        return TransientError(NetworkError(message, hint=LOST_HINT))
    if re.search("MANIFEST_(BLOB_)?UNKNOWN|BLOB_UNKNOWN", message):
        hint = "the registry lacks something that the manifest names; push it again"
        return NotFoundError(message, hint=hint)
    if status == HTTPStatus.NOT_FOUND:
        return NotFoundError(message, hint="does the repository have to be made first?")
    if 300 <= status < 400:
        return NetworkError(message, hint="it sends pushes elsewhere; name that host")
    return error


def no_permission(ref: RegistryReference, error: AuthError) -> AuthError:
    """The same refusal, with what it means for a push."""
    return AuthError(f"no permission to push to {ref.name}: {error.message}", hint=PUSH_HINT)

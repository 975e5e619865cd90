"""Credentials from a service: overlaybd's modes http, https and uds. Spec: image-config 5."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import trio

from hybrid.config import CredentialConfig
from hybrid.core.http_body import read_up_to
from hybrid.core.http_errors import TRANSIENT_STATUSES
from hybrid.core.retry import TransientError
from hybrid.errors import AuthError, ConfigError, NetworkError

MAX_ANSWER_BYTES = 1 << 20


async def fetch_auths(settings: CredentialConfig, host: str, repository: str) -> Any:
    """Ask the service for the ``auths`` object that applies to a repository.

    Raises TransientError (no answer, or one that may pass), NetworkError (no usable answer),
    AuthError (it refused), ConfigError (not usable as set up).
    """
    what = service_name(settings)
    blobs = quote(f"https://{host}/v2/{repository}/blobs/", safe="")
    base = "http://localhost/auth" if settings.mode == "uds" else settings.path
    url = f"{base}{'&' if '?' in base else '?'}remote_url={blobs}"
    with _translated_errors(settings, what):
        # httpx bounds each step; this bounds them all.
        with trio.fail_after(settings.timeout_seconds):
            async with _client(settings, what) as client, client.stream("GET", url) as answer:
                status = answer.status_code
                data, too_long = await read_up_to(answer, MAX_ANSWER_BYTES)
    if status != 200:
        failure = NetworkError(f"{what} answers with status {status}")
        raise TransientError(failure) if status in TRANSIENT_STATUSES else failure
    if too_long:
        raise NetworkError(f"{what} answers with more than {MAX_ANSWER_BYTES} bytes")
    return _auths(data, what)


def service_name(settings: CredentialConfig) -> str:
    """The service, for messages: without what may be secret in its URL (login, query)."""
    shown = settings.path if settings.mode == "uds" else _public_url(settings.path)
    return f"credential service {shown} (credentialConfig.path)"


def _public_url(url: str) -> str:
    """Host and path of a URL; "?" if it is so odd that one cannot tell what of it is secret."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "?"
    # An "@" after the host: a password with "/", "?" or "#" in it was taken for the rest.
    if not host or "@" in parts.path + parts.query + parts.fragment:
        return "?"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path}"


@contextmanager
def _translated_errors(settings: CredentialConfig, what: str) -> Iterator[None]:
    try:
        yield
    except trio.TooSlowError as error:
        failure = NetworkError(f"{what}: no answer in {settings.timeout_seconds:g} s")
        raise TransientError(failure) from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError):
        # Not chained, and without its text: that can be a part of the password.
        raise ConfigError(f"{what} is no URL of mode {settings.mode}") from None
    except httpx.HTTPError as error:
        failure = NetworkError(f"{what}: {error or type(error).__name__}")
        if _is_untrusted(error):
            raise failure from error
        raise TransientError(failure) from error


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _client(settings: CredentialConfig, what: str) -> httpx.AsyncClient:
    # trust_env off: secrets of this machine do not go through a proxy.
    if settings.mode == "uds":
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=settings.path, verify=False),
            trust_env=False,
            timeout=settings.timeout_seconds,
        )
    if settings.mode == "http":
        return httpx.AsyncClient(verify=False, trust_env=False, timeout=settings.timeout_seconds)
    return httpx.AsyncClient(
        verify=_tls_context(settings, what), trust_env=False, timeout=settings.timeout_seconds
    )


def _tls_context(settings: CredentialConfig, what: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.server_ca_path)
        if settings.client_cert_path is not None:
            context.load_cert_chain(settings.client_cert_path, settings.client_key_path)
    except OSError as error:
        raise ConfigError(f"{what}: CA or client certificate: {error.strerror or error}") from error
    return context


def _auths(data: bytes, what: str) -> Any:
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise NetworkError(f"{what} does not answer in JSON") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("data") or {}, dict):
        raise NetworkError(f"{what} does not answer with an object that has 'data'")
    if answer.get("success") is not True:
        trace = str(answer.get("traceId") or "none")[:80]
        raise AuthError(f"{what} reports no success (traceId {trace!r})")
    return (answer.get("data") or {}).get("auths")

"""Credentials from a service: overlaybd's modes http, https and uds. Spec: image-config 5."""

from __future__ import annotations

import json
import ssl
from typing import Any
from urllib.parse import quote

import httpx
import trio

from hybrid.core.http_body import read_up_to
from hybrid.core.registry_settings import CredentialSettings
from hybrid.errors import AuthError, ConfigError, NetworkError

MAX_ANSWER_BYTES = 1 << 20


async def fetch_auths(settings: CredentialSettings, host: str, repository: str) -> Any:
    """Ask the service for the ``auths`` object that applies to a repository.

    Raises NetworkError (no answer), AuthError (it refused), ConfigError (not usable as set up).
    """
    what = f"credential service {settings.path!r} (credentialConfig.path)"
    blobs = quote(f"https://{host}/v2/{repository}/blobs/", safe="")
    base = "http://localhost/auth" if settings.mode == "uds" else settings.path
    url = f"{base}{'&' if '?' in base else '?'}remote_url={blobs}"
    try:
        # httpx bounds each step; this bounds them all.
        with trio.fail_after(settings.timeout_seconds):
            async with _client(settings, what) as client, client.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise NetworkError(f"{what} answers with status {answer.status_code}")
                data, too_long = await read_up_to(answer, MAX_ANSWER_BYTES)
    except trio.TooSlowError as error:
        raise NetworkError(f"{what}: no answer in {settings.timeout_seconds:g} s") from error
    except httpx.UnsupportedProtocol as error:
        raise ConfigError(f"{what} is no URL of mode {settings.mode}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NetworkError(f"{what}: {error or type(error).__name__}") from error
    if too_long:
        raise NetworkError(f"{what} answers with more than {MAX_ANSWER_BYTES} bytes")
    return _auths(data, what)


def _client(settings: CredentialSettings, what: str) -> httpx.AsyncClient:
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


def _tls_context(settings: CredentialSettings, what: str) -> ssl.SSLContext:
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

"""Failed connections become errors here: refused, silent, not trusted, not TLS, no such host.

The only place that knows the exceptions of httpx, and which of them may pass.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.retry import TransientError
from hybrid.core.tls import trust_hint
from hybrid.errors import CertificateError, HybridError, NetworkError

NOT_TLS_REASONS = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)
"""How OpenSSL calls an answer that is no TLS at all."""
HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How Python calls the end of the connection amid the handshake; which of them, by version."""


class NotTlsError(TransientError):
    """The peer answered the TLS greeting with something else."""


class UnreachableError(TransientError):
    """No connection at all: refused, no route, timed out."""


class ConnectTimeoutError(UnreachableError):
    """Neither accepted nor refused, or connected but then silent to the TLS greeting."""


@contextmanager
def translated_errors(url: str, settings: RegistrySettings) -> Iterator[None]:
    """Exceptions of httpx leave as TransientError or HybridError."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise translate(error, url, settings) from error


def translate(
    error: httpx.HTTPError | httpx.InvalidURL, url: str, settings: RegistrySettings
) -> HybridError | TransientError:
    """The error for an exception of httpx on the way to ``url``."""
    host = netloc(url)
    causes = list(_causes(error))
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return NetworkError(f"the server names an address that cannot be used: {error}")
    if isinstance(error, httpx.ConnectTimeout):
        return ConnectTimeoutError(NetworkError(f"cannot connect to {host} in time"))
    if isinstance(error, httpx.TimeoutException):
        silent = f"{host} was silent for {settings.read_seconds:g} s"
        return TransientError(NetworkError(silent))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            message = f"the certificate of {host} is not trusted: {cause.verify_message}"
            return CertificateError(message, hint=trust_hint(host, settings.certs_directories))
        if isinstance(cause, ssl.SSLError):
            return _tls_failure(cause, host)
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return NetworkError(f"there is no host {host}: {cause.strerror}", hint="check the name")
    if isinstance(error, httpx.ProxyError):
        return NetworkError(f"the proxy refuses {host}: {error}", hint="see HTTPS_PROXY, NO_PROXY")
    reason = _reason(error, causes)
    if isinstance(error, httpx.ConnectError):
        hint = "is it running, and is the port right?"
        return UnreachableError(NetworkError(f"cannot connect to {host}: {reason}", hint=hint))
    return TransientError(NetworkError(f"the connection to {host} broke: {reason}"))


def netloc(url: str) -> str:
    """``host[:port]`` of a URL, without user names."""
    try:
        return httpx.URL(url).netloc.decode()
    except httpx.InvalidURL:
        return "?"


def _tls_failure(cause: ssl.SSLError, host: str) -> TransientError:
    hung_up = isinstance(cause, HUNG_UP)
    reason = "hung up" if hung_up else (cause.reason or "no reason").lower().replace("_", " ")
    if hung_up or cause.reason in NOT_TLS_REASONS:
        hint = "for plain HTTP set plain_http for this host"
        return NotTlsError(NetworkError(f"{host} does not speak TLS ({reason})", hint=hint))
    return TransientError(NetworkError(f"TLS with {host} failed: {reason}"))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and what caused it, also inside exception groups. Bounded."""
    waiting = [error]
    for _ in range(64):
        if not waiting:
            return
        current = waiting.pop(0)
        if current is None:
            continue
        yield current
        waiting.append(current.__cause__ or current.__context__)
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)


def _reason(error: Exception, causes: list[BaseException]) -> str:
    """The most telling words: the system's own for an errno, else those of httpx."""
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in errno.errorcode and cause.strerror:
            return cause.strerror.lower()
    return str(error) or type(error).__name__

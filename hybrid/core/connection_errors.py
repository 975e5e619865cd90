"""Failed connections become errors here: refused, silent, not trusted, not TLS, no such host.

The only place that knows the exceptions of httpx, and which of them may pass.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx

from hybrid.core.http_errors import TRANSIENT_STATUSES
from hybrid.core.proxies import HINT as PROXY_HINT
from hybrid.core.proxies import Proxy
from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.retry import TransientError
from hybrid.core.tls import trust_hint
from hybrid.errors import AuthError, CertificateError, HybridError, NetworkError

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
def translated_errors(
    url: str, settings: RegistrySettings, proxy: Proxy | None = None
) -> Iterator[None]:
    """Exceptions of httpx, on the way to ``url``, leave as TransientError or HybridError.

    So does a UnicodeError: what the look-up of a name raises that breaks the rules for names.
    """
    try:
        yield
    except UnicodeError as error:
        host = proxy.name if proxy is not None else netloc(url)
        message = f"there is no host {host}: the name breaks the rules for names of hosts"
        raise NetworkError(message, hint="check the name") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise translate(error, url, settings, proxy) from error


def translate(
    error: httpx.HTTPError | httpx.InvalidURL,
    url: str,
    settings: RegistrySettings,
    proxy: Proxy | None = None,
) -> HybridError | TransientError:
    """The error for an exception of httpx on the way to ``url``."""
    host = netloc(url)
    way = f"{host} by way of the proxy {proxy.name}" if proxy is not None else host
    causes = list(_causes(error))
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return NetworkError(f"the server names an address that cannot be used: {error}")
    if isinstance(error, httpx.ProxyError):
        return _proxy_failure(error, way)
    if isinstance(error, httpx.ConnectTimeout):
        return ConnectTimeoutError(NetworkError(f"cannot connect to {way} in time"))
    if isinstance(error, httpx.TimeoutException):
        silent = f"{way} was silent for {settings.read_seconds:g} s"
        return TransientError(NetworkError(silent))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            message = f"the certificate of {host} is not trusted: {cause.verify_message}"
            return CertificateError(message, hint=trust_hint(host, settings.certs_directories))
        if isinstance(cause, ssl.SSLError):
            return _tls_failure(cause, way)
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            name = f"proxy {proxy.name}" if proxy is not None else f"host {host}"
            hint = PROXY_HINT if proxy is not None else "check the name"
            return NetworkError(f"there is no {name}: {cause.strerror}", hint=hint)
    reason = _reason(error, causes)
    if isinstance(error, httpx.ConnectError):
        peer = f"the proxy {proxy.name} (to {host})" if proxy is not None else host
        hint = PROXY_HINT if proxy is not None else "is it running, and is the port right?"
        return UnreachableError(NetworkError(f"cannot connect to {peer}: {reason}", hint=hint))
    return TransientError(NetworkError(f"the connection to {way} broke: {reason}"))


def netloc(url: str) -> str:
    """``host[:port]`` of a URL, without user names."""
    try:
        return httpx.URL(url).netloc.decode()
    except httpx.InvalidURL:
        return "?"


def _proxy_failure(error: httpx.ProxyError, way: str) -> HybridError | TransientError:
    """A proxy that makes no tunnel. httpx keeps its status only in the text of the exception."""
    match = re.match(r"(\d{3})\b", str(error))
    status = int(match[1]) if match is not None else 0
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return AuthError(f"no connection to {way}: it wants a login (407)", hint=PROXY_HINT)
    answer = f"it answers {status}" if status else "it refuses"
    failure = NetworkError(f"no connection to {way}: {answer}", hint=PROXY_HINT)
    return TransientError(failure) if status in TRANSIENT_STATUSES else failure


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

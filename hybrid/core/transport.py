"""One HTTP exchange: connections, TLS or not, time-outs, and httpx's exceptions made ours.

Knows hosts but nothing of images, authentication or retries; those stand above it. A failure that
may pass is a TransientError (retry.py), any other a HybridError.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx
import trio

from hybrid.config import RegistryHost
from hybrid.core.connection_errors import (
    ConnectTimeoutError,
    NotTlsError,
    UnreachableError,
    translated_errors,
)
from hybrid.core.hosts import has_port, host_name, is_endpoint, is_loopback
from hybrid.core.http_body import read_up_to
from hybrid.core.origins import Origin, Origins
from hybrid.core.proxies import Proxies, Proxy
from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.request_body import RequestBody
from hybrid.core.retry import TransientError
from hybrid.core.tls import TlsProfile, certs_of, make_context, profile_for
from hybrid.errors import ConfigError, NetworkError

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30.0
"""How long an idle connection is kept."""
LOOPBACK_CONNECT_SECONDS = 2.0
"""Longest time to connect (with TLS) to this machine itself, where only the peer can be slow."""
MAX_PROFILES = 1024


@dataclass
class HostState:
    """What was learned about one registry host.

    ``lock`` is held while the scheme is still open, so that only one task finds it out.
    """

    schemes: list[str]
    """What may be tried, best first; one element once it is settled."""
    profile: TlsProfile
    lock: trio.Lock = field(default_factory=trio.Lock)


class Transport:
    """The connections of the process. An async context manager; closes them all.

    It stands on httpx's transports, not its clients: those keep cookies and hand them to other
    ports, and look into redirects that they are told not to follow.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        self.settings = settings
        self.requests = 0
        self.bytes_fetched = 0
        self.answers = 0
        self._pools: dict[tuple[TlsProfile, Proxy | None], httpx.AsyncHTTPTransport] = {}
        self._hosts: dict[str, HostState] = {}
        self._profiles: dict[tuple[str, str], TlsProfile] = {}
        self._origins = Origins(settings.max_connections, Proxies(os.environ))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing must not hang on a cancelled or dead connection.
        with trio.move_on_after(2, shield=True):
            await self._stack.aclose()
        self._pools.clear()

    def host(self, name: str) -> HostState:
        """The state of a registry host (``host[:port]``)."""
        if name not in self._hosts:
            options = self.settings.hosts.get(name, RegistryHost())
            profile = profile_for(self.settings, name, options.insecure)
            self._hosts[name] = HostState(first_schemes(name, options), profile)
        return self._hosts[name]

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        registry: str,
        body: RequestBody | None = None,
        download: bool = False,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request for the registry host ``registry``; its CAs hold for other hosts too.

        The response's body is not read yet. Nothing is followed, nothing is tried again.
        ``download``: the caller makes other requests before it has read the answer.
        """
        with translated_errors(url, self.settings):
            target = httpx.URL(url)
            origin = self._origins.get(target)
            profile = self._profile(target, registry)
        # Each exchange borrows for itself: one task may read one answer and ask for another.
        limiter, borrower = origin.downloads if download else origin.limiter, object()
        await limiter.acquire_on_behalf_of(borrower)
        try:
            origin.check_rest()
            if body is not None:
                await body.start()
            with translated_errors(url, self.settings, origin.proxy):
                pool = self._pool(profile, origin.proxy)
                request = self._request(method, target, headers, body, origin)
                self.requests += 1
                response = await send_or_close(pool, request)
            self.answers += 1
            origin.note(response)
            try:
                yield response
            finally:
                # An unread body makes httpx drop the connection, which is what we want.
                with trio.move_on_after(1, shield=True):
                    await response.aclose()
        finally:
            limiter.release_on_behalf_of(borrower)

    @asynccontextmanager
    async def registry_exchange(
        self,
        method: str,
        registry: str,
        path: str,
        headers: Mapping[str, str],
        scheme: str | None,
        *,
        body: RequestBody | None = None,
        download: bool = False,
    ) -> AsyncIterator[httpx.Response]:
        """Ask a registry for ``path``, over ``scheme`` or, if that is None, the best there is."""
        async with AsyncExitStack() as stack:

            async def send(scheme: str) -> httpx.Response:
                url = f"{scheme}://{registry}{path}"
                return await stack.enter_async_context(
                    self.exchange(
                        method, url, headers, registry=registry, body=body, download=download
                    )
                )

            yield await self._settle(registry, scheme, send)

    @contextmanager
    def reading(self, response: httpx.Response) -> Iterator[None]:
        """Whoever reads the body of an answer step by step does it in here: errors become ours."""
        proxy = self._origins.get(response.url).proxy
        with translated_errors(str(response.url), self.settings, proxy):
            yield

    async def read_body(self, response: httpx.Response, limit_bytes: int) -> bytes:
        """The body, undecoded. A TransientError if it is cut, NetworkError if it is longer."""
        with self.reading(response):
            body, too_long = await read_up_to(response, limit_bytes)
        self.bytes_fetched += len(body)
        if too_long:
            host = response.url.netloc.decode()
            raise NetworkError(f"{host} sends more than the {limit_bytes} bytes expected")
        return body

    async def _settle(
        self,
        registry: str,
        scheme: str | None,
        send: Callable[[str], Awaitable[httpx.Response]],
    ) -> httpx.Response:
        state = self.host(registry)
        if scheme is not None:
            return await send(scheme)
        if len(state.schemes) > 1:
            async with state.lock:
                if len(state.schemes) > 1:
                    return await self._find_scheme(state, registry, send)
        return await send(state.schemes[0])

    async def _find_scheme(
        self, state: HostState, registry: str, send: Callable[[str], Awaitable[httpx.Response]]
    ) -> httpx.Response:
        """Try https, then http; only an answer settles it. Never after a certificate error."""
        try:
            response = await send("https")
            state.schemes = ["https"]
            return response
        except ConnectTimeoutError as silent:
            # A server of plain HTTP may wait for more of the greeting that it takes for a request.
            failure: TransientError = silent
        except UnreachableError as unreachable:
            # With a port in the name both schemes meet the same peer: refused is refused.
            if has_port(registry):
                raise
            failure = unreachable
        except NotTlsError as not_tls:
            failure = not_tls
        try:
            response = await send("http")
        except UnreachableError:
            raise failure from None
        # A server of TLS answers 400 to plain HTTP: it was only slow before.
        if response.status_code == HTTPStatus.BAD_REQUEST:
            raise failure
        state.schemes = ["http"]
        logger.debug("%s speaks plain HTTP", registry)
        return response

    def _profile(self, url: httpx.URL, registry: str) -> TlsProfile:
        """The TLS profile for a URL that ``registry`` led us to."""
        if is_endpoint(registry, url):
            return self.host(registry).profile
        for name in self.settings.hosts:
            if is_endpoint(name, url):
                return self.host(name).profile
        key = (registry, url.netloc.decode())
        if key not in self._profiles:
            if len(self._profiles) >= MAX_PROFILES:
                self._profiles.clear()
            # The registry's CAs hold for where it leads us; its exceptions and our identity do not.
            ca_files, certs = certs_of(self.settings, key[1])
            own = self.host(registry).profile
            self._profiles[key] = replace(
                own, insecure=False, ca_files=own.ca_files + ca_files, client_certs=certs
            )
        return self._profiles[key]

    def _pool(self, profile: TlsProfile, proxy: Proxy | None) -> httpx.AsyncHTTPTransport:
        key = (profile, proxy)
        if key not in self._pools:
            try:
                pool = httpx.AsyncHTTPTransport(
                    verify=make_context(profile),
                    trust_env=False,
                    # The limiters of origins are the limit: waiting there is fair, and cancels
                    # cleanly.
                    limits=httpx.Limits(
                        max_connections=None,
                        max_keepalive_connections=self.settings.max_connections,
                        keepalive_expiry=KEEP_ALIVE_SECONDS,
                    ),
                    proxy=httpx.Proxy(proxy.url) if proxy is not None else None,
                )
            except ImportError as error:
                variable = proxy.variable if proxy is not None else "the environment"
                hint = "install the Python package socksio, or use another proxy"
                raise ConfigError(f"the proxy in {variable} is a SOCKS proxy", hint=hint) from error
            self._pools[key] = pool
            self._stack.push_async_callback(pool.aclose)
        return self._pools[key]

    def _request(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        body: RequestBody | None,
        origin: Origin,
    ) -> httpx.Request:
        settings = self.settings
        read_seconds = settings.read_seconds
        if body is not None:
            headers = {**headers, "Content-Length": str(body.length)}
            read_seconds = max(read_seconds, body.answer_seconds)
        connect_seconds = settings.connect_seconds
        if origin.loopback:
            connect_seconds = min(connect_seconds, LOOPBACK_CONNECT_SECONDS)
        timeout = httpx.Timeout(
            connect=connect_seconds, read=read_seconds, write=settings.read_seconds, pool=None
        )
        common = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": settings.user_agent}
        request = httpx.Request(
            method,
            url,
            headers={**common, **headers},
            extensions={"timeout": timeout.as_dict()},
        )
        if body is not None:
            request.stream = body
        return request


async def send_or_close(pool: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    """Send, and see to it that a failure leaves no socket open.

    httpcore forgets the socket when a TLS handshake is cancelled; the garbage collector would
    close it some time, with a ResourceWarning.
    """
    opened: list[httpcore.AsyncNetworkStream] = []

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            opened.append(info["return_value"])

    request.extensions["trace"] = trace
    try:
        response = await pool.handle_async_request(request)
    except BaseException:
        with trio.CancelScope(shield=True):
            for stream in opened:
                await stream.aclose()
        raise
    response.request = request
    return response


def first_schemes(host: str, options: RegistryHost) -> list[str]:
    """The schemes that may be tried for a host, best first."""
    if options.plain_http:
        return ["http"]
    return ["https", "http"] if options.insecure or is_loopback(host_name(host)) else ["https"]

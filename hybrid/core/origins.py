"""What is known of each scheme, host and port: its share of connections, and its wish for rest."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus

import httpx
import trio

from hybrid.core.hosts import is_loopback, port_of
from hybrid.core.proxies import Proxies, Proxy
from hybrid.core.retry import TransientError, parse_retry_after
from hybrid.errors import NetworkError

MAX_ORIGINS = 256
MAX_REST_SECONDS = 60.0
"""Longest time that nobody asks a host at all because of one Retry-After."""


@dataclass(eq=False)
class Origin:
    """One place to send requests to. ``not_before`` is on trio's clock."""

    netloc: str
    loopback: bool
    proxy: Proxy | None
    limiter: trio.CapacityLimiter
    """For requests."""
    downloads: trio.CapacityLimiter
    """For answers that are read while other requests are made, which may wait for this one."""
    not_before: float = 0.0

    def check_rest(self) -> None:
        """Raise TransientError if the host wants no request now, whoever it said that to."""
        left = self.not_before - trio.current_time()
        if left > 0:
            message = f"{self.netloc} answered 429 Too Many Requests, and is not asked again yet"
            raise TransientError(
                NetworkError(message, hint="too many requests: log in, or wait"), left
            )

    def note(self, response: httpx.Response) -> None:
        """Remember the Retry-After of a host that gets too many requests."""
        if response.status_code != HTTPStatus.TOO_MANY_REQUESTS:
            return
        asked = parse_retry_after(response.headers.get("retry-after"), time.time())
        if asked:
            until = trio.current_time() + min(asked, MAX_REST_SECONDS)
            self.not_before = max(self.not_before, until)

    @property
    def busy(self) -> bool:
        return self.limiter.borrowed_tokens + self.downloads.borrowed_tokens > 0


class Origins:
    """All origins met. Each has connections of its own, so a silent one does not starve others.

    Redirects may name ever new ones: beyond MAX_ORIGINS the idle ones are forgotten.
    """

    def __init__(self, max_connections: int, proxies: Proxies) -> None:
        self._max_connections = max_connections
        self._proxies = proxies
        self._known: dict[tuple[str, str, int | None], Origin] = {}

    def get(self, url: httpx.URL) -> Origin:
        """The origin of ``url``. Raises ConfigError for a proxy that cannot be used."""
        key = (url.scheme, url.host, port_of(url))
        if key not in self._known:
            if len(self._known) >= MAX_ORIGINS:
                self._known = {k: origin for k, origin in self._known.items() if origin.busy}
            self._known[key] = Origin(
                url.netloc.decode(),
                is_loopback(url.host),
                self._proxies.proxy_for(url),
                trio.CapacityLimiter(self._max_connections),
                trio.CapacityLimiter(self._max_connections),
            )
        return self._known[key]

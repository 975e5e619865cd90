"""Redirects to object storage: which are followed, and how long their end is remembered."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import trio

from hybrid.core.hosts import host_name, is_loopback
from hybrid.errors import NetworkError

MAX_REDIRECTS = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
MAX_TARGETS = 4096
MAX_PORT = 65535

BlobKey = tuple[str, str]
"""(``host/repository``, digest)"""


@dataclass(frozen=True)
class Target:
    """An address that serves a blob; it may be a signed one, so it stays out of messages."""

    url: str

    @property
    def origin(self) -> tuple[str, str, int | None]:
        """Scheme, host and port: a login for one origin is never sent to another."""
        url = httpx.URL(self.url)
        return url.scheme, url.host, url.port


class TargetCache:
    """Where blobs were redirected to, for ``lifetime_seconds`` from then (on trio's clock)."""

    def __init__(self, lifetime_seconds: float) -> None:
        self._lifetime = lifetime_seconds
        self._targets: dict[BlobKey, tuple[Target, float]] = {}

    def get(self, key: BlobKey) -> Target | None:
        target, expires = self._targets.get(key, (None, 0.0))
        return target if trio.current_time() < expires else None

    def remember(self, key: BlobKey, target: Target) -> None:
        if len(self._targets) >= MAX_TARGETS:
            self._targets.clear()
        self._targets[key] = (target, trio.current_time() + self._lifetime)

    def drop(self, key: BlobKey, target: Target) -> None:
        """Forget ``target``, unless another task has found a newer one already."""
        if self._targets.get(key, (None, 0.0))[0] == target:
            del self._targets[key]


def is_redirect(response: httpx.Response) -> bool:
    """Whether the answer sends us elsewhere."""
    return response.status_code in REDIRECT_STATUSES


def next_target(current: Target, location: str, host: str, deed: str = "redirects") -> Target:
    """Where ``location`` (absolute or relative) leads. ``host`` is the registry, and ``deed``
    what it does by that, for messages.

    Raises NetworkError for a missing or unusable address, or one that gives TLS up. Only a
    registry on this machine may send us to its plain HTTP: any other could make us ask programs
    that trust whoever comes from here.
    """
    if not location:
        raise NetworkError(f"{host} {deed} without saying where to")
    try:
        url = httpx.URL(current.url).join(location)
        name = url.host
    except (httpx.InvalidURL, ValueError) as error:
        raise NetworkError(f"{host} {deed} to an address that cannot be used") from error
    in_range = url.port is None or 1 <= url.port <= MAX_PORT
    if url.scheme not in ("http", "https") or not name or not in_range:
        raise NetworkError(f"{host} {deed} to an address that cannot be used")
    downgrade = url.scheme == "http" and current.origin[0] == "https"
    if downgrade and not (is_loopback(name) and is_loopback(host_name(host))):
        raise NetworkError(
            f"{host} {deed} from https to plain http on {name}",
            hint="that is refused: anybody in between could read and change the data",
        )
    return Target(str(url.copy_with(fragment=None)))

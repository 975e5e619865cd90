"""One attempt to GET something: challenges are answered, redirects followed, nothing tried again.

Concurrency: nothing awaits while it holds a connection, except on that connection. (A task that
kept its 401 answer open while it waits for a token could take the last connection away from the
task that fetches that token.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx

from hybrid.core.auth import Authenticator, choose
from hybrid.core.challenge import Challenge, parse_challenges
from hybrid.core.credentials import Credentials
from hybrid.core.redirect import (
    MAX_REDIRECTS,
    BlobKey,
    Target,
    TargetCache,
    is_redirect,
    next_target,
)
from hybrid.core.reference import RegistryReference
from hybrid.core.retry import TransientError
from hybrid.core.transport import Transport
from hybrid.errors import HybridError, NetworkError

T = TypeVar("T")
Consume = Callable[[httpx.Response], Awaitable[T]]
"""Turns an answer (any status but a redirect) into a result, or raises."""

MAX_CHALLENGES = 3
"""Of one GET: none sent, a cached one refused, a fresh one refused."""
STALE_STATUSES = frozenset({400, 401, 403, 404, 410})
"""How storage answers when a signed URL has expired, or its object has moved."""


class StaleTargetError(Exception):
    """The remembered place of a blob does not serve it any more."""


class Fetcher:
    """Carries out single GETs over a Transport."""

    def __init__(self, transport: Transport, credentials: Credentials) -> None:
        self._transport = transport
        self._auth = Authenticator(transport, credentials)
        self._targets = TargetCache(transport.settings.redirect_seconds)

    async def blob(
        self,
        ref: RegistryReference,
        digest: str,
        headers: dict[str, str],
        scheme: str | None,
        consume: Consume[T],
    ) -> T:
        """GET a blob: straight from where it was redirected to, if that is still known."""
        key = (ref.name, digest)
        target = self._targets.get(key)
        if target is not None:
            try:
                return await self._from_target(target, ref, headers, consume)
            except StaleTargetError:
                self._targets.drop(key, target)
            except (TransientError, HybridError):
                self._targets.drop(key, target)
                raise
        path = f"/v2/{ref.repository}/blobs/{digest}"
        return await self.get(ref, path, headers, scheme, consume, key)

    async def _from_target(
        self,
        target: Target,
        ref: RegistryReference,
        headers: dict[str, str],
        consume: Consume[T],
    ) -> T:
        async with self._transport.exchange(
            "GET", target.url, headers, registry=ref.api_host
        ) as response:
            if response.status_code in STALE_STATUSES or is_redirect(response):
                raise StaleTargetError
            return await consume(response)

    async def get(
        self,
        ref: RegistryReference,
        path: str,
        headers: dict[str, str],
        scheme: str | None,
        consume: Consume[T],
        key: BlobKey | None = None,
    ) -> T:
        """GET from the registry itself: answers its challenge, follows its redirects.

        With ``key`` the place where the redirects ended is remembered under it.
        """
        header = await self._auth.authorization(ref)
        last = False
        for number in range(MAX_CHALLENGES + 1):
            last = last or number == MAX_CHALLENGES
            sent = {**headers, "Authorization": header} if header else headers
            async with self._transport.registry_exchange(
                ref.api_host, path, sent, scheme
            ) as response:
                status = response.status_code
                challenges = parse_challenges(response.headers.get_list("www-authenticate"))
                outdated = number == 0 and header is not None and is_outdated(status, challenges)
                refused = status == 401 or outdated
                if not is_redirect(response) and (last or not refused):
                    return await consume(response)
                url = response.url
                location = response.headers.get("location", "")
            if not refused:
                return await self._follow(ref, Target(str(url)), location, sent, key, consume)
            header, last = await self._auth.answer(ref, challenges, header, url.scheme == "https")
        raise AssertionError("the last answer is always consumed")

    async def _follow(
        self,
        ref: RegistryReference,
        start: Target,
        location: str,
        headers: dict[str, str],
        key: BlobKey | None,
        consume: Consume[T],
    ) -> T:
        current = start
        for _ in range(MAX_REDIRECTS):
            current = next_target(current, location, ref.host)
            if current.origin != start.origin:
                headers = {k: v for k, v in headers.items() if k != "Authorization"}
            async with self._transport.exchange(
                "GET", current.url, headers, registry=ref.api_host
            ) as response:
                if not is_redirect(response):
                    result = await consume(response)
                    if key is not None and current.origin != start.origin:
                        self._targets.remember(key, current)
                    return result
                location = response.headers.get("location", "")
        raise NetworkError(f"{ref.host} redirects more than {MAX_REDIRECTS} times")


def is_outdated(status: int, challenges: Sequence[Challenge]) -> bool:
    """Whether a 403 is about a remembered token: some registries say so of an expired one."""
    chosen = choose(challenges)
    return status == 403 and chosen is not None and chosen.scheme == "bearer"

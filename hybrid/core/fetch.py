"""One attempt to ask for something: challenges answered, redirects followed, nothing tried again.

Concurrency: nothing awaits while it holds a connection, except on that connection. (A task that
kept its 401 answer open while it waits for a token could take the last connection away from the
task that fetches that token.) Held downloads have connections of their own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

import httpx

from hybrid.core.auth import PULL, Access, Authenticator, choose
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
from hybrid.core.request_body import RequestBody
from hybrid.core.retry import TransientError
from hybrid.core.transport import Transport
from hybrid.errors import HybridError, NetworkError

T = TypeVar("T")
Consume = Callable[[httpx.Response], Awaitable[T]]
"""Turns an answer (any status but a redirect) into a result, or raises."""
Exchange = AbstractAsyncContextManager[httpx.Response]

MAX_CHALLENGES = 3
"""Of one request: none sent, a cached one refused, a fresh one refused."""
STALE_STATUSES = frozenset({400, 401, 403, 404, 410})
"""How storage answers when a signed URL has expired, or its object has moved."""


class StaleTargetError(Exception):
    """The remembered place of a blob does not serve it any more."""


class Fetcher:
    """Carries out single requests over a Transport.

    With ``hold`` the exchange stays open after ``consume`` has returned, until that stack is
    closed: for bodies that are read step by step.
    """

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
        *,
        hold: AsyncExitStack | None = None,
    ) -> T:
        """GET a blob: straight from where it was redirected to, if that is still known."""
        key = (ref.name, digest)
        target = self._targets.get(key)
        if target is not None:
            try:
                return await self._from_target(target, ref, headers, consume, hold)
            except StaleTargetError:
                self._targets.drop(key, target)
            except (TransientError, HybridError):
                self._targets.drop(key, target)
                raise
        path = f"/v2/{ref.repository}/blobs/{digest}"
        return await self.get(ref, path, headers, scheme, consume, key, hold=hold)

    async def _from_target(
        self,
        target: Target,
        ref: RegistryReference,
        headers: dict[str, str],
        consume: Consume[T],
        hold: AsyncExitStack | None,
    ) -> T:
        async with AsyncExitStack() as stack:
            response = await stack.enter_async_context(
                self._transport.exchange(
                    "GET", target.url, headers, registry=ref.api_host, download=hold is not None
                )
            )
            if response.status_code in STALE_STATUSES or is_redirect(response):
                raise StaleTargetError
            return await consume_and_hold(response, consume, stack, hold)

    async def get(
        self,
        ref: RegistryReference,
        path: str,
        headers: dict[str, str],
        scheme: str | None,
        consume: Consume[T],
        key: BlobKey | None = None,
        *,
        hold: AsyncExitStack | None = None,
    ) -> T:
        """GET from the registry itself: answers its challenge, follows its redirects.

        With ``key`` the place where the redirects ended is remembered under it.
        """

        def ask(sent: dict[str, str]) -> Exchange:
            return self._transport.registry_exchange(
                "GET", ref.api_host, path, sent, scheme, download=hold is not None
            )

        async def follow(start: Target, location: str, sent: dict[str, str]) -> T:
            return await self._follow(ref, start, location, sent, key, consume, hold)

        return await self._authorized(ref, headers, ask, consume, PULL, follow, hold)

    async def send(
        self,
        method: str,
        ref: RegistryReference,
        where: str | Target,
        headers: dict[str, str],
        scheme: str | None,
        consume: Consume[T],
        *,
        access: Access,
        home: Target | None = None,
        body: RequestBody | None = None,
    ) -> T:
        """Send something to the registry, to a path or to an address that it gave.

        The login goes only to the origin of ``home``, the registry itself. Redirects are not
        followed: ``consume`` gets them.
        """
        if isinstance(where, str):

            def ask(sent: dict[str, str]) -> Exchange:
                return self._transport.registry_exchange(
                    method, ref.api_host, where, sent, scheme, body=body
                )

            return await self._authorized(ref, headers, ask, consume, access)

        def ask_there(sent: dict[str, str]) -> Exchange:
            return self._transport.exchange(
                method, where.url, sent, registry=ref.api_host, body=body
            )

        if home is not None and where.origin == home.origin:
            return await self._authorized(ref, headers, ask_there, consume, access)
        async with ask_there(headers) as response:
            return await consume(response)

    async def _authorized(
        self,
        ref: RegistryReference,
        headers: dict[str, str],
        ask: Callable[[dict[str, str]], Exchange],
        consume: Consume[T],
        access: Access,
        follow: Callable[[Target, str, dict[str, str]], Awaitable[T]] | None = None,
        hold: AsyncExitStack | None = None,
    ) -> T:
        header = await self._auth.authorization(ref, access)
        last = False
        for number in range(MAX_CHALLENGES + 1):
            last = last or number == MAX_CHALLENGES
            sent = {**headers, "Authorization": header} if header else headers
            async with AsyncExitStack() as stack:
                response = await stack.enter_async_context(ask(sent))
                status = response.status_code
                challenges = parse_challenges(response.headers.get_list("www-authenticate"))
                outdated = number == 0 and header is not None and is_outdated(status, challenges)
                refused = status == 401 or outdated
                redirected = follow is not None and is_redirect(response)
                if not redirected and (last or not refused):
                    return await consume_and_hold(response, consume, stack, hold)
                url = response.url
                location = response.headers.get("location", "")
            if not refused:
                assert follow is not None
                return await follow(Target(str(url)), location, sent)
            tls = url.scheme == "https"
            header, last = await self._auth.answer(ref, challenges, header, tls, access)
        raise AssertionError("the last answer is always consumed")

    async def _follow(
        self,
        ref: RegistryReference,
        start: Target,
        location: str,
        headers: dict[str, str],
        key: BlobKey | None,
        consume: Consume[T],
        hold: AsyncExitStack | None,
    ) -> T:
        current = start
        for _ in range(MAX_REDIRECTS):
            current = next_target(current, location, ref.host)
            if current.origin != start.origin:
                headers = {k: v for k, v in headers.items() if k != "Authorization"}
            async with AsyncExitStack() as stack:
                response = await stack.enter_async_context(
                    self._transport.exchange(
                        "GET", current.url, headers, registry=ref.api_host,
                        download=hold is not None,
                    )
                )  # fmt: skip
                if not is_redirect(response):
                    result = await consume_and_hold(response, consume, stack, hold)
                    if key is not None and current.origin != start.origin:
                        self._targets.remember(key, current)
                    return result
                location = response.headers.get("location", "")
        raise NetworkError(f"{ref.host} redirects more than {MAX_REDIRECTS} times")


async def consume_and_hold(
    response: httpx.Response,
    consume: Consume[T],
    stack: AsyncExitStack,
    hold: AsyncExitStack | None,
) -> T:
    """Consume an answer; if that went well, ``hold`` takes over what ``stack`` would close."""
    result = await consume(response)
    if hold is not None:
        hold.push_async_exit(stack.pop_all())
    return result


def is_outdated(status: int, challenges: Sequence[Challenge]) -> bool:
    """Whether a 403 is about a remembered token: some registries say so of an expired one."""
    chosen = choose(challenges)
    return status == 403 and chosen is not None and chosen.scheme == "bearer"

"""One upload to a registry: begun, asked where it stands, cancelled.

The registry says in each answer where the next request of the upload goes (``Location``): anywhere
on itself, or on another host, which then gets no login of ours.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx
import trio

from hybrid.core.auth import PUSH
from hybrid.core.push_errors import push_error
from hybrid.core.redirect import Target, next_target
from hybrid.core.reference import RegistryReference
from hybrid.core.registry import Registry
from hybrid.core.request_body import BytesBody, RequestBody
from hybrid.core.retry import TransientError
from hybrid.errors import HybridError, NetworkError

T = TypeVar("T")

CANCEL_SECONDS = 2.0
MAX_CHUNK_BYTES = 1 << 26
OK_STATUSES = (200, 201, 204)


@dataclass
class PushSession:
    """Where an upload goes on. ``home`` is the registry itself: what may get our login."""

    ref: RegistryReference
    home: Target
    target: Target
    least_chunk: int = 0
    """Bytes that each chunk but the last must have."""

    @classmethod
    def of_answer(cls, ref: RegistryReference, response: httpx.Response) -> PushSession:
        """From the answer that began it. Raises NetworkError if its address cannot be used."""
        home = Target(str(response.url))
        session = cls(ref, home, home)
        session.move(response, needed=True)
        stated = response.headers.get("oci-chunk-min-length", "")
        if re.fullmatch("[0-9]{1,18}", stated):
            session.least_chunk = int(stated)
        if session.least_chunk > MAX_CHUNK_BYTES:
            raise NetworkError(f"{ref.host} wants chunks of at least {stated} bytes, too many")
        return session

    def move(self, response: httpx.Response, *, needed: bool = False) -> None:
        """Go where the answer says, if it says so."""
        location = response.headers.get("location", "")
        if location or needed:
            current = Target(str(response.url))
            self.target = next_target(current, location, self.ref.host, "sends uploads")

    def closing(self, digest: str) -> Target:
        """The address that ends the upload."""
        url, _, _ = self.target.url.partition("#")
        # Not parsed and put together again: registries sign what stands there.
        return Target(f"{url}{'&' if '?' in url else '?'}digest={digest.replace(':', '%3A')}")


async def begin_session(registry: Registry, ref: RegistryReference, what: str) -> PushSession:
    """One attempt to begin an upload."""

    async def consume(response: httpx.Response) -> PushSession:
        if response.status_code != 202:
            raise await push_error(response, what, ref)
        return PushSession.of_answer(ref, response)

    path = f"/v2/{ref.repository}/blobs/uploads/"
    return await registry.fetcher.send(
        "POST", ref, path, {}, None, consume, access=PUSH, body=BytesBody(b"")
    )


async def send_in_session(
    registry: Registry,
    session: PushSession,
    method: str,
    target: Target,
    headers: dict[str, str],
    body: RequestBody | None,
    consume: Callable[[httpx.Response], Awaitable[T]],
) -> T:
    """One attempt at one request of an upload."""
    return await registry.fetcher.send(
        method, session.ref, target, headers, None, consume,
        access=PUSH, home=session.home, body=body,
    )  # fmt: skip


async def received_bytes(registry: Registry, session: PushSession, what: str) -> int:
    """How much of the upload the registry has; one attempt."""

    async def consume(response: httpx.Response) -> int:
        if response.status_code != 204:
            raise await push_error(response, what, session.ref)
        session.move(response)
        received = stated_bytes(response)
        if received is None:
            host = response.url.netloc.decode()
            raise NetworkError(f"{what}: {host} does not say how much of it has come")
        return received

    return await send_in_session(registry, session, "GET", session.target, {}, None, consume)


def stated_bytes(response: httpx.Response) -> int | None:
    """How much of an upload the registry has, as the answer says; None if it does not."""
    match = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,18})", response.headers.get("range", ""))
    return int(match[1]) + 1 if match is not None else None


async def cancel_session(registry: Registry, session: PushSession) -> None:
    """Have the registry throw away what it has, if it can be reached and lets us."""

    async def consume(response: httpx.Response) -> None:
        pass

    with trio.move_on_after(CANCEL_SECONDS, shield=True):
        with contextlib.suppress(TransientError, HybridError):
            await send_in_session(registry, session, "DELETE", session.target, {}, None, consume)

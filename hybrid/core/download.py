"""A whole blob of a registry as a verified stream, which outlives broken connections.

One GET for all of it; after a broken connection a range request goes on where that one ended. The
budget of retries holds for each READ_BYTES, so neither a dead nor a trickling server is waited for
without end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import trio

from hybrid.core.byte_range import check_range_answer, range_header
from hybrid.core.byte_stream import ByteStream, VerifiedStream
from hybrid.core.device import Buffer
from hybrid.core.http_errors import status_error
from hybrid.core.reference import RegistryReference
from hybrid.core.registry import Registry, blob_name
from hybrid.core.retry import TransientError
from hybrid.errors import FormatError, HybridError, NetworkError

READ_BYTES = 1 << 17
DAMAGED_HINT = "it was changed on its way or in the registry"


def open_download(
    registry: Registry,
    ref: RegistryReference,
    digest: str,
    size: int,
    *,
    scheme: str | None = None,
) -> ByteStream:
    """The blob as a stream that checks ``digest`` and ``size`` (bytes).

    Asks nothing before it is read. It holds a connection until it is closed, one of the
    ``max_connections`` for downloads. Its reads raise what ``Registry`` raises.
    """
    inner = BlobDownload(registry, ref, digest, size, scheme)
    return VerifiedStream(inner, digest, size, hint=DAMAGED_HINT)


class BlobDownload(ByteStream):
    """The bytes as they come, exactly ``size`` of them; their digest is not checked here."""

    def __init__(
        self,
        registry: Registry,
        ref: RegistryReference,
        digest: str,
        size: int,
        scheme: str | None,
    ) -> None:
        self.name = blob_name(ref, digest)
        self._registry = registry
        self._ref = ref
        self._digest = digest
        self._size = size
        self._scheme = scheme
        self._position = 0
        self._parts: list[bytes] = []
        self._answer: Answer | None = None

    async def read(self) -> Buffer:
        if self._position < self._size:
            await self._registry.retried(self.name, self._fill)
        await trio.lowlevel.checkpoint()
        data, self._parts = b"".join(self._parts), []
        return data

    async def aclose(self) -> None:
        if self._answer is not None:
            answer, self._answer = self._answer, None
            await answer.aclose()

    async def _fill(self) -> None:
        """Add to ``_parts`` until there is enough for one read."""
        try:
            if self._answer is None:
                self._answer = await self._ask()
            while self._position < self._size and sum(map(len, self._parts)) < READ_BYTES:
                self._take(await self._answer.read())
            if self._position == self._size:
                await self._see_end(self._answer)
        except BaseException:
            await self.aclose()
            raise

    def _take(self, piece: bytes) -> None:
        if not piece:
            message = f"{self.name}: the answer ends after {self._position} of {self._size} bytes"
            raise TransientError(NetworkError(message))
        if self._position + len(piece) > self._size:
            raise FormatError(
                f"{self.name} has more than the {self._size} bytes expected", hint=DAMAGED_HINT
            )
        self._position += len(piece)
        self._parts.append(piece)

    async def _see_end(self, answer: Answer) -> None:
        """Reading the end of the answer is what makes the connection fit for another request."""
        try:
            rest = await answer.read()
        except (TransientError, HybridError):
            rest = b""  # all that was asked for has come
        if rest:
            self._take(rest)
        await self.aclose()

    async def _ask(self) -> Answer:
        offset, size = self._position, self._size

        async def consume(response: httpx.Response) -> Answer:
            if response.status_code not in (200, 206, 416):
                raise await status_error(response, self.name)
            # A server without ranges sends all of it again: then the beginning is passed over.
            again = offset if response.status_code == 200 else 0
            start = offset - again
            check_range_answer(
                response.status_code, response.headers, start, size - start, size, self.name
            )
            return Answer(self._registry, response, hold, again)

        headers = {"Range": range_header(offset, size - offset)} if offset else {}
        async with AsyncExitStack() as hold:
            answer = await self._registry.fetcher.blob(
                self._ref, self._digest, headers, self._scheme, consume, hold=hold
            )
            answer.held = hold.pop_all()
        return answer


class Answer:
    """The answer to a GET, whose body is read step by step. ``held`` keeps it open."""

    def __init__(
        self, registry: Registry, response: httpx.Response, held: AsyncExitStack, skip: int
    ) -> None:
        self.held = held
        self._transport = registry.transport
        self._response = response
        self._pieces: AsyncIterator[bytes] = response.aiter_raw()
        self._skip = skip

    async def read(self) -> bytes:
        """The next piece; b"" at the end. Raises TransientError if the connection breaks."""
        while True:
            with self._transport.reading(self._response):
                piece = await anext(self._pieces, b"")
            self._transport.bytes_fetched += len(piece)
            if not piece or self._skip < len(piece):
                break
            self._skip -= len(piece)
        piece, self._skip = piece[self._skip :], 0
        return piece

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            await self._response.aclose()
            # The nested generators of httpx end by themselves, but only when they are asked.
            try:
                async for _ in self._pieces:
                    pass
            except (httpx.HTTPError, httpx.StreamError):
                pass
            await self.held.aclose()

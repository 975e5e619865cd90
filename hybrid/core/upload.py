"""One blob on its way to a registry: as one body, or in chunks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import httpx

from hybrid.core.byte_stream import BlobContent, VerifiedStream, memory_content
from hybrid.core.push_errors import LOST_HINT, push_error
from hybrid.core.push_session import (
    OK_STATUSES,
    PushSession,
    begin_session,
    cancel_session,
    received_bytes,
    send_in_session,
    stated_bytes,
)
from hybrid.core.redirect import Target
from hybrid.core.reference import RegistryReference, is_digest
from hybrid.core.registry import Registry, with_name
from hybrid.core.request_body import BytesBody, RequestBody
from hybrid.core.retry import Patience, TransientError, with_patience
from hybrid.core.upload_bodies import (
    Advance,
    ChunkReader,
    ProgressBody,
    StreamBody,
    content_errors,
)
from hybrid.errors import HybridError, NetworkError, NotFoundError

T = TypeVar("T")

MOST_ATTEMPTS = 6
OCTETS = {"Content-Type": "application/octet-stream"}

HasBlob = Callable[[RegistryReference, str, int | None], Awaitable[bool]]


class Uploaded(NamedTuple):
    """What was stored; ``size`` in bytes."""

    digest: str
    size: int


class LostUploadError(Exception):
    """The registry does not know any more what it has of an upload; it must begin again."""

    def __init__(self, error: NetworkError) -> None:
        super().__init__(str(error))
        self.error = error


class Upload:
    """The upload of one blob. ``advance`` is told what went, and negative what goes again."""

    def __init__(
        self,
        registry: Registry,
        ref: RegistryReference,
        content: BlobContent,
        advance: Advance,
        has_blob: HasBlob,
    ) -> None:
        name = f"blob {content.digest}" if content.digest else "a new blob"
        self.what = f"upload of {name} to {ref.name}"
        self._registry = registry
        self._ref = ref
        self._content = content
        self._advance = advance
        self._has_blob = has_blob
        self._advanced = 0
        self._session: PushSession | None = None

    async def run(self) -> Uploaded:
        """Upload it, or leave nothing. Raises ContentError for errors of the content."""
        content = self._content
        try:
            if content.repeatable and content.digest and content.size is not None:
                return await self._whole(content.digest, content.size, content)
            if not content.repeatable:
                try:
                    return await self._in_chunks()
                except LostUploadError as lost:
                    raise lost.error from lost
            return await self._patiently(self._in_chunks_again)
        finally:
            await self._cancel()

    async def _patiently(self, attempt: Callable[[Patience], Awaitable[Uploaded]]) -> Uploaded:
        """Attempts from the very start."""
        registry, named = self._registry, self._named(attempt)

        async def again(patience: Patience) -> Uploaded:
            self._note(-self._advanced)
            try:
                return await named(patience)
            finally:
                await self._cancel()

        return await with_patience(
            again, registry.policy, registry.random, self.what, MOST_ATTEMPTS
        )

    # -- as one body -----------------------------------------------------------------------------

    async def _whole(self, digest: str, size: int, content: BlobContent) -> Uploaded:
        attempts = 0

        async def attempt(patience: Patience) -> Uploaded:
            nonlocal attempts
            attempts += 1
            # The answer may have been lost behind an upload that had come to its end.
            if attempts > 1 and await self._has_blob(self._ref, digest, size):
                self._note(size)
                return Uploaded(digest, size)
            self._session = await begin_session(self._registry, self._ref, self.what)
            stored = self._registry.settings.stored_seconds
            body = StreamBody(content, digest, size, patience, self._note, stored)
            try:
                await self._close(self._session, digest, body)
            finally:
                await body.aclose()
            return Uploaded(digest, size)

        return await self._patiently(attempt)

    async def _close(self, session: PushSession, digest: str, body: RequestBody) -> None:
        async def consume(response: httpx.Response) -> None:
            if response.status_code not in OK_STATUSES:
                raise await push_error(response, self.what, self._ref)
            stated = response.headers.get("docker-content-digest", "")
            if is_digest(stated) and stated != digest:
                raise NetworkError(f"{self.what}: the registry stored {stated}")

        target = session.closing(digest)
        await self._send(session, "PUT", target, OCTETS, body, consume)
        self._session = None

    # -- in chunks -------------------------------------------------------------------------------

    async def _in_chunks_again(self, patience: Patience) -> Uploaded:
        patience.wait_for(float("inf"))  # each chunk has its own
        try:
            return await self._in_chunks()
        except LostUploadError as lost:
            patience.wait_for(0.0)
            raise TransientError(lost.error) from lost

    async def _in_chunks(self) -> Uploaded:
        content = self._content
        with content_errors():
            opened = await content.open()
        async with VerifiedStream(opened, content.digest, content.size) as stream:
            reader = ChunkReader(stream)
            size = self._registry.settings.chunk_bytes
            chunk = await reader.read(size)
            if reader.ended:
                # So small that there is no need for chunks, nor to read it again.
                small = memory_content(bytes(chunk), stream.name)
                return await self._whole(small.digest, len(chunk), small)
            session = await self._begin()
            size = max(size, session.least_chunk)
            position = 0
            while True:
                if session.least_chunk > len(chunk) and not reader.ended:
                    chunk += await reader.read(size - len(chunk))
                if chunk:
                    session = await self._chunk(session, position, chunk)
                    position += len(chunk)
                if reader.ended:
                    break
                chunk = await reader.read(size)
            digest = stream.actual_digest
        await self._finish(session, digest, position)
        return Uploaded(digest, position)

    async def _begin(self) -> PushSession:
        session = await self._registry.retried(
            self.what, lambda: begin_session(self._registry, self._ref, self.what)
        )
        self._session = session
        return session

    async def _chunk(self, session: PushSession, start: int, chunk: bytearray) -> PushSession:
        """Send one chunk, from where the registry says it stopped if that was cut off."""
        done = 0
        certain = True

        async def attempt(patience: Patience) -> None:
            nonlocal session, done, certain
            if not certain:
                if start == 0:
                    # Some registries cannot say that nothing has come.
                    await self._cancel()
                    session = self._session = await begin_session(
                        self._registry, self._ref, self.what
                    )
                else:
                    done = await self._resume(session, start, len(chunk), done)
                certain = True
            if done == len(chunk):
                return
            certain = False
            body = ProgressBody(memoryview(chunk)[done:], patience, self._note)
            begun, before = done, self._advanced
            try:
                await self._patch(session, start + begun, body)
            except BaseException:
                self._note(before - self._advanced)
                raise
            done, certain = len(chunk), True

        registry = self._registry
        await with_patience(
            self._named(attempt), registry.policy, registry.random, self.what, MOST_ATTEMPTS
        )
        return session

    async def _resume(self, session: PushSession, start: int, length: int, done: int) -> int:
        """How many bytes of the chunk the registry has."""
        try:
            received = await received_bytes(self._registry, session, self.what) - start
        except (NetworkError, NotFoundError, TransientError) as error:
            if isinstance(error, TransientError) and error.error.hint != LOST_HINT:
                raise
            raise self._lost() from error
        if not 0 <= received <= length:
            raise self._lost()
        self._note(received - done)
        return received

    def _lost(self) -> LostUploadError:
        what = f"{self.what}: the connection broke, and the registry cannot go on from there"
        return LostUploadError(NetworkError(what, hint="run the command again"))

    async def _patch(self, session: PushSession, start: int, body: RequestBody) -> None:
        async def consume(response: httpx.Response) -> None:
            if response.status_code != 202:
                raise await push_error(response, self.what, self._ref)
            session.move(response)
            if stated_bytes(response) not in (None, start + body.length):
                host = response.url.netloc.decode()
                failure = NetworkError(f"{self.what}: {host} has not taken the whole chunk")
                raise TransientError(failure)

        headers = {**OCTETS, "Content-Range": f"{start}-{start + body.length - 1}"}
        await self._send(session, "PATCH", session.target, headers, body, consume)

    async def _finish(self, session: PushSession, digest: str, size: int) -> None:
        attempts = 0

        async def attempt(patience: Patience) -> None:
            nonlocal attempts
            attempts += 1
            if attempts > 1 and await self._has_blob(self._ref, digest, size):
                self._session = None
                return
            stored = self._registry.settings.stored_seconds
            patience.wait_for(stored)
            await self._close(session, digest, BytesBody(b"", stored))

        registry = self._registry
        await with_patience(
            self._named(attempt), registry.policy, registry.random, self.what, MOST_ATTEMPTS
        )

    # -- both ------------------------------------------------------------------------------------

    async def _send(
        self,
        session: PushSession,
        method: str,
        target: Target,
        headers: dict[str, str],
        body: RequestBody,
        consume: Callable[[httpx.Response], Awaitable[None]],
    ) -> None:
        await send_in_session(self._registry, session, method, target, headers, body, consume)

    def _named(
        self, attempt: Callable[[Patience], Awaitable[T]]
    ) -> Callable[[Patience], Awaitable[T]]:
        """The attempt with the name of what is done in its errors."""

        async def named(patience: Patience) -> T:
            try:
                return await attempt(patience)
            except TransientError as failure:
                failure.error = with_name(failure.error, self.what)
                raise
            except HybridError as error:
                raise with_name(error, self.what) from error.__cause__

        return named

    def _note(self, count: int) -> None:
        if count:
            self._advanced += count
            self._advance(count)

    async def _cancel(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await cancel_session(self._registry, session)

"""The OCI distribution client: manifests, small blobs, and byte ranges of big ones.

One Registry per process. HTTP ends here: callers see bytes and HybridErrors. The work is done by
modules of their own, from top to bottom:

    registry.py      what is asked for, and whether the answer is exactly that (byte_range.py);
                     whole blobs: download.py, and what is sent: push.py
    retry.py         attempts within a budget of time
    fetch.py         one attempt: challenges answered (auth.py), redirects followed (redirect.py)
    transport.py     one exchange: connections, TLS (tls.py), scheme
    http_errors.py, connection_errors.py      what became of it, as an error for the user

Any number of tasks may call anything at once. Spec: image-config 6 and 17.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Self, TypeVar

import httpx

from hybrid.core.byte_range import (
    check_encoding,
    check_range_answer,
    parse_content_range,
    range_header,
    unsatisfied_total,
)
from hybrid.core.credentials import Credentials
from hybrid.core.device import Source, check_range
from hybrid.core.fetch import Fetcher
from hybrid.core.http_errors import status_error
from hybrid.core.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT_BYTES
from hybrid.core.reference import ManifestBlob, RegistryReference, is_digest
from hybrid.core.registry_settings import RegistrySettings
from hybrid.core.retry import RetryPolicy, TransientError, with_retries
from hybrid.core.transport import Transport
from hybrid.errors import FormatError, HybridError, NetworkError

__all__ = ["BlobSource", "Registry", "RegistrySettings"]

T = TypeVar("T")
E = TypeVar("E", bound=HybridError)


class Registry:
    """Client for all registries. Use as an async context manager; it closes its connections.

    Every method raises NotFoundError, AuthError, NetworkError, CertificateError or FormatError,
    at the latest ``settings.retry_seconds`` after the call. ``scheme`` ("http" or "https")
    overrides what the settings say for the host.
    """

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        credentials: Credentials | None = None,
        *,
        random: Random | None = None,
    ) -> None:
        self.settings = settings or RegistrySettings()
        self.transport = Transport(self.settings)
        self.fetcher = Fetcher(self.transport, credentials or Credentials())
        self.random = random or Random()
        self.policy = RetryPolicy(
            self.settings.retry_seconds,
            self.settings.first_pause_seconds,
            self.settings.longest_pause_seconds,
        )
        # Somebody waits for the first answer of a mount; reads of a running one may wait longer.
        self._first_policy = replace(
            self.policy, budget=min(self.policy.budget, self.settings.first_answer_seconds)
        )

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)

    @property
    def stats(self) -> dict[str, int]:
        """``requests`` sent (of all kinds) and ``bytes_fetched`` (bodies of good answers)."""
        transport = self.transport
        return {"requests": transport.requests, "bytes_fetched": transport.bytes_fetched}

    async def get_manifest(
        self, ref: RegistryReference, reference: str | None = None, *, scheme: str | None = None
    ) -> ManifestBlob:
        """The manifest or index of ``ref``, or of another tag or digest in its repository."""
        wanted = reference or ref.reference
        what = f"image {ref.name}{'@' if is_digest(wanted) else ':'}{wanted}"

        async def consume(response: httpx.Response) -> ManifestBlob:
            data = await self._whole_body(response, MAX_DOCUMENT_BYTES, what)
            stated = response.headers.get("docker-content-digest", "")
            expected = wanted if is_digest(wanted) else stated if is_digest(stated) else None
            digest = checked_digest(data, expected, what)
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            return ManifestBlob(data, kind, digest)

        path = f"/v2/{ref.repository}/manifests/{wanted}"
        headers = {"Accept": ", ".join(INDEX_TYPES + MANIFEST_TYPES)}
        return await self.retried(
            what,
            lambda: self.fetcher.get(ref, path, headers, scheme, consume),
            self._first_policy,
        )

    async def get_blob(
        self, ref: RegistryReference, digest: str, limit_bytes: int, *, scheme: str | None = None
    ) -> bytes:
        """A whole small blob of at most ``limit_bytes``, checked against its digest."""
        what = blob_name(ref, digest)

        async def consume(response: httpx.Response) -> bytes:
            data = await self._whole_body(response, limit_bytes, what)
            checked_digest(data, digest, what)
            return data

        return await self.retried(what, lambda: self.fetcher.blob(ref, digest, {}, scheme, consume))

    async def blob_size(
        self, ref: RegistryReference, digest: str, *, scheme: str | None = None
    ) -> int:
        """The size of a blob in bytes, for configs that do not state it."""
        what = f"size of {blob_name(ref, digest)}"

        async def consume(response: httpx.Response) -> int:
            # A ranged GET, not HEAD: signed URLs of object storage are for GET only.
            headers = response.headers
            total = None
            if response.status_code == 206:
                got = parse_content_range(headers.get("content-range"))
                total = got[2] if got else None
            elif response.status_code == 416:
                total = unsatisfied_total(headers.get("content-range"))
            elif response.status_code == 200:
                check_encoding(headers, what)
                length = headers.get("content-length", "")
                total = int(length) if length.isdecimal() else None
            else:
                raise await status_error(response, what)
            if total is None:
                raise NetworkError(f"{what}: {response.url.netloc.decode()} does not tell it")
            return total

        headers = {"Range": range_header(0, 1)}
        return await self.retried(
            what, lambda: self.fetcher.blob(ref, digest, headers, scheme, consume)
        )

    async def read_range(
        self,
        ref: RegistryReference,
        digest: str,
        offset: int,
        length: int,
        size: int,
        *,
        scheme: str | None = None,
    ) -> bytes:
        """Exactly ``length`` bytes at ``offset`` of a blob of ``size`` bytes: one range GET."""
        if length == 0:
            return b""
        what = f"bytes {offset}-{offset + length - 1} of {blob_name(ref, digest)}"

        async def consume(response: httpx.Response) -> bytes:
            if response.status_code not in (200, 206, 416):
                raise await status_error(response, what)
            check_range_answer(response.status_code, response.headers, offset, length, size, what)
            data = await self.transport.read_body(response, length)
            if len(data) != length:
                raise TransientError(NetworkError(f"{what}: the answer ends after {len(data)}"))
            return data

        headers = {"Range": range_header(offset, length)}
        return await self.retried(
            what, lambda: self.fetcher.blob(ref, digest, headers, scheme, consume)
        )

    def blob_source(
        self, ref: RegistryReference, digest: str, size: int, *, scheme: str | None = None
    ) -> BlobSource:
        """The blob as a Source of ``size`` bytes; each pread is one range request."""
        return BlobSource(self, ref, digest, size, scheme)

    async def retried(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        policy: RetryPolicy | None = None,
    ) -> T:
        """Run ``attempt`` within the budget of retries; its errors get ``what`` before them."""

        async def named() -> T:
            # Errors of connections, redirects and tokens do not know what was being read.
            try:
                return await attempt()
            except TransientError as failure:
                failure.error = with_name(failure.error, what)
                raise
            except HybridError as error:
                raise with_name(error, what) from error.__cause__

        # A host that never answered is not waited for as one that was there a moment ago.
        usual = self.policy if self.transport.answers else self._first_policy
        return await with_retries(named, policy or usual, self.random, what)

    async def _whole_body(self, response: httpx.Response, limit_bytes: int, what: str) -> bytes:
        if response.status_code != 200:
            raise await status_error(response, what)
        check_encoding(response.headers, what)
        stated = response.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > limit_bytes:
            raise FormatError(f"{what} has {stated} bytes, more than the {limit_bytes} allowed")
        return await self.transport.read_body(response, limit_bytes)


class BlobSource(Source):
    """A blob in a registry. Nothing is cached: each ``pread`` is one range request."""

    def __init__(
        self,
        registry: Registry,
        ref: RegistryReference,
        digest: str,
        size: int,
        scheme: str | None = None,
    ) -> None:
        self.name = f"{ref.name}@{digest}"
        self.size = size
        self._registry = registry
        self._ref = ref
        self._digest = digest
        self._scheme = scheme

    def pread_nowait(self, offset: int, length: int) -> None:
        check_range(offset, length, self.size, self.name)

    async def pread(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size, self.name)
        return await self._registry.read_range(
            self._ref, self._digest, offset, length, self.size, scheme=self._scheme
        )


def with_name(error: E, what: str) -> E:
    """The error with ``what`` in front of its message, if that is not in it."""
    if what in error.message:
        return error
    return type(error)(f"{what}: {error.message}", hint=error.hint)


def blob_name(ref: RegistryReference, digest: str) -> str:
    """A blob, for messages."""
    return f"blob {ref.name}@{digest}"


def checked_digest(data: bytes, expected: str | None, what: str) -> str:
    """The digest of ``data``; FormatError if another one was expected."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if expected is not None and digest != expected:
        raise FormatError(
            f"{what}: its {len(data)} bytes have the digest {digest}, not {expected}",
            hint="it was changed on its way or in the registry",
        )
    return digest

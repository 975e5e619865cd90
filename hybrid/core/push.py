"""Sending to a registry: is it there, mount it, upload it, store a manifest. OCI distribution 1.1.

    push.py            what is to be stored, tried again within the budget of retries
    push_session.py    one upload: its address, which the registry may change with each answer
    upload.py          blobs as one body, or in chunks where the digest comes last
                       (upload_bodies.py)
    push_errors.py     refusals, for the user

Nothing is stored unless all of it has arrived: a registry checks the digest at the end of an
upload, and an upload that is not ended is cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import quote

import httpx

from hybrid.core.auth import PUSH, Access
from hybrid.core.byte_stream import BlobContent
from hybrid.core.manifest import INDEX_TYPES, MANIFEST_TYPES
from hybrid.core.push_errors import no_permission, push_error
from hybrid.core.push_session import OK_STATUSES, PushSession, cancel_session
from hybrid.core.redirect import is_redirect
from hybrid.core.reference import ManifestBlob, RegistryReference, is_digest
from hybrid.core.registry import Registry, blob_name
from hybrid.core.request_body import BytesBody
from hybrid.core.upload import Upload, Uploaded
from hybrid.core.upload_bodies import Advance, ContentError
from hybrid.errors import AuthError, FormatError, HybridError, NetworkError

T = TypeVar("T")


class Pusher:
    """Pushes over the connections and logins of a Registry.

    All methods raise AuthError (no permission to push), NotFoundError, NetworkError,
    StorageFullError (a quota), UnsupportedError (read-only; too large for it) and, for content
    that is damaged, FormatError.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def has_blob(self, ref: RegistryReference, digest: str, size: int | None = None) -> bool:
        """Whether the repository has a blob. Raises FormatError if it has another size there."""
        what = f"look for {blob_name(ref, digest)}"

        async def consume(response: httpx.Response) -> bool:
            status = response.status_code
            # Storage that answers GET only still says that there is something to get.
            if is_redirect(response):
                return True
            if status == 404:
                return False
            if status != 200:
                raise await push_error(response, what, ref)
            stated = response.headers.get("content-length", "")
            # Some servers state no length, or 0, in answers without a body.
            if size and stated.isdecimal() and int(stated) not in (0, size):
                raise FormatError(
                    f"{blob_name(ref, digest)} has {stated} bytes there instead of {size}",
                    hint="it is damaged in the registry; have it removed there",
                )
            return True

        path = f"/v2/{ref.repository}/blobs/{digest}"
        return await self._send("HEAD", ref, path, what, consume)

    async def has_manifest(self, ref: RegistryReference, digest: str) -> bool:
        """Whether the repository has a manifest or index with this digest."""
        what = f"look for manifest {ref.name}@{digest}"

        async def consume(response: httpx.Response) -> bool:
            if response.status_code in (200, 404):
                return response.status_code == 200
            raise await push_error(response, what, ref)

        path = f"/v2/{ref.repository}/manifests/{digest}"
        headers = {"Accept": ", ".join(INDEX_TYPES + MANIFEST_TYPES)}
        return await self._send("HEAD", ref, path, what, consume, headers)

    async def mount_blob(self, ref: RegistryReference, digest: str, from_repository: str) -> bool:
        """Have the registry take a blob from another of its repositories; False if it does not."""
        what = f"mount of blob {digest} from {from_repository} to {ref.name}"
        begun: list[PushSession] = []

        async def consume(response: httpx.Response) -> bool:
            if response.status_code == 202:
                begun.append(PushSession.of_answer(ref, response))
                return False
            if response.status_code in (200, 201):
                return True
            raise await push_error(response, what, ref)

        access = Access(push=True, mount_from=from_repository)
        query = f"mount={quote(digest, safe='')}&from={quote(from_repository, safe='')}"
        path = f"/v2/{ref.repository}/blobs/uploads/?{query}"
        try:
            mounted = await self._send("POST", ref, path, what, consume, access=access)
        except HybridError:
            # Maybe it is the other repository that is not for us, or there are no mounts; whatever
            # it was, an upload will tell.
            return False
        for session in begun:
            await cancel_session(self.registry, session)
        return mounted

    async def put_blob(
        self, ref: RegistryReference, content: BlobContent, advance: Advance = lambda count: None
    ) -> Uploaded:
        """Upload a blob, whether or not it is there. Returns its digest and size.

        Known digest and size, and content that can be read again: one request, begun again after a
        failure. Else chunks: a broken one goes on where the registry says that it stopped.
        """
        upload = Upload(self.registry, ref, content, advance, self.has_blob)
        try:
            return await upload.run()
        except ContentError as failure:
            raise failure.error from failure.error.__cause__
        except AuthError as error:
            raise as_push_refusal(ref, error) from error.__cause__

    async def put_manifest(
        self, ref: RegistryReference, manifest: ManifestBlob, reference: str
    ) -> None:
        """Store a manifest under a tag or its digest. Everything that it names must be there."""
        shown = f"{'@' if is_digest(reference) else ':'}{reference}"
        what = f"push of manifest {ref.name}{shown}"

        async def consume(response: httpx.Response) -> None:
            if response.status_code not in OK_STATUSES:
                raise await push_error(response, what, ref)
            stated = response.headers.get("docker-content-digest", "")
            if is_digest(stated) and stated != manifest.digest:
                raise NetworkError(f"{what}: the registry stored {stated}, not {manifest.digest}")

        await self._send(
            "PUT",
            ref,
            f"/v2/{ref.repository}/manifests/{reference}",
            what,
            consume,
            {"Content-Type": manifest.media_type},
            manifest.data,
        )

    async def _send(
        self,
        method: str,
        ref: RegistryReference,
        path: str,
        what: str,
        consume: Callable[[httpx.Response], Awaitable[T]],
        headers: dict[str, str] | None = None,
        data: bytes = b"",
        access: Access = PUSH,
    ) -> T:
        async def attempt() -> T:
            body = BytesBody(data) if method != "HEAD" else None
            return await self.registry.fetcher.send(
                method, ref, path, headers or {}, None, consume, access=access, body=body
            )

        try:
            return await self.registry.retried(what, attempt)
        except AuthError as error:
            raise as_push_refusal(ref, error) from error.__cause__


def as_push_refusal(ref: RegistryReference, error: AuthError) -> AuthError:
    """The error with "no permission to push" in it, once."""
    return error if "no permission to push" in error.message else no_permission(ref, error)

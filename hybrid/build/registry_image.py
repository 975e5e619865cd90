"""Images in a registry, as source and as destination."""

from __future__ import annotations

from pathlib import Path

from hybrid.build.contract import (
    Advance,
    ImageDestination,
    ImageSource,
    PutBlob,
    check_digest,
    no_advance,
)
from hybrid.build.spool import Spool
from hybrid.core.byte_stream import BlobContent, ByteStream
from hybrid.core.download import open_download
from hybrid.core.manifest import MANIFEST_TYPES
from hybrid.core.platforms import Platform
from hybrid.core.push import Pusher
from hybrid.core.reference import ManifestBlob, RegistryReference
from hybrid.core.registry import Registry


class RegistryImageSource(ImageSource):
    """An image in a registry. The Registry belongs to the caller."""

    def __init__(self, registry: Registry, ref: RegistryReference) -> None:
        self.name = str(ref)
        self.ref = ref
        self._registry = registry

    async def get_manifest(
        self, digest: str = "", *, platform: Platform | None = None
    ) -> ManifestBlob:
        return await self._registry.get_manifest(self.ref, digest or None)

    def blob(self, digest: str, size: int | None) -> BlobContent:
        async def open_stream() -> ByteStream:
            known = size
            if known is None:
                known = await self._registry.blob_size(self.ref, digest)
            return open_download(self._registry, self.ref, digest, known)

        return BlobContent(open_stream, digest, size, origin=self.ref)


class RegistryImageDestination(ImageDestination):
    """One name in a registry: a tag (``latest`` if none is given), or a digest.

    In ``spool_directory`` blobs that can be read only once are kept while they are sent.
    """

    def __init__(self, registry: Registry, ref: RegistryReference, spool_directory: Path) -> None:
        self.name = str(ref)
        self.ref = ref
        self._spool_directory = spool_directory
        self._pusher = Pusher(registry)

    async def has_blob(self, digest: str, size: int | None) -> bool:
        return await self._pusher.has_blob(self.ref, digest, size)

    async def mount_blob(self, content: BlobContent) -> bool:
        origin = content.origin
        if origin is None or origin.api_host != self.ref.api_host:
            return False
        if origin.repository == self.ref.repository:
            return False
        return await self._pusher.mount_blob(self.ref, content.digest, origin.repository)

    async def put_blob(self, content: BlobContent, advance: Advance = no_advance) -> PutBlob:
        if content.repeatable:
            stored = await self._pusher.put_blob(self.ref, content, advance)
        else:
            async with Spool(content, self._spool_directory) as spool:
                stored = await self._pusher.put_blob(self.ref, spool.content, advance)
        return PutBlob(stored.digest, stored.size, "written")

    async def put_manifest(self, manifest: ManifestBlob) -> None:
        await self._pusher.put_manifest(self.ref, with_type(manifest), manifest.digest)

    def accept(self, manifest: ManifestBlob) -> None:
        check_digest(self.ref.digest, manifest, self.name)

    async def tag(self, manifest: ManifestBlob, platform: Platform | None = None) -> str:
        self.accept(manifest)
        ref = self.ref
        if ref.tag is not None or ref.digest is None:
            await self._pusher.put_manifest(ref, with_type(manifest), ref.tag or ref.reference)
        named = RegistryReference(ref.host, ref.repository, ref.tag, manifest.digest)
        return str(named)


def with_type(manifest: ManifestBlob) -> ManifestBlob:
    """A manifest that a registry takes: they ask for a media type."""
    media_type = manifest.media_type or MANIFEST_TYPES[0]
    return ManifestBlob(manifest.data, media_type, manifest.digest)

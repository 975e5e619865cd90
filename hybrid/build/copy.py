"""Copying an image: blobs first and several at once, then its manifests, and its name last.

Manifests are copied byte for byte, so that digests stay. An index is copied with all that it names,
or one of its images is taken, or a new index is made of some. What is at the destination already is
left alone, so a copy that was interrupted goes on where it stopped. Memory is bounded by the number
of jobs: manifests are taken one after another, blobs pass in pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import trio

from hybrid.build.contract import Advance, ImageDestination, ImageSource, PutBlob, add_blob
from hybrid.build.selection import Selection, index_of_some
from hybrid.core.disk import first_error
from hybrid.core.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    image_entries,
    parse_document,
    select_platform,
)
from hybrid.core.platforms import Platform
from hybrid.core.reference import ManifestBlob
from hybrid.errors import FormatError, UnsupportedError

logger = logging.getLogger("hybrid.build")

DEFAULT_JOBS = 4
MOST_JOBS = 8
"""Each may hold a download and an upload; a registry's share of connections is 16 of either."""
MAX_NESTED_INDEXES = 4
MAX_MANIFESTS = 10_000


class Watcher:
    """Told what is on its way. This one does nothing with it."""

    def begin(self, digest: str, size: int) -> Advance:
        """A blob of ``size`` bytes is looked at; the answer is told how much of it has gone."""
        return lambda count: None

    def end(self, digest: str, put: PutBlob | None) -> None:
        """It is there; None: it failed."""


@dataclass
class CopyResult:
    """What a copy has done. Sizes in bytes."""

    reference: str = ""
    """The destination, with the digest in it."""
    digest: str = ""
    media_type: str = ""
    manifests: int = 0
    blobs: dict[str, PutBlob] = field(default_factory=dict)
    """By digest: each blob once."""

    def count(self, how: str) -> int:
        """How many blobs were ``present``, ``mounted`` or ``written``."""
        return sum(put.how == how for put in self.blobs.values())

    def bytes_of(self, how: str) -> int:
        """Their bytes."""
        return sum(put.size for put in self.blobs.values() if put.how == how)


async def copy_image(
    source: ImageSource,
    destination: ImageDestination,
    selection: Selection,
    *,
    jobs: int = DEFAULT_JOBS,
    watcher: Watcher | None = None,
) -> CopyResult:
    """Copy an image, or what ``selection`` wants of an index. The name is given last.

    A plain manifest is copied whatever it was made for. Raises the errors of both sides; then
    nothing has the name, and whole blobs stay for another try.
    """
    copy = Copy(source, destination, jobs, watcher or Watcher())
    try:
        root, platform = await copy.choose(selection)
        destination.accept(root)
        await copy.manifest(root, 0)
        result = copy.result
        result.reference = await destination.tag(root, platform)
        result.digest, result.media_type = root.digest, root.media_type
        return result
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await destination.give_up(error)
        raise


class Copy:
    """One copy under way."""

    def __init__(
        self, source: ImageSource, destination: ImageDestination, jobs: int, watcher: Watcher
    ) -> None:
        self.result = CopyResult()
        self._source = source
        self._destination = destination
        self._jobs = max(1, min(jobs, MOST_JOBS))
        self._watcher = watcher
        self._manifests: set[str] = set()

    async def choose(self, selection: Selection) -> tuple[ManifestBlob, Platform | None]:
        """What gets the name: the image or index itself, one image of it, or a new index."""
        root = await self._source.get_manifest(platform=selection.only)
        document = parse_document(root)
        if isinstance(document, Manifest) or not selection.platforms:
            return root, None
        if selection.only is not None:
            if len(image_entries(document)) > 1:
                what = "%s has several platforms; %s is copied (--platform all copies everything)"
                logger.info(what, self._source.name, selection.only)
            for _ in range(MAX_NESTED_INDEXES):
                entry = select_platform(document, selection.only)
                root = await self._child(entry)
                document = parse_document(root)
                if isinstance(document, Manifest):
                    return root, entry.platform
            raise FormatError(
                f"index {document.digest}: more than {MAX_NESTED_INDEXES} nested indexes"
            )
        entries = [select_platform(document, wanted) for wanted in selection.platforms]
        return index_of_some(document, root.data, entries), None

    async def manifest(self, blob: ManifestBlob, depth: int) -> None:
        """Copy a manifest or index, after everything that it names."""
        if blob.digest in self._manifests:
            return
        if depth > MAX_NESTED_INDEXES:
            raise FormatError(f"index {blob.digest}: more than {MAX_NESTED_INDEXES} nested indexes")
        if len(self._manifests) >= MAX_MANIFESTS:
            raise UnsupportedError(
                f"{self._source.name} has more than {MAX_MANIFESTS} manifests in it"
            )
        document = parse_document(blob)
        if isinstance(document, Index):
            await self._entries(document, depth)
        else:
            await self._blobs(blobs_of(document))
        await self._destination.put_manifest(with_media_type(blob, document))
        self._manifests.add(blob.digest)
        self.result.manifests += 1

    async def _entries(self, index: Index, depth: int) -> None:
        others = [entry for entry in index.entries if not is_manifest(entry)]
        await self._blobs((entry.digest, entry.size) for entry in others)
        for entry in index.entries:
            if is_manifest(entry) and entry.digest not in self._manifests:
                await self.manifest(await self._child(entry), depth + 1)

    async def _child(self, entry: Descriptor) -> ManifestBlob:
        blob = await self._source.get_manifest(entry.digest)
        if len(blob.data) != entry.size:
            raise FormatError(
                f"manifest {entry.digest} has {len(blob.data)} bytes, its index says {entry.size}"
            )
        return blob

    async def _blobs(self, blobs: Iterable[tuple[str, int]]) -> None:
        """See to it that these (digest, size) are at the destination, each once."""
        done = self.result.blobs
        todo = {digest: size for digest, size in blobs if digest not in done}
        waiting = iter(todo.items())

        async def work() -> None:
            for digest, size in waiting:
                done[digest] = await self._blob(digest, size)

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(self._jobs, len(todo))):
                    nursery.start_soon(work)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    async def _blob(self, digest: str, size: int) -> PutBlob:
        advance = self._watcher.begin(digest, size)
        put = None
        try:
            put = await add_blob(self._destination, self._source.blob(digest, size), advance)
        finally:
            self._watcher.end(digest, put)
        return put


def is_manifest(entry: Descriptor) -> bool:
    """Whether an entry of an index is a manifest or an index; build caches list blobs there."""
    return not entry.media_type or entry.media_type in INDEX_TYPES + MANIFEST_TYPES


def blobs_of(manifest: Manifest) -> Sequence[tuple[str, int]]:
    """(digest, size) of config and layers. Layers that may not be distributed are nowhere to get:
    a manifest names another place for them.
    """
    layers = [
        (layer.digest, layer.size)
        for layer in manifest.layers
        if ".foreign." not in layer.media_type and ".nondistributable." not in layer.media_type
    ]
    return [(manifest.config.digest, manifest.config.size), *layers]


def with_media_type(blob: ManifestBlob, document: Index | Manifest) -> ManifestBlob:
    """With the media type that its shape has, if neither it nor its server told one."""
    kinds = INDEX_TYPES if isinstance(document, Index) else MANIFEST_TYPES
    return ManifestBlob(blob.data, document.media_type or kinds[0], blob.digest)

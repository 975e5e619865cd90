"""An image, or an index of several, is converted: their blobs first, their name last."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import trio

from hybrid.build.contract import add_blob
from hybrid.build.convert.one_image import ImageConversion
from hybrid.build.convert.planning import SourceImage, check_manifest, parse_source
from hybrid.build.convert.result import ConvertedLayer, new_config, new_index, new_manifest
from hybrid.build.convert.reuse import Reuse
from hybrid.build.convert.run import LayerOutcome, Run
from hybrid.build.copy import MAX_NESTED_INDEXES
from hybrid.build.selection import Selection, index_of_some
from hybrid.core.byte_stream import memory_content, read_all
from hybrid.core.manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    Index,
    Manifest,
    image_entries,
    parse_document,
    select_platform,
)
from hybrid.core.platforms import Platform
from hybrid.core.reference import LayoutReference, ManifestBlob, RegistryReference, parse_image
from hybrid.errors import FormatError, UnsupportedError

logger = logging.getLogger("hybrid")


@dataclass(frozen=True)
class ConvertedImage:
    """One image of the result."""

    digest: str
    platform: Platform | None
    """As its index says; None without an index."""
    layers: tuple[LayerOutcome, ...]


@dataclass
class ConvertResult:
    """What a conversion has done."""

    reference: str = ""
    """The destination, with the digest in it."""
    digest: str = ""
    media_type: str = ""
    images: list[ConvertedImage] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    """Digests of attestations and other entries of the index that are not in the result."""

    def count(self, how: str) -> int:
        """How many layers were ``converted`` or ``reused``, in all images."""
        return sum(layer.how == how for image in self.images for layer in image.layers)


async def convert_image(run: Run, selection: Selection, destination: str) -> ConvertResult:
    """Convert an image, or what ``selection`` wants of an index. The name is given last.

    ``destination`` is its name as the user wrote it. Raises the errors of both sides and of
    layers; then nothing has the name, and whole layers stay for another try.
    """
    conversion = _Conversion(run, destination)
    try:
        root, platform = await conversion.choose(selection)
        new = await conversion.convert(root, platform, 0)
        result = conversion.result
        result.reference = await run.destination.tag(new, platform)
        result.digest, result.media_type = new.digest, new.media_type
        return result
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await run.destination.give_up(error)
        raise


class _Conversion:
    def __init__(self, run: Run, destination: str) -> None:
        ref = parse_image(destination)
        assert isinstance(ref, RegistryReference | LayoutReference), "destinations are these two"
        self.result = ConvertResult()
        self._run = run
        self._reuse = Reuse(run.memory, run.destination, ref)
        self._done: dict[str, ManifestBlob] = {}

    async def choose(self, selection: Selection) -> tuple[ManifestBlob, Platform | None]:
        """What is converted: an image, an index, or an index of some of its images."""
        root = await self._run.source.get_manifest(platform=selection.only)
        document = parse_document(root)
        if isinstance(document, Manifest) or not selection.platforms:
            return root, None
        if selection.only is not None:
            for _ in range(MAX_NESTED_INDEXES):
                entry = select_platform(document, selection.only)
                root = await self._child(entry)
                document = parse_document(root)
                if isinstance(document, Manifest):
                    return root, entry.platform
            raise too_deep(document)
        entries = [select_platform(document, wanted) for wanted in selection.platforms]
        return index_of_some(document, root.data, entries), None

    async def convert(
        self, blob: ManifestBlob, platform: Platform | None, depth: int
    ) -> ManifestBlob:
        """The manifest or index that takes the place of this one; it is at the destination."""
        if blob.digest in self._done:
            return self._done[blob.digest]
        document = parse_document(blob)
        if isinstance(document, Index):
            new = await self._index(blob, document, depth)
        else:
            new = await self._image(blob, document, platform)
        await self._run.destination.put_manifest(new)
        self._done[blob.digest] = new
        return new

    async def _index(self, blob: ManifestBlob, index: Index, depth: int) -> ManifestBlob:
        if depth > MAX_NESTED_INDEXES:
            raise FormatError(
                f"index {index.digest}: more than {MAX_NESTED_INDEXES} nested indexes"
            )
        entries = image_entries(index)
        if not entries:
            raise UnsupportedError(
                f"index {index.digest} has no images: there is nothing to convert"
            )
        replaced: dict[str, ManifestBlob] = {}
        for entry in entries:
            child = await self._child(entry)
            replaced[entry.digest] = await self.convert(child, entry.platform, depth + 1)
        dropped = [entry.digest for entry in index.entries if entry.digest not in replaced]
        self.result.dropped += dropped
        if dropped:
            logger.warning(
                "%d entries of the index that are no images (attestations, for example) are left"
                " out: they are about the source",
                len(dropped),
            )
        return new_index(index, blob.data, replaced)

    async def _child(self, entry: Descriptor) -> ManifestBlob:
        blob = await self._run.source.get_manifest(entry.digest)
        if len(blob.data) != entry.size:
            raise FormatError(
                f"manifest {entry.digest} has {len(blob.data)} bytes, its index says {entry.size}"
            )
        return blob

    async def _image(
        self, blob: ManifestBlob, manifest: Manifest, platform: Platform | None
    ) -> ManifestBlob:
        run = self._run
        image = await self._read(blob, manifest, platform)
        run.watcher.image(str(platform or ""), len(image.layers), sum(x.size for x in image.layers))
        outcomes = await ImageConversion(run, image, self._reuse).convert()
        layers = [ConvertedLayer(layer.digest, layer.size) for layer in outcomes]
        config = new_config(image, layers, run.options.fs)
        await add_blob(run.destination, memory_content(config, "the config of the new image"))
        new = new_manifest(image, layers, run.options.fs, config)
        self.result.images.append(ConvertedImage(new.digest, platform, tuple(outcomes)))
        return new

    async def _read(
        self, blob: ManifestBlob, manifest: Manifest, platform: Platform | None
    ) -> SourceImage:
        name = f"{self._run.source.name}{f' ({platform})' if platform else ''}"
        check_manifest(manifest, name)
        content = self._run.source.blob(manifest.config.digest, manifest.config.size)
        config = await read_all(content, MAX_DOCUMENT_BYTES)
        return parse_source(manifest, blob.data, config, name)


def too_deep(index: Index) -> FormatError:
    """For indexes that name indexes that name indexes ..."""
    return FormatError(f"index {index.digest}: more than {MAX_NESTED_INDEXES} nested indexes")

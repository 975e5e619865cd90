"""OneLayerSource: an image that is not anywhere yet."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from hybrid.build.contract import ImageSource
from hybrid.build.one_layer.config import ImageFields, new_config
from hybrid.build.one_layer.layers import DirectoryLayer, LayerContent, SecondReading
from hybrid.build.plain_manifest import PlainLayer, plain_manifest
from hybrid.core.byte_stream import BlobContent, ByteStream, memory_content
from hybrid.core.platforms import Platform
from hybrid.core.reference import LayoutReference, ManifestBlob, parse_image
from hybrid.errors import NotFoundError, UsageError


class OneLayerSource(ImageSource):
    """The layer is read once for its digest, when the manifest is asked for, and once as a blob."""

    def __init__(self, content: LayerContent, fields: ImageFields) -> None:
        self.name = content.name
        self._content = content
        self._fields = fields
        self._lock = trio.Lock()
        self._manifest: ManifestBlob | None = None
        self._config = memory_content(b"")
        self._layer = PlainLayer("", 0, "none")

    async def get_manifest(
        self, digest: str = "", *, platform: Platform | None = None
    ) -> ManifestBlob:
        async with self._lock:
            if self._manifest is None:
                measured = await self._content.measure()
                config = new_config(self._fields, measured.diff_id)
                self._config = memory_content(config, f"the config of {self.name}")
                self._layer = measured.layer
                self._manifest = plain_manifest(config, [measured.layer])
        if digest not in ("", self._manifest.digest):
            raise NotFoundError(f"{self.name} has no manifest {digest}")
        return self._manifest

    def blob(self, digest: str, size: int | None) -> BlobContent:
        if digest == self._config.digest:
            return self._config

        async def open_stream() -> ByteStream:
            if digest != self._layer.digest:
                raise NotFoundError(f"{self.name} has no blob {digest}")
            return SecondReading(self._content, self._layer)

        return BlobContent(open_stream, digest, size)


def check_outside(content: LayerContent, destination: str) -> None:
    """Raises UsageError if the image were to be written into the directory that is read."""
    ref = parse_image(destination)
    if isinstance(content, DirectoryLayer) and isinstance(ref, LayoutReference):
        place, tree = (os.path.realpath(path) for path in (ref.directory, content.path))
        if Path(place).is_relative_to(tree):
            raise UsageError(
                f"{ref.directory} is in the directory that the image is made of",
                hint="name a place outside",
            )

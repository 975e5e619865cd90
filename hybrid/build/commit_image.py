"""An image with one more layer, written to where it is to go."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import trio

from hybrid.build.append import Appended, NewLayer, append_layer
from hybrid.build.contract import ImageDestination, ImageSource, add_blob, manifest_blob
from hybrid.build.layer_file import WrittenLayer
from hybrid.core.byte_stream import (
    BlobContent,
    ByteStream,
    SourceStream,
    memory_content,
    read_all,
)
from hybrid.core.disk import first_error
from hybrid.core.manifest import MAX_DOCUMENT_BYTES, Index, Manifest, parse_document
from hybrid.core.output_file import write_error
from hybrid.core.reference import ManifestBlob
from hybrid.core.source import FileSource
from hybrid.errors import ConfigError, UnsupportedError

logger = logging.getLogger("hybrid")

_JOBS = 4


@dataclass(frozen=True)
class Base:
    """The image that gets a layer: its manifest and config, read and checked."""

    source: ImageSource
    blob: ManifestBlob
    manifest: Manifest
    config: bytes


async def read_base(source: ImageSource, digest: str) -> Base:
    """The manifest and config of an image. Raises the errors of both, and UnsupportedError."""
    blob = await source.get_manifest(digest)
    manifest = parse_document(blob)
    if isinstance(manifest, Index):
        raise UnsupportedError(f"{source.name} is an index, not one image")
    descriptor = manifest.config
    content = source.blob(descriptor.digest, descriptor.size)
    return Base(source, blob, manifest, await read_all(content, MAX_DOCUMENT_BYTES))


async def put_image(
    base: Base,
    layer: WrittenLayer,
    file: BinaryIO,
    fs_type: str,
    message: str,
    destination: ImageDestination,
) -> str:
    """Put the base with the layer in ``file`` on top where it is to go; returns its reference.

    Nothing is under that name before all is there. Raises the errors of both sides.
    """
    new = NewLayer(layer.digest, layer.size, fs_type)
    appended = append_layer(
        base.manifest, base.blob.data, base.config, new, message=message, created=created_time()
    )
    if appended.dropped is not None:
        logger.warning(
            "the acceleration layer %s of the image is left out: it was recorded for another disk",
            appended.dropped.digest,
        )
    manifest = manifest_blob(appended.manifest, appended.media_type)
    destination.accept(manifest)
    try:
        await _put_blobs(base.source, appended, _file_content(layer, file), destination)
        await destination.put_manifest(manifest)
        return await destination.tag(manifest)
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await destination.give_up(error)
        raise


async def _put_blobs(
    source: ImageSource, appended: Appended, layer: BlobContent, destination: ImageDestination
) -> None:
    kept = {found.digest: source.blob(found.digest, found.size) for found in appended.kept}
    config = memory_content(appended.config, "the config of the new image")
    waiting = iter([*kept.values(), layer, config])

    async def work() -> None:
        for content in waiting:
            await add_blob(destination, content)

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(_JOBS):
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from group


def _file_content(layer: WrittenLayer, file: BinaryIO) -> BlobContent:
    async def open_stream() -> ByteStream:
        # The file has no name; each stream gets a descriptor of its own.
        return SourceStream(FileSource(f"/proc/self/fd/{file.fileno()}"))

    return BlobContent(open_stream, layer.digest, layer.size)


@contextmanager
def scratch_file() -> Iterator[BinaryIO]:
    """A file without a name, for a layer on its way to a registry.

    In $TMPDIR, else in /var/tmp: layers are large, and /tmp is memory on many machines. Raises
    StorageFullError and other HybridErrors.
    """
    directory = Path(os.environ.get("TMPDIR") or "/var/tmp")
    try:
        with tempfile.TemporaryFile(prefix="hybrid-", dir=directory) as file:
            yield file
    except OSError as error:
        raise write_error(error, directory) from error


def created_time() -> str:
    """$SOURCE_DATE_EPOCH as RFC 3339; "" if it is not set. Raises ConfigError."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return ""
    try:
        return datetime.fromtimestamp(int(text), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(f"SOURCE_DATE_EPOCH is {text!r}, no number of seconds") from error

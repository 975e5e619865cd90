"""What is to be converted: the manifest and config of a plain image, checked. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from hybrid.build.convert.options import SourceLayer
from hybrid.core.json_fields import Fields, parse_json_object
from hybrid.core.manifest import LayerDescriptor, Manifest, has_overlaybd_annotations
from hybrid.core.reference import is_digest
from hybrid.core.segments import MAX_LAYERS
from hybrid.errors import FormatError, UnsupportedError

CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYER_TYPE = re.compile(
    r"application/vnd\.oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?"
    r"|application/vnd\.docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?"
)


@dataclass(frozen=True)
class SourceImage:
    """A plain image that can be converted."""

    manifest: Manifest
    manifest_data: bytes
    config: dict[str, Any]
    layers: tuple[SourceLayer, ...]


def check_manifest(manifest: Manifest, image: str) -> None:
    """Raises UnsupportedError for what cannot be converted. ``image`` is its name."""
    if has_overlaybd_annotations(manifest):
        raise UnsupportedError(
            f"{image} is an overlaybd image already: there is nothing to convert",
            hint="'hybrid copy' copies it as it is",
        )
    media_type = manifest.config.media_type
    if media_type and media_type not in CONFIG_TYPES:
        raise UnsupportedError(
            f"{image} is no container image: its config is of type {media_type[:80]!a}"
        )
    if not manifest.layers:
        raise UnsupportedError(f"{image} has no layers: there is nothing to convert")
    if len(manifest.layers) >= MAX_LAYERS:
        raise UnsupportedError(
            f"{image} has {len(manifest.layers)} layers; with the file system below them at most"
            f" {MAX_LAYERS} can be"
        )
    for number, layer in enumerate(manifest.layers):
        _check_layer(layer, f"layer {number} ({layer.digest}) of {image}")


def _check_layer(layer: LayerDescriptor, where: str) -> None:
    media_type = layer.media_type
    if not media_type or _LAYER_TYPE.fullmatch(media_type):
        return
    if "+encrypted" in media_type:
        raise UnsupportedError(f"{where} is encrypted", hint="decrypt the image first")
    if ".foreign." in media_type or ".nondistributable." in media_type:
        raise UnsupportedError(
            f"{where} may not be distributed, so it cannot be converted ({media_type})"
        )
    raise UnsupportedError(f"{where} is of type {media_type[:100]!a}, which is no layer of files")


def parse_source(
    manifest: Manifest, manifest_data: bytes, config_data: bytes, image: str
) -> SourceImage:
    """Put together what ``check_manifest`` found good with the config.

    Raises FormatError if the two do not belong together.
    """
    where = f"the config of {image}"
    config = parse_json_object(config_data, where)
    diff_ids = Fields(config, where).nested("rootfs").string_list("diff_ids")
    if len(diff_ids) != len(manifest.layers):
        raise FormatError(
            f"{image} has {len(manifest.layers)} layers, but {len(diff_ids)} diff_ids in its config"
        )
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise FormatError(f"{where}: diff_id {diff_id[:80]!a} is no sha256 digest")
    history = config.get("history")
    if history is not None and not (
        isinstance(history, list) and all(isinstance(entry, dict) for entry in history)
    ):
        raise FormatError(f"{where}: field history is no array of objects")
    layers = tuple(
        SourceLayer(layer.digest, layer.size, diff_id)
        for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
    )
    return SourceImage(manifest, manifest_data, config, layers)

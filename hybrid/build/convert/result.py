"""Manifest, config and index of a converted image. PURE: values in, bytes out.

Spec: image-format 2 to 4, 8, 11. All that is not about layers stays as it was in the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybrid.build.append import LAYER_TYPES, compact, layer_type, redirected
from hybrid.build.contract import manifest_blob
from hybrid.build.convert.planning import CONFIG_TYPES, SourceImage
from hybrid.core.json_fields import parse_json_object
from hybrid.core.manifest import (
    BLOB_DIGEST,
    BLOB_FS_TYPE,
    BLOB_SIZE,
    INDEX_TYPES,
    MANIFEST_TYPES,
    VERSION,
    Index,
    Manifest,
)
from hybrid.core.reference import ManifestBlob

CREATED_BY = "hybrid convert"
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer of the result. ``size`` in bytes of the blob."""

    digest: str
    size: int


def new_config(source: SourceImage, layers: Sequence[ConvertedLayer], fs: str) -> bytes:
    """The config: ``rootfs.diff_ids`` replaced, and the history made to fit them.

    A converted layer is an uncompressed tar to those who do not know better, so its digest is its
    diff_id. Most have one more than the source has, at the bottom; containerd, docker and skopeo
    want one history entry for each, so there is one in front. erofs has one for all; then the
    entries of the source have no layers of their own any more.
    """
    config = dict(source.config)
    config["rootfs"] = config["rootfs"] | {"diff_ids": [layer.digest for layer in layers]}
    history = config.get("history")
    if history:
        if fs == "erofs":
            added = {"created_by": CREATED_BY, "comment": "all layers as one erofs"}
            kept = [entry | {"empty_layer": True} for entry in history]
            config["history"] = [*kept, _dated(added, config)]
        else:
            added = {"created_by": CREATED_BY, "comment": f"an empty {fs}"}
            config["history"] = [{"created": EPOCH, **added}, *history]
    return compact(config)


def _dated(entry: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """There is no clock here: the same source gives the same bytes."""
    created = config.get("created")
    return {"created": created if isinstance(created, str) else EPOCH, **entry}


def new_manifest(
    source: SourceImage, layers: Sequence[ConvertedLayer], fs: str, config: bytes
) -> ManifestBlob:
    """The manifest, in the flavour (Docker or OCI) of the source."""
    media_type = source.manifest.media_type or MANIFEST_TYPES[0]
    document = parse_json_object(source.manifest_data, "the manifest")
    # It would say that the result is about something that only the source is about.
    document.pop("subject", None)
    described = manifest_blob(config, "")
    document["config"] = redirected(document["config"], described.digest, len(config))
    document["config"].setdefault("mediaType", CONFIG_TYPES[0])
    kind = _layer_type(source.manifest, media_type)
    document["layers"] = [_descriptor(layer, kind, fs) for layer in layers]
    return manifest_blob(compact(document), media_type)


def _layer_type(manifest: Manifest, media_type: str) -> str:
    if media_type == MANIFEST_TYPES[0]:
        return LAYER_TYPES["oci"]
    if media_type == MANIFEST_TYPES[1]:
        return LAYER_TYPES["docker"]
    return layer_type(manifest)


def _descriptor(layer: ConvertedLayer, media_type: str, fs: str) -> dict[str, Any]:
    return {
        "mediaType": media_type,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": {
            BLOB_DIGEST: layer.digest,
            BLOB_SIZE: str(layer.size),
            BLOB_FS_TYPE: fs,
            VERSION: "0.1.0",
        },
    }


def new_index(index: Index, data: bytes, replaced: Mapping[str, ManifestBlob]) -> ManifestBlob:
    """The index with the entries in ``replaced`` (by old digest) made to name the new manifests.

    All other entries are dropped: what they are about is the source.
    """
    document = parse_json_object(data, f"index {index.digest}")
    document.pop("subject", None)
    entries = []
    for entry, raw in zip(index.entries, document["manifests"], strict=True):
        new = replaced.get(entry.digest)
        if new is not None:
            entry_of_new = redirected(raw, new.digest, len(new.data))
            entries.append(entry_of_new | {"mediaType": new.media_type})
    document["manifests"] = entries
    return manifest_blob(compact(document), index.media_type or INDEX_TYPES[0])

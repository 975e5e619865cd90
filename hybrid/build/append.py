"""An image with one more layer: its manifest and its config. PURE: bytes in, bytes out.

Everything that is not about layers stays as it was. Spec: image-format 2, 3, 4, 9, 11.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from hybrid.core.json_fields import parse_json_object
from hybrid.core.manifest import (
    BLOB_DIGEST,
    BLOB_FS_TYPE,
    BLOB_SIZE,
    MANIFEST_TYPES,
    VERSION,
    LayerDescriptor,
    LayerKind,
    Manifest,
    overlaybd_layers,
)
from hybrid.core.segments import MAX_LAYERS
from hybrid.errors import FormatError, UnsupportedError

LAYER_TYPES = {
    "oci": "application/vnd.oci.image.layer.v1.tar",
    "docker": "application/vnd.docker.image.rootfs.diff.tar",
}
"""Media types of layers that are not compressed as a whole."""
CREATED_BY = "hybrid commit"
_ACCELERATION_HISTORY = "Acceleration Layer"
_FORMAT_VERSION = "0.1.0"


@dataclass(frozen=True)
class NewLayer:
    """A native layer in its tar wrapper. ``size`` in bytes."""

    digest: str
    size: int
    fs_type: str = ""


@dataclass(frozen=True)
class Appended:
    """The new image. All blobs of ``kept`` must go where it goes, beside layer and config."""

    manifest: bytes
    media_type: str
    config: bytes
    config_digest: str
    kept: tuple[LayerDescriptor, ...]
    """The layers of the base that stay."""
    dropped: LayerDescriptor | None
    """Its acceleration layer, which must be topmost, and fits another disk."""


def append_layer(
    base: Manifest, manifest: bytes, config: bytes, layer: NewLayer, *, message: str, created: str
) -> Appended:
    """Put a layer on top of an overlaybd image.

    ``manifest`` and ``config`` are the bytes of the base, of which ``base`` is the first,
    understood. ``created`` (RFC 3339) is for image and history, "" for the time of the base: there
    is no clock here. Raises FormatError or UnsupportedError for a base that cannot have it.
    """
    kept = overlaybd_layers(base, base.digest)
    if len(kept) >= MAX_LAYERS:
        raise UnsupportedError(
            f"{base.digest} has {len(kept)} layers, and cannot have more",
            hint="`hybrid layer merge` makes one of several",
        )
    top = base.layers[-1]
    dropped = top if top.kind is LayerKind.ACCELERATION else None
    new_config = _config(config, layer, dropped, message, created)
    config_digest = _digest(new_config)
    document = parse_json_object(manifest, f"manifest {base.digest}")
    # It tells what the base was converted from; that is not true of this one.
    document.pop("subject", None)
    document["config"] = redirected(document["config"], config_digest, len(new_config))
    document["layers"] = [*document["layers"][: len(kept)], _descriptor(base, layer)]
    return Appended(
        compact(document),
        base.media_type or MANIFEST_TYPES[0],
        new_config,
        config_digest,
        kept,
        dropped,
    )


def layer_type(base: Manifest) -> str:
    """The media type of an uncompressed layer, in the flavour that the base has."""
    types = [layer.media_type for layer in reversed(base.layers)]
    for media_type in [*types, base.media_type]:
        if media_type.startswith("application/vnd.docker."):
            return LAYER_TYPES["docker"]
        if media_type.startswith("application/vnd.oci."):
            return LAYER_TYPES["oci"]
    return LAYER_TYPES["oci"]


def _descriptor(base: Manifest, layer: NewLayer) -> dict[str, Any]:
    annotations = {
        BLOB_DIGEST: layer.digest,
        BLOB_SIZE: str(layer.size),
        VERSION: _FORMAT_VERSION,
    }
    if layer.fs_type:
        annotations[BLOB_FS_TYPE] = layer.fs_type
    return {
        "mediaType": layer_type(base),
        "digest": layer.digest,
        "size": layer.size,
        "annotations": annotations,
    }


def _config(
    data: bytes, layer: NewLayer, dropped: LayerDescriptor | None, message: str, created: str
) -> bytes:
    where = "the config of the image"
    config = parse_json_object(data, where)
    rootfs = config.get("rootfs")
    if rootfs is None:
        rootfs = config["rootfs"] = {"type": "layers", "diff_ids": []}
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    history = config.get("history")
    if not isinstance(ids, list) or not isinstance(history, list | None):
        raise FormatError(f"{where}: rootfs.diff_ids or history is no list")
    if dropped is not None:
        _forget_acceleration(ids, history or [], dropped)
    # The blob is an uncompressed tar to those who do not know better: it is its own diff_id.
    ids.append(layer.digest)
    if created:
        config["created"] = created
    entry = {"created": config.get("created"), "created_by": CREATED_BY, "comment": message}
    config["history"] = [*(history or []), {name: said for name, said in entry.items() if said}]
    return compact(config)


def _forget_acceleration(ids: list[Any], history: list[Any], dropped: LayerDescriptor) -> None:
    """Its diff_id is its digest; record-trace puts its history in front."""
    if ids and ids[-1] == dropped.digest:
        ids.pop()
    first = history[0] if history else None
    if isinstance(first, dict) and first.get("created_by") == _ACCELERATION_HISTORY:
        del history[0]


def redirected(descriptor: dict[str, Any], digest: str, size: int) -> dict[str, Any]:
    """A descriptor for other content: what it embeds, or says of where the old one is, goes."""
    kept = {key: value for key, value in descriptor.items() if key not in ("data", "urls")}
    return kept | {"digest": digest, "size": size}


def compact(document: dict[str, Any]) -> bytes:
    """JSON without spaces. Raises FormatError for what Python takes for JSON, and others do not."""
    try:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except ValueError as error:
        raise FormatError(f"the config or manifest has what JSON does not have: {error}") from error


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

"""The OCI manifest of a plain image that comes from something else than a registry. PURE."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.build.contract import manifest_blob
from hybrid.core.manifest import MANIFEST_TYPES
from hybrid.core.reference import ManifestBlob

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class PlainLayer:
    """A layer as it is stored: ``size`` bytes, ``compression`` none, gzip or zstd."""

    digest: str
    size: int
    compression: str


def plain_manifest(config: bytes, layers: Sequence[PlainLayer]) -> ManifestBlob:
    """The manifest of these, bottom first."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPES[0],
        "config": {
            "mediaType": CONFIG_TYPE,
            "digest": manifest_blob(config, "").digest,
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": LAYER_TYPE
                + (f"+{layer.compression}" if layer.compression != "none" else ""),
                "digest": layer.digest,
                "size": layer.size,
            }
            for layer in layers
        ],
    }
    return manifest_blob(json.dumps(document, separators=(",", ":")).encode(), MANIFEST_TYPES[0])

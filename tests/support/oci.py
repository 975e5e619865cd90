"""Makers of manifests, indexes and OCI layouts, without the product's code (spec: image-format)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

PREFIX = "containerd.io/snapshot/overlaybd/"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
REF_NAME = "org.opencontainers.image.ref.name"

Json = dict[str, Any]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def descriptor(data: bytes, media_type: str, **fields: Any) -> Json:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)} | fields


def overlaybd_annotations(data: bytes, **more: str) -> dict[str, str]:
    """What all converters write for a native layer, and ``more`` (with _ for -)."""
    keys = {"version": "0.1.0", "blob-digest": digest_of(data), "blob-size": str(len(data))}
    keys |= {key.replace("_", "-"): value for key, value in more.items()}
    return {PREFIX + key: value for key, value in keys.items()}


def native_layer(data: bytes, media_type: str = OCI_LAYER, **more: str) -> Json:
    return descriptor(data, media_type, annotations=overlaybd_annotations(data, **more))


def manifest_of(layers: list[Json], config: bytes = b"{}", /, **fields: Any) -> bytes:
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, OCI_CONFIG),
        "layers": layers,
    }
    return to_json(value | fields)


def image_config(layers: list[bytes], architecture: str = "amd64") -> bytes:
    """The config of an image whose layers are uncompressed: each diff_id is the blob's digest."""
    ids = [digest_of(layer) for layer in layers]
    value = {"architecture": architecture, "os": "linux", "config": {}}
    return to_json(value | {"rootfs": {"type": "layers", "diff_ids": ids}})


class LayoutBuilder:
    """An OCI layout, made file by file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.entries: list[Json] = []
        (directory / "blobs" / "sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.write_index()

    def put(self, data: bytes) -> str:
        digest = digest_of(data)
        self.path(digest).write_bytes(data)
        return digest

    def path(self, digest: str) -> Path:
        return self.directory / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def add(self, document: bytes, tag: str = "", **fields: Any) -> str:
        """Put a manifest or index in and list it in the index.json, with its tag."""
        annotations = ({REF_NAME: tag} if tag else {}) | fields.pop("annotations", {})
        media_type = fields.pop("mediaType", json.loads(document).get("mediaType", OCI_MANIFEST))
        entry = descriptor(document, media_type) | fields
        self.entries.append(entry | ({"annotations": annotations} if annotations else {}))
        self.write_index()
        return self.put(document)

    def add_image(self, layers: list[bytes], tag: str = "", **fields: Any) -> str:
        """Put a whole native overlaybd image in."""
        config = image_config(layers)
        for data in (config, *layers):
            self.put(data)
        return self.add(manifest_of([native_layer(x) for x in layers], config), tag, **fields)

    def write_index(self) -> None:
        value = {"schemaVersion": 2, "manifests": self.entries}
        (self.directory / "index.json").write_bytes(to_json(value))

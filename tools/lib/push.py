"""Push an overlaybd image to a registry: blobs, config, manifest (spec: image-format 3, 4, 8).

The registry is a local one without TLS and credentials; nothing but HTTP is needed for that.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from urllib.parse import urljoin

import httpx
from layers import LayerFile

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_ANNOTATION = "containerd.io/snapshot/overlaybd/"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def push_image(base_url: str, repository: str, tag: str, layers: Sequence[LayerFile]) -> str:
    """Push the layers (bottom first) as one image; return the digest of its manifest."""
    with httpx.Client(base_url=base_url, trust_env=False, timeout=60) as client:
        for layer in layers:
            _push_blob(client, repository, layer.digest, layer.path.read_bytes())
        config = _json(_config(layers))
        _push_blob(client, repository, _digest(config), config)
        manifest = _json(_manifest(config, layers))
        client.put(
            f"/v2/{repository}/manifests/{tag}",
            content=manifest,
            headers={"Content-Type": MANIFEST_TYPE},
        ).raise_for_status()
    return _digest(manifest)


def _push_blob(client: httpx.Client, repository: str, digest: str, data: bytes) -> None:
    started = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status()
    upload = httpx.URL(urljoin(str(started.url), started.headers["Location"]))
    client.put(
        upload.copy_merge_params({"digest": digest}),
        content=data,
        headers={"Content-Type": "application/octet-stream"},
    ).raise_for_status()


def _config(layers: Sequence[LayerFile]) -> dict[str, object]:
    machine = platform.machine()
    # A native layer is an uncompressed tar, so its diff_id is its digest.
    return {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }


def _manifest(config: bytes, layers: Sequence[LayerFile]) -> dict[str, object]:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
        "layers": [_descriptor(layer) for layer in layers],
    }


def _descriptor(layer: LayerFile) -> dict[str, object]:
    annotations = {
        "version": "0.1.0",
        "blob-digest": layer.digest,
        "blob-size": str(layer.size),
        "blob-fs-type": "ext4",
    }
    return {
        "mediaType": _LAYER_TYPE,
        "digest": layer.digest,
        "size": layer.size,
        "annotations": {_ANNOTATION + key: value for key, value in annotations.items()},
    }


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

"""The golden image img3 (three lz4 layers) as an overlaybd image: pushed, or in an OCI layout."""

from __future__ import annotations

from pathlib import Path

from support import golden, oci
from support.registry import RealRegistry

REPOSITORY = "golden/img3"
LAYERS = ("L1.lz4-4k.tar", "L2.lz4-4k.tar", "L3.lz4-4k.tar")


def layers() -> list[bytes]:
    return [golden.data_of(f"img/{name}") for name in LAYERS]


def push(registry: RealRegistry, tag: str = "v1", repository: str = REPOSITORY) -> str:
    """Push the image; returns ``host/repository:tag``."""
    blobs = layers()
    config = oci.image_config(blobs)
    for blob in (*blobs, config):
        registry.push_blob(repository, blob)
    manifest = oci.manifest_of([oci.native_layer(blob) for blob in blobs], config)
    registry.push_manifest(repository, tag, manifest, oci.OCI_MANIFEST)
    return f"{registry.host}/{repository}:{tag}"


def layout(directory: Path, tag: str = "v1") -> str:
    """Make an OCI layout with the image; returns its name."""
    builder = oci.LayoutBuilder(directory)
    builder.add_image(layers(), tag)
    builder.write_index()
    return f"oci:{directory}:{tag}"

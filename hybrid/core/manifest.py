"""Manifests and indexes as values; which of their layers are overlaybd layers, and of which kind.

PURE: bytes in, values or a HybridError out. Layers are told apart by their annotations, never by
their media type, of which any mixture occurs. Spec: image-format 1, 2, 3, 8, 11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from hybrid.core.json_fields import Fields, parse_json_object
from hybrid.core.platforms import Platform, acceptable, normalize
from hybrid.core.reference import ManifestBlob, is_digest
from hybrid.core.segments import MAX_LAYERS
from hybrid.errors import FormatError, NotFoundError, UnsupportedError

MAX_DOCUMENT_BYTES = 4 << 20
"""Longest manifest or index (OCI distribution: registries should accept at least this)."""

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

PREFIX = "containerd.io/snapshot/overlaybd/"
VERSION = PREFIX + "version"
BLOB_DIGEST = PREFIX + "blob-digest"
BLOB_SIZE = PREFIX + "blob-size"
BLOB_FS_TYPE = PREFIX + "blob-fs-type"
ACCELERATION_LAYER = PREFIX + "acceleration-layer"
TURBO_PREFIXES = (PREFIX + "turbo-oci/", PREFIX + "fastoci/")
TURBO_VERSIONS = ("0.1.0-turbo.ociv1", "0.1.0-fastoci")
ATTESTATION = "vnd.docker.reference.type"

_ANY_DIGEST = re.compile(r"([a-z0-9]{1,32}(?:[+._-][a-z0-9]{1,32})*):[A-Za-z0-9=_-]+")
_SHOWN_PLATFORMS = 20


class LayerKind(Enum):
    """What an overlaybd layer is; None in a LayerDescriptor: an ordinary OCI layer."""

    NATIVE = "native"
    TURBO = "turbo"
    ACCELERATION = "acceleration"


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob. ``size`` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]
    platform: Platform | None = None


@dataclass(frozen=True)
class LayerDescriptor:
    """A layer of a manifest. ``size`` is the blob's, in bytes."""

    digest: str
    size: int
    media_type: str
    kind: LayerKind | None
    fs_type: str
    """``ext4``, ``erofs``, ...; "" where the image does not say (then look at the disk)."""
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Index:
    """A list of manifests for different platforms, or of images in an OCI layout."""

    digest: str
    media_type: str
    entries: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Manifest:
    """One image: its config and its layers, bottom first."""

    digest: str
    media_type: str
    config: Descriptor
    layers: tuple[LayerDescriptor, ...]
    annotations: Mapping[str, str]


def parse_document(blob: ManifestBlob) -> Index | Manifest:
    """Understand a manifest or an index.

    Which of the two it is follows from its fields; a media type that says otherwise is an error,
    so that no two readers can see two different images in one document. Raises FormatError naming
    the field, or UnsupportedError (schema 1, a digest other than sha256).
    """
    fields = _document(blob.data, f"manifest {blob.digest}")
    is_index = fields.has("manifests")
    if is_index and (fields.has("layers") or fields.has("config")):
        raise FormatError(f"{fields.where} has the fields of a manifest and those of an index")
    media_type = _media_type(blob, fields, is_index)
    if is_index:
        return Index(blob.digest, media_type, _entries(fields))
    return Manifest(
        digest=blob.digest,
        media_type=media_type,
        config=_descriptor(fields.nested("config")),
        layers=tuple(_layer(_descriptor(item)) for item in fields.nested_list("layers")),
        annotations=fields.strings("annotations"),
    )


def parse_layout_index(data: bytes, where: str) -> tuple[Descriptor, ...]:
    """The entries of the ``index.json`` of an OCI layout; ``where`` is its name for messages."""
    return _entries(_document(data, where))


def select_platform(index: Index, wanted: Platform) -> Descriptor:
    """The entry that containerd would take for this platform; it may be an index again.

    Entries without a platform are the last resort. Attestations are passed over. Raises
    NotFoundError naming the platforms there are.
    """
    candidates = image_entries(index)
    for platform in (*acceptable(wanted), None):
        for entry in candidates:
            if entry.platform == platform:
                return entry
    available = sorted({str(entry.platform) for entry in candidates})[:_SHOWN_PLATFORMS]
    raise NotFoundError(
        f"index {index.digest} has no image for {wanted}",
        hint=f"available: {', '.join(available)}" if available else "it has no images at all",
    )


def image_entries(index: Index) -> list[Descriptor]:
    """The entries that are images: neither attestations nor of an unknown platform."""
    unknown = Platform("unknown", "unknown")
    return [
        entry
        for entry in index.entries
        if ATTESTATION not in entry.annotations and entry.platform != unknown
    ]


def has_overlaybd_annotations(manifest: Manifest) -> bool:
    """False for a plain OCI image, and for an overlaybd image whose annotations were lost."""
    return any(layer.kind is not None for layer in manifest.layers)


def overlaybd_layers(manifest: Manifest, image: str) -> tuple[LayerDescriptor, ...]:
    """The native layers of an overlaybd image, bottom first: those that hold data.

    An acceleration layer (the topmost, if any) holds none and is left out. ``image`` is the name
    for messages. Raises UnsupportedError for every image that hybrid cannot read: a plain one, one
    that was recompressed, TurboOCI; FormatError for a layer without any bytes. Whether a "plain"
    image is an overlaybd image that lost its annotations, only its bytes can tell: see
    ``hybrid.core.recognize``.
    """
    if not has_overlaybd_annotations(manifest):
        raise plain_image(image)
    for number, layer in enumerate(manifest.layers):
        _require_readable(layer, f"layer {number} ({layer.digest}) of {image}")
    top = manifest.layers[-1]
    layers = manifest.layers[:-1] if top.kind is LayerKind.ACCELERATION else manifest.layers
    for number, layer in enumerate(layers):
        if layer.kind is LayerKind.ACCELERATION:
            raise UnsupportedError(
                f"layer {number} ({layer.digest}) of {image} is an acceleration layer, "
                "but not the topmost"
            )
        if layer.size == 0:
            raise FormatError(f"layer {number} ({layer.digest}) of {image} has 0 bytes")
    if not layers:
        raise UnsupportedError(f"{image} has no layer with data")
    if len(layers) > MAX_LAYERS:
        raise UnsupportedError(f"{image} has {len(layers)} layers; at most {MAX_LAYERS} can be")
    return layers


def plain_image(image: str) -> UnsupportedError:
    """The error for an image without anything of overlaybd in it."""
    return UnsupportedError(
        f"{image} is a plain OCI image, not an overlaybd image",
        hint="'hybrid convert' makes one of it",
    )


def recompressed_image(image: str, sign: str) -> UnsupportedError:
    """The error for an overlaybd image that a tool changed on copy; ``sign`` is what shows it."""
    return UnsupportedError(
        f"{image} is an overlaybd image that a tool recompressed or changed on copy: {sign}",
        hint="copy it again from its origin with 'skopeo copy --preserve-digests', or as it is",
    )


def _require_readable(layer: LayerDescriptor, where: str) -> None:
    if layer.kind is None:
        raise UnsupportedError(f"{where} is an ordinary OCI layer among overlaybd layers")
    if layer.kind is LayerKind.TURBO:
        raise UnsupportedError(f"{where}: TurboOCI layers are not supported yet")
    digest, size = layer.annotations.get(BLOB_DIGEST), layer.annotations.get(BLOB_SIZE)
    if digest is None or size is None:
        missing = BLOB_DIGEST if digest is None else BLOB_SIZE
        raise FormatError(f"{where} has no annotation {missing}")
    if not is_digest(digest):
        raise FormatError(f"{where}: annotation {BLOB_DIGEST} is {digest[:80]!a}, no sha256 digest")
    if re.fullmatch(r"[0-9]{1,19}", size) is None:
        raise FormatError(f"{where}: annotation {BLOB_SIZE} is {size[:80]!a}, no number")
    if digest != layer.digest:
        raise recompressed_image(where, f"blob-digest is {digest}")
    if int(size) != layer.size:
        raise recompressed_image(where, f"blob-size is {size}, but the blob has {layer.size} bytes")


def _document(data: bytes, where: str) -> Fields:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{where} is longer than {MAX_DOCUMENT_BYTES} bytes")
    fields = Fields(parse_json_object(data, where), where)
    version = fields.optional_integer("schemaVersion")
    if version == 1 or fields.has("fsLayers"):
        hint = "push the image again with a tool of this decade"
        raise UnsupportedError(f"{where} has the old format 'schema 1'", hint=hint)
    if version not in (None, 2):
        raise FormatError(f"{where}: field schemaVersion is not 2")
    return fields


def _entries(fields: Fields) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(item) for item in fields.nested_list("manifests"))


def _media_type(blob: ManifestBlob, fields: Fields, is_index: bool) -> str:
    wrong = MANIFEST_TYPES if is_index else INDEX_TYPES
    stated = fields.optional_string("mediaType")
    for media_type in (stated, blob.media_type):
        if media_type in wrong:
            shape = "an index" if is_index else "a manifest"
            raise FormatError(f"{fields.where} has the fields of {shape}, but is a {media_type}")
    return stated or blob.media_type


def _descriptor(fields: Fields) -> Descriptor:
    return Descriptor(
        media_type=fields.optional_string("mediaType"),
        digest=_digest(fields),
        size=fields.size("size"),
        annotations=fields.strings("annotations"),
        platform=_platform(fields),
    )


def _digest(fields: Fields) -> str:
    digest = fields.string("digest")
    if is_digest(digest):
        return digest
    match = _ANY_DIGEST.fullmatch(digest)
    if match is None or match[1] == "sha256":
        raise FormatError(f"{fields.where}: field digest is {digest[:80]!a}, no digest")
    raise UnsupportedError(f"{fields.where}: digests of kind {match[1]} are not supported")


def _platform(fields: Fields) -> Platform | None:
    if not fields.has("platform"):
        return None
    platform = fields.nested("platform")
    os, architecture, variant = (
        platform.optional_string(name) for name in ("os", "architecture", "variant")
    )
    if not (os + architecture + variant).isprintable():
        raise FormatError(f"{platform.where} has control characters in it")
    return normalize(os, architecture, variant) if os or architecture else None


def _layer(descriptor: Descriptor) -> LayerDescriptor:
    annotations = descriptor.annotations
    return LayerDescriptor(
        digest=descriptor.digest,
        size=descriptor.size,
        media_type=descriptor.media_type,
        kind=_layer_kind(annotations),
        fs_type=annotations.get(BLOB_FS_TYPE, "").partition(";")[0].strip(),
        annotations=annotations,
    )


def _layer_kind(annotations: Mapping[str, str]) -> LayerKind | None:
    names = [name for name in annotations if name.startswith(PREFIX)]
    if not names:
        return None
    if annotations.get(VERSION) in TURBO_VERSIONS or any(
        name.startswith(TURBO_PREFIXES) for name in names
    ):
        return LayerKind.TURBO
    if annotations.get(ACCELERATION_LAYER) == "yes":
        return LayerKind.ACCELERATION
    return LayerKind.NATIVE

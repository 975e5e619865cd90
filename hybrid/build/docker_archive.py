"""An image in a file of ``docker save`` as a source: its OCI manifest is made on the way.

The file is a tar with ``manifest.json``: for each image its config, its layers and its names.
Layers are mostly plain tars, whose digests are the diff_ids of the config; compressed ones (other
tools write them) are read once more for their digest. Old archives have links in place of layers
that several images share. Nothing in the archive is trusted: what is read is checked against the
digest that the made manifest has.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import trio

from hybrid.build.archive_file import ArchiveFile
from hybrid.build.contract import ImageSource
from hybrid.build.plain_manifest import PlainLayer, plain_manifest
from hybrid.core.byte_stream import BlobContent, ByteStream, VerifiedStream, memory_content
from hybrid.core.json_fields import Fields, parse_json_object
from hybrid.core.manifest import MAX_DOCUMENT_BYTES
from hybrid.core.platforms import Platform
from hybrid.core.reference import ArchiveReference, ManifestBlob, is_digest, parse_image
from hybrid.errors import FormatError, HybridError, NotFoundError

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
DAMAGED_HINT = "the archive is damaged; save the image again"
_SHOWN_NAMES = 20


@dataclass(frozen=True)
class ArchivedImage:
    """One entry of ``manifest.json``: names of members, layers bottom first, and tags."""

    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


class DockerArchiveSource(ImageSource):
    """Raises NotFoundError, FormatError or UnsupportedError. Close it."""

    def __init__(self, ref: ArchiveReference, archive: ArchiveFile) -> None:
        self.name = str(ref)
        self._ref = ref
        self._archive = archive
        self._members: dict[str, str] = {}
        self._manifest: ManifestBlob | None = None
        self._config = b""
        self._lock = trio.Lock()

    @classmethod
    async def open(cls, ref: ArchiveReference) -> DockerArchiveSource:
        archive = await trio.to_thread.run_sync(ArchiveFile, ref.path)
        return cls(ref, archive)

    async def get_manifest(
        self, digest: str = "", *, platform: Platform | None = None
    ) -> ManifestBlob:
        async with self._lock:
            if self._manifest is None:
                self._manifest = await self._make_manifest()
        if digest not in ("", self._manifest.digest):
            raise NotFoundError(f"{self.name} has no manifest {digest}")
        return self._manifest

    def blob(self, digest: str, size: int | None) -> BlobContent:
        if digest == digest_of(self._config):
            return memory_content(self._config, f"the config of {self.name}")

        async def open_stream() -> ByteStream:
            if digest not in self._members:
                raise NotFoundError(f"{self.name} has no blob {digest}")
            stream = self._archive.stream(self._members[digest])
            return VerifiedStream(stream, digest, size, hint=DAMAGED_HINT)

        return BlobContent(open_stream, digest, size)

    async def aclose(self) -> None:
        await self._archive.aclose()

    async def _make_manifest(self) -> ManifestBlob:
        where = f"manifest.json of {self._ref.path}"
        data = await self._archive.read("manifest.json", MAX_DOCUMENT_BYTES)
        image = choose_image(parse_archive(data, where), self._ref)
        config = await self._archive.read(image.config, MAX_DOCUMENT_BYTES)
        check_config_name(image.config, config, self.name)
        diff_ids = parse_diff_ids(config, f"config {image.config} of {self._ref.path}")
        if len(diff_ids) != len(image.layers):
            raise FormatError(
                f"{self.name} has {len(image.layers)} layers, but its config names {len(diff_ids)}",
                hint=DAMAGED_HINT,
            )
        layers = [
            await self._layer(member, diff_id)
            for member, diff_id in zip(image.layers, diff_ids, strict=True)
        ]
        self._config = config
        return plain_manifest(config, layers)

    async def _layer(self, member: str, diff_id: str) -> PlainLayer:
        head = await self._archive.head(member, 4)
        compression = next(
            (kind for magic, kind in COMPRESSIONS.items() if head.startswith(magic)), "none"
        )
        digest = diff_id if compression == "none" else await self._digest(member)
        self._members[digest] = member
        return PlainLayer(digest, self._archive.size(member), compression)

    async def _digest(self, member: str) -> str:
        async with VerifiedStream(self._archive.stream(member)) as stream:
            while await stream.read():
                pass
            return stream.actual_digest


def parse_archive(data: bytes, where: str) -> list[ArchivedImage]:
    """The images that ``manifest.json`` names. Raises FormatError."""
    # It is an array, and what reads JSON here wants an object.
    document = Fields(parse_json_object(b'{"images":' + data + b"}", where), where)
    return [
        ArchivedImage(
            item.string("Config"),
            string_list(item, "Layers"),
            string_list(item, "RepoTags"),
        )
        for item in document.nested_list("images")
    ]


def parse_diff_ids(config: bytes, where: str) -> tuple[str, ...]:
    """The digests of the uncompressed layers, bottom first. Raises FormatError."""
    fields = Fields(parse_json_object(config, where), where).nested("rootfs")
    found = string_list(fields, "diff_ids")
    for diff_id in found:
        if not is_digest(diff_id):
            raise FormatError(f"{where}: diff_id {diff_id[:80]!a} is no sha256 digest")
    return found


def check_config_name(member: str, config: bytes, name: str) -> None:
    """Configs are named by their digest. Raises FormatError if one is not what its name says."""
    match = re.search(r"([0-9a-f]{64})(\.json)?$", member)
    if match is not None and digest_of(config) != f"sha256:{match[1]}":
        raise FormatError(
            f"{name}: the config has the digest {digest_of(config)}, but the name {member!a}",
            hint=DAMAGED_HINT,
        )


def string_list(fields: Fields, name: str) -> tuple[str, ...]:
    """An array of strings; () if it is absent or null."""
    return fields.string_list(name) if fields.has(name) else ()


def choose_image(images: list[ArchivedImage], ref: ArchiveReference) -> ArchivedImage:
    """The image with the wanted name. NotFoundError names those there are.

    A name is compared as a whole (``app`` is ``docker.io/library/app:latest``), else as a tag if
    only one image has that.
    """
    tags = sorted({tag for image in images for tag in image.tags})
    shown = [ascii(tag) for tag in tags[:_SHOWN_NAMES]]
    hint = f"there are: {', '.join(shown)}" if tags else "no image in it has a name"
    if ref.tag is None:
        if len(images) == 1:
            return images[0]
        count = "no" if not images else str(len(images))
        raise NotFoundError(f"{ref} has {count} images", hint=hint)
    wanted = full_name(ref.tag)
    found = [image for image in images if wanted in map(full_name, image.tags)]
    if not found:
        found = [image for image in images if any(t.endswith(f":{ref.tag}") for t in image.tags)]
    if len(found) != 1:
        problem = "several images" if found else "no image"
        raise NotFoundError(f"{ref.path} has {problem} with the name {ref.tag!a}", hint=hint)
    return found[0]


def full_name(text: str) -> str:
    """A name with host and tag, for comparing; what is no name stays as it is."""
    try:
        reference = parse_image(f"docker://{text}")
    except HybridError:
        return text
    tag = getattr(reference, "reference", "")
    return f"{getattr(reference, 'name', text)}:{tag}"


def digest_of(data: bytes) -> str:
    """The sha256 digest."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

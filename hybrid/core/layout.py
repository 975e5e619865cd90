"""An OCI image layout on disk: a directory with ``oci-layout``, ``index.json`` and ``blobs/``.

Small files are read at once and verified against their digest; layers are opened as Sources, whose
contents are guarded by the checksums of their own format. No method waits: all files are local.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from hybrid.core.json_fields import Fields, parse_json_object
from hybrid.core.manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    Index,
    image_entries,
    parse_layout_index,
    select_platform,
)
from hybrid.core.platforms import Platform
from hybrid.core.reference import ManifestBlob, is_digest
from hybrid.core.source import FileSource
from hybrid.errors import (
    FormatError,
    HybridError,
    NotFoundError,
    PermissionNeededError,
    UnsupportedError,
)

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
DEFAULT_TAG = "latest"

_SHOWN_NAMES = 20


class OciLayout:
    """One layout. The index is read when the layout is opened, blobs when they are asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        check_version(directory)
        index = directory / "index.json"
        data = read_file(index, MAX_DOCUMENT_BYTES, "the index of the OCI layout")
        self._entries = tuple(parse_layout_index(data, str(index)))

    def tags(self) -> list[str]:
        """The names by which images can be asked for, sorted."""
        return sorted({name for entry in self._images() if (name := _tag(entry))})

    def resolve(self, reference: str | None, platform: Platform) -> ManifestBlob:
        """The manifest or index with this tag, full name or digest, verified.

        None means the only image, else the one tagged "latest". Several entries with one name
        stand for one image on several platforms, of which the best for ``platform`` is taken.
        Raises NotFoundError naming the tags there are, or FormatError.
        """
        if reference is not None and is_digest(reference):
            return self._manifest(self._entry_with_digest(reference), reference)
        entries = self.images(reference)
        entry = self._choose(entries, platform)
        return self._manifest(entry, entry.digest)

    def images(self, reference: str | None) -> list[Descriptor]:
        """The entries that a tag or full name (None: as for ``resolve``) stands for."""
        return self._named(reference) if reference is not None else self._default()

    def get_blob(self, digest: str, limit_bytes: int) -> bytes:
        """A whole blob, verified. Raises NotFoundError, or FormatError (too long, damaged)."""
        path = self._blob_path(digest)
        data = read_file(path, limit_bytes, f"blob {digest}")
        actual = hashlib.sha256(data).hexdigest()
        if f"sha256:{actual}" != digest:
            raise FormatError(
                f"{path} is damaged: its digest is sha256:{actual}",
                hint="copy the image into the layout again",
            )
        return data

    def blob_source(self, digest: str, size: int | None) -> FileSource:
        """A blob of ``size`` bytes (if that is known) to read at random. Nothing is verified."""
        path = self._blob_path(digest)
        try:
            actual = path.stat().st_size
        except OSError as error:
            raise _translate(error, path, f"blob {digest}") from error
        if size is not None and actual != size:
            problem = "is truncated" if actual < size else "is too long"
            raise FormatError(
                f"{path} {problem}: it has {actual} bytes, its descriptor says {size}",
                hint="copy the image into the layout again",
            )
        return FileSource(path)

    def _images(self) -> list[Descriptor]:
        return image_entries(Index("", "", self._entries))

    def _named(self, name: str) -> list[Descriptor]:
        entries = [entry for entry in self._images() if name in _names(entry)]
        if not entries:
            raise NotFoundError(f"{self.directory} has no image {name!a}", hint=self._tag_hint())
        return entries

    def _default(self) -> list[Descriptor]:
        entries, tags = self._images(), self.tags()
        if not entries:
            raise NotFoundError(f"{self.directory} has no images in it")
        if not tags:
            return entries
        wanted = tags[0] if len(tags) == 1 else DEFAULT_TAG
        if wanted not in tags:
            raise NotFoundError(
                f"{self.directory} has several images, none of them tagged {DEFAULT_TAG!r}",
                hint=self._tag_hint(),
            )
        return [entry for entry in entries if _tag(entry) == wanted]

    def _choose(self, entries: list[Descriptor], platform: Platform) -> Descriptor:
        """One of the entries with the same name; they must differ in their platform only."""
        if len(entries) == 1:
            # As with a tag in a registry: a single image is taken, whatever it was made for.
            return entries[0]
        chosen = select_platform(Index(str(self.directory), "", tuple(entries)), platform)
        rivals = {entry.digest for entry in entries if entry.platform == chosen.platform}
        full_names = {entry.annotations.get(FULL_NAME, "") for entry in entries}
        if len(rivals) > 1 or len(full_names) > 1:
            others = {name for entry in entries for name in _names(entry)} or rivals
            raise NotFoundError(
                f"{self.directory} has several images of the same name",
                hint=f"name one by its digest, or fully: {_shorten(others)}",
            )
        return chosen

    def _entry_with_digest(self, digest: str) -> Descriptor | None:
        return next((entry for entry in self._entries if entry.digest == digest), None)

    def _manifest(self, entry: Descriptor | None, digest: str) -> ManifestBlob:
        data = self.get_blob(digest, MAX_DOCUMENT_BYTES)
        if entry is not None and len(data) != entry.size:
            raise FormatError(
                f"{self.directory / 'index.json'} says that {digest} has {entry.size} bytes, "
                f"but it has {len(data)}"
            )
        return ManifestBlob(data, entry.media_type if entry is not None else "", digest)

    def _blob_path(self, digest: str) -> Path:
        # The grammar of digests keeps "/" and ".." out of the path.
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is no sha256 digest")
        algorithm, _, encoded = digest.partition(":")
        return self.directory / "blobs" / algorithm / encoded

    def _tag_hint(self) -> str:
        tags = self.tags()
        return f"there are: {_shorten(tags)}" if tags else "no image in it has a tag"


def check_version(directory: Path) -> None:
    """Raise NotFoundError, FormatError or UnsupportedError unless it is a layout of version 1."""
    path = directory / "oci-layout"
    try:
        data = read_file(path, MAX_DOCUMENT_BYTES, "the marker of an OCI layout")
    except NotFoundError as error:
        raise NotFoundError(
            f"{directory} is no OCI layout: it has no file oci-layout"
            if directory.is_dir()
            else f"no such directory: {directory}"
        ) from error
    version = Fields(parse_json_object(data, str(path)), str(path)).string("imageLayoutVersion")
    if not version.startswith("1."):
        raise UnsupportedError(
            f"{path}: imageLayoutVersion {version[:80]!a} is not supported; 1.0.0 is"
        )


def _tag(entry: Descriptor) -> str:
    annotations = entry.annotations
    return annotations.get(REF_NAME, "") or annotations.get(FULL_NAME, "")


def _names(entry: Descriptor) -> set[str]:
    annotations = entry.annotations
    return {annotations.get(REF_NAME, ""), annotations.get(FULL_NAME, "")} - {""}


def _shorten(names: Iterable[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in sorted(names)]
    more = ", ..." if len(shown) > _SHOWN_NAMES else ""
    return ", ".join(shown[:_SHOWN_NAMES]) + more


def read_file(path: Path, limit_bytes: int, what: str) -> bytes:
    """A whole regular file. Anything else (a FIFO) could block."""
    try:
        if path.exists() and not path.is_file():
            raise FormatError(f"{path}, {what}, is not a regular file")
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise _translate(error, path, what) from error
    if len(data) > limit_bytes:
        raise FormatError(f"{path}, {what}, is longer than {limit_bytes} bytes")
    return data


def _translate(error: OSError, path: Path, what: str) -> HybridError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFoundError(f"{what} is missing: {path}")
    if isinstance(error, PermissionError):
        return PermissionNeededError(f"cannot read {path}: permission denied")
    return FormatError(f"cannot read {path}, {what}: {error.strerror}")

"""The two contracts by which images move: where one is read from, and where one is written to.

    source = await open_image_source("oci:DIR:TAG", settings, stack)       build/opening.py
    destination = await open_image_destination("host/app:v1", settings, stack)
    result = await copy_image(source, destination)                         build/copy.py

To write an image of one's own (commit, convert): put its blobs, its config among them, in any order
and by any number of tasks, then its manifest, then the tag:

    layer = await add_blob(destination, BlobContent(open_stream, repeatable=False))
    config = await add_blob(destination, memory_content(config_bytes))
    manifest = manifest_blob(manifest_bytes, media_type)
    await destination.put_manifest(manifest)
    reference = await destination.tag(manifest)

Until ``tag`` nothing can be seen under the name. What was put before a failure stays, whole and
checked, so that another run finds it; half of a blob never does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from hybrid.core.byte_stream import BlobContent
from hybrid.core.platforms import Platform
from hybrid.core.reference import ManifestBlob
from hybrid.errors import HybridError, UsageError

Advance = Callable[[int], None]
"""Told how many bytes (of what is to be written) have gone; negative when some must go again."""


def no_advance(count: int) -> None:
    """For nobody who watches."""


@dataclass(frozen=True)
class PutBlob:
    """A blob that is at its destination. ``size`` in bytes."""

    digest: str
    size: int
    how: str
    """``present`` (it was there), ``mounted`` (from another repository), or ``written``."""


class ImageSource(ABC):
    """An image to read: of one platform, or an index of several. Any number of tasks may call."""

    name: str
    """As the user may write it."""

    @abstractmethod
    async def get_manifest(
        self, digest: str = "", *, platform: Platform | None = None
    ) -> ManifestBlob:
        """What the name stands for, or with ``digest`` any manifest that belongs to it; verified.

        ``platform`` helps where a name stands for several manifests without an index (in OCI
        layouts); None then raises UnsupportedError. Raises NotFoundError, FormatError and the
        errors of registries.
        """

    @abstractmethod
    def blob(self, digest: str, size: int | None) -> BlobContent:
        """A blob, whose streams check digest and size. Errors are raised when it is opened."""

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to close
        """Close files; connections belong to whoever made them."""


class BlobDraft(ABC):
    """A new blob that is written where it is to stay. Without ``finish`` nothing stays."""

    file: BinaryIO
    """Empty, to be written, sought and read in threads."""

    @abstractmethod
    async def finish(self, digest: str, size: int) -> PutBlob:
        """All is written: ``size`` bytes, which were seen to have the digest. As ``put_blob``."""

    @abstractmethod
    def error(self, error: OSError) -> HybridError:
        """What to tell the user when ``file`` cannot be written."""

    @abstractmethod
    def close(self) -> None:
        """Nobody uses ``file`` any more."""


class ImageDestination(ABC):
    """A place for one image, under one name. Any number of tasks may call.

    Everything here may raise StorageFullError, PermissionNeededError, AuthError, NetworkError.
    """

    name: str
    """As the user may write it."""

    @abstractmethod
    async def has_blob(self, digest: str, size: int | None) -> bool:
        """Whether the blob is there already, whole."""

    async def mount_blob(self, content: BlobContent) -> bool:
        """Take the blob from ``content.origin`` without its bytes; False if that cannot be done."""
        return False

    @abstractmethod
    async def put_blob(self, content: BlobContent, advance: Advance = no_advance) -> PutBlob:
        """Write a blob, without asking whether it is there. Its digest and size are checked.

        It is there, durably, when this returns; else nothing of it is. Errors of its stream pass
        through.
        """

    async def begin_blob(self) -> BlobDraft | None:
        """For a blob that is being made: a file in which it can stay. None where blobs are not
        files of this machine: it is to be made elsewhere, and put.
        """
        return None

    @abstractmethod
    async def put_manifest(self, manifest: ManifestBlob) -> None:
        """Store a manifest or index under its digest. All that it names must be there."""

    @abstractmethod
    def accept(self, manifest: ManifestBlob) -> None:
        """Whether ``tag`` would take this manifest, before anything is sent. Raises UsageError if
        the destination is named by another digest.
        """

    @abstractmethod
    async def tag(self, manifest: ManifestBlob, platform: Platform | None = None) -> str:
        """Give a stored manifest the name of the destination: the last step.

        Returns a name with the digest in it. Raises UsageError as ``accept`` does.
        """

    async def give_up(self, error: BaseException) -> None:  # noqa: B027 - not all can do something
        """After a failure: take away what nobody can use. Whole blobs stay for another try, unless
        the disk is full.
        """

    async def aclose(self) -> None:  # noqa: B027 - most have nothing to close
        """Close files; connections belong to whoever made them."""


async def add_blob(
    destination: ImageDestination, content: BlobContent, advance: Advance = no_advance
) -> PutBlob:
    """See to it that a blob is there, with as little work as possible: ask, mount, write."""
    if content.digest:
        if await destination.has_blob(content.digest, content.size):
            return PutBlob(content.digest, content.size or 0, "present")
        if content.origin is not None and await destination.mount_blob(content):
            return PutBlob(content.digest, content.size or 0, "mounted")
    return await destination.put_blob(content, advance)


def manifest_blob(data: bytes, media_type: str) -> ManifestBlob:
    """A manifest or index of one's own, with its digest."""
    return ManifestBlob(data, media_type, f"sha256:{hashlib.sha256(data).hexdigest()}")


def check_digest(wanted: str | None, manifest: ManifestBlob, name: str) -> None:
    """UsageError if a destination is named by the digest of another manifest."""
    if wanted is not None and wanted != manifest.digest:
        raise UsageError(
            f"the image has the digest {manifest.digest}, so it cannot become {name}",
            hint="name the destination by a tag",
        )

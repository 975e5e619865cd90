"""An image in an OCI layout as a destination.

The directory is made when the first blob is written, so that what fails before leaves nothing.
Writers of one layout, of any number of processes, do not disturb each other: blobs appear whole,
and the index is changed under a lock (on the file ``oci-layout``).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hybrid.build.blob_file import (
    BlobFile,
    create_once,
    remove_leftovers,
    sync_directory,
    write_stream,
)
from hybrid.build.contract import (
    Advance,
    BlobDraft,
    ImageDestination,
    PutBlob,
    check_digest,
    no_advance,
)
from hybrid.build.layout_index import new_entry, with_entry
from hybrid.core.byte_stream import BlobContent, VerifiedStream, memory_content
from hybrid.core.layout import check_version, read_file
from hybrid.core.manifest import MAX_DOCUMENT_BYTES
from hybrid.core.output_file import output_file, write_error
from hybrid.core.platforms import Platform
from hybrid.core.reference import LayoutReference, ManifestBlob, is_digest
from hybrid.errors import BusyError, HybridError, NotFoundError, StorageFullError, UsageError

MARKER = b'{"imageLayoutVersion": "1.0.0"}\n'
LOCK_SECONDS = 30.0
POLL_SECONDS = 0.02
OLD_SECONDS = 3600.0


class LayoutDestination(ImageDestination):
    """One name in a layout. Raises UsageError for a directory that is something else."""

    def __init__(self, ref: LayoutReference) -> None:
        self.name = str(ref)
        self.directory = ref.directory
        self._ref = ref
        self._blobs = ref.directory / "blobs" / "sha256"
        self._written: list[Path] = []
        self._checked: set[str] = set()
        """Digests of blobs that were seen to be right, or written here."""
        self._made: list[Path] = []
        self._in_use = -1
        self._preparing = trio.Lock()
        check_directory(ref.directory)

    async def has_blob(self, digest: str, size: int | None) -> bool:
        path = self._path(digest)
        if not (self.directory / "oci-layout").exists():
            return False
        # First say that this layout is in use: from then on nobody takes a blob away.
        await self._prepare()
        # It is a directory, in which anything may have happened since.
        known = digest in self._checked
        if not await trio.to_thread.run_sync(_is_whole, path, "" if known else digest, size):
            return False
        self._checked.add(digest)
        return True

    async def put_blob(self, content: BlobContent, advance: Advance = no_advance) -> PutBlob:
        await self._prepare()
        stream = await content.open()
        checked = VerifiedStream(stream, content.digest, content.size)
        trusted = bool(content.digest) and stream.verified == content.digest
        async with checked if not trusted else stream as reader:
            file = BlobFile(self._blobs, content.digest)
            try:
                await write_stream(file, reader, advance)
                digest = content.digest or checked.actual_digest
                known = await self.has_blob(digest, file.size)
                await self._commit(file, digest, known)
                return PutBlob(digest, file.size, "written")
            finally:
                file.close()

    async def begin_blob(self) -> BlobDraft:
        await self._prepare()
        return _Draft(self, BlobFile(self._blobs))

    async def put_manifest(self, manifest: ManifestBlob) -> None:
        if not await self.has_blob(manifest.digest, len(manifest.data)):
            await self.put_blob(memory_content(manifest.data, f"manifest {manifest.digest}"))

    def accept(self, manifest: ManifestBlob) -> None:
        wanted = self._ref.tag or ""
        check_digest(wanted if is_digest(wanted) else None, manifest, self.name)

    async def tag(self, manifest: ManifestBlob, platform: Platform | None = None) -> str:
        self.accept(manifest)
        wanted = self._ref.tag or ""
        tag = "" if is_digest(wanted) else wanted
        await self._prepare()
        async with self._locked():
            entry = new_entry(manifest, tag, platform)
            await trio.to_thread.run_sync(self._write_index, entry)
        return f"oci:{self.directory}{f':{tag}' if tag else ''}@{manifest.digest}"

    async def give_up(self, error: BaseException) -> None:
        """On a full disk, give back the space that nobody can use. Else the next run goes on."""
        if not isinstance(error, StorageFullError):
            return
        with contextlib.suppress(OSError):
            # Whoever else writes to this layout may count on our blobs already.
            if self._in_use >= 0 and not try_lock(self._in_use):
                return
            for path in self._written:
                path.unlink(missing_ok=True)
            self._written.clear()
            self._remove_what_was_made()

    async def aclose(self) -> None:
        if self._in_use >= 0:
            os.close(self._in_use)
            self._in_use = -1

    # -- inner -----------------------------------------------------------------------------------

    async def _commit(self, file: BlobFile, digest: str, known: bool) -> None:
        await file.commit(digest)
        self._checked.add(digest)
        if not known:
            self._written.append(self._path(digest))

    async def finish(self, file: BlobFile, digest: str, size: int) -> PutBlob:
        """For a draft."""
        if await self.has_blob(digest, size):
            return PutBlob(digest, size, "present")
        await self._commit(file, digest, False)
        return PutBlob(digest, size, "written")

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):
            raise ValueError(f"{digest!r} is no sha256 digest")
        return self._blobs / digest.removeprefix("sha256:")

    async def _prepare(self) -> None:
        async with self._preparing:
            if self._in_use < 0:
                await trio.to_thread.run_sync(self._make_directories)

    def _make_directories(self) -> None:
        check_directory(self.directory)
        try:
            for path in (*reversed(self.directory.parents), self.directory):
                self._make(path)
            marker = self.directory / "oci-layout"
            if not marker.exists():
                self._made.append(marker)
                create_once(marker, MARKER)
            for path in (self._blobs.parent, self._blobs):
                self._make(path)
            sync_directory(self.directory)
            self._in_use = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._say_in_use()
        except OSError as error:
            raise write_error(error, self.directory) from error
        remove_leftovers(self._blobs)

    def _say_in_use(self) -> None:
        """Wait while somebody is giving up (see there): that takes no time worth mentioning."""
        deadline = time.monotonic() + LOCK_SECONDS
        # Some network file systems cannot lock a directory; there nobody takes anything away.
        with contextlib.suppress(OSError):
            while not try_lock(self._in_use, fcntl.LOCK_SH) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def _make(self, path: Path) -> None:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            self._made.append(path)

    def _remove_what_was_made(self) -> None:
        if (self.directory / "index.json").exists():
            return
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.unlink() if path.name == "oci-layout" else path.rmdir()

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        marker = self.directory / "oci-layout"
        deadline = trio.current_time() + LOCK_SECONDS
        while (descriptor := lock_file(marker)) < 0:
            if trio.current_time() > deadline:
                raise BusyError(
                    f"{marker} is locked by another writer of this layout",
                    hint="is one of them stopped?",
                )
            await trio.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            os.close(descriptor)

    def _write_index(self, entry: dict[str, object]) -> None:
        path = self.directory / "index.json"
        try:
            data = read_file(path, MAX_DOCUMENT_BYTES, "the index of the OCI layout")
        except NotFoundError:
            data = None  # a layout that was never finished
        changed = with_entry(data, entry, str(path))
        remove_old_parts(self.directory)
        with output_file(path) as file:
            file.write(changed)
        try:
            sync_directory(self.directory)
        except OSError as error:
            raise write_error(error, path) from error


class _Draft(BlobDraft):
    """A blob in the directory of blobs, as yet without its name."""

    def __init__(self, destination: LayoutDestination, blob: BlobFile) -> None:
        self.file = blob.open()
        self._destination = destination
        self._blob = blob

    async def finish(self, digest: str, size: int) -> PutBlob:
        return await self._destination.finish(self._blob, digest, size)

    def error(self, error: OSError) -> HybridError:
        return write_error(error, self._destination.directory)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # What is still in its buffer cannot be written if the disk is full.
            self.file.close()
        self._blob.close()


def check_directory(directory: Path) -> None:
    """UsageError unless it is absent, empty, or an OCI layout (then of a version we know)."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        if not directory.is_symlink():
            return
        raise UsageError(f"{directory} is a link that leads nowhere") from None
    except NotADirectoryError:
        raise UsageError(
            f"{directory} is no directory", hint="name a new one, or a layout"
        ) from None
    except OSError as error:
        raise write_error(error, directory) from error
    # Looked for last: another writer may have made a layout of an empty directory just now.
    if (directory / "oci-layout").exists():
        check_version(directory)
    elif not all(map(is_part, names)):
        raise UsageError(
            f"{directory} is not empty, and no OCI layout", hint="name a new one, or a layout"
        )


def is_part(name: str) -> bool:
    """Whether it is a file that somebody is about to give its real name."""
    return name.startswith(".") and name.endswith(".part")


def lock_file(path: Path) -> int:
    """A descriptor of the file, which is locked; -1 if somebody else has the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        # Another tool may have put another file there: then the lock of the old one says nothing.
        if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
        return -1
    except OSError as error:
        raise write_error(error, path) from error


def _is_whole(path: Path, digest: str, size: int | None) -> bool:
    """Whether a file has the size (None: any) and the digest ("": any)."""
    try:
        with path.open("rb") as file:
            if size is not None and os.fstat(file.fileno()).st_size != size:
                return False
            return (
                not digest or f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
            )
    except OSError:
        return False


def remove_old_parts(directory: Path) -> None:
    """Remove what writers that died have left of an index, long ago."""
    for path in directory.iterdir():
        with contextlib.suppress(OSError):
            old = time.time() - path.lstat().st_mtime > OLD_SECONDS
            if old and re.fullmatch(r"\.[0-9a-f]{16}\.part", path.name):
                path.unlink()


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of a file, unless others have one that excludes it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""New blobs in a directory of blobs: whole and durable under their digest, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
from pathlib import Path
from typing import BinaryIO

import trio

from hybrid.build.contract import Advance
from hybrid.core.byte_stream import PIECE_BYTES, ByteStream
from hybrid.core.output_file import open_unnamed, write_error

PART_PREFIX = ".hybrid-"
PART_SUFFIX = ".part"


class BlobFile:
    """One blob being written; what waits is done in threads.

    It has no name where the file system allows that. Where it has one, or gets one for a moment, a
    lock tells others that it is in use. ``digest``: what it is known to have; "" if it is not
    known.
    """

    def __init__(self, directory: Path, digest: str = "") -> None:
        self.size = 0
        self._directory = directory
        self._digest = digest
        self._part = directory / f"{PART_PREFIX}{secrets.token_hex(8)}{PART_SUFFIX}"
        self._hash = hashlib.sha256()
        try:
            self._fd, self._named = open_unnamed(directory, self._part)
        except OSError as error:
            raise write_error(error, directory) from error
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    async def write(self, piece: bytes | bytearray) -> None:
        """Append. Raises StorageFullError and other HybridErrors."""
        await trio.to_thread.run_sync(self._write, piece)

    def open(self) -> BinaryIO:
        """The file itself, instead of ``write``: whoever uses it knows the digest at the end."""
        return os.fdopen(os.dup(self._fd), "w+b")

    async def commit(self, digest: str = "") -> str:
        """Give it the name of its digest, durably; returns the digest."""
        return await trio.to_thread.run_sync(self._commit, digest or self._digest)

    def close(self) -> None:
        """Without ``commit`` before, nothing stays."""
        if self._fd >= 0:
            if self._named:
                self._part.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1

    def _write(self, piece: bytes | bytearray) -> None:
        if not self._digest:
            self._hash.update(piece)
        view = memoryview(piece)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise write_error(error, self._directory) from error
        self.size += len(piece)

    def _commit(self, known: str) -> str:
        digest = known or f"sha256:{self._hash.hexdigest()}"
        target = self._directory / digest.removeprefix("sha256:")
        try:
            os.fsync(self._fd)
            if not self._named:
                try:
                    self._link(target)
                except FileExistsError:
                    # Damaged, or written by somebody else just now: ours is good.
                    self._link(self._part)
                    self._named = True
            if self._named:
                self._part.replace(target)
                self._named = False
            sync_directory(self._directory)
        except OSError as error:
            raise write_error(error, target) from error
        return digest

    def _link(self, path: Path) -> None:
        name_file(self._fd, path)


def create_once(path: Path, data: bytes) -> None:
    """Make a small file, whole, unless there is one: that stays the very same. Raises OSError."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    descriptor, named = open_unnamed(path.parent, part)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            name_file(descriptor, path)
    finally:
        os.close(descriptor)
        if named:
            part.unlink()


def name_file(descriptor: int, path: Path) -> None:
    """Give an open file a (further) name. Raises OSError: FileExistsError if that is taken."""
    # The directory is not used, but makes Python call linkat(2).
    os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor, follow_symlinks=True)


async def write_stream(file: BlobFile, stream: ByteStream, advance: Advance) -> None:
    """Everything of a stream, in pieces that are worth a thread."""
    buffer = bytearray()
    while piece := await stream.read():
        buffer += piece
        advance(len(piece))
        if len(buffer) >= PIECE_BYTES:
            await file.write(buffer)
            buffer = bytearray()
    if buffer:
        await file.write(buffer)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Remove parts whose writer died before it could; those in use are locked."""
    for part in directory.glob(f"{PART_PREFIX}*{PART_SUFFIX}"):
        with contextlib.suppress(OSError):
            descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(descriptor)

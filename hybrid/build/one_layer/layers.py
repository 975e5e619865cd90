"""What a layer is made of: a directory, or an archive in a file. Both can be read repeatedly."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import trio

from hybrid.build.convert.run import scratch_error
from hybrid.build.one_layer.tree import TreeArchive, changed
from hybrid.build.plain_manifest import PlainLayer
from hybrid.build.tar.decompress import open_expander
from hybrid.build.tar.window import CHUNK
from hybrid.core.byte_stream import PIECE_BYTES, ByteStream, SourceStream, VerifiedStream
from hybrid.core.device import Buffer
from hybrid.core.source import FileSource
from hybrid.errors import FormatError, NotFoundError, UnsupportedError, UsageError

STDIN = "-"
_STDIN = 0

logger = logging.getLogger("hybrid")


@dataclass(frozen=True)
class Measured:
    """What is known of a layer that was read to its end."""

    layer: PlainLayer
    diff_id: str
    """The digest of the archive, without its compression."""


class LayerContent(ABC):
    """A layer. ``name`` is as the user may write it."""

    name: str

    @abstractmethod
    async def measure(self) -> Measured:
        """Read it to its end, for the digests. Raises the errors of reading."""

    @abstractmethod
    def open(self) -> ByteStream:
        """Its bytes, as they are stored."""


class DirectoryLayer(LayerContent):
    """The files below a directory. ``owner``: uid and gid of all; None: those that they have."""

    def __init__(self, path: Path, name: str, owner: tuple[int, int] | None) -> None:
        self.name = name
        self.path = path
        self._owner = owner

    async def measure(self) -> Measured:
        archive = TreeArchive(self.path, self._owner)
        measured = await _measure_plain(IteratorStream(archive.pieces(), self.name))
        if archive.sockets.count:
            logger.warning("sockets are left out: %s", archive.sockets)
        if archive.mounts.count:
            logger.warning("what is on other file systems is left out: %s", archive.mounts)
        return measured

    def open(self) -> ByteStream:
        return IteratorStream(TreeArchive(self.path, self._owner).pieces(), self.name)


class ArchiveLayer(LayerContent):
    """A tar file, plain or compressed with gzip or zstd."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path

    async def measure(self) -> Measured:
        source = await trio.to_thread.run_sync(FileSource, self._path)
        try:
            kind = await trio.to_thread.run_sync(self._compression, source)
            if kind == "none":
                return await _measure_plain(self.open())
            reading = _Reading(source)
            stream = VerifiedStream(IteratorStream(_expanded(reading, self.name), self.name))
            await _read_to_end(stream)
            return Measured(PlainLayer(reading.digest, source.size, kind), stream.actual_digest)
        finally:
            source.close()

    def _compression(self, source: FileSource) -> str:
        return open_expander(_Reading(source).read, self.name).kind

    def open(self) -> ByteStream:
        stream = SourceStream(FileSource(self._path))
        stream.name = self.name
        return stream


class SecondReading(ByteStream):
    """A layer that was measured, once more: the end comes only if it is the same."""

    def __init__(self, content: LayerContent, measured: PlainLayer) -> None:
        self.name = content.name
        self.verified = measured.digest
        self._stream = VerifiedStream(content.open(), measured.digest, measured.size)

    async def read(self) -> Buffer:
        try:
            return await self._stream.read()
        except FormatError:
            raise changed(self.name) from None

    async def aclose(self) -> None:
        await self._stream.aclose()


class IteratorStream(ByteStream):
    """What an iterator gives, which is asked in threads. Its pieces may be of any size."""

    def __init__(self, pieces: Iterator[Buffer], name: str) -> None:
        self.name = name
        self._pieces = pieces
        self._rest = bytearray()

    async def read(self) -> Buffer:
        return await trio.to_thread.run_sync(self._next)

    async def aclose(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()

    def _next(self) -> Buffer:
        rest = self._rest
        while len(rest) < PIECE_BYTES:
            piece = next(self._pieces, None)
            if piece is None:
                break
            if not rest and PIECE_BYTES // 2 <= len(piece) <= PIECE_BYTES:
                return piece
            rest += piece
        taken = bytes(rest[:PIECE_BYTES])
        del rest[:PIECE_BYTES]
        return taken


class _Reading:
    """A file from its beginning, and the digest of what was read."""

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._position = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def read(self, size: int) -> Buffer:
        length = min(size, self._source.size - self._position)
        piece = self._source.pread_nowait(self._position, length) if length else b""
        self._position += length
        self._hash.update(piece)
        return piece


def _expanded(reading: _Reading, name: str) -> Iterator[Buffer]:
    """An archive without its compression; it is read to its last byte."""
    expander = open_expander(reading.read, name)
    while piece := expander.read(CHUNK):
        yield piece


async def _measure_plain(stream: ByteStream) -> Measured:
    verified = VerifiedStream(stream)
    await _read_to_end(verified)
    digest = verified.actual_digest
    return Measured(PlainLayer(digest, verified.position, "none"), digest)


async def _read_to_end(stream: ByteStream) -> None:
    async with stream:
        while await stream.read():
            pass


async def open_layer_content(
    name: str, owner: tuple[int, int] | None, scratch: Path, stack: AsyncExitStack
) -> LayerContent:
    """A directory, a tar file, or ``-`` (stdin), which is kept in a nameless file in ``scratch``.

    ``owner`` is as in DirectoryLayer. Raises NotFoundError, PermissionNeededError,
    UnsupportedError (another kind of file), StorageFullError (no room in ``scratch``), and
    UsageError (owners of an archive, a terminal).
    """
    if name != STDIN and _is_directory(name):
        return DirectoryLayer(Path(name), name, owner)
    if owner is not None:
        raise UsageError("--owner is for directories: the entries of an archive have owners")
    if name != STDIN:
        return ArchiveLayer(Path(name), name)
    if os.isatty(_STDIN):
        raise UsageError("stdin is a terminal", hint="tar -c ... | hybrid build - DST")
    try:
        made = TemporaryFile(prefix="hybrid-tar-", dir=scratch, buffering=0)  # noqa: SIM115
        file = stack.enter_context(made)
        await _spool(file)
    except OSError as error:
        raise scratch_error(error, scratch) from error
    return ArchiveLayer(Path(f"/proc/self/fd/{file.fileno()}"), "stdin")


def _is_directory(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"there is no directory or tar file {name}",
            hint="'hybrid convert' is for images",
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name!a} cannot be read: {error}") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UnsupportedError(
            f"{name} is neither a directory nor a regular file", hint="'-' reads a pipe"
        )
    return stat.S_ISDIR(mode)


async def _spool(file: IO[bytes]) -> None:
    """Keep what comes from stdin, which may come slowly."""
    waits = not stat.S_ISREG(os.fstat(_STDIN).st_mode)
    while True:
        if waits:
            await trio.lowlevel.wait_readable(_STDIN)
        piece = await trio.to_thread.run_sync(os.read, _STDIN, PIECE_BYTES)
        if not piece:
            return
        await trio.to_thread.run_sync(_write_all, file, piece)


def _write_all(file: IO[bytes], piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]

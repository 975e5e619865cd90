"""Changed blocks become a blob: tar( zfile( lsmt ) ). In one thread, with help where it is free.

Apart from ``compact`` and ``blob_writer``, which learn from the data itself what a layer holds and
take it from a stack of layers: here that is known, and the data is at hand.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from hybrid.build.blob_writer import Wrapping, new_zfile_writer
from hybrid.build.convert.cores import Cores
from hybrid.build.convert.options import LayerName
from hybrid.build.convert.pipe import StoppedError
from hybrid.build.convert.shares import Shares
from hybrid.build.ext4.changes import Extent
from hybrid.core.device import SECTOR, Buffer
from hybrid.core.lsmt import LayerWriter
from hybrid.core.tarball import WRAPPER_SIZE, wrap_head, wrap_tail

PIECE_BYTES = 1 << 20
"""Bytes of a disk that one thread compresses at a time."""


class Content(Protocol):
    """What a layer holds: Changes (build/ext4), or an ErofsImage. In bytes."""

    @property
    def size(self) -> int:
        """Of the disk."""
        ...

    @property
    def extents(self) -> Sequence[Extent]: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class LayerBlob:
    """A finished blob. ``size`` in bytes."""

    digest: str
    size: int


class BlobMaker:
    """Writes the blob of one layer. ``stopped`` is asked now and then whether to give up."""

    def __init__(
        self, cores: Cores, shares: Shares, wrapping: Wrapping, stopped: Callable[[], bool]
    ) -> None:
        self._cores = cores
        self._shares = shares
        self._wrapping = wrapping
        self._stopped = stopped

    def write(self, changes: Content, name: LayerName, file: BinaryIO) -> LayerBlob:
        """Write the new file ``file``, which can be sought. For a thread.

        Raises OSError, StoppedError, and UnsupportedError for more segments than readers accept.
        The same changes give the same bytes, however many threads take part.
        """
        with self._cores.work():
            with self._shares.of("compress"):
                size = self._write(changes, name, file)
            with self._shares.of("digest"):
                return LayerBlob(self._digest(file, size), size)

    def _write(self, changes: Content, name: LayerName, file: BinaryIO) -> int:
        wrapping = self._wrapping
        file.write(bytes(WRAPPER_SIZE))
        stream = _Pieces(changes, name, PIECE_BYTES * wrapping.threads)
        if wrapping.compress == "none":
            size = 0
            for piece in stream:
                self._go_on()
                size += file.write(piece)
        else:
            writer = new_zfile_writer(wrapping)
            size = file.write(writer.header())
            for piece in stream:
                self._go_on()
                with self._cores.more(wrapping.threads) as writer.threads:
                    packed = writer.write(piece)
                size += file.write(packed)
            size += file.write(writer.finish())
            file.seek(WRAPPER_SIZE)
            file.write(writer.overwritten_header())
            file.seek(WRAPPER_SIZE + size)
        file.write(wrap_tail(size))
        total = file.tell()
        file.seek(0)
        file.write(wrap_head(size))
        file.flush()
        return total

    def _digest(self, file: BinaryIO, size: int) -> str:
        """One more reading, of what the kernel still has in memory: the sizes in front of the blob
        are known only at its end."""
        found = hashlib.sha256()
        offset = 0
        while offset < size:
            self._go_on()
            data = os.pread(file.fileno(), PIECE_BYTES, offset)
            if not data:
                raise OSError(f"a temporary file ends at {offset} of {size} bytes")
            found.update(data)
            offset += len(data)
        return f"sha256:{found.hexdigest()}"

    def _go_on(self) -> None:
        if self._stopped():
            raise StoppedError
        self._cores.pass_on()


class _Pieces:
    """The bytes of an LSMT layer in pieces of about ``length``, whatever the extents are."""

    def __init__(self, changes: Content, name: LayerName, length: int) -> None:
        self._changes = changes
        self._length = length
        self._writer = LayerWriter(changes.size, uuid=name.uuid, parent_uuid=name.parent_uuid)

    def __iter__(self) -> Iterator[Buffer]:
        parts: list[Buffer] = []
        waiting = 0
        for part in self._parts():
            parts.append(part)
            waiting += len(part)
            if waiting >= self._length:
                yield parts[0] if len(parts) == 1 else b"".join(parts)
                parts, waiting = [], 0
        yield b"".join(parts)

    def _parts(self) -> Iterator[Buffer]:
        writer = self._writer
        yield writer.header()
        for offset, length, zero in self._changes.extents:
            if zero:
                writer.add_zeros(offset // SECTOR, length // SECTOR)
                continue
            for start in range(offset, offset + length, self._length):
                size = min(self._length, offset + length - start)
                yield writer.add(start // SECTOR, self._changes.read(start, size))
        yield writer.finish()

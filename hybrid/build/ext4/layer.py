"""Ext4Layer: one layer of an image, from archives to changed blocks.

with Ext4Layer.make(size) as layer:              # the base: an empty file system
    base = layer.finish()
stack = LayerStack(size)
stack.push(base)
for each archive, bottom first:
    with Ext4Layer.open(stack) as layer:
        layer.apply(TarReader(expander.read, name))
        changes = layer.finish()                 # -> LSMT: changes.extents, changes.read
    stack.push(changes)
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import IO, Self

from hybrid.build.ext4.apply import Applied, Applier, never_stop
from hybrid.build.ext4.changes import Base, Changes, collect, new_scratch
from hybrid.build.ext4.native import FileSystem, NativeError, translated
from hybrid.build.ext4.runs import BLOCK
from hybrid.build.tar.reader import TarReader
from hybrid.errors import UsageError

BYTES_PER_INODE = 16384
MIN_SIZE = 8 << 20
MAX_SIZE = 16 << 40
"""Bytes of a disk: beyond 16 TiB ext4 has more to it than is needed here."""
UUID = bytes.fromhex("6879627269640000a54c6f7665726c61")
"""Of every file system that hybrid makes, and the seed of its directory hashes: images are equal on
every machine. (Any 16 bytes would do.)"""


class Ext4Layer:
    """Not thread-safe: one thread makes and uses it. Close it, or use it as a context manager.

    After an error nothing but ``close`` makes sense: the layer is half applied.
    """

    def __init__(
        self,
        base: Base | None,
        size: int,
        scratch_directory: str | None,
        go_on: Callable[[], None] = never_stop,
    ) -> None:
        self.size = size
        self._go_on = go_on
        self._base = base
        self._scratch: IO[bytes] | None = new_scratch(scratch_directory)
        self._fs = FileSystem(base.read if base else None, self._scratch.fileno(), size)
        self._applier: Applier | None = None

    @classmethod
    def make(cls, size: int, scratch_directory: str | None = None) -> Self:
        """A new file system on a disk of ``size`` bytes that holds nothing but zeros.

        Raises UsageError for sizes that it cannot have, StorageFullError for lack of space.
        """
        if size % BLOCK or not MIN_SIZE <= size <= MAX_SIZE:
            raise UsageError(
                f"a disk of {size} bytes is not possible",
                hint="ext4 takes multiples of 4096 bytes from 8 MiB to 16 TiB",
            )
        layer = cls(None, size, scratch_directory)
        layer._begin(lambda: layer._fs.format(BYTES_PER_INODE, UUID), "making the file system")
        return layer

    @classmethod
    def open(
        cls,
        base: Base,
        scratch_directory: str | None = None,
        go_on: Callable[[], None] = never_stop,
    ) -> Self:
        """The file system on ``base``, which stays as it is. ``go_on``: see Applier.

        Raises FormatError if it is damaged or none, UnsupportedError if it has features that hybrid
        does not write, and whatever ``base.read`` raises.
        """
        layer = cls(base, base.size, scratch_directory, go_on)
        layer._begin(layer._fs.open, "the file system below the layer")
        return layer

    def _begin(self, action: Callable[[], None], what: str) -> None:
        try:
            action()
            self._applier = Applier(self._fs, self.size, self._go_on)
        except NativeError as error:
            raise translated(error, what, self.size) from None
        finally:
            if self._applier is None:
                self.close()

    def apply(self, reader: TarReader) -> Applied:
        """Apply an archive (see apply.py), and read the stream to its end."""
        if self._applier is None:
            raise ValueError("the layer is closed")
        return self._applier.apply(reader)

    def finish(self) -> Changes:
        """Complete the file system; then only ``close`` is left. The Changes are the caller's."""
        if self._applier is None or self._scratch is None:
            raise ValueError("the layer is closed")
        self._applier = None
        try:
            self._fs.flush()
            changes = collect(self._fs, self._scratch, self._base, self.size)
        except NativeError as error:
            raise translated(error, "completing the file system", self.size) from None
        self._scratch = None
        return changes

    def close(self) -> None:
        """Give back memory and, unless ``finish`` has handed it over, the scratch file."""
        self._fs.close()
        self._applier = None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

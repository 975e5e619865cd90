"""The layers of one image as changes of an ext4, one after the other."""

from __future__ import annotations

from pathlib import Path

import trio

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.shares import Shares
from hybrid.build.ext4.changes import Base, Changes
from hybrid.build.ext4.layer import Ext4Layer
from hybrid.build.ext4.stack import LayerStack
from hybrid.build.tar.reader import TarReader


class Ext4Steps:
    """The disk as it grows. ``base``: what was converted earlier, None for nothing at all.

    Bytes of the disk: ``size``. What the layers have changed is kept in nameless files in
    ``directory`` until ``close``, since the next layers lie over it.
    """

    def __init__(
        self, size: int, base: Base | None, directory: Path, cores: Cores, shares: Shares
    ) -> None:
        self._size = size
        self._stack = LayerStack(size, base)
        self._directory = str(directory)
        self._cores = cores
        self._shares = shares
        self._made: list[Changes] = []
        self._stored: list[Changes] = []

    async def make_base(self) -> Changes:
        """The bottom layer: an empty file system. Raises UsageError for impossible sizes."""
        return await trio.to_thread.run_sync(self._make_base)

    async def apply(self, expanding: Expanding) -> Changes:
        """What a source layer changes. The layer is seen to be right before this returns.

        Raises FormatError, UnsupportedError, StorageFullError, StoppedError.
        """
        return await expanding.feed_to(self._apply)

    def stored(self, changes: Changes) -> None:
        """These are needed by the layers above only."""
        self._stored.append(changes)

    async def give_back(self) -> None:
        """No layer comes any more: give the space of what was stored back, which takes a while."""
        stored, self._stored = self._stored, []

        def close() -> None:
            for changes in stored:
                changes.close()

        await trio.to_thread.run_sync(close)

    def close(self) -> None:
        """Give the space of all Changes back."""
        for changes in self._made:
            changes.close()

    def _make_base(self) -> Changes:
        with (
            self._cores.work(),
            self._shares.of("apply"),
            Ext4Layer.make(self._size, self._directory) as layer,
        ):
            return self._push(layer.finish())

    def _apply(self, expanding: Expanding) -> Changes:
        with (
            self._cores.work(),
            self._shares.of("apply"),
            Ext4Layer.open(self._stack, self._directory, expanding.pipe.go_on) as layer,
        ):
            # ``apply`` reads to the end, which is there only if all was right.
            layer.apply(TarReader(expanding.read, expanding.name))
            return self._push(layer.finish())

    def _push(self, changes: Changes) -> Changes:
        self._made.append(changes)
        self._stack.push(changes)
        return changes

"""The layers of one image as one erofs."""

from __future__ import annotations

import contextlib
import uuid as uuids
from pathlib import Path
from tempfile import TemporaryFile
from typing import cast

import trio

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.run import scratch_error
from hybrid.build.convert.shares import Shares
from hybrid.build.erofs.image import ErofsImage
from hybrid.build.erofs.tree import FileTree
from hybrid.build.ext4.apply import Applier
from hybrid.build.ext4.native import FileSystem, NativeError, translated
from hybrid.build.tar.reader import TarReader

_BUFFER_BYTES = 1 << 20


class ErofsSteps:
    """The tree as it grows; what is in its files lies in a nameless file in ``directory``.

    Bytes of the disk: ``size``.
    """

    def __init__(self, size: int, directory: Path, cores: Cores, shares: Shares) -> None:
        self._size = size
        self._directory = directory
        self._cores = cores
        self._shares = shares
        try:
            self._scratch = TemporaryFile(  # noqa: SIM115 - until close
                prefix="hybrid-layer-", dir=directory, buffering=_BUFFER_BYTES
            )
        except OSError as error:
            raise scratch_error(error, directory) from error
        self._tree = FileTree(self._scratch, size)
        self._image: ErofsImage | None = None

    async def apply(self, expanding: Expanding) -> None:
        """Apply a source layer. The layer is seen to be right before this returns.

        Raises FormatError, UnsupportedError, StorageFullError, StoppedError.
        """
        await expanding.feed_to(self._apply)

    async def finish(self, uuid: str) -> ErofsImage:
        """The file system. Raises StorageFullError if it does not fit on the disk."""
        return await trio.to_thread.run_sync(self._finish, uuid)

    def close(self) -> None:
        if self._image is not None:
            self._image.close()
        with contextlib.suppress(OSError):
            # What is still in its buffer need not be written, and cannot be if the disk is full.
            self._scratch.close()

    def _apply(self, expanding: Expanding) -> None:
        try:
            with self._cores.work(), self._shares.of("apply"):
                self._tree.begin_layer()
                # It has the methods that archives need of an ext4.
                applier = Applier(cast(FileSystem, self._tree), self._size, expanding.pipe.go_on)
                # ``apply`` reads to the end, which is there only if all was right.
                applier.apply(TarReader(expanding.read, expanding.name))
        except OSError as error:
            raise scratch_error(error, self._directory) from error

    def _finish(self, uuid: str) -> ErofsImage:
        try:
            with self._cores.work(), self._shares.of("apply"):
                self._image = ErofsImage(
                    self._tree, self._size, uuids.UUID(uuid).bytes, str(self._directory)
                )
                return self._image
        except NativeError as error:
            raise translated(error, "making the file system", self._size) from None
        except OSError as error:
            raise scratch_error(error, self._directory) from error

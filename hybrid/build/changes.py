"""What is to be committed: the layers that were written over an image, as of one moment.

A ChangeSet comes from the directory of a writable layer that nobody uses (``directory_changes``),
from the upper of a config file (``config_changes``), or from a mount that stays in use: its server
writes down the index as of a frozen moment (``WritableDisk.checkpoint``), which is ``checkpoint``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.config import load_image_config
from hybrid.core.disk import LayeredDevice
from hybrid.core.layer import Layer
from hybrid.core.pair import open_pair, read_pair_record
from hybrid.core.storage import Storage
from hybrid.core.upper_directory import UpperDirectory, exclusive, open_sealed
from hybrid.core.upper_manifest import Manifest
from hybrid.errors import UnsupportedError, UsageError


@dataclass(frozen=True)
class ChangeSet:
    """Sealed layers, bottom first, and over them the pair that was written to last."""

    name: str
    """As the user knows it."""
    data: Path
    index: Path
    size: int
    """Of the disk, in bytes; 0: as the layers say."""
    sealed: tuple[Path, ...] = ()
    image: str = ""
    """What it was made over; "" if there is nothing below."""
    digest: str = ""
    """Of the manifest of that image; "" if it has none."""
    lower: str = ""
    """``identity()`` of the disk below; "" if it is not known, or there is none."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the image can be opened again, as whoever made the layer has it."""
    config: Path | None = None
    """The config file that names this pair as its upper, and what is below it."""

    @classmethod
    def checkpoint(cls, name: str, described: Mapping[str, Any], manifest: Manifest) -> ChangeSet:
        """A moment as the server of a mount describes it (``WritableDisk.checkpoint``)."""
        return cls(
            name,
            Path(described["data"]),
            Path(described["index"]),
            int(described["size"]),
            tuple(Path(path) for path in described["sealed"]),
            manifest.image,
            manifest.digest,
            manifest.lower,
            manifest.origin,
        )

    async def open(self, stack: AsyncExitStack) -> LayeredDevice:
        """The layers, without what is below them, as a disk of the right size.

        Raises FormatError, NotFoundError or PermissionNeededError.
        """
        layers = await self._open_layers()
        for layer in layers:
            stack.push_async_callback(layer.aclose)
        device = LayeredDevice(layers, self.name)
        device.size = self.size or device.size
        return device

    async def put_on(self, base: LayeredDevice, stack: AsyncExitStack) -> None:
        """Put the layers on the disk that they were written over. Raises as ``open``."""
        for layer in await self._open_layers():
            stack.push_async_callback(layer.aclose)
            base.push(layer)
        base.size = self.size or base.size

    async def _open_layers(self) -> list[Layer]:
        layers: list[Layer] = []
        try:
            for path in self.sealed:
                layers.append(await open_sealed(path))
            layers.append(open_pair(self.data, self.index))
        except BaseException:
            for layer in layers:
                await layer.aclose()
            raise
        return layers


@contextmanager
def directory_changes(path: Path) -> Iterator[ChangeSet]:
    """The changes in a directory of hybrid, which nobody else can use until the end of the block.

    Raises NotFoundError, FormatError, and BusyError if somebody uses it.
    """
    with exclusive(path):
        directory = UpperDirectory(path)
        manifest = directory.manifest
        yield ChangeSet(
            str(path),
            directory.data,
            directory.index,
            manifest.size,
            tuple(directory.sealed),
            manifest.image,
            manifest.digest,
            manifest.lower,
            manifest.origin,
        )


@contextmanager
def config_changes(path: Path) -> Iterator[ChangeSet]:
    """The upper of an image config, append-only or sparse, locked until the end of the block.

    Raises UsageError if the config has none, ConfigError, FormatError, BusyError (in use).
    """
    config = load_image_config(path)
    upper = config.upper
    if upper is None:
        raise UsageError(f"{path} names no upper: there is nothing to commit")
    if upper.target or upper.gzip_index:
        raise UnsupportedError(f"{path}: upper: TurboOCI layers are not supported yet")
    with locked_pair(upper.data, upper.index) as size:
        image = str(path) if config.data_lowers else ""
        yield ChangeSet(str(path), upper.data, upper.index, size, image=image, config=path)


@contextmanager
def locked_pair(data: Path, index: Path) -> Iterator[int]:
    """Keep writers of a pair away until the end of the block. Yields its virtual size (bytes)."""
    storage = Storage()
    data_file = storage.open(data, writable=False)
    try:
        data_file.lock()
        index_file = storage.open(index, writable=False)
        try:
            size = read_pair_record(data_file, index_file).virtual_size
        finally:
            index_file.close()
        yield size
    finally:
        data_file.close()

"""Layers that were converted earlier, as the disk below new ones: their blocks come when needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import trio

from hybrid.build.convert.cores import Cores
from hybrid.build.convert.result import ConvertedLayer
from hybrid.build.ext4.runs import Run
from hybrid.build.runs import data_of
from hybrid.config import GlobalConfig
from hybrid.core.device import SECTOR, Buffer, Source
from hybrid.core.disk import LayeredDevice
from hybrid.core.reference import LayoutReference, RegistryReference, parse_image
from hybrid.core.source import FileSource

if TYPE_CHECKING:
    from hybrid.core.layer import Layer


class LowerDisk:
    """A Base (build/ext4) over an open disk. For threads that trio has started, which
    work on ``cores``."""

    def __init__(self, disk: LayeredDevice, cores: Cores) -> None:
        self.size = disk.size
        self._disk = disk
        self._cores = cores

    def read(self, offset: int, length: int) -> Buffer:
        """Raises what reading the disk raises."""
        with self._cores.rest():
            return trio.from_thread.run(self._disk.pread, offset, length)

    def extents(self) -> Sequence[Run]:
        runs = data_of(self._disk.segments)
        return [(start * SECTOR, (end - start) * SECTOR) for start, end in runs]


class LowerBlobs:
    """Where blobs of the destination are read at random: through the block cache, or its files."""

    def __init__(self, destination: str, config: GlobalConfig, *, insecure: bool) -> None:
        self._ref = parse_image(destination)
        self._config = config
        self._insecure = insecure

    async def open(self, layers: Sequence[ConvertedLayer], stack: AsyncExitStack) -> LayeredDevice:
        """The disk that these layers make, bottom first; closed with the stack.

        Raises what opening blobs raises.
        """
        from hybrid.core.opening import open_layer  # most conversions begin with nothing

        opened: list[Layer] = []
        source = await self._opener(stack)
        for layer in layers:
            blob = await source(layer)
            stack.push_async_callback(blob.aclose)
            opened.append(await open_layer(blob))
        return LayeredDevice(opened, str(self._ref))

    async def _opener(self, stack: AsyncExitStack) -> Callable[[ConvertedLayer], Awaitable[Source]]:
        ref = self._ref
        if isinstance(ref, RegistryReference):
            from hybrid.core.remote import open_remote

            remote = await open_remote(self._config, ref, stack, insecure=self._insecure)

            async def fetched(layer: ConvertedLayer) -> Source:
                return await remote.source(layer.digest, layer.size)

            return fetched
        assert isinstance(ref, LayoutReference), "destinations are these two"

        async def on_disk(layer: ConvertedLayer) -> Source:
            return FileSource(ref.directory / "blobs" / "sha256" / layer.digest[7:])

        return on_disk

"""The layers of one image, in order. See the package for what runs beside what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import trio

from hybrid.build.convert.ext4_steps import Ext4Steps
from hybrid.build.convert.fetching import Fetching
from hybrid.build.convert.layer_blob import Content
from hybrid.build.convert.lower import LowerDisk
from hybrid.build.convert.memory import Remembered
from hybrid.build.convert.options import MOUNT, LayerName, layer_names
from hybrid.build.convert.pipe import reason
from hybrid.build.convert.planning import SourceImage
from hybrid.build.convert.result import ConvertedLayer
from hybrid.build.convert.reuse import Reuse
from hybrid.build.convert.run import LayerOutcome, Run
from hybrid.build.convert.storing import Storing
from hybrid.build.ext4.changes import Changes

_PACKED_BEHIND = 2
"""Layers that are packed and sent at a time."""


class ImageConversion:
    """The layers of one image become blobs at the destination."""

    def __init__(self, run: Run, image: SourceImage, reuse: Reuse) -> None:
        self._run = run
        self._image = image
        self._reuse = reuse
        self._names = layer_names(image.layers, run.options)
        self._outcomes: dict[int, LayerOutcome] = {}
        self._remembered = 0
        self._behind = trio.Semaphore(_PACKED_BEHIND)
        self._storing = Storing(run, reuse)
        self._watching = trio.CancelScope()

    async def convert(self) -> list[LayerOutcome]:
        """All layers, bottom first; they are at the destination then.

        Raises the errors of both sides, FormatError, UnsupportedError, StorageFullError, ...
        """
        for number, (found, how) in enumerate(await self._reuse.find(self._names)):
            self._finish(number, found.digest, found.size, "reused", how)
        first = self._remembered = len(self._outcomes)
        if first < len(self._names):
            try:
                async with AsyncExitStack() as stack:
                    await self._converter()(first, stack)
            except BaseExceptionGroup as group:
                raise reason(group) from None
        return [self._outcomes[number] for number in range(len(self._names))]

    # -- inner -----------------------------------------------------------------------------------

    def _converter(self) -> Callable[[int, AsyncExitStack], Awaitable[None]]:
        options = self._run.options
        if options.via == MOUNT:
            return self._by_kernel
        return self._as_erofs if options.fs == "erofs" else self._as_ext4

    async def _as_ext4(self, first: int, stack: AsyncExitStack) -> None:
        """Layer 0 is an empty file system, layer n has what source layer n - 1 changes."""
        run = self._run
        base = None
        if first:
            disk = await run.lower.open(self._reused(first), stack)
            base = LowerDisk(disk, run.cores)
        steps = Ext4Steps(run.options.size, base, run.directory, run.cores, run.shares)
        stack.callback(steps.close)

        async def store(number: int, changes: Changes) -> None:
            await self._store(number, changes, self._names[number])
            steps.stored(changes)

        async with trio.open_nursery() as nursery:
            fetching = Fetching(run, self._image.layers, nursery)
            stack.callback(fetching.close)
            nursery.start_soon(self._watch)
            for number in range(first, len(self._names)):
                fetching.begin(max(0, number - 1))
                if number:
                    changes = await steps.apply(fetching.take(number - 1))
                else:
                    changes = await steps.make_base()
                await self._behind.acquire()
                nursery.start_soon(store, number, changes)
            await steps.give_back()
            await self._end()

    async def _by_kernel(self, first: int, stack: AsyncExitStack) -> None:
        """As ``_as_ext4``, but the kernel writes the file system, whatever that is."""
        # The ways that need no root do without all of this.
        from hybrid.build.convert.kernel_steps import KernelSteps

        run = self._run
        assert run.kernel_disk is not None, "a conversion via mount has a disk"
        steps = KernelSteps(run, run.kernel_disk, run.source.name)
        stack.push_async_callback(steps.aclose)
        async with trio.open_nursery() as nursery:
            fetching = Fetching(run, self._image.layers, nursery)
            stack.callback(fetching.close)
            nursery.start_soon(self._watch)
            if first:
                lowers = self._reused(first)
                await steps.begin_over(lowers, await run.lower.open(lowers, stack))
            for number in range(first, len(self._names)):
                fetching.begin(max(0, number - 1))
                name = self._names[number]
                if number:
                    content, name = await steps.apply(fetching.take(number - 1), name)
                else:
                    content = await steps.make_base(name)
                await self._behind.acquire()
                nursery.start_soon(self._store, number, content, name)
            await self._end()

    def _reused(self, first: int) -> list[ConvertedLayer]:
        below = [self._outcomes[number] for number in range(first)]
        return [ConvertedLayer(found.digest, found.size) for found in below]

    async def _as_erofs(self, first: int, stack: AsyncExitStack) -> None:
        """All source layers become one."""
        from hybrid.build.convert.erofs_steps import ErofsSteps

        run = self._run
        steps = ErofsSteps(run.options.size, run.directory, run.cores, run.shares)
        stack.callback(steps.close)
        async with trio.open_nursery() as nursery:
            fetching = Fetching(run, self._image.layers, nursery)
            stack.callback(fetching.close)
            nursery.start_soon(self._watch)
            for number in range(len(self._image.layers)):
                fetching.begin(number)
                await steps.apply(fetching.take(number))
            await self._behind.acquire()
            (name,) = self._names
            await self._store(0, await steps.finish(name.uuid), name)
            await self._end()

    async def _watch(self) -> None:
        """When something fails, all tasks are cancelled, but threads cannot be: they are told."""
        with self._watching:
            try:
                await trio.sleep_forever()
            finally:
                self._storing.stop()

    async def _end(self) -> None:
        """Wait until nothing is being stored; then nobody need watch any more."""
        for _ in range(_PACKED_BEHIND):
            await self._behind.acquire()
        self._watching.cancel()

    async def _store(self, number: int, changes: Content, name: LayerName) -> None:
        try:
            blob, put = await self._storing.store(changes, name)
        finally:
            self._behind.release()
        self._finish(number, blob.digest, blob.size, "converted", put.how)

    def _finish(self, number: int, digest: str, size: int, how: str, stored: str) -> None:
        source, source_size = "", 0
        if len(self._names) > len(self._image.layers) and number:
            layer = self._image.layers[number - 1]
            source, source_size = layer.digest, layer.size
        outcome = LayerOutcome(source, source_size, digest, size, how, stored)
        self._outcomes[number] = outcome
        if how == "converted":
            self._remember()
        self._run.watcher.end(outcome)

    def _remember(self) -> None:
        """Those that are there without a gap below them: the next run can go on from these."""
        while (found := self._outcomes.get(self._remembered)) is not None:
            number = self._remembered
            below = self._outcomes[number - 1].digest if number else ""
            remembered = Remembered(found.digest, found.size, below)
            self._reuse.remember(self._names[number].key, remembered)
            self._remembered += 1

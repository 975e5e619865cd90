"""The layers of one image, in order. See the package for what runs beside what."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import BinaryIO

import trio

from hybrid.build.contract import PutBlob, add_blob
from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.ext4_steps import Ext4Steps
from hybrid.build.convert.feed import Feed
from hybrid.build.convert.layer_blob import BlobMaker, LayerBlob
from hybrid.build.convert.lower import LowerDisk
from hybrid.build.convert.memory import Remembered
from hybrid.build.convert.options import LayerName, layer_names
from hybrid.build.convert.pipe import reason
from hybrid.build.convert.planning import SourceImage
from hybrid.build.convert.result import ConvertedLayer
from hybrid.build.convert.reuse import Reuse
from hybrid.build.convert.run import LayerOutcome, Run
from hybrid.build.ext4.changes import Changes
from hybrid.core.byte_stream import BlobContent, ByteStream, SourceStream
from hybrid.core.output_file import write_error
from hybrid.core.source import FileSource
from hybrid.errors import StorageFullError

_FETCHED_AHEAD = 3
"""Layers that are fetched at a time, that which is applied among them."""
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
        self._feeds: dict[int, Feed] = {}
        self._behind = trio.Semaphore(_PACKED_BEHIND)
        self._stopped = False
        self._maker = BlobMaker(run.cores, run.shares, run.wrapping, lambda: self._stopped)

    async def convert(self) -> list[LayerOutcome]:
        """All layers, bottom first; they are at the destination then.

        Raises the errors of both sides, FormatError, UnsupportedError, StorageFullError, ...
        """
        for number, (found, how) in enumerate(await self._reuse.find(self._names)):
            self._finish(number, found.digest, found.size, "reused", how)
        self._remembered = len(self._outcomes)
        if len(self._outcomes) < len(self._names):
            try:
                await self._convert_rest(len(self._outcomes))
            except BaseExceptionGroup as group:
                raise reason(group) from None
        return [self._outcomes[number] for number in range(len(self._names))]

    # -- inner -----------------------------------------------------------------------------------

    async def _convert_rest(self, first: int) -> None:
        async with AsyncExitStack() as stack, trio.open_nursery() as watching:
            steps = await self._open_steps(first, stack)
            watching.start_soon(self._watch)
            async with trio.open_nursery() as nursery:
                for number in range(first, len(self._names)):
                    self._fetch_ahead(number, nursery)
                    changes = await self._change(number, steps)
                    await self._behind.acquire()
                    nursery.start_soon(self._pack, number, changes)
            watching.cancel_scope.cancel()

    async def _watch(self) -> None:
        """Threads cannot be cancelled: this tells them."""
        try:
            await trio.sleep_forever()
        finally:
            self._stopped = True

    async def _open_steps(self, first: int, stack: AsyncExitStack) -> Ext4Steps:
        run = self._run
        base = None
        if first:
            below = [self._outcomes[number] for number in range(first)]
            layers = [ConvertedLayer(found.digest, found.size) for found in below]
            base = LowerDisk(await run.lower.open(layers, stack), run.cores)
        steps = Ext4Steps(run.options.size, base, run.directory, run.cores, run.shares)
        stack.callback(steps.close)
        return steps

    def _fetch_ahead(self, number: int, nursery: trio.Nursery) -> None:
        """Begin with all layers that are about to be needed. Layer 0 has no source."""
        run = self._run
        for ahead in range(max(1, number), min(number + _FETCHED_AHEAD, len(self._names))):
            if ahead not in self._feeds:
                layer = self._image.layers[ahead - 1]
                content = run.source.blob(layer.digest, layer.size)
                # What is on this machine need not be fetched ahead.
                room = run.ahead if content.origin is not None else None
                advance = run.watcher.begin(layer.digest, layer.size)
                feed = self._feeds[ahead] = Feed(run.cores, room, advance)
                nursery.start_soon(feed.fill, content)

    async def _change(self, number: int, steps: Ext4Steps) -> Changes:
        if not number:
            return await steps.make_base()
        layer = self._image.layers[number - 1]
        name = f"layer {number - 1} ({layer.digest}) of {self._run.source.name}"
        feed = self._feeds.pop(number)
        expanding = Expanding(layer, name, feed, self._run.cores, self._run.shares)
        try:
            return await steps.apply(expanding)
        finally:
            feed.close()

    async def _pack(self, number: int, changes: Changes) -> None:
        try:
            blob, put = await store_layer(
                self._run, self._maker, self._reuse, changes, self._names[number]
            )
        finally:
            self._behind.release()
        self._finish(number, blob.digest, blob.size, "converted", put.how)

    def _finish(self, number: int, digest: str, size: int, how: str, stored: str) -> None:
        layer = self._image.layers[number - 1] if number else None
        outcome = LayerOutcome(
            layer.digest if layer else "", layer.size if layer else 0, digest, size, how, stored
        )
        self._outcomes[number] = outcome
        self._run.watcher.end(outcome)
        if how == "converted":
            self._remember()

    def _remember(self) -> None:
        """Those that are there without a gap below them: the next run can go on from these."""
        while (found := self._outcomes.get(self._remembered)) is not None:
            number = self._remembered
            below = self._outcomes[number - 1].digest if number else ""
            remembered = Remembered(found.digest, found.size, below)
            self._reuse.remember(self._names[number].key, remembered)
            self._remembered += 1


async def store_layer(
    run: Run, maker: BlobMaker, reuse: Reuse, changes: Changes, name: LayerName
) -> tuple[LayerBlob, PutBlob]:
    """Make the blob of a layer and store it. Raises the errors of the destination, and
    StorageFullError if there is no room for it on this machine."""
    try:
        with tempfile.TemporaryFile(prefix="hybrid-blob-", dir=run.directory) as file:
            blob = await trio.to_thread.run_sync(maker.write, changes, name, file)
            content = _content(file, blob, reuse)
            return blob, await add_blob(run.destination, content)
    except OSError as error:
        raise scratch_error(error, run) from error


def scratch_error(error: OSError, run: Run) -> Exception:
    """The error for the user when temporary files cannot be written."""
    found = write_error(error, run.directory)
    if isinstance(found, StorageFullError):
        return StorageFullError(
            found.message, hint="TMPDIR names another directory for temporary files"
        )
    return found


def _content(file: BinaryIO, blob: LayerBlob, reuse: Reuse) -> BlobContent:
    async def open_stream() -> ByteStream:
        # The file has no name; each stream gets a descriptor of its own.
        return SourceStream(FileSource(f"/proc/self/fd/{file.fileno()}"))

    return BlobContent(open_stream, blob.digest, blob.size, origin=reuse.origin_of(blob.digest))

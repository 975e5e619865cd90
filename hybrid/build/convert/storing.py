"""Changes become a blob at the destination."""

from __future__ import annotations

import tempfile
from typing import BinaryIO

import trio

from hybrid.build.contract import PutBlob, add_blob
from hybrid.build.convert.layer_blob import BlobMaker, Content, LayerBlob
from hybrid.build.convert.options import LayerName
from hybrid.build.convert.reuse import Reuse
from hybrid.build.convert.run import Run, scratch_error
from hybrid.core.byte_stream import BlobContent, ByteStream, SourceStream
from hybrid.core.source import FileSource


class Storing:
    """Packs layers and sends them."""

    def __init__(self, run: Run, reuse: Reuse) -> None:
        self._run = run
        self._reuse = reuse
        self._stopped = False
        self._maker = BlobMaker(run.cores, run.shares, run.wrapping, lambda: self._stopped)

    def stop(self) -> None:
        """Let all threads end that pack layers."""
        self._stopped = True

    async def store(self, changes: Content, name: LayerName) -> tuple[LayerBlob, PutBlob]:
        """The blob is at the destination when this returns.

        Raises the errors of the destination, and StorageFullError if there is no room for it on
        this machine.
        """
        draft = await self._run.destination.begin_blob()
        if draft is None:
            return await self._send(changes, name)
        try:
            blob = await trio.to_thread.run_sync(self._maker.write, changes, name, draft.file)
            return blob, await draft.finish(blob.digest, blob.size)
        except OSError as error:
            raise draft.error(error) from error
        finally:
            draft.close()

    async def _send(self, changes: Content, name: LayerName) -> tuple[LayerBlob, PutBlob]:
        run = self._run
        try:
            with tempfile.TemporaryFile(prefix="hybrid-blob-", dir=run.directory) as file:
                blob = await trio.to_thread.run_sync(self._maker.write, changes, name, file)
                return blob, await add_blob(run.destination, self._content(file, blob))
        except OSError as error:
            raise scratch_error(error, run.directory) from error

    def _content(self, file: BinaryIO, blob: LayerBlob) -> BlobContent:
        async def open_stream() -> ByteStream:
            # The file has no name; each stream gets a descriptor of its own.
            return SourceStream(FileSource(f"/proc/self/fd/{file.fileno()}"))

        origin = self._reuse.origin_of(blob.digest)
        return BlobContent(open_stream, blob.digest, blob.size, origin=origin)

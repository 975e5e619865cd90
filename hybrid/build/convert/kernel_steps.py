"""The layers of one image as changes of a file system that the kernel has mounted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import trio

from hybrid.build.compact import Below, plan_layer
from hybrid.build.convert.expanding import Expanding
from hybrid.build.convert.kernel_disk import KernelDisk
from hybrid.build.convert.layer_blob import BlobMaker, Content
from hybrid.build.convert.options import LayerName
from hybrid.build.convert.planned import PlannedLayer
from hybrid.build.convert.result import ConvertedLayer
from hybrid.build.convert.run import Run, scratch_error
from hybrid.build.ext4.apply import Applier
from hybrid.build.ext4.changes import Changes
from hybrid.build.ext4.layer import Ext4Layer
from hybrid.build.ext4.native import FileSystem, NativeError, translated
from hybrid.build.ext4_bitmap import CannotTellError
from hybrid.build.free_space import find_free_space
from hybrid.build.kernelfs.make import make_file_system
from hybrid.build.kernelfs.tree import KernelTree
from hybrid.build.raw import open_raw
from hybrid.build.runs import Runs
from hybrid.build.tar.reader import TarReader
from hybrid.core.disk import LayeredDevice
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer
from hybrid.core.source import FileSource


class KernelSteps:
    """The disk as it grows: attached as ``disk``, and open here to see what has changed."""

    def __init__(self, run: Run, disk: KernelDisk, image: str) -> None:
        self._run = run
        self._attached = disk
        self._disk = LayeredDevice([], image)
        self._closing = contextlib.AsyncExitStack()

    async def make_base(self, name: LayerName) -> Content:
        """The bottom layer, an empty file system; the disk is attached over it.

        Raises UsageError for impossible sizes, and what attaching raises.
        """
        try:
            content = await self._make_base()
            path = self._temporary("base")
            await trio.to_thread.run_sync(self._write_plain, content, name, path)
        except OSError as error:
            raise scratch_error(error, self._attached.directory) from error
        await self._push(path)
        await self._attached.attach([path])
        return content

    async def begin_over(self, lowers: Sequence[ConvertedLayer], disk: LayeredDevice) -> None:
        """The disk is attached over layers that were converted earlier, which are ``disk``."""
        self._disk = disk
        await self._attached.attach(lowers)

    async def apply(self, expanding: Expanding, name: LayerName) -> tuple[Content, LayerName]:
        """What a source layer changes, with the name that it has from the disk.

        The layer is seen to be right before this returns. Raises FormatError, UnsupportedError,
        StorageFullError, StoppedError, and what attached disks raise.
        """
        is_first = len(self._disk.layers) == 1
        async with self._attached.mounted(self._run.options.fs) as root:
            if is_first:
                os.utime(root, ns=(0, 0))  # not that at which the file system was made
            await expanding.feed_to(lambda found: self._apply(found, root))
        sealed = await self._attached.seal()
        below = Below.of(self._disk.segments)
        parent = self._disk.layers[-1].record.uuid
        only = LayeredDevice([await self._open(sealed)], str(sealed))
        await self._push(sealed)
        plan = await plan_layer(only, self._disk.size, below=below, free=await self._free())
        uuid = only.layers[0].record.uuid
        content = PlannedLayer(only, plan, self._run.cores)
        return content, replace(name, uuid=uuid, parent_uuid=parent)

    async def aclose(self) -> None:
        """The disk is there no more."""
        await self._attached.detach()
        await self._closing.aclose()

    # -- inner -----------------------------------------------------------------------------------

    async def _make_base(self) -> Content:
        run, size = self._run, self._run.options.size
        if run.options.fs == "ext4":
            changes = await trio.to_thread.run_sync(self._make_ext4)
            self._closing.callback(changes.close)
            return changes
        path = self._temporary("empty")
        await make_file_system(run.options.fs, path, size)
        raw = open_raw(path)
        self._closing.push_async_callback(raw.aclose)
        plan = await plan_layer(raw, size, below=Below.nothing())
        return PlannedLayer(raw, plan, run.cores)

    def _temporary(self, name: str) -> Path:
        """A file to be made, which is gone when the next image needs the name."""
        path = self._attached.directory / name
        self._closing.callback(path.unlink, missing_ok=True)
        return path

    def _make_ext4(self) -> Changes:
        """The one that all images have which are converted without the kernel."""
        run = self._run
        with (
            run.cores.work(),
            run.shares.of("apply"),
            Ext4Layer.make(run.options.size, str(run.directory)) as layer,
        ):
            return layer.finish()

    def _write_plain(self, content: Content, name: LayerName, path: Path) -> None:
        run = self._run
        plain = replace(run.wrapping, compress="none")
        with path.open("x+b") as file:
            BlobMaker(run.cores, run.shares, plain, lambda: False).write(content, name, file)

    def _apply(self, expanding: Expanding, root: int) -> None:
        run = self._run
        tree = KernelTree(root)
        try:
            with run.cores.work(), run.shares.of("apply"):
                # It has the methods that archives need of an ext4.
                go_on = expanding.pipe.go_on
                applier = Applier(cast(FileSystem, tree), run.options.size, go_on)
                # ``apply`` reads to the end, which is there only if all was right.
                applier.apply(TarReader(expanding.read, expanding.name))
                tree.finish()
        except NativeError as error:
            raise translated(error, f"completing {expanding.name}", run.options.size) from error
        finally:
            tree.close()

    async def _push(self, path: Path) -> None:
        self._disk.push(await self._open(path))

    async def _open(self, path: Path) -> Layer:
        source = FileSource(path)
        self._closing.push_async_callback(source.aclose)
        return await open_layer(source)

    async def _free(self) -> Runs | None:
        try:
            return await find_free_space(self._disk.pread, self._disk.size)
        except CannotTellError:
            return None

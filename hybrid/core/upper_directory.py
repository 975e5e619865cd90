"""The directory of a writable layer: made, opened, sealed by snapshots, read at checkpoints.

What is in it is told in ``upper_manifest``. The process that uses it holds a lock on the directory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from hybrid.core.checkpoints import PREFIX, check_checkpoint, is_read
from hybrid.core.disk import LayeredDevice
from hybrid.core.file_lock import lock_file
from hybrid.core.index_log import final
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer
from hybrid.core.source import FileSource
from hybrid.core.storage import Storage
from hybrid.core.storage_errors import storage_error
from hybrid.core.unflushed import running_boot, unflushed_path
from hybrid.core.upper import Upper, create_pair
from hybrid.core.upper_log import index_header, pack_map
from hybrid.core.upper_manifest import (
    MANIFEST,
    Manifest,
    files_of,
    place_manifest,
    read_manifest,
)
from hybrid.core.writable import WritableDevice
from hybrid.errors import (
    FormatError,
    HybridError,
    StorageFullError,
    TimeoutExpiredError,
    UsageError,
)

logger = logging.getLogger("hybrid.core")


class UpperDirectory:
    """One directory. Its manifest is read when it is opened."""

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        """Raises NotFoundError (not there, or no upper) or FormatError."""
        self.path = path
        self.storage = storage or Storage()
        self.manifest = read_manifest(path)

    @classmethod
    def create(
        cls,
        path: Path,
        manifest: Manifest,
        storage: Storage | None = None,
        *,
        lock: int | None = None,
    ) -> UpperDirectory:
        """Make a new layer in an empty directory, or in one that is made here. Durable.

        ``lock`` is that of the directory, where the caller has it already. Raises UsageError if
        there is something else in it, and BusyError if another process is making one there.
        """
        storage = storage or Storage()
        made = not path.exists()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            if lock is None:
                # Of two that find it empty, the second must not undo what the first has made.
                stack.enter_context(exclusive(path))
            if any(path.iterdir()):
                raise UsageError(
                    f"{path} is neither empty nor a writable layer of hybrid",
                    hint="name another directory",
                )
            try:
                manifest = replace(manifest, id=secrets.token_hex(16))
                create_pair(storage, path / manifest.data, path / manifest.index, manifest.size)
                place_manifest(storage, path, manifest)
                storage.sync_directory(path)
                storage.sync_directory(path.parent)
            except BaseException:
                destroy(path, keep_directory=not made)
                raise
        return cls(path, storage)

    @property
    def data(self) -> Path:
        return self.path / self.manifest.data

    @property
    def index(self) -> Path:
        return self.path / self.manifest.index

    @property
    def sealed(self) -> list[Path]:
        return [self.path / name for name in self.manifest.sealed]

    def note(self, **changes: Any) -> None:
        """Change the manifest, durably. If that fails at the very end, the new one counts."""
        manifest = replace(self.manifest, **changes)
        place_manifest(self.storage, self.path, manifest)
        self.manifest = manifest
        self.storage.sync_directory(self.path)

    async def open(
        self, lower: LayeredDevice | None, name: str, *, lock: int | None = None
    ) -> WritableDisk:
        """Open for writing, over the disk of the image; closing closes that too.

        ``lock`` is as in ``create``, and the disk's if this succeeds. Raises BusyError (in use) and
        FormatError (damaged, or made over another image).
        """
        held = lock_directory(self.path) if lock is None else lock
        try:
            # Only now is it certain which files are the pair: somebody may have made a snapshot.
            manifest = self.manifest = read_manifest(self.path)
            self._check_lower(lower, name)
            if lower is None:
                lower = LayeredDevice([], name)
            for path in self.sealed:
                lower.push(await open_sealed(path))
            read = self._remove_strays()
            upper = Upper.open(self.storage, self.data, self.index, running_boot(), hold=bool(read))
            try:
                self.note(clean=False)
            except BaseException:
                upper.close()
                raise
        except BaseException:
            if lock is None:
                os.close(held)
            raise
        disk = WritableDisk(self, lower, upper, name, lock=held, was_clean=manifest.clean)
        disk.adopt(read)
        return disk

    def _check_lower(self, lower: LayeredDevice | None, name: str) -> None:
        manifest = self.manifest
        if (lower.identity() if lower is not None else "") == manifest.lower:
            return
        raise FormatError(
            f"{self.path} was made over {manifest.image or 'no image'} "
            f"({manifest.digest or 'no digest'}), not over this {name}",
            hint="name that image, or another directory for the changes",
        )

    def _remove_strays(self) -> list[Path]:
        """What a process left that died in the middle of a change; returns checkpoints in use."""
        known = {MANIFEST, self.manifest.data, self.manifest.index, *self.manifest.sealed}
        known.add(unflushed_path(self.index).name)
        read = []
        for path in files_of(self.path):
            if path.name in known:
                continue
            if path.name.startswith(PREFIX) and is_read(path):
                read.append(path)
            else:
                self.storage.remove(path)
        return read


class WritableDisk(WritableDevice):
    """A writable disk whose upper is kept in a directory."""

    def __init__(
        self,
        directory: UpperDirectory,
        lower: LayeredDevice,
        upper: Upper,
        name: str,
        *,
        lock: int,
        was_clean: bool,
    ) -> None:
        manifest = directory.manifest
        super().__init__(lower, upper, name, identity=f"{manifest.id} {manifest.lower}")
        self.digest = manifest.digest
        self.directory = directory
        self.was_clean = was_clean
        """Whether the one who had it open before ended orderly."""
        self._lock = lock
        self._checkpoints: list[Path] = []
        """Those that are read, for which ``upper`` holds what they refer to."""

    def adopt(self, checkpoints: list[Path]) -> None:
        """The upper was opened with one hold for all of these."""
        self._checkpoints = checkpoints

    async def checkpoint(self, lock: Path, deadline: float = float("inf")) -> dict[str, Any]:
        """Flush, and write down the index as it is now, for others to read at leisure.

        ``lock`` is a file in the directory of the layer that the reader has made and locked. While
        it is locked, no space is freed. The index is written into it. Returns what there is to
        read: ``sealed``, ``data``, ``index`` (paths) and ``size``. Raises TimeoutExpiredError if
        the moment would be after ``deadline`` (of the monotonic clock).
        """
        directory = self.directory
        check_checkpoint(lock, directory.path)
        file = directory.storage.open(lock)
        try:
            async with self._exclusive:
                await self.upper.flush()
                _check_in_time(deadline)
                record, segments = self.upper.record, self.upper.segments.snapshot()
                described = {
                    "sealed": [str(path) for path in directory.sealed],
                    "data": str(directory.data),
                    "index": str(lock),
                    "size": self.size,
                }
                if not self._checkpoints:
                    self.upper.hold()
                self._checkpoints.append(lock)
            raw = await trio.to_thread.run_sync(pack_map, segments)
            file.write(0, index_header(record) + raw)
        finally:
            file.close()
        return described

    async def flush(self) -> None:
        self._release_checkpoints()
        await super().flush()

    def _release_checkpoints(self) -> None:
        """Let go of what nobody reads any more. One hold is there for all of them."""
        if not self._checkpoints:
            return
        for path in self._checkpoints[:]:
            if not is_read(path):
                self._checkpoints.remove(path)
                with contextlib.suppress(HybridError):
                    self.directory.storage.remove(path)
        if not self._checkpoints:
            self.upper.release()

    async def snapshot(self, deadline: float = float("inf")) -> Path:
        """Seal what was written so far, and go on with a new, empty layer over it.

        Returns the sealed file. A crash at any point leaves the old state or the new one. Raises
        TimeoutExpiredError, and nothing has changed, if it would be done after ``deadline``.
        """
        sealed = self.directory.data
        await self.exchange(lambda: self._begin_next(deadline))
        if self.upper.broken is not None:
            raise self.upper.broken
        return sealed

    async def _begin_next(self, deadline: float) -> tuple[LayeredDevice, Upper]:
        directory, old, lower = self.directory, self.upper, self.lower
        assert lower is not None
        manifest, storage = directory.manifest, directory.storage
        number = manifest.number + 1
        names = f"data-{number}", f"index-{number}"
        data, index = (directory.path / name for name in names)
        new_files = (data, index, unflushed_path(index))
        for path in new_files:
            storage.remove(path)
        lower.check_room()
        await old.seal()
        layer = await open_sealed(directory.data)
        upper: Upper | None = None
        try:
            size, parent = old.record.virtual_size, old.record.uuid
            create_pair(storage, data, index, size, parent_uuid=parent)
            upper = Upper.open(storage, data, index, running_boot(), hold=bool(self._checkpoints))
            _check_in_time(deadline)
            directory.note(
                data=names[0],
                index=names[1],
                number=number,
                sealed=[*manifest.sealed, manifest.data],
            )
        except BaseException as error:
            if upper is None or directory.manifest is manifest:
                if upper is not None:
                    upper.close()
                await layer.aclose()
                _remove_all(storage, *new_files)
                raise
            # The new state counts by now, but a power cut might bring the old one back.
            upper.broken = final(error) if isinstance(error, HybridError) else None
            logger.error("%s", error)
        lower.push(layer)
        old.close()
        old_index = directory.path / manifest.index
        _remove_all(storage, old_index, unflushed_path(old_index))
        return lower, upper

    async def aclose(self) -> None:
        """Flush, mark the layer as clean, and close. Raises if something could not be kept."""
        self._release_checkpoints()
        try:
            await super().aclose()
            try:
                self.directory.note(clean=True)
            except StorageFullError as error:
                logger.warning("%s: the layer counts as not closed", error.message)
        finally:
            os.close(self._lock)


def _check_in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutExpiredError("it took too long to write down what was changed")


def _remove_all(storage: Storage, *paths: Path) -> None:
    for path in paths:
        try:
            storage.remove(path)
        except HybridError as error:
            logger.warning("%s", error)


def lock_directory(path: Path) -> int:
    """Be the only process that uses the layer: a descriptor to be closed. Raises BusyError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, f"cannot open {path}") from error
    try:
        lock_file(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Keep all others from using the layer in a directory, until the end of the block.

    Yields the lock. Raises BusyError (somebody uses it) or NotFoundError.
    """
    lock = lock_directory(path)
    try:
        yield lock
    finally:
        os.close(lock)


async def open_sealed(path: Path) -> Layer:
    """A layer of the directory that was sealed in place."""
    source = _file_source(path)
    try:
        return await open_layer(source)
    except BaseException:
        await source.aclose()
        raise


def _file_source(path: Path) -> FileSource:
    if path.is_symlink():
        raise FormatError(f"{path} is a symbolic link, not a layer")
    return FileSource(path)


def destroy(path: Path, *, keep_directory: bool = False) -> None:
    """Remove the files of a layer, and the directory unless told otherwise. Gone is fine."""
    if not path.is_dir():
        return
    for file in files_of(path):
        file.unlink(missing_ok=True)
    if not keep_directory:
        with contextlib.suppress(OSError):
            path.rmdir()

"""The directory of a writable layer: what it was made over, and which files are its state.

    upper.json        what stands here (Manifest): replaced as a whole, the last step of each change
    data-N, index-N   the pair that is written to (spec: lsmt 8); N counts from 1
    data-M, M < N     sealed by a snapshot, read-only since then, bottom first
    checkpoint-*      the index as of a moment, for a commit that is running

The files of the pair are ``writable_data`` and ``writable_index`` for N = 1, the names that other
implementations give to theirs (spec: tar-and-blob 5).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from hybrid.core.disk import LayeredDevice
from hybrid.core.file_lock import lock_file
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer
from hybrid.core.source import FileSource
from hybrid.core.storage import Storage
from hybrid.core.storage_errors import storage_error
from hybrid.core.unflushed import running_boot, unflushed_path
from hybrid.core.upper import Upper, create_pair
from hybrid.core.upper_log import index_header, pack_map
from hybrid.core.writable import WritableDevice
from hybrid.errors import FormatError, HybridError, NotFoundError, UsageError

MANIFEST = "upper.json"
_VERSION = 1
_FIRST = ("writable_data", "writable_index")


@dataclass(frozen=True)
class Manifest:
    """The contents of ``upper.json``. Sizes in bytes."""

    image: str
    """The image that the layer was made over, as it was named."""
    digest: str
    """Of its manifest; "" if it has none."""
    lower: str
    """``identity()`` of its disk: the layer fits nothing else. "": there is nothing below."""
    size: int
    """Of the disk."""
    data: str = _FIRST[0]
    index: str = _FIRST[1]
    sealed: list[str] = field(default_factory=list)
    """Files of sealed layers, bottom first."""
    number: int = 1
    """Of the pair: how often there was a new one."""
    clean: bool = True
    """Whether the last user ended orderly; false while it is in use."""
    id: str = ""
    """Tells this layer from others, whatever is written to it."""
    origin: dict[str, Any] = field(default_factory=dict)
    """How the image can be opened again, as the caller has it."""
    version: int = _VERSION


_TYPES = {name: type(value) for name, value in asdict(Manifest("", "", "", 0)).items()}


class UpperDirectory:
    """One directory. Its manifest is read when it is opened."""

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        """Raises NotFoundError (not there, or no upper), UsageError or FormatError."""
        self.path = path
        self.storage = storage or Storage()
        self.manifest = _read_manifest(path)

    @classmethod
    def create(
        cls, path: Path, manifest: Manifest, storage: Storage | None = None
    ) -> UpperDirectory:
        """Make a new layer in an empty directory, or in one that is made here. Durable.

        Raises UsageError if there is something else in it, and BusyError if another process is
        making one there.
        """
        storage = storage or Storage()
        made = not path.exists()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of two that find it empty, the second must not undo what the first has made.
        lock = _lock_directory(path)
        try:
            if any(path.iterdir()):
                raise UsageError(
                    f"{path} is neither empty nor a writable layer of hybrid",
                    hint="name another directory",
                )
            try:
                manifest = replace(manifest, id=secrets.token_hex(16))
                create_pair(storage, path / manifest.data, path / manifest.index, manifest.size)
                write_manifest(storage, path, manifest)
                storage.sync_directory(path.parent)
            except BaseException:
                destroy(path, keep_directory=not made)
                raise
        finally:
            os.close(lock)
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
        """Change the manifest, durably."""
        manifest = replace(self.manifest, **changes)
        write_manifest(self.storage, self.path, manifest)
        self.manifest = manifest

    async def open(self, lower: LayeredDevice | None, name: str) -> WritableDisk:
        """Open for writing, over the disk of the image; closing closes that too.

        Raises BusyError (in use), FormatError (damaged, or made over another image).
        """
        lock = _lock_directory(self.path)
        try:
            # Only now is it certain which files are the pair: somebody may have made a snapshot.
            manifest = self.manifest = _read_manifest(self.path)
            self._check_lower(lower, name)
            if lower is None:
                lower = LayeredDevice([], name)
            for path in self.sealed:
                lower.push(await open_sealed(path))
            upper = Upper.open(self.storage, self.data, self.index, running_boot())
            try:
                self._remove_strays()
                self.note(clean=False)
            except BaseException:
                upper.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return WritableDisk(self, lower, upper, name, lock=lock, was_clean=manifest.clean)

    def _check_lower(self, lower: LayeredDevice | None, name: str) -> None:
        manifest = self.manifest
        if (lower.identity() if lower is not None else "") == manifest.lower:
            return
        raise FormatError(
            f"{self.path} was made over {manifest.image or 'no image'} "
            f"({manifest.digest or 'no digest'}), not over this {name}",
            hint="name that image, or another directory for the changes",
        )

    def _remove_strays(self) -> None:
        """What a process left that died in the middle of a change. The lock is ours."""
        known = {MANIFEST, self.manifest.data, self.manifest.index, *self.manifest.sealed}
        known.add(self.manifest.index + ".unflushed")
        for entry in self.path.iterdir():
            if entry.name in known or not _is_ours(entry.name):
                continue
            if entry.name.startswith("checkpoint-") and _is_locked(entry):
                continue
            self.storage.remove(entry)


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
        self._checkpoints: list[_Checkpoint] = []

    async def checkpoint(self, lock: Path) -> dict[str, Any]:
        """Flush, and write down the index as it is now, for others to read at leisure.

        ``lock`` is a file in the directory of the layer that the reader has made and locked. While
        it is locked, no space is freed. The index is written into it. Returns what there is to
        read: ``sealed``, ``data``, ``index`` (paths) and ``size``.
        """
        if lock.parent != self.directory.path or not lock.name.startswith("checkpoint-"):
            raise UsageError(f"{lock} is no checkpoint file of {self.directory.path}")
        async with self._exclusive:
            await self.upper.flush()
            record, segments = self.upper.record, self.upper.segments.snapshot()
            directory = self.directory
            described = {
                "sealed": [str(path) for path in directory.sealed],
                "data": str(directory.data),
                "index": str(lock),
                "size": self.size,
            }
            self.upper.hold()
            self._checkpoints.append(_Checkpoint(lock, self.upper))
        file = directory.storage.open(lock)
        try:
            raw = await trio.to_thread.run_sync(pack_map, segments)
            file.write(0, index_header(record) + raw)
        finally:
            file.close()
        return described

    async def flush(self) -> None:
        self._release_checkpoints()
        await super().flush()

    def _release_checkpoints(self) -> None:
        """Let go of what nobody reads any more."""
        for checkpoint in self._checkpoints[:]:
            if not _is_locked(checkpoint.lock):
                self._checkpoints.remove(checkpoint)
                checkpoint.upper.release()
                with contextlib.suppress(HybridError):
                    self.directory.storage.remove(checkpoint.lock)

    async def snapshot(self) -> Path:
        """Seal what was written so far, and go on with a new, empty layer over it.

        Returns the sealed file. A crash at any point leaves the old state or the new one.
        """
        sealed = self.directory.data
        await self.exchange(self._begin_next)
        return sealed

    async def _begin_next(self) -> tuple[LayeredDevice, Upper]:
        directory, old, lower = self.directory, self.upper, self.lower
        assert lower is not None
        manifest = directory.manifest
        number = manifest.number + 1
        names = f"data-{number}", f"index-{number}"
        data, index = (directory.path / name for name in names)
        for path in (data, index):
            directory.storage.remove(path)
        lower.check_room()
        await old.seal()
        layer = await open_sealed(directory.data)
        upper: Upper | None = None
        try:
            size, parent = old.record.virtual_size, old.record.uuid
            create_pair(directory.storage, data, index, size, parent_uuid=parent)
            upper = Upper.open(directory.storage, data, index, running_boot())
            # From here on the new state counts, whatever happens.
            directory.note(
                data=names[0],
                index=names[1],
                number=number,
                sealed=[*manifest.sealed, manifest.data],
            )
        except BaseException:
            if upper is not None:
                upper.close()
            await layer.aclose()
            raise
        lower.push(layer)
        old.close()
        directory.storage.remove(directory.path / manifest.index)
        directory.storage.remove(unflushed_path(directory.path / manifest.index))
        return lower, upper

    async def aclose(self) -> None:
        """Flush, mark the layer as clean, and close. Raises if something could not be kept."""
        self._release_checkpoints()
        try:
            await super().aclose()
            self.directory.note(clean=True)
        finally:
            os.close(self._lock)


@dataclass(frozen=True)
class _Checkpoint:
    lock: Path
    upper: Upper


def _lock_directory(path: Path) -> int:
    """Be the only process that uses the layer. Raises BusyError."""
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
def exclusive(path: Path) -> Iterator[None]:
    """Keep all others from using the layer in a directory, until the end of the block.

    Raises BusyError (somebody uses it) or NotFoundError.
    """
    lock = _lock_directory(path)
    try:
        yield
    finally:
        os.close(lock)


async def open_sealed(path: Path) -> Layer:
    """A layer of the directory that was sealed in place."""
    source = FileSource(path)
    try:
        return await open_layer(source)
    except BaseException:
        await source.aclose()
        raise


@contextlib.contextmanager
def locked_checkpoint(directory: Path) -> Iterator[Path]:
    """A new checkpoint file, locked until the end of the block. Yields its path."""
    path = directory / f"checkpoint-{secrets.token_hex(8)}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def destroy(path: Path, *, keep_directory: bool = False) -> None:
    """Remove the files of a layer, and the directory unless told otherwise. Gone is fine."""
    if not path.is_dir():
        return
    for entry in path.iterdir():
        if _is_ours(entry.name):
            entry.unlink(missing_ok=True)
    if not keep_directory:
        with contextlib.suppress(OSError):
            path.rmdir()


def is_upper_directory(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def write_manifest(storage: Storage, path: Path, manifest: Manifest) -> None:
    new = path / f"{MANIFEST}.new"
    storage.remove(new)
    file = storage.create(new)
    try:
        file.write(0, json.dumps(asdict(manifest), indent=2).encode() + b"\n")
        file.sync()
    finally:
        file.close()
    storage.replace(new, path / MANIFEST)
    storage.sync_directory(path)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path} is no writable layer: it has no {MANIFEST}") from None
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict) or found.get("version") != _VERSION:
        raise FormatError(f"{file} is not of version {_VERSION}", hint="a newer hybrid made it")
    for name, kind in _TYPES.items():
        if type(found.get(name)) is not kind:
            raise FormatError(f"{file} is damaged: {name} is missing or wrong")
    names = [found["data"], found["index"], *found["sealed"]]
    if any(not isinstance(name, str) or "/" in name or name in ("", ".", "..") for name in names):
        raise FormatError(f"{file} is damaged: its files are not in the directory")
    return Manifest(**{name: found[name] for name in _TYPES})


def _is_ours(name: str) -> bool:
    return name.startswith((MANIFEST, *_FIRST, "data-", "index-", "checkpoint-"))


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

"""An image opened for writing: with a directory for the changes, or with the upper of a config."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybrid.config import load_image_config
from hybrid.core.image import Image, ImageRequest, open_image
from hybrid.core.reference import ConfigReference, parse_image
from hybrid.core.storage import Storage
from hybrid.core.storage_errors import storage_error
from hybrid.core.unflushed import running_boot
from hybrid.core.upper import Upper
from hybrid.core.upper_directory import UpperDirectory, WritableDisk, destroy, lock_directory
from hybrid.core.upper_manifest import Manifest, is_upper_directory
from hybrid.core.writable import WritableDevice
from hybrid.errors import UsageError


async def open_over(
    request: ImageRequest, path: Path, *, size: int = 0, origin: dict[str, Any] | None = None
) -> WritableDisk:
    """Open an image for writing; changes go to the directory ``path``, made if it is not there.

    ``size`` (bytes, 0: as it is) makes the disk larger; ``origin`` goes into a new manifest. Raises
    UsageError (smaller than it is; another thing is there), FormatError (made over another image),
    BusyError (in use), and what opening an image raises. A directory made here is removed again.
    """
    image = await open_image(request)
    try:
        disk = await _open_directory(path, image, request.image, size, origin or {})
    except BaseException:
        await image.aclose()
        raise
    try:
        grow(disk, size)
    except BaseException:
        await disk.aclose()
        raise
    return disk


async def open_config_upper(request: ImageRequest, path: Path) -> WritableDevice:
    """Open the image of a config file with the writable layer that the config names.

    Raises UsageError if it names none, UnsupportedError for a sparse one, BusyError (in use), and
    what opening an image raises.
    """
    config = load_image_config(path)
    if config.upper is None:
        raise UsageError(f"{path} names no upper", hint="give --upper DIR, or add one to it")
    lower: Image | None = None
    if config.data_lowers:
        lower = await open_image(replace(request, without_upper=True))
    try:
        upper = Upper.open(Storage(), config.upper.data, config.upper.index, running_boot())
    except BaseException:
        if lower is not None:
            await lower.aclose()
        raise
    return WritableDevice(lower, upper, request.image)


def has_config_upper(image: str) -> bool:
    """Whether an image name is that of a config file that names a writable layer."""
    reference = parse_image(image)
    return isinstance(reference, ConfigReference) and (
        load_image_config(reference.path).upper is not None
    )


def grow(disk: WritableDevice, size: int) -> None:
    """Make the disk ``size`` bytes large, durably; 0 leaves it. Raises UsageError if smaller."""
    if not size or size == disk.size:
        return
    if size < disk.size:
        raise UsageError(
            f"--size {size} is smaller than the disk, which has {disk.size} bytes",
            hint="a disk can only grow",
        )
    disk.upper.resize(size)
    disk.size = size
    if isinstance(disk, WritableDisk):
        disk.directory.note(size=size)


async def _open_directory(
    path: Path, image: Image, name: str, size: int, origin: dict[str, Any]
) -> WritableDisk:
    existed, made = make_directory(path), False
    lock = lock_directory(path)
    try:
        if not is_upper_directory(path):
            _create(path, image, size, origin, lock)
            made = True
        return await UpperDirectory(path).open(image, name, lock=lock)
    except BaseException:
        if made:
            destroy(path, keep_directory=True)
        if not existed:
            _remove_if_empty(path)
        os.close(lock)
        raise


def _create(path: Path, image: Image, size: int, origin: dict[str, Any], lock: int) -> None:
    if size and size < image.size:
        raise UsageError(
            f"--size {size} is smaller than the disk of the image, which has {image.size} bytes",
            hint="a disk can only grow",
        )
    manifest = Manifest(image.name, image.digest, image.identity(), size or image.size)
    UpperDirectory.create(path, replace(manifest, origin=origin), lock=lock)


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def make_directory(path: Path) -> bool:
    """Make it if it is not there; whether it was. Raises UsageError (no directory) and others."""
    existed = path.exists()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{path} is no directory") from error
    except OSError as error:
        raise storage_error(error, f"cannot make {path}") from error
    return existed

"""The layers that a command of `hybrid layer` is about, opened as one disk."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import click

from hybrid.config import load_global_config, load_image_config
from hybrid.core.disk import LayeredDevice
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer
from hybrid.core.pair import is_pair, open_pair
from hybrid.core.source import FileSource
from hybrid.core.upper_directory import UpperDirectory, exclusive, open_sealed
from hybrid.core.upper_manifest import is_upper_directory
from hybrid.errors import UsageError

LAYERS = click.argument(
    "layers", metavar="CONFIG | LAYER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
_INDEX = "+"


def is_config(path: Path) -> bool:
    return path.suffix == ".json"


async def open_stack(layers: tuple[Path, ...], stack: AsyncExitStack) -> LayeredDevice:
    """One config, or layers bottom first: sealed ones, ``DATA+INDEX``, directories of hybrid.

    Raises UsageError, NotFoundError, FormatError, UnsupportedError.
    """
    if is_config(layers[0]):
        if len(layers) > 1:
            raise UsageError(f"{layers[0]} is a config: no layers can stand beside it")
        request = ImageRequest(os.path.join(".", layers[0]), load_global_config(None))
        device: LayeredDevice = await open_image(request)
        stack.push_async_callback(device.aclose)
        return device
    opened: list[Layer] = []
    for path in layers:
        opened += await open_one(path, stack)
    return LayeredDevice(opened, str(layers[-1]))


async def open_one(path: Path, stack: AsyncExitStack) -> list[Layer]:
    """The layers that one argument stands for; the stack closes them.

    Raises BusyError for a writable layer that is in use: its data moves.
    """
    pair = split_pair(path)
    found: list[Layer]
    if pair is not None:
        found = [open_pair(*pair, lock=True)]
    elif is_upper_directory(path):
        stack.enter_context(exclusive(path))
        directory = UpperDirectory(path)
        found = [await open_sealed(sealed) for sealed in directory.sealed]
        found.append(open_pair(directory.data, directory.index))
    else:
        source = FileSource(path)
        stack.push_async_callback(source.aclose)
        layer = await open_layer(source)
        await layer.check_head()
        return [layer]
    for layer in found:
        stack.push_async_callback(layer.aclose)
    return found


def pairs_of(layers: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    """Data and index files of the writable layers among those that were named."""
    found = []
    for path in layers:
        pair = split_pair(path)
        if is_config(path):
            upper = load_image_config(path).upper
            pair = (upper.data, upper.index) if upper else None
        elif is_upper_directory(path):
            directory = UpperDirectory(path)
            pair = directory.data, directory.index
        if pair is not None:
            found.append(pair)
    return found


def split_pair(path: Path) -> tuple[Path, Path] | None:
    """``DATA+INDEX`` as two paths, if that is what it is: a file of this name goes first."""
    if _INDEX not in str(path) or path.exists():
        return None
    text = str(path)
    # A plus may be part of either name: the place where both sides exist counts.
    for at in (number for number, letter in enumerate(text) if letter == _INDEX):
        data, index = Path(text[:at]), Path(text[at + 1 :])
        if is_pair(data, index):
            return data, index
    return None

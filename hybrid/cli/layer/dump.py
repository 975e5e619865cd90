"""`hybrid layer`: look at layer files, and write the merged disk of a stack as a raw file."""

from __future__ import annotations

import logging
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, BinaryIO

import click
import trio

from hybrid.cli.output import print_json, print_pairs
from hybrid.config import load_global_config
from hybrid.core.device import SECTOR
from hybrid.core.disk import LayeredDevice
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.layer import Layer
from hybrid.core.lsmt import ZEROS
from hybrid.core.opening import open_layer
from hybrid.core.output_file import output_file
from hybrid.core.source import FileSource
from hybrid.errors import UsageError

logger = logging.getLogger("hybrid")

_RUN_BYTES = 1 << 20
_ZERO_BLOCK = bytes(4096)

LAYERS = click.argument(
    "layers", metavar="CONFIG | LAYER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)


@click.group("layer", no_args_is_help=False)
def command() -> None:
    """Look at layer files, bottom first, or at those that a config.v1.json names."""


@command.command("info")
@LAYERS
@click.option("--segments", is_flag=True, help="List the merged index as well (sectors).")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def info(layers: tuple[Path, ...], segments: bool, as_json: bool) -> None:
    """Show headers, sizes, uuids and indexes, and what the merged disk is like."""
    found = trio.run(_info, layers, segments)
    if as_json:
        print_json(found)
        return
    for number, layer in enumerate(found["layers"]):
        click.echo(f"layer {number}" + (" (bottom)" if not number else ""))
        print_pairs([(f"  {name.replace('_', ' ')}", value) for name, value in layer.items()])
    click.echo("merged")
    merged = {name: value for name, value in found["merged"].items() if name != "index"}
    print_pairs([(f"  {name.replace('_', ' ')}", value) for name, value in merged.items()])
    for segment in found["merged"].get("index", ()):
        click.echo(" ".join(str(int(number)) for number in segment))


@command.command("dump")
@LAYERS
@click.option(
    "-o", "--output", required=True, metavar="RAW", type=click.Path(path_type=Path),
    help="Raw file to write; what reads as zeros becomes holes.",
)  # fmt: skip
def dump(layers: tuple[Path, ...], output: Path) -> None:
    """Write the merged disk as a sparse raw file."""
    trio.run(_dump, layers, output)


async def _open(layers: tuple[Path, ...], stack: AsyncExitStack) -> LayeredDevice:
    if layers[0].suffix == ".json":
        if len(layers) > 1:
            raise UsageError(f"{layers[0]} is a config: no layers can stand beside it")
        request = ImageRequest(os.path.join(".", layers[0]), load_global_config(None))
        device: LayeredDevice = await open_image(request)
        stack.push_async_callback(device.aclose)
        return device
    opened: list[Layer] = []
    for path in layers:
        source = FileSource(path)
        stack.push_async_callback(source.aclose)
        opened.append(await open_layer(source))
    return LayeredDevice(opened, str(layers[-1]))


async def _info(layers: tuple[Path, ...], with_index: bool) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        device = await _open(layers, stack)
        for layer in device.layers:
            await layer.check_head()
        merged: dict[str, Any] = {
            "virtual_size": device.size,
            "segments": len(device.segments),
            "mapped_bytes": SECTOR
            * sum(segment.length for segment in device.segments if not segment.zeroed),
        }
        if with_index:
            merged["index"] = [list(segment) for segment in device.segments]
        described = [{"name": layer.name, **layer.describe()} for layer in device.layers]
        return {"layers": described, "merged": merged}


async def _dump(layers: tuple[Path, ...], output: Path) -> None:
    async with AsyncExitStack() as stack:
        device = await _open(layers, stack)
        with output_file(output) as target:
            await _copy(device, target)
    logger.info("%s: %d bytes", output, device.size)


async def _copy(device: LayeredDevice, target: BinaryIO) -> None:
    """Write what is mapped to data; leave out 4 KiB blocks of zeros."""
    position = 0
    for extent in device.segments.extents(0, device.size) if device.size else ():
        end = position + extent.length
        while extent.source != ZEROS and position < end:
            length = min(_RUN_BYTES, end - position)
            _write_sparsely(target, position, memoryview(await device.pread(position, length)))
            position += length
        position = end
    target.truncate(device.size)


def _write_sparsely(target: BinaryIO, offset: int, data: memoryview) -> None:
    step = len(_ZERO_BLOCK)
    start = 0
    while start < len(data):
        # Runs of blocks that hold something go out in one write.
        while start < len(data) and _is_zero(data[start : start + step]):
            start += step
        end = start
        while end < len(data) and not _is_zero(data[end : end + step]):
            end += step
        if start < len(data):
            target.seek(offset + start)
            target.write(data[start:end])
        start = end


def _is_zero(block: memoryview) -> bool:
    return block == _ZERO_BLOCK[: len(block)]

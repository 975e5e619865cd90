"""Layers and writable pairs made by the test builders, opened by the product, and made into one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio
from support.builders import (
    ModelLayer,
    ParsedLsmt,
    Write,
    build_append_rw,
    parse_lsmt,
    parse_tar,
    parse_zfile,
)

from hybrid.build.blob_writer import Wrapping
from hybrid.build.changes import ChangeSet
from hybrid.build.layer_file import LayerJob, WrittenLayer, make_layer
from hybrid.core.disk import LayeredDevice
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer
from hybrid.core.source import MemorySource

PLAIN = Wrapping("none", tar=False)


def write_pair(directory: Path, writes: Sequence[Write], vsize: int, **options: Any) -> ChangeSet:
    """The two files of a writable layer, made by the builder."""
    data, index = directory / "writable_data", directory / "writable_index"
    for path, content in zip((data, index), build_append_rw(writes, vsize, **options), strict=True):
        path.write_bytes(content)
    return ChangeSet("pair", data, index, 0)


async def open_models(layers: Sequence[ModelLayer]) -> LayeredDevice:
    opened: list[Layer] = []
    for layer in layers:
        opened.append(await open_layer(MemorySource(layer.build())))
    return LayeredDevice(opened, "stack")


def made(
    device: LayeredDevice, wrapping: Wrapping = PLAIN, **job: Any
) -> tuple[WrittenLayer, bytes]:
    """The stack as one layer: what was told of it, and its bytes."""
    return trio.run(make_in_file, device, wrapping, job)


async def make_in_file(
    device: LayeredDevice, wrapping: Wrapping, job: dict[str, Any]
) -> tuple[WrittenLayer, bytes]:
    with tempfile.TemporaryFile() as file:
        written = await make_layer(LayerJob(device, device.size, wrapping, **job), file)
        file.seek(0)
        return written, file.read()


def unwrapped(blob: bytes, wrapping: Wrapping) -> ParsedLsmt:
    """A finished layer, read by the strict readers of the tests."""
    if wrapping.tar:
        blob = parse_tar(blob).payload
    if wrapping.compress != "none":
        zfile = parse_zfile(blob)
        assert zfile.header["block_size"] == wrapping.block_size
        blob = zfile.plain
    return parse_lsmt(blob)

"""`hybrid layer commit`: a compact layer of a writable one, or of one that was sealed in place."""

from __future__ import annotations

from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import click
import trio

from hybrid.build.blob_writer import Wrapping
from hybrid.build.changes import directory_changes, locked_pair
from hybrid.build.compact import LayerText
from hybrid.build.layer_file import LayerJob, WrittenLayer
from hybrid.cli.layer.results import JSON, OUTPUT, TAR, print_layer, write_layer_file
from hybrid.cli.layer.stacks import open_one
from hybrid.cli.packing import check_tag, check_uuid, packing_options, warn_of_large_blocks
from hybrid.core.disk import LayeredDevice
from hybrid.core.pair import open_pair
from hybrid.core.upper_manifest import is_upper_directory


@click.command("commit")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("index", required=False, type=click.Path(path_type=Path))
@OUTPUT
@click.option(
    "--uuid", default="", callback=check_uuid, help="Of the new layer [derived from its content]."
)
@click.option(
    "--parent-uuid", default="", callback=check_uuid, help="Of the layer below [as in the source]."
)
@click.option("-m", "--tag", default="", callback=check_tag, help="Text for its header.")
@packing_options
@TAR
@JSON
def command(
    data: Path,
    index: Path | None,
    output: Path,
    uuid: str,
    parent_uuid: str,
    tag: bytes,
    compress: str,
    block_size: int,
    threads: int,
    tar: bool,
    as_json: bool,
) -> None:
    """Make a compact layer of DATA and INDEX, or of the sealed layer DATA.

    The pair may be append-only or sparse, and is not changed. DATA alone may also be the directory
    of a writable layer. What is below it is not looked at, so that all zeros are kept: `hybrid
    commit` knows the image, and leaves out more.
    """
    warn_of_large_blocks(compress, block_size)
    wrapping = Wrapping(compress, block_size, tar, threads)
    text = LayerText(uuid, parent_uuid, user_tag=tag)
    print_layer(trio.run(_commit, data, index, output, wrapping, text), as_json)


async def _commit(
    data: Path, index: Path | None, output: Path, wrapping: Wrapping, text: LayerText
) -> WrittenLayer:
    async with AsyncExitStack() as stack:
        device = await _open(data, index, stack)
        parent = text.parent_uuid or device.layers[0].record.parent_uuid
        text = LayerText(text.uuid, parent, user_tag=text.user_tag)
        return await write_layer_file(LayerJob(device, device.size, wrapping, text), output)


async def _open(data: Path, index: Path | None, stack: AsyncExitStack) -> LayeredDevice:
    locks = stack.enter_context(ExitStack())
    if index is not None:
        locks.enter_context(locked_pair(data, index))
        layer = open_pair(data, index)
        stack.push_async_callback(layer.aclose)
        return LayeredDevice([layer], str(data))
    if is_upper_directory(data):
        return await locks.enter_context(directory_changes(data)).open(stack)
    return LayeredDevice(await open_one(data, stack), str(data))

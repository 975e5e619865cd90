"""`hybrid layer merge`: one layer in the place of several."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import click
import trio

from hybrid.build.blob_writer import Wrapping
from hybrid.build.compact import Below, LayerText
from hybrid.build.layer_file import LayerJob, WrittenLayer
from hybrid.cli.layer.results import JSON, OUTPUT, TAR, print_layer, write_layer_file
from hybrid.cli.layer.stacks import LAYERS, is_config, open_stack
from hybrid.cli.packing import check_tag, check_uuid, packing_options, warn_of_large_blocks


@click.command("merge")
@LAYERS
@OUTPUT
@click.option(
    "--uuid", default="", callback=check_uuid, help="Of the new layer [derived from its content]."
)
@click.option("-m", "--tag", default="", callback=check_tag, help="Text for its header.")
@click.option(
    "--over", is_flag=True,
    help="Other layers are below these: keep the zeros that hide something of theirs.",
)  # fmt: skip
@packing_options
@TAR
@JSON
def command(
    layers: tuple[Path, ...],
    output: Path,
    uuid: str,
    tag: bytes,
    over: bool,
    compress: str,
    block_size: int,
    threads: int,
    tar: bool,
    as_json: bool,
) -> None:
    """Make one layer that reads as the whole stack does.

    Without --over the stack is taken for a whole disk, with nothing below it: what reads as zeros
    is left out. If the bottom layer names a parent, something is below, and --over is implied.
    """
    warn_of_large_blocks(compress, block_size)
    wrapping = Wrapping(compress, block_size, tar, threads)
    print_layer(trio.run(_merge, layers, output, wrapping, uuid, tag, over), as_json)


async def _merge(
    layers: tuple[Path, ...], output: Path, wrapping: Wrapping, uuid: str, tag: bytes, over: bool
) -> WrittenLayer:
    async with AsyncExitStack() as stack:
        device = await open_stack(layers, stack)
        parent = device.layers[0].record.parent_uuid
        is_whole = is_config(layers[0]) or not (over or parent)
        text = LayerText(uuid, parent, user_tag=tag)
        below = Below.nothing() if is_whole else None
        job = LayerJob(device, device.size, wrapping, text, below)
        return await write_layer_file(job, output)

"""`hybrid layer import`: a layer with the content of a raw file or block device."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from pathlib import Path

import click
import trio

from hybrid.build.blob_writer import Wrapping
from hybrid.build.compact import Below, LayerText
from hybrid.build.ext4_bitmap import CannotTellError
from hybrid.build.free_space import find_free_space
from hybrid.build.layer_file import LayerJob, WrittenLayer
from hybrid.build.raw import open_raw
from hybrid.build.runs import Runs
from hybrid.cli.layer.results import JSON, OUTPUT, TAR, print_layer, write_layer_file
from hybrid.cli.packing import check_tag, check_uuid, packing_options, warn_of_large_blocks
from hybrid.core.disk import LayeredDevice

logger = logging.getLogger("hybrid")


@click.command("import")
@click.argument("raw", metavar="RAW|BLOCKDEVICE", type=click.Path(path_type=Path))
@OUTPUT
@click.option(
    "--uuid", default="", callback=check_uuid, help="Of the new layer [derived from its content]."
)
@click.option("-m", "--tag", default="", callback=check_tag, help="Text for its header.")
@click.option(
    "--keep-free", is_flag=True, help="Keep what the ext4 file system does not use as well."
)
@packing_options
@TAR
@JSON
def command(
    raw: Path,
    output: Path,
    uuid: str,
    tag: bytes,
    keep_free: bool,
    compress: str,
    block_size: int,
    threads: int,
    tar: bool,
    as_json: bool,
) -> None:
    """Make a layer of a raw disk image or a block device, which nobody should be writing to.

    Holes are not read; 4 KiB blocks of zeros are left out, and so are the blocks that an ext4 file
    system has marked as free.
    """
    warn_of_large_blocks(compress, block_size)
    wrapping = Wrapping(compress, block_size, tar, threads)
    text = LayerText(uuid, user_tag=tag)
    print_layer(trio.run(_import, raw, output, wrapping, text, keep_free), as_json)


async def _import(
    raw: Path, output: Path, wrapping: Wrapping, text: LayerText, keep_free: bool
) -> WrittenLayer:
    async with AsyncExitStack() as stack:
        device = await open_raw(raw, stack)
        free = None if keep_free else await _free_space(device)
        job = LayerJob(device, device.size, wrapping, text, Below.nothing(), free)
        return await write_layer_file(job, output)


async def _free_space(device: LayeredDevice) -> Runs | None:
    try:
        return await find_free_space(device.pread, device.size)
    except CannotTellError as error:
        logger.warning("%s: free blocks are kept: %s", device.name, error)
        return None

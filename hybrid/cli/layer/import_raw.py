"""`hybrid layer import`: a layer with the content of a raw file or block device."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from hybrid.build.blob_writer import Wrapping
from hybrid.build.compact import Below, LayerText
from hybrid.build.layer_file import LayerJob, WrittenLayer
from hybrid.build.raw import open_raw
from hybrid.cli.layer.results import JSON, OUTPUT, TAR, print_layer, write_layer_file
from hybrid.cli.packing import check_tag, check_uuid, packing_options, warn_of_large_blocks


@click.command("import")
@click.argument("raw", metavar="RAW|BLOCKDEVICE", type=click.Path(path_type=Path))
@OUTPUT
@click.option(
    "--uuid", default="", callback=check_uuid, help="Of the new layer [derived from its content]."
)
@click.option("-m", "--tag", default="", callback=check_tag, help="Text for its header.")
@packing_options
@TAR
@JSON
def command(
    raw: Path,
    output: Path,
    uuid: str,
    tag: bytes,
    compress: str,
    block_size: int,
    threads: int,
    tar: bool,
    as_json: bool,
) -> None:
    """Make a layer of a raw disk image or a block device, which nobody should be writing to.

    Holes are not read, and 4 KiB blocks of zeros are left out.
    """
    warn_of_large_blocks(compress, block_size)
    wrapping = Wrapping(compress, block_size, tar, threads)
    text = LayerText(uuid, user_tag=tag)
    print_layer(trio.run(_import, raw, output, wrapping, text), as_json)


async def _import(raw: Path, output: Path, wrapping: Wrapping, text: LayerText) -> WrittenLayer:
    device = open_raw(raw)
    try:
        job = LayerJob(device, device.size, wrapping, text, Below.nothing())
        return await write_layer_file(job, output)
    finally:
        await device.aclose()

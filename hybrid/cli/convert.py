"""``hybrid convert``: plain OCI images become overlaybd images."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio

from hybrid.build.convert.convert import ConvertedImage, ConvertResult, convert_image
from hybrid.build.convert.kernel_disk import KernelDisk
from hybrid.build.convert.lower import LowerBlobs
from hybrid.build.convert.memory import Memory
from hybrid.build.convert.options import (
    DEFAULT_SIZE,
    FILE_SYSTEMS,
    LIBRARY,
    MOUNT,
    WRITTEN,
    Options,
)
from hybrid.build.convert.run import Run, scratch_directory, scratch_error
from hybrid.build.opening import open_image_destination, open_image_source
from hybrid.build.selection import Selection, parse_selection
from hybrid.cli.convert_progress import progress
from hybrid.cli.output import print_json, printable
from hybrid.cli.packing import packing_options, warn_of_large_blocks
from hybrid.cli.sizes import parse_size
from hybrid.config import GlobalConfig, load_global_config
from hybrid.errors import PermissionNeededError, UsageError

if TYPE_CHECKING:
    from hybrid.mount.lending import LenderEnd

logger = logging.getLogger("hybrid")


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    source: str
    destination: str
    selection: Selection
    options: Options
    config: GlobalConfig
    src_insecure: bool
    dst_insecure: bool


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--fs",
    type=click.Choice(FILE_SYSTEMS),
    default="ext4",
    show_default=True,
    help="File system: erofs makes one of all layers, the others keep them apart.",
)
@click.option(
    "--via",
    type=click.Choice(list(WRITTEN)),
    default=LIBRARY,
    show_default=True,
    help="Who writes it: hybrid itself, or the kernel, on a disk that is attached (takes root).",
)
@packing_options
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH[/VARIANT]|all",
    help="Of an index: may be repeated; all converts every image of it [this machine's].",
)
@click.option("--size", metavar="SIZE", help="Of the virtual disk, which costs nothing [64G].")
@click.option("--insecure", is_flag=True, help="Allow plain HTTP and unverified TLS.")
@click.option("--src-insecure", is_flag=True, help="The same, for the source only.")
@click.option("--dst-insecure", is_flag=True, help="The same, for the destination only.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Global configuration file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    source: str,
    destination: str,
    fs: str,
    via: str,
    compress: str,
    block_size: int,
    threads: int,
    platforms: tuple[str, ...],
    size: str | None,
    insecure: bool,
    src_insecure: bool,
    dst_insecure: bool,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Make an overlaybd image (DST) of a plain OCI or Docker image (SRC).

    SRC and DST are images in registries or OCI layouts (oci:DIR[:TAG]); SRC may be a
    docker-archive:FILE[:TAG]. Needs no root and no mount. Layers that were converted before are
    not converted again. The same image gives the same digests everywhere.

    Xfs and btrfs need --via mount, which takes root, and gives other digests each time.
    """
    warn_of_large_blocks(compress, block_size)
    _check_file_system(fs, via)
    order = Order(
        source,
        destination,
        parse_selection(platforms, platform.machine()),
        Options(fs, compress, block_size, parse_size(size) or DEFAULT_SIZE, threads, via),
        load_global_config(config_file),
        insecure or src_insecure,
        insecure or dst_insecure,
    )
    # Else Python's end would look for cycles for 25 ms, in what goes with the process anyway.
    atexit.register(gc.freeze)
    with _lender(order) as lender:
        result, seconds = trio.run(_convert, order, lender)
    if as_json:
        print_json(describe(result) | {"cpu_seconds": seconds})
    else:
        click.echo(printable(result.reference))
    logger.info("%s", summary(result))


def _check_file_system(fs: str, via: str) -> None:
    if fs in WRITTEN[via]:
        return
    if via == LIBRARY:
        raise UsageError(f"--fs {fs} is written by the kernel only", hint="as root: --via mount")
    raise UsageError(
        f"--fs {fs} is not written by the kernel", hint=f"--via mount has {', '.join(WRITTEN[via])}"
    )


@contextmanager
def _lender(order: Order) -> Iterator[LenderEnd | None]:
    """The process that attaches disks; None if none is needed."""
    if order.options.via != MOUNT:
        yield None
        return
    if os.geteuid() != 0:
        raise PermissionNeededError(
            "--via mount needs root, to attach a disk and mount it",
            hint="without it hybrid writes ext4 and erofs by itself",
        )
    from hybrid.mount.lending import fork_lender

    directory = scratch_directory()
    try:
        lender = fork_lender(order.source, _lowers(order), directory)
    except OSError as error:
        raise scratch_error(error, directory) from error
    try:
        yield lender
    finally:
        lender.close()


def _lowers(order: Order) -> LowerBlobs:
    return LowerBlobs(order.destination, order.config, insecure=order.dst_insecure)


async def _convert(
    order: Order, lender: LenderEnd | None
) -> tuple[ConvertResult, dict[str, float]]:
    async with AsyncExitStack() as stack:
        config = order.config
        source = await open_image_source(order.source, config, stack, insecure=order.src_insecure)
        destination = await open_image_destination(
            order.destination, config, stack, insecure=order.dst_insecure
        )
        memory = Memory(config.cache_dir)
        stack.callback(memory.close)
        run = Run(
            source,
            destination,
            _lowers(order),
            order.options,
            memory,
            scratch_directory(),
            stack.enter_context(progress()),
            _disk(lender),
        )
        result = await convert_image(run, order.selection, order.destination)
        return result, {what: round(took, 3) for what, took in run.shares.seconds.items()}


def _disk(lender: LenderEnd | None) -> KernelDisk | None:
    if lender is None:
        return None
    from hybrid.mount.lent_disk import LentDisk

    return LentDisk(lender)


def describe(result: ConvertResult) -> dict[str, Any]:
    """The result for ``--json``."""
    return {
        "reference": result.reference,
        "digest": result.digest,
        "media_type": result.media_type,
        "layers": {how: result.count(how) for how in ("converted", "reused")},
        "images": [_describe_image(image) for image in result.images],
        "dropped": result.dropped,
    }


def _describe_image(image: ConvertedImage) -> dict[str, Any]:
    return {
        "digest": image.digest,
        "platform": str(image.platform) if image.platform else None,
        "layers": [
            {
                "source": layer.source or None,
                "digest": layer.digest,
                "size": layer.size,
                "how": layer.how,
                "stored": layer.stored,
            }
            for layer in image.layers
        ],
    }


def summary(result: ConvertResult) -> str:
    """The result in a line."""
    converted, reused = result.count("converted"), result.count("reused")
    if not converted:
        return f"{result.reference}: all {reused} layers were reused"
    return f"{result.reference}: {converted} layers converted, {reused} reused"

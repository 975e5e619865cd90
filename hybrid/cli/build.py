"""``hybrid build``: a directory or a tar file becomes an overlaybd image."""

from __future__ import annotations

import logging
import platform as machine
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import trio

from hybrid.build.convert.convert import ConvertResult, convert_image
from hybrid.build.convert.lower import LowerBlobs
from hybrid.build.convert.memory import Memory
from hybrid.build.convert.options import DEFAULT_SIZE, Options
from hybrid.build.convert.run import Run, scratch_directory
from hybrid.build.one_layer.config import (
    ImageFields,
    check_text,
    parse_env,
    parse_pair,
    parse_words,
    parse_workdir,
)
from hybrid.build.one_layer.layers import open_layer_content
from hybrid.build.one_layer.source import OneLayerSource, check_outside
from hybrid.build.opening import open_image_destination
from hybrid.build.selection import EVERYTHING
from hybrid.build.tar.reader import MAX_ID
from hybrid.cli.convert import describe, summary
from hybrid.cli.convert_progress import progress
from hybrid.cli.output import print_json, printable
from hybrid.cli.packing import packing_options, warn_of_large_blocks
from hybrid.cli.sizes import parse_size
from hybrid.config import GlobalConfig, load_global_config
from hybrid.core.platforms import host_platform, parse_platform
from hybrid.errors import UsageError

logger = logging.getLogger("hybrid")


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    source: str
    destination: str
    owner: tuple[int, int] | None
    fields: ImageFields
    options: Options
    config: GlobalConfig
    insecure: bool


@click.command("build")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option(
    "--fs",
    type=click.Choice(("ext4", "erofs")),
    default="ext4",
    show_default=True,
    help="File system.",
)
@packing_options
@click.option("--size", metavar="SIZE", help="Of the virtual disk, which costs nothing [64G].")
@click.option(
    "--owner", metavar="UID:GID", help="Of all files of a directory [those that they have]."
)
@click.option(
    "--platform", metavar="OS/ARCH[/VARIANT]", help="What the files are for [this machine's]."
)
@click.option("--entrypoint", metavar="COMMAND", default="", help="Words, or a JSON array.")
@click.option("--cmd", metavar="COMMAND", default="", help="Words, or a JSON array.")
@click.option("--env", metavar="NAME=VALUE", multiple=True, help="May be repeated.")
@click.option("--workdir", metavar="PATH", default="", help="Where programs start.")
@click.option("--user", metavar="USER[:GROUP]", default="", help="Who runs them.")
@click.option("--label", "labels", metavar="NAME=VALUE", multiple=True, help="May be repeated.")
@click.option("--insecure", is_flag=True, help="Allow plain HTTP and unverified TLS.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Global configuration file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    source: str,
    destination: str,
    fs: str,
    compress: str,
    block_size: int,
    threads: int,
    size: str | None,
    owner: str | None,
    platform: str | None,
    entrypoint: str,
    cmd: str,
    env: tuple[str, ...],
    workdir: str,
    user: str,
    labels: tuple[str, ...],
    insecure: bool,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Make an overlaybd image (DST) of a directory or a tar file (SRC).

    SRC may be compressed with gzip or zstd; - is stdin. DST is an image in a registry or an OCI
    layout (oci:DIR[:TAG]). Needs no root where SRC can be read, and no mount. The same files give
    the same digests.
    """
    warn_of_large_blocks(compress, block_size)
    fields = ImageFields(
        parse_platform(platform) if platform else host_platform(machine.machine()),
        parse_words(entrypoint, "--entrypoint"),
        parse_words(cmd, "--cmd"),
        parse_env(env),
        parse_workdir(workdir),
        check_text(user, "--user"),
        tuple(parse_pair(label, "--label") for label in labels),
    )
    order = Order(
        source,
        destination,
        _parse_owner(owner),
        fields,
        Options(fs, compress, block_size, parse_size(size) or DEFAULT_SIZE, threads),
        load_global_config(config_file),
        insecure,
    )
    result, seconds = trio.run(_build, order)
    if as_json:
        print_json(describe(result) | {"cpu_seconds": seconds})
    else:
        click.echo(printable(result.reference))
    logger.info("%s", summary(result))


async def _build(order: Order) -> tuple[ConvertResult, dict[str, float]]:
    async with AsyncExitStack() as stack:
        config, directory = order.config, scratch_directory()
        destination = await open_image_destination(
            order.destination, config, stack, insecure=order.insecure
        )
        content = await open_layer_content(order.source, order.owner, directory, stack)
        check_outside(content, order.destination)
        memory = Memory(config.cache_dir)
        stack.callback(memory.close)
        run = Run(
            OneLayerSource(content, order.fields),
            destination,
            LowerBlobs(order.destination, config, insecure=order.insecure),
            order.options,
            memory,
            directory,
            stack.enter_context(progress()),
        )
        result = await convert_image(run, EVERYTHING, order.destination)
        return result, {what: round(took, 3) for what, took in run.shares.seconds.items()}


def _parse_owner(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", text, re.ASCII)
    if found is None or max(owner := (int(found[1]), int(found[2]))) > MAX_ID:
        raise UsageError(f"--owner {text} is not of the form UID:GID", hint="as in --owner 0:0")
    return owner

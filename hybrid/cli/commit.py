"""`hybrid commit`: what was written over an image becomes a layer, or a new image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import trio

from hybrid.build.base import OpenBase, Surroundings, look_around
from hybrid.build.blob_writer import Wrapping
from hybrid.build.changes import ChangeSet, config_changes, directory_changes
from hybrid.build.commit import commit_layer
from hybrid.build.layer_file import WrittenLayer
from hybrid.cli.layer.results import print_layer
from hybrid.cli.layer_progress import shown_progress
from hybrid.cli.output import print_json, printable
from hybrid.cli.packing import packing_options, warn_of_large_blocks
from hybrid.config import GlobalConfig, load_global_config
from hybrid.core.disk import LayeredDevice
from hybrid.core.image import ImageRequest, open_image
from hybrid.core.output_file import output_file
from hybrid.core.upper_directory import UpperDirectory
from hybrid.core.upper_manifest import is_upper_directory
from hybrid.errors import UnsupportedError, UsageError
from hybrid.mount.filesystems import detect
from hybrid.mount.live_point import check_writable, frozen_point
from hybrid.mount.origin import ImageOrigin
from hybrid.mount.paths import find_target


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    changes: ChangeSet
    wrapping: Wrapping
    message: str
    config_file: Path | None
    insecure: bool


@click.command("commit")
@click.argument("target", metavar="MOUNTPOINT|UPPER")
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path),
    help="Write the layer to a file.",
)  # fmt: skip
@click.option("--to", "image", default="", metavar="IMAGE", help="Make an image of it.")
@packing_options
@click.option("-m", "--message", default="", help="For the header of the layer, and the history.")
@click.option("--insecure", is_flag=True, help="For --to: allow plain HTTP and unverified TLS.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Global configuration file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    target: str,
    output: Path | None,
    image: str,
    compress: str,
    block_size: int,
    threads: int,
    message: str,
    insecure: bool,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Make one compact layer of what was written to an image.

    MOUNTPOINT is a mount made with --rw (or its id): it stays in use, and is frozen for an instant.
    UPPER is the directory of changes of one that is not mounted, or a config.v1.json with an upper.

    The layer goes to a FILE, or with --to into an image: that over which the changes were made,
    with the layer on top, at a registry or in an OCI layout (oci:DIR:TAG). The same changes give
    the same digest every time.
    """
    if bool(output) == bool(image):
        raise UsageError("give either -o FILE or --to IMAGE")
    warn_of_large_blocks(compress, block_size)
    wrapping = Wrapping(compress, block_size, tar=True, threads=threads)
    with _changes_of(target) as changes:
        order = Order(changes, wrapping, message, config_file, insecure)
        if output:
            print_layer(trio.run(_to_file, order, output), as_json)
            return
        layer, reference = trio.run(_to_image, order, image)
    if as_json:
        print_json({"reference": reference, "layer": layer.to_json()})
    else:
        click.echo(printable(reference))


@contextmanager
def _changes_of(target: str) -> Iterator[ChangeSet]:
    """The changes that a name stands for, held still until the end of the block."""
    path = Path(target)
    if is_upper_directory(path) and not os.path.ismount(path):
        with directory_changes(path) as changes:
            yield changes
    elif path.suffix == ".json" and path.is_file():
        with config_changes(path) as changes:
            yield changes
    else:
        record = find_target(target)
        if record.upper and Path(record.upper).is_file():
            raise UnsupportedError(
                f"{target} keeps its changes in the upper that {record.upper} names",
                hint="unmount it, and name that file",
            )
        check_writable(record)
        with frozen_point(record) as point:
            manifest = UpperDirectory(Path(record.upper)).manifest
            yield ChangeSet.checkpoint(target, point, manifest)


async def _to_file(order: Order, output: Path) -> WrittenLayer:
    found = await look_around(order.changes, _base_opener(order))
    with shown_progress() as watcher, output_file(output) as file:
        return await commit_layer(
            order.changes, found, order.wrapping, order.message, file, watcher
        )


async def _to_image(order: Order, image: str) -> tuple[WrittenLayer, str]:
    # The HTTP client and all that: not for a layer in a file.
    from hybrid.build.commit_image import put_image, read_base, scratch_file
    from hybrid.build.opening import open_image_destination, open_image_source

    if not order.changes.digest:
        raise UsageError(
            f"{order.changes.name} was not made over an image that a layer can be added to",
            hint="write the layer to a file, with -o",
        )
    origin = _origin(order.changes)
    async with AsyncExitStack() as stack:
        settings = _settings(order, origin)
        source = await open_image_source(origin.image, settings, stack, insecure=origin.insecure)
        base = await read_base(source, order.changes.digest)
        destination = await open_image_destination(image, settings, stack, insecure=order.insecure)
        found = await look_around(order.changes, _base_opener(order), required=True)
        file = stack.enter_context(scratch_file())
        with shown_progress() as watcher:
            layer = await commit_layer(
                order.changes, found, order.wrapping, order.message, file, watcher
            )
        fs_type = _fs_type(found)
        reference = await put_image(base, layer, file, fs_type, order.message, destination)
        return layer, reference


def _base_opener(order: Order) -> OpenBase | None:
    """How the image below is opened; None if there is nothing below."""
    changes = order.changes
    if not changes.image:
        return None
    if changes.config is not None:
        image = os.path.join(".", changes.config)
        settings = load_global_config(order.config_file)
        request = ImageRequest(image, settings, without_upper=True)
    else:
        origin = _origin(changes)
        settings = _settings(order, origin)
        request = ImageRequest(
            origin.image, settings, platform=origin.platform, insecure=origin.insecure
        )

    async def open_base() -> LayeredDevice:
        return await open_image(request)

    return open_base


def _origin(changes: ChangeSet) -> ImageOrigin:
    """The image as it was opened for the mount, at the digest that it had then."""
    stored = dict(changes.origin) or ImageOrigin(changes.image).to_json()
    return ImageOrigin.from_json(stored, changes.digest)


def _settings(order: Order, origin: ImageOrigin) -> GlobalConfig:
    """By the caller's own configuration, or that with which the image was mounted."""
    return load_global_config(order.config_file) if order.config_file else origin.load_settings()


def _fs_type(found: Surroundings) -> str:
    detected: Any = detect(found.head)
    return detected.fstype if detected else ""

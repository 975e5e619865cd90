"""``hybrid copy``, ``hybrid push`` and ``hybrid pull``: whole images from one place to another."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from hybrid.build.copy import DEFAULT_JOBS, MOST_JOBS, CopyResult, Watcher, copy_image
from hybrid.build.opening import open_image_destination, open_image_source
from hybrid.build.selection import Selection, parse_selection
from hybrid.cli.output import print_json, printable
from hybrid.config import GlobalConfig, load_global_config
from hybrid.core.reference import RegistryReference, parse_image
from hybrid.core.units import human_size
from hybrid.errors import UsageError

logger = logging.getLogger("hybrid")

F = TypeVar("F", bound=Callable[..., Any])

_ARGUMENTS = (
    click.argument("source", metavar="SRC"),
    click.argument("destination", metavar="DST"),
    click.option(
        "--platform", "platforms", multiple=True, metavar="OS/ARCH[/VARIANT]|all",
        help="Of an index: may be repeated; all copies it as it is [this machine's].",
    ),
    click.option("--insecure", is_flag=True, help="Allow plain HTTP and unverified TLS."),
    click.option("--src-insecure", is_flag=True, help="The same, for the source only."),
    click.option("--dst-insecure", is_flag=True, help="The same, for the destination only."),
    click.option(
        "--jobs", type=click.IntRange(1, MOST_JOBS), default=DEFAULT_JOBS, show_default=True,
        help="Blobs at the same time.",
    ),
    click.option(
        "--config", "config_file", type=click.Path(path_type=Path),
        help="Global configuration file.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)  # fmt: skip


def _with_arguments(function: F) -> F:
    for decorate in reversed(_ARGUMENTS):
        function = decorate(function)
    return function


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    source: str
    destination: str
    selection: Selection
    config: GlobalConfig
    src_insecure: bool
    dst_insecure: bool
    jobs: int


@click.command("copy")
@_with_arguments
def copy_command(**options: Any) -> None:
    """Copy an image from SRC to DST, byte for byte.

    SRC and DST are images in registries or OCI layouts (oci:DIR[:TAG]); SRC may be a
    docker-archive:FILE[:TAG]. What DST has already is not sent again.
    """
    _run(**options)


command = copy_command


@click.command("push")
@_with_arguments
def push_command(**options: Any) -> None:
    """Copy an image on disk (SRC: oci:DIR[:TAG] or docker-archive:FILE[:TAG]) to a registry."""
    _require(options["source"], "SRC", in_registry=False)
    _require(options["destination"], "DST", in_registry=True)
    _run(**options)


@click.command("pull")
@_with_arguments
def pull_command(**options: Any) -> None:
    """Copy an image from a registry to an OCI layout (DST: oci:DIR[:TAG])."""
    _require(options["source"], "SRC", in_registry=True)
    _require(options["destination"], "DST", in_registry=False)
    _run(**options)


def _require(name: str, side: str, *, in_registry: bool) -> None:
    reference = parse_image(name)
    if isinstance(reference, RegistryReference) == in_registry:
        return
    wanted = "an image in a registry" if in_registry else "an image on disk (oci:DIR[:TAG])"
    raise UsageError(f"{side} must be {wanted}, not {name}", hint="'hybrid copy' takes them all")


def _run(
    source: str,
    destination: str,
    platforms: tuple[str, ...],
    insecure: bool,
    src_insecure: bool,
    dst_insecure: bool,
    jobs: int,
    config_file: Path | None,
    as_json: bool,
) -> None:
    selection = parse_selection(platforms, platform.machine())
    order = Order(
        source,
        destination,
        selection,
        load_global_config(config_file),
        insecure or src_insecure,
        insecure or dst_insecure,
        jobs,
    )
    result = trio.run(_copy, order)
    if as_json:
        print_json(_describe(result))
    else:
        click.echo(printable(result.reference))
    logger.info("%s", _summary(result))


async def _copy(order: Order) -> CopyResult:
    from hybrid.cli.transfer_progress import progress

    async with AsyncExitStack() as stack:
        config = order.config
        source = await open_image_source(order.source, config, stack, insecure=order.src_insecure)
        destination = await open_image_destination(
            order.destination, config, stack, insecure=order.dst_insecure
        )
        watcher: Watcher = stack.enter_context(progress())
        return await copy_image(
            source, destination, order.selection, jobs=order.jobs, watcher=watcher
        )


def _describe(result: CopyResult) -> dict[str, Any]:
    return {
        "reference": result.reference,
        "digest": result.digest,
        "media_type": result.media_type or None,
        "manifests": result.manifests,
        "blobs": {
            how: {"count": result.count(how), "bytes": result.bytes_of(how)}
            for how in ("written", "mounted", "present")
        },
    }


def _summary(result: CopyResult) -> str:
    written = f"{result.count('written')} blobs copied ({human_size(result.bytes_of('written'))})"
    parts = [written]
    if mounted := result.count("mounted"):
        parts.append(f"{mounted} mounted from another repository")
    if present := result.count("present"):
        parts.append(f"{present} there already")
    return f"{result.reference}: {', '.join(parts)}"

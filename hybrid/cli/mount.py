"""``hybrid mount``: mount an image, or only expose its disk as a file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from hybrid.cli.output import print_json
from hybrid.cli.sizes import parse_size
from hybrid.errors import UsageError
from hybrid.mount.attach import MountRequest, attach
from hybrid.mount.foreground import supervise
from hybrid.mount.listing import describe_record
from hybrid.mount.origin import ImageOrigin
from hybrid.mount.preflight import MODES

logger = logging.getLogger(__name__)


@click.command("mount")
@click.argument("image")
@click.argument("mountpoint", required=False)
@click.option(
    "--mode", type=click.Choice(MODES), default="auto", show_default=True, help="The front end."
)
@click.option(
    "--no-mount",
    is_flag=True,
    help="Only expose the disk; print the path of the file or block device.",
)
@click.option("--rw", is_flag=True, help="Let it be written to; changes go to a directory.")
@click.option(
    "--upper",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="That directory, made or continued.  [default: a new one below the data directory]",
)
@click.option("--size", metavar="BYTES", help="Size of the disk, as 64G; grows the file system.")
@click.option("--no-journal", is_flag=True, help="Add no journal to an ext4 that has none.")
@click.option("--foreground", is_flag=True, help="Stay; SIGINT or SIGTERM takes the mount away.")
@click.option("--platform", default="", metavar="OS/ARCH[/VARIANT]", help="Of a multi-arch image.")
@click.option("--insecure", is_flag=True, help="Allow plain HTTP and unverified TLS.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Global configuration file (overlaybd.json)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    image: str,
    mountpoint: str | None,
    mode: str,
    no_mount: bool,
    rw: bool,
    upper: Path | None,
    size: str | None,
    no_journal: bool,
    foreground: bool,
    platform: str,
    insecure: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Mount IMAGE on MOUNTPOINT; its blocks are fetched when they are read.

    Returns when the mount point can be read, and prints it. The image itself never changes: with
    --rw the changes go to a directory, which is kept.
    """
    if no_mount == (mountpoint is not None):
        raise UsageError("give a MOUNTPOINT, or --no-mount to expose the disk as a file only")
    if mountpoint == "":
        raise UsageError("MOUNTPOINT is empty", hint="an unset variable in a script?")
    if not rw and (upper or size or no_journal):
        raise UsageError("--upper, --size and --no-journal are for --rw", hint="add --rw")
    origin = ImageOrigin.of_command(image, platform, insecure, config)
    changes = None
    if rw:
        from hybrid.mount.upper_place import plan_changes  # what read-only mounts do without

        changes = plan_changes(origin.image, upper, parse_size(size))
        origin = origin.written_to(changes)
    settings = origin.load_settings()
    record = attach(
        MountRequest(
            image,
            origin.opener(settings),
            origin.to_json(),
            Path(mountpoint) if mountpoint else None,
            mode,
            foreground,
            settings.log_level,
            settings.log_path,
            changes,
            journal=not no_journal,
        )
    )
    if changes:
        logger.info("the changes are kept in %s", record.upper)
    if as_json:
        print_json(describe_record(record, "ready"))
    else:
        # As bytes: a name that is no UTF-8 must come out as it is, for $(hybrid mount ...).
        click.echo(os.fsencode(record.mountpoint or record.exposed))
    if foreground:
        supervise(record)

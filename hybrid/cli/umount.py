"""``hybrid umount``: take a mount away, with its loop device and its server."""

from __future__ import annotations

import logging
import os

import click

from hybrid.cli.output import print_json
from hybrid.mount.detach import detach
from hybrid.mount.paths import find_target

logger = logging.getLogger(__name__)


@click.command("umount")
@click.argument("target", metavar="MOUNTPOINT|ID")
@click.option("--lazy", is_flag=True, help="Detach now; the rest goes with its last user.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(target: str, lazy: bool, as_json: bool) -> None:
    """Take the mount at MOUNTPOINT, or with ID, away.

    A mount in use is left alone, and its users are named.
    """
    record = find_target(target)
    # We may have been started inside of what is to be unmounted.
    os.chdir("/")
    ended = detach(record, lazy=lazy)
    if not ended:
        logger.info("detached; server %d ends with the last user of the tree", record.pid)
    elif record.upper:
        logger.info("the changes are kept in %s", record.upper)
    if as_json:
        print_json(
            {
                "id": record.id,
                "mountpoint": record.mountpoint or None,
                "ended": ended,
                "upper": record.upper or None,
            }
        )

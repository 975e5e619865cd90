"""``hybrid snapshot``: seal what was written so far, and go on above it."""

from __future__ import annotations

import os

import click

from hybrid.cli.output import print_json
from hybrid.mount.live_point import snapshot
from hybrid.mount.paths import find_target


@click.command("snapshot")
@click.argument("target", metavar="MOUNTPOINT|ID")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(target: str, as_json: bool) -> None:
    """Seal the changes of the writable mount at MOUNTPOINT, or with ID, into a layer file.

    The mount goes on with a new, empty layer above it. Prints the sealed file, which stays part of
    the mount's changes.
    """
    record = find_target(target)
    sealed = snapshot(record)
    if as_json:
        print_json({"id": record.id, "sealed": str(sealed)})
    else:
        click.echo(os.fsencode(sealed))

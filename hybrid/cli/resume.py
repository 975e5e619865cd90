"""``hybrid resume``: give a mount whose server died a new one."""

from __future__ import annotations

import shutil
import sys
from importlib import resources

import click

from hybrid.cli.output import print_json
from hybrid.errors import UnsupportedError, UsageError
from hybrid.mount.listing import describe_record
from hybrid.mount.origin import ImageOrigin, OpenDevice
from hybrid.mount.paths import find_target
from hybrid.mount.resume import resume, wait_for_end
from hybrid.mount.state import MountRecord


@click.command("resume")
@click.argument("target", metavar="MOUNTPOINT|ID", required=False)
@click.option("--foreground", is_flag=True, help="Stay until the mount ends; fail if it dies.")
@click.option("--print-unit", is_flag=True, help="Print a systemd unit (hybrid@.service) for this.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(target: str | None, foreground: bool, print_unit: bool, as_json: bool) -> None:
    """Start a new server for the mount at MOUNTPOINT, or with ID, whose server died.

    In mode tcmu only. Reads that wait since then go on. With a server that is alive this does
    nothing.
    """
    if print_unit == (target is not None):
        raise UsageError("give a MOUNTPOINT or ID, or --print-unit")
    if target is None:
        click.echo(_unit(), nl=False)
        return
    record = resume(find_target(target), _opener_of)
    if as_json:
        print_json(describe_record(record, "ready"))
    if foreground:
        sys.stdout.flush()
        wait_for_end(record)


def _opener_of(record: MountRecord) -> OpenDevice:
    if not record.origin:
        raise UnsupportedError(
            f"{record.id} is the disk of a `hybrid convert`, and ends with that",
            hint="convert again",
        )
    origin = ImageOrigin.from_json(record.origin, record.digest)
    origin.restore_environment()
    return origin.opener(origin.load_settings())


def _unit() -> str:
    text = (resources.files("hybrid.mount") / "hybrid@.service").read_text()
    program = shutil.which(sys.argv[0]) or f"{sys.executable} -m hybrid"
    return text.replace("@HYBRID@", program)

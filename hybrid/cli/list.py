"""``hybrid list``: what is mounted, and how it is."""

from __future__ import annotations

import click

from hybrid.cli.output import print_json, print_table
from hybrid.mount.listing import MountStatus, list_mounts

_HEADER = (
    "ID",
    "STATE",
    "MODE",
    "ACCESS",
    "FS",
    "FETCHED",
    "PID",
    "DEVICE",
    "WHERE",
    "IMAGE",
    "UPPER",
    "LOG",
)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything known, as JSON.")
def command(as_json: bool) -> None:
    """List the mounts of this user. Never touches what is mounted."""
    mounts = list_mounts()
    if as_json:
        print_json([mount.to_json() for mount in mounts])
    else:
        print_table(_HEADER, [_row(mount) for mount in mounts])


def _row(mount: MountStatus) -> tuple[object, ...]:
    record = mount.record
    return (
        record.id,
        mount.state,
        record.mode or "-",
        "rw" if record.writable else "ro",
        record.fstype or "-",
        _fetched(mount.stats),
        record.pid or "-",
        record.device or record.loop or "-",
        record.mountpoint or str(record.exposed),
        record.image or "-",
        record.upper or "-",
        str(record.log),
    )


def _fetched(stats: dict[str, int] | None) -> str:
    """Bytes fetched of the bytes that the image's blobs have."""
    if not stats or "bytes_total" not in stats:
        return "-"
    return f"{_mebibytes(stats.get('bytes_fetched', 0))}/{_mebibytes(stats['bytes_total'])} MiB"


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f}"

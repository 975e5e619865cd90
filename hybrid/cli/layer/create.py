"""`hybrid layer create`: the two files of an empty writable layer."""

from __future__ import annotations

from pathlib import Path

import click

from hybrid.cli.packing import check_uuid
from hybrid.core.device import SECTOR
from hybrid.core.storage import Storage
from hybrid.core.upper import create_pair
from hybrid.errors import UsageError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MAX_BYTES = ((1 << 50) - 1) * SECTOR


@click.command("create")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("size")
@click.option("--parent-uuid", default="", callback=check_uuid, help="Of the layer below.")
def command(data: Path, index: Path, size: str, parent_uuid: str) -> None:
    """Make the files DATA and INDEX of an empty, append-only writable layer.

    SIZE is that of the disk: bytes, or a number with k, m, g or t (powers of 1024); 0: that of the
    layer below. The files go into the "upper" of a config.v1.json. For changes to an image,
    `hybrid mount --rw` makes all that is needed by itself.
    """
    create_pair(Storage(), data, index, parse_size(size), parent_uuid=parent_uuid)


def parse_size(text: str) -> int:
    """Bytes, a whole number of sectors. Raises UsageError."""
    lower = text.lower()
    digits = lower.rstrip("kmgt")
    unit = lower[len(digits) :]
    if not (digits.isascii() and digits.isdigit()) or unit not in _UNITS:
        raise UsageError(f"{text!r} is no size", hint="write bytes, or a number like 64g")
    size = int(digits) * _UNITS[unit]
    if size % SECTOR or size > _MAX_BYTES:
        raise UsageError(f"{text}: a disk has whole sectors of {SECTOR} bytes, and at most 512 PiB")
    return size

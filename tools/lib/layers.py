"""Overlaybd layers from raw disks, with the product's own writers. For the demo and the benchmark.

A layer is what changed from one raw disk file to the next, in blocks of 4 KiB. That is also what a
layer is in the field: the blocks that a container build wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid.core import tarball
from hybrid.core.device import SECTOR
from hybrid.core.lsmt import LayerWriter
from hybrid.core.zfile import ZFileWriter

BLOCK = 4096
"""Bytes in which disks are compared."""
_CHUNK = 1 << 20
_ZERO_BLOCK = bytes(BLOCK)

Change = tuple[int, bytes | None]
"""Offset (bytes) and the new data of a block, or None for a block that became zeros."""


@dataclass(frozen=True)
class LayerFile:
    """A finished layer blob. ``size`` is bytes."""

    path: Path
    digest: str
    size: int


def differences(new: Path, old: Path | None) -> Iterator[Change]:
    """The blocks of ``new`` that are not as in ``old`` (None: an empty disk), ascending."""
    with new.open("rb") as after, (old or new).open("rb") as before:
        offset = 0
        while chunk := after.read(_CHUNK):
            previous = before.read(_CHUNK) if old else bytes(len(chunk))
            if chunk != previous:
                yield from _changed_blocks(chunk, previous, offset)
            offset += len(chunk)


def _changed_blocks(chunk: bytes, previous: bytes, base: int) -> Iterator[Change]:
    for start in range(0, len(chunk), BLOCK):
        block = chunk[start : start + BLOCK]
        if block != previous[start : start + BLOCK]:
            yield base + start, None if block == _ZERO_BLOCK else block


def write_layer(
    path: Path, virtual_size: int, changes: Iterable[Change], algorithm: str = "lz4"
) -> LayerFile:
    """Write tar( zfile( lsmt ) ) to ``path``. ``virtual_size`` is bytes of the disk."""
    layer = LayerWriter(virtual_size)
    zfile = ZFileWriter(algorithm, BLOCK)
    head_size = len(tarball.wrap_head(0))
    with path.open("w+b") as file:
        file.seek(head_size)
        file.write(zfile.header())
        file.write(zfile.write(layer.header()))
        for offset, data in changes:
            if data is None:
                layer.add_zeros(offset // SECTOR, BLOCK // SECTOR)
            else:
                file.write(zfile.write(layer.add(offset // SECTOR, data)))
        file.write(zfile.write(layer.finish()))
        file.write(zfile.finish())
        payload_size = file.tell() - head_size
        file.write(tarball.wrap_tail(payload_size))
        size = file.tell()
        file.seek(0)
        file.write(tarball.wrap_head(payload_size))
        file.write(zfile.overwritten_header())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LayerFile(path, f"sha256:{digest}", size)


def write_config(path: Path, layers: Sequence[LayerFile]) -> None:
    """Write a ``config.v1.json`` with local lowers, bottom first."""
    lowers = [{"file": str(layer.path)} for layer in layers]
    path.write_text(json.dumps({"repoBlobUrl": "", "lowers": lowers}, indent=2) + "\n")

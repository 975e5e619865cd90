"""`hybrid layer dump`: the merged disk of a stack as a raw or qcow2 file."""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import BinaryIO

import click
import trio

from hybrid.build.runs import split_index, windows
from hybrid.cli.layer.stacks import LAYERS, open_stack
from hybrid.cli.layer_progress import shown_progress
from hybrid.core.device import SECTOR
from hybrid.core.disk import LayeredDevice
from hybrid.core.output_file import output_file
from hybrid.errors import SystemSupportError

logger = logging.getLogger("hybrid")

_RUN_BYTES = 1 << 20
_RUN_SECTORS = _RUN_BYTES // SECTOR
_ZERO_BLOCK = bytes(4096)


@click.command("dump")
@LAYERS
@click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path),
    help="File to write; what reads as zeros becomes holes.",
)  # fmt: skip
@click.option(
    "--format", "image_format", type=click.Choice(("raw", "qcow2")), default="raw",
    show_default=True, help="qcow2 is made by qemu-img.",
)  # fmt: skip
def command(layers: tuple[Path, ...], output: Path, image_format: str) -> None:
    """Write the merged disk as a sparse raw file, or as qcow2."""
    if image_format == "qcow2":
        _dump_qcow2(layers, output, _find_qemu_img())
    else:
        trio.run(_dump, layers, output)


def _find_qemu_img() -> str:
    found = shutil.which("qemu-img")
    if found is None:
        raise SystemSupportError(
            "qcow2 needs the program qemu-img, which is not here",
            hint="install qemu-utils, or write a raw file",
        )
    return found


async def _dump(layers: tuple[Path, ...], output: Path) -> None:
    async with AsyncExitStack() as stack:
        device = await open_stack(layers, stack)
        with output_file(output) as target:
            await _copy(device, target)
    logger.info("%s: %d bytes", output, device.size)


def _dump_qcow2(layers: tuple[Path, ...], output: Path, qemu_img: str) -> None:
    """Through a raw file, which is sparse, and beside the result: there must be room anyway."""
    parent = output.absolute().parent
    with (
        output_file(output) as target,
        tempfile.TemporaryDirectory(prefix=".hybrid-", dir=parent) as scratch,
    ):
        raw, made = Path(scratch, "raw"), Path(scratch, "qcow2")
        trio.run(_dump, layers, raw)
        arguments = [qemu_img, "convert", "-f", "raw", "-O", "qcow2", str(raw), str(made)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemSupportError(f"qemu-img failed ({done.returncode}): {done.stderr.strip()}")
        raw.unlink()
        with made.open("rb") as source:
            shutil.copyfileobj(source, target, _RUN_BYTES)


async def _copy(device: LayeredDevice, target: BinaryIO) -> None:
    """Write what is mapped to data; leave out 4 KiB blocks of zeros."""
    data, _ = split_index(device.segments, device.size // SECTOR)
    with shown_progress() as watcher:
        advance = watcher.begin("writing", data.sectors() * SECTOR)
        for group in windows(data, _RUN_SECTORS):
            start, end = group[0][0] * SECTOR, group[-1][1] * SECTOR
            content = await device.pread(start, end - start)
            await trio.to_thread.run_sync(_write_sparsely, target, start, memoryview(content))
            advance(SECTOR * sum(last - first for first, last in group))
    target.truncate(device.size)


def _write_sparsely(target: BinaryIO, offset: int, data: memoryview) -> None:
    step = len(_ZERO_BLOCK)
    start = 0
    while start < len(data):
        # Runs of blocks that hold something go out in one write.
        while start < len(data) and _is_zero(data[start : start + step]):
            start += step
        end = start
        while end < len(data) and not _is_zero(data[end : end + step]):
            end += step
        if start < len(data):
            target.seek(offset + start)
            target.write(data[start:end])
        start = end


def _is_zero(block: memoryview) -> bool:
    return bytes(block) == _ZERO_BLOCK[: len(block)]

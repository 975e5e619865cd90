"""Directories of changes over an image, written to without a mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from hybrid.config import load_global_config
from hybrid.core.image import ImageRequest
from hybrid.core.upper_directory import WritableDisk
from hybrid.core.writable_image import open_over


def change(
    image: str, directory: Path, work: Callable[[WritableDisk], Awaitable[None]], *, size: int = 0
) -> None:
    """Open the image for writing, with its changes in the directory, and do something with it."""

    async def run() -> None:
        request = ImageRequest(image, load_global_config(None))
        disk = await open_over(request, directory, size=size)
        try:
            await work(disk)
        finally:
            await disk.aclose()

    trio.run(run)


async def write_raw(disk: WritableDisk, raw: Path) -> None:
    """Make the disk what a raw file is, as its user would who writes only what differs."""
    await write_content(disk, raw.read_bytes())  # noqa: ASYNC240 - nobody else runs


async def write_content(disk: WritableDisk, content: bytes) -> None:
    step = 65536
    for offset in range(0, disk.size, step):
        wanted = content[offset : offset + step]
        if bytes(await disk.pread(offset, len(wanted))) != wanted:
            await disk.pwrite(offset, wanted)

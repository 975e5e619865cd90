"""`hybrid zfile`: work on one ZFile, bare or in its tar wrapper."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import trio

from hybrid.cli.output import print_json, print_pairs
from hybrid.cli.zfile_pack import pack
from hybrid.core.opening import open_stream
from hybrid.core.output_file import output_file
from hybrid.core.source import FileSource
from hybrid.core.stream import ZFileStream
from hybrid.core.zfile import DamagedBlockError
from hybrid.errors import FormatError, UsageError

_RUN_BYTES = 1 << 20
_SHOWN = 5
_LISTED = 1000
"""Damaged blocks that are described; the others are only counted."""

FILE = click.argument("file", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group("zfile", no_args_is_help=False)
def command() -> None:
    """Work on one ZFile; a tar wrapper around it is recognised."""


command.add_command(pack)


@command.command("info")
@FILE
@JSON
def info(file: Path, as_json: bool) -> None:
    """Show what a ZFile's header and index say."""
    found = trio.run(_info, file)
    if as_json:
        print_json(found)
    else:
        print_pairs([(name.replace("_", " "), value) for name, value in found.items()])


@command.command("verify")
@FILE
@JSON
def verify(file: Path, as_json: bool) -> None:
    """Check every block: its checksum, and that it expands to the right length."""
    found = trio.run(_verify, file)
    if as_json:
        print_json(found)
    if found["damaged_blocks"]:
        numbers = ", ".join(str(item["block"]) for item in found["damaged"][:_SHOWN])
        more = ", ..." if found["damaged_blocks"] > _SHOWN else ""
        raise FormatError(
            f"{file}: {found['damaged_blocks']} of {found['blocks']} blocks are damaged: "
            f"{numbers}{more}"
        )
    if not as_json:
        state = (
            "are good"
            if found["checksums"]
            else "expand, but carry no checksums, so that damage cannot be ruled out"
        )
        click.echo(f"{file}: {found['blocks']} blocks {state}")


@command.command("unpack")
@FILE
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write [stdout].")
def unpack(file: Path, output: Path | None) -> None:
    """Write the expanded stream to a file, or to stdout."""
    if output is None and sys.stdout.isatty():
        raise UsageError("will not write binary data to a terminal", hint="name a file with -o")
    trio.run(_unpack, file, output)


async def _info(file: Path) -> dict[str, Any]:
    source = FileSource(file)
    try:
        stream, base = await open_stream(source)
    finally:
        await source.aclose()
    blocks = stream.blocks
    return {
        "file": str(file),
        "wrapper": "tar" if base else "none",
        "payload_offset": base,
        "algorithm": blocks.algorithm,
        "block_size": blocks.block_size,
        "checksums": blocks.verify,
        "blocks": blocks.block_count,
        "compressed_size": blocks.offsets[-1] - blocks.offsets[0],
        "original_size": blocks.size,
        "ratio": round((blocks.offsets[-1] - blocks.offsets[0]) / (blocks.size or 1), 4),
    }


async def _verify(file: Path) -> dict[str, Any]:
    source = FileSource(file)
    count = 0
    listed: list[dict[str, Any]] = []
    try:
        stream, base = await open_stream(source)
        async for block, offset, reason in _damaged_blocks(source, stream, base):
            count += 1
            if len(listed) < _LISTED:
                listed.append({"block": block, "offset": offset, "error": reason})
    finally:
        await source.aclose()
    return {
        "file": str(file),
        "blocks": stream.blocks.block_count,
        "checksums": stream.blocks.verify,
        "damaged_blocks": count,
        "damaged": listed,
    }


async def _damaged_blocks(
    source: FileSource, stream: ZFileStream, base: int
) -> AsyncIterator[tuple[int, int, str]]:
    """Number, offset and reason of each; goes on behind one, so that one pass finds all.

    No exception is kept: its traceback would keep a megabyte of data alive.
    """
    blocks = stream.blocks
    step = max(1, _RUN_BYTES // blocks.block_size)
    for begin in range(0, blocks.block_count, step):
        end = min(begin + step, blocks.block_count)
        start = blocks.offsets[begin]
        data = memoryview(await source.pread(base + start, blocks.offsets[end] - start))
        first = begin
        while first < end:
            try:
                blocks.decode(data[blocks.offsets[first] - start :], first, end)
                break
            except DamagedBlockError as error:
                found = error.block, error.offset or 0, str(error)
            yield found
            first = found[0] + 1


async def _unpack(file: Path, output: Path | None) -> None:
    source = FileSource(file)
    try:
        stream, _ = await open_stream(source)
        if output is None:
            await _copy(stream, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        with output_file(output) as target:
            await _copy(stream, target)
    finally:
        await source.aclose()


async def _copy(stream: ZFileStream, target: Any) -> None:
    for offset in range(0, stream.size, _RUN_BYTES):
        for part in await stream.parts(offset, min(_RUN_BYTES, stream.size - offset)):
            target.write(part)

"""`hybrid zfile pack`: any stream as a ZFile."""

from __future__ import annotations

import os
from pathlib import Path

import click
import trio

from hybrid.build.blob_writer import Wrapping, WrittenBlob, write_blob
from hybrid.build.compact import Advance, Put
from hybrid.cli.layer_progress import shown_progress
from hybrid.cli.output import print_json
from hybrid.cli.packing import packing_options, warn_of_large_blocks
from hybrid.core.output_file import output_file
from hybrid.core.storage import storage_error
from hybrid.errors import UsageError

_PIECE_BYTES = 1 << 20
_STDIN = 0


@click.command("pack")
@click.argument("file", default="-", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path),
    help="ZFile to write; whole or not at all.",
)  # fmt: skip
@packing_options
@click.option("--tar/--no-tar", default=False, show_default=True, help="Wrap it in tar.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pack(
    file: Path,
    output: Path,
    compress: str,
    block_size: int,
    threads: int,
    tar: bool,
    as_json: bool,
) -> None:
    """Compress FILE, or what comes on stdin, in blocks that can be read one by one."""
    if compress == "none":
        raise UsageError("a ZFile is always compressed", hint="choose lz4 or zstd")
    warn_of_large_blocks(compress, block_size)
    packed = trio.run(_pack, file, output, Wrapping(compress, block_size, tar, threads))
    if as_json:
        found = {"digest": packed.digest, "size": packed.size, "original_size": packed.stream_size}
        print_json(found)
    else:
        click.echo(f"{packed.digest} {packed.size}")


async def _pack(file: Path, output: Path, wrapping: Wrapping) -> WrittenBlob:
    descriptor = _open(file)
    try:
        with shown_progress() as watcher, output_file(output) as target:
            advance = watcher.begin("packing", os.fstat(descriptor).st_size)

            async def produce(put: Put) -> None:
                await _read_all(descriptor, file, put, advance)

            return await write_blob(produce, wrapping, target)
    finally:
        if descriptor != _STDIN:
            os.close(descriptor)


def _open(file: Path) -> int:
    if str(file) == "-":
        if os.isatty(_STDIN):
            raise UsageError("will not read from a terminal", hint="name a file, or use a pipe")
        return _STDIN
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise storage_error(error, f"cannot open {file}") from error


async def _read_all(descriptor: int, file: Path, put: Put, advance: Advance) -> None:
    """Pieces as they come: a pipe gives 64 KiB at most. Who takes them fills the blocks."""
    while True:
        try:
            # Given up when the user presses Ctrl-C: a pipe may never give anything again.
            data = await trio.to_thread.run_sync(
                os.read, descriptor, _PIECE_BYTES, abandon_on_cancel=True
            )
        except OSError as error:
            raise storage_error(error, f"cannot read {file}") from error
        if not data:
            return
        await put(data)
        advance(len(data))

"""`hybrid zfile pack`: any stream as a ZFile."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from hybrid.build.blob_writer import Wrapping, WrittenBlob, write_blob
from hybrid.build.compact import Put
from hybrid.cli.layer_progress import shown_progress
from hybrid.cli.output import print_json
from hybrid.cli.packing import packing_options, warn_of_large_blocks
from hybrid.core.output_file import output_file
from hybrid.core.storage import Storage, StoredFile
from hybrid.errors import SystemSupportError, UsageError

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
    with _opened(file) as source, shown_progress() as watcher, output_file(output) as target:
        advance = watcher.begin("packing", source.end() if source else 0)

        async def produce(put: Put) -> None:
            async for data in _pieces(source):
                await put(data)
                advance(len(data))

        return await write_blob(produce, wrapping, target)


@contextmanager
def _opened(file: Path) -> Iterator[StoredFile | None]:
    """None: stdin."""
    if str(file) == "-":
        if os.isatty(_STDIN):
            raise UsageError("will not read from a terminal", hint="name a file, or use a pipe")
        yield None
        return
    opened = Storage().open(Path(os.path.realpath(file)), writable=False)
    try:
        yield opened
    finally:
        opened.close()


async def _pieces(source: StoredFile | None) -> AsyncIterator[bytes]:
    if source is None:
        while data := await _read_stdin():
            yield data
        return
    end = source.end()
    for offset in range(0, end, _PIECE_BYTES):
        length = min(_PIECE_BYTES, end - offset)
        yield await trio.to_thread.run_sync(source.read, offset, length)


async def _read_stdin() -> bytes:
    """What a pipe gives, 64 KiB at most: whoever takes it fills the blocks."""
    try:
        # Given up when the user presses Ctrl-C: it may never give anything again.
        return await trio.to_thread.run_sync(os.read, _STDIN, _PIECE_BYTES, abandon_on_cancel=True)
    except OSError as error:
        raise SystemSupportError(f"cannot read stdin: {error.strerror}") from error

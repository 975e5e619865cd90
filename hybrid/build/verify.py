"""Checking a layer as a whole: all that its formats let one check."""

from __future__ import annotations

from typing import Any

import trio

from hybrid.build.compact import Advance
from hybrid.core.layer import Layer
from hybrid.core.stream import ZFileStream
from hybrid.core.zfile import DamagedBlockError
from hybrid.errors import FormatError

_RUN_BYTES = 1 << 20
_SHOWN = 20


async def verify_layer(layer: Layer, advance: Advance = lambda count: None) -> dict[str, Any]:
    """Read a layer from end to end; opening it has checked its index, trailer and digests.

    Returns ``name``, ``checksums`` (whether there are any), ``damaged_blocks`` and ``errors``, of
    which there are none if all is right. Copies in a cache are not asked again from the origin.
    """
    stream = layer.stream
    has_checksums = isinstance(stream, ZFileStream) and stream.blocks.verify
    errors: list[str] = []
    damaged = 0
    try:
        await layer.check_head()
    except FormatError as error:
        errors.append(str(error))
    position = 0
    while position < stream.size:
        length = min(_RUN_BYTES, stream.size - position)
        await trio.lowlevel.checkpoint()
        try:
            await stream.parts(position, length)
            done = length
        except DamagedBlockError as error:
            assert isinstance(stream, ZFileStream)
            damaged += 1
            done = (error.block + 1) * stream.blocks.block_size - position
            _note(errors, error)
        except FormatError as error:
            _note(errors, error)
            done = length
        advance(min(done, stream.size - position))
        position += done
    return {
        "name": layer.name,
        "checksums": has_checksums,
        "damaged_blocks": damaged,
        "errors": errors,
    }


def _note(errors: list[str], error: FormatError) -> None:
    if len(errors) < _SHOWN:
        errors.append(str(error))

"""Runs of ZFile blocks in Python alone: what hybrid does where nothing was compiled.

The compiled counterpart is ``zblocks_compiled``; both give the same bytes and find the same block
damaged. This one says what is wrong with a block, for both.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise

import lz4.block
import zstandard

from hybrid.core.device import Buffer

CHECKSUM_SIZE = 4
_ALL_ONES = 0xFFFFFFFF
# The block checksum starts from register 100007; crc32c() takes and gives inverted registers.
_BLOCK_SEED = ~100007 & _ALL_ONES
_ZSTD_LEVEL = 3


class BadBlockError(Exception):
    """Block number ``block`` is damaged, for a reason."""

    def __init__(self, block: int, reason: str) -> None:
        super().__init__(f"block {block}: {reason}")
        self.block = block
        self.reason = reason


def expand(
    data: Buffer,
    offsets: Sequence[int],
    first: int,
    last: int,
    size: int,
    block_size: int,
    algorithm: str,
    verify: bool,
) -> bytes:
    """Check and expand blocks ``first`` to ``last - 1`` of a stream of ``size`` bytes.

    ``data`` begins with block ``first``; block i lies between ``offsets[i]`` and ``offsets[i + 1]``
    in the ZFile. Raises BadBlockError for the first block that is damaged.
    """
    view = memoryview(data)
    base = offsets[first]
    decompress = _DECOMPRESSORS[algorithm]
    blocks = []
    for number, (start, end) in enumerate(pairwise(offsets[first : last + 1]), first):
        wanted = min(block_size, size - number * block_size)
        if not base <= start < end <= base + len(view):
            raise BadBlockError(number, "lies outside of what was read")
        try:
            blocks.append(_expand(view[start - base : end - base], wanted, decompress, verify))
        except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError) as error:
            raise BadBlockError(number, str(error)) from error
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _expand(
    block: memoryview, wanted: int, decompress: Callable[[Buffer, int], bytes], verify: bool
) -> bytes:
    if verify:
        # Feeding the register its own value leaves zero: one call checks block and CRC.
        if crc32c(block, _BLOCK_SEED) != _ALL_ONES:
            raise ValueError("checksum mismatch")
        block = block[:-CHECKSUM_SIZE]
    content = decompress(block, wanted)
    if len(content) != wanted:
        raise ValueError(f"expands to {len(content)} bytes instead of {wanted}")
    return content


def pack(
    data: memoryview, block_size: int, algorithm: str, verify: bool, threads: int
) -> tuple[bytes, array[int]]:
    """Compress each block of ``data`` (bytes); the blocks joined, and their sizes.

    One thread: the interpreter would let them change hands for each block.
    """
    compress = _compressor(algorithm)
    blocks = []
    for start in range(0, len(data), block_size):
        block = compress(data[start : start + block_size])
        if verify:
            crc = crc32c(block, _BLOCK_SEED) ^ _ALL_ONES
            block += crc.to_bytes(CHECKSUM_SIZE, "little")
        blocks.append(block)
    return b"".join(blocks), array("I", map(len, blocks))


def crc32c(data: Buffer, seed: int) -> int:
    """CRC-32C, going on from ``seed``, that of what comes before (0: nothing).

    By the package, which takes 10 to 30 ms to import: not everybody needs it.
    """
    from crc32c import crc32c as of_package

    return of_package(data, seed)


def _decompress_lz4(data: Buffer, size: int) -> bytes:
    block: bytes = lz4.block.decompress(data, uncompressed_size=size)
    return block


_zstd = zstandard.ZstdDecompressor()


def _decompress_zstd(data: Buffer, size: int) -> bytes:
    # A frame that states its size would make the library allocate that much, whatever we expect.
    stated = zstandard.frame_content_size(data)
    if stated > size:
        raise ValueError(f"states {stated} bytes instead of {size}")
    if stated == 0:
        return b""
    return _zstd.decompress(data, max_output_size=size, allow_extra_data=False)


_DECOMPRESSORS: dict[str, Callable[[Buffer, int], bytes]] = {
    "lz4": _decompress_lz4,
    "zstd": _decompress_zstd,
}


def _compressor(algorithm: str) -> Callable[[Buffer], bytes]:
    """A new one each time: threads must not share it."""
    if algorithm == "lz4":
        return lambda data: bytes(lz4.block.compress(data, store_size=False))
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress

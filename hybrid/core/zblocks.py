"""Runs of ZFile blocks, expanded and packed: compiled where that was built, else in Python.

Both give the same results, errors included. ``HYBRID_PURE_PYTHON=1`` in the environment chooses
Python; see docs/codec.md.
"""

from __future__ import annotations

import os
from array import array
from typing import Protocol

from hybrid.core import zblocks_pure
from hybrid.core.device import Buffer

WRITABLE_BLOCK_SIZES = (4096, 8192, 16384, 32768, 65536)
ALGORITHMS = {1: "lz4", 2: "zstd"}
"""By their number in a ZFile."""


class Implementation(Protocol):
    """What there are two of. See zblocks_pure for the contract."""

    def expand(
        self,
        data: Buffer,
        offsets: array[int],
        first: int,
        last: int,
        size: int,
        block_size: int,
        algorithm: str,
        verify: bool,
        /,
    ) -> bytes: ...

    def pack(
        self, data: memoryview, block_size: int, algorithm: str, verify: bool, threads: int, /
    ) -> tuple[bytes, array[int]]: ...

    def crc32c(self, data: Buffer, seed: int, /) -> int: ...


def find_compiled() -> Implementation | None:
    """The compiled implementation, or None if it was not built."""
    try:
        from hybrid.core import zblocks_compiled
    except ImportError:
        return None
    return zblocks_compiled


def _choose() -> Implementation:
    if os.environ.get("HYBRID_PURE_PYTHON", "") not in ("", "0"):
        return zblocks_pure
    return find_compiled() or zblocks_pure


active: Implementation = _choose()
"""The implementation in use."""


def check_options(algorithm: str, block_size: int) -> None:
    """Raise ValueError for what the format's tools do not have."""
    if algorithm not in ALGORITHMS.values():
        raise ValueError(f"unknown algorithm {algorithm!r}")
    if block_size not in WRITABLE_BLOCK_SIZES:
        raise ValueError(f"block size {block_size} is not one of {WRITABLE_BLOCK_SIZES}")


def encode_blocks(
    data: Buffer,
    algorithm: str = "lz4",
    block_size: int = 4096,
    verify: bool = True,
    *,
    threads: int = 1,
) -> tuple[bytes, array[int]]:
    """Compress ``data`` in blocks of ``block_size`` bytes; what is over makes a shorter last one.

    Returns the blocks as they stand in a ZFile, each with its CRC if ``verify``, and their sizes in
    bytes; ``ZFileWriter.add_encoded`` takes both. The bytes depend on the options and the versions
    of lz4 and zstandard only. No GIL is held meanwhile, and any number of threads may call this at
    once; ``threads`` of its own (no more than there are processors) share a piece of
    256 KiB and more. Raises ValueError for options that the format does not have.
    """
    check_options(algorithm, block_size)
    return active.pack(memoryview(data).cast("B"), block_size, algorithm, verify, threads)

"""The compiled extension (native/module.c). Only zblocks_compiled calls it.

``algorithm`` is LZ4 or ZSTD, sizes are bytes. The GIL is released once for all blocks (from 32 KiB
on), and all functions may be called by several threads at once.
ValueError means numbers that make no sense, RuntimeError a library that was not bound.
"""

from array import array

from hybrid.core.device import Buffer

LZ4: int
ZSTD: int
HARDWARE_CRC: bool
"""The processor computes CRC-32C."""

def bind_lz4(path: str, /) -> None:
    """Use the LZ4 functions of a shared object. Raises ImportError if it has not all of them."""

def bind_zstd(path: str, /) -> None:
    """Use the zstd functions of a shared object. Raises ImportError if it has not all of them."""

def zstd_version() -> int:
    """As ZSTD_versionNumber: 10507 for 1.5.7; 0 before ``bind_zstd``."""

def expand(
    data: Buffer,
    offsets: Buffer | array[int],
    first: int,
    last: int,
    stream_size: int,
    block_size: int,
    algorithm: int,
    verify: bool,
    /,
) -> bytes | int:
    """The blocks' content, or the number of the first block that is damaged."""

def pack(
    data: Buffer, block_size: int, algorithm: int, verify: bool, threads: int, /
) -> tuple[bytes, bytes]:
    """The packed blocks, and their sizes as 32-bit numbers in the machine's byte order.

    ``threads`` is the most that may be used: never more than there are processors to run on, and
    one only for less than 256 KiB.
    """

def crc32c(register: int, data: Buffer, portable: bool, /) -> int:
    """The bare register update; ``portable``: without the processor's instruction."""

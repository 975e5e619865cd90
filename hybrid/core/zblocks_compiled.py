"""Runs of ZFile blocks by the compiled extension: as ``zblocks_pure``, several times as fast.

The extension has no compressors of its own. It is given the shared objects of the packages lz4 and
zstandard, so that both implementations run the same code and write the same bytes. What cannot be
had that way is left to Python. Importing this raises ImportError if the extension was not built.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from hybrid.core import _zblocks, zblocks_pure
from hybrid.core.device import Buffer
from hybrid.core.zblocks_pure import BadBlockError

logger = logging.getLogger("hybrid.core")

_ALL_ONES = 0xFFFFFFFF


def expand(
    data: Buffer,
    offsets: array[int],
    first: int,
    last: int,
    size: int,
    block_size: int,
    algorithm: str,
    verify: bool,
) -> bytes:
    """As zblocks_pure.expand; ``offsets`` are 64-bit numbers."""
    number = library(algorithm)
    if number is None:
        return zblocks_pure.expand(data, offsets, first, last, size, block_size, algorithm, verify)
    done = _zblocks.expand(data, offsets, first, last, size, block_size, number, verify)
    if isinstance(done, bytes):
        return done
    # Nobody is in a hurry now: the other implementation says what is wrong.
    rest = memoryview(data)[max(0, offsets[done] - offsets[first]) :]
    zblocks_pure.expand(rest, offsets, done, done + 1, size, block_size, algorithm, verify)
    raise BadBlockError(done, "cannot be expanded")


def pack(
    data: memoryview, block_size: int, algorithm: str, verify: bool, threads: int
) -> tuple[bytes, array[int]]:
    """As zblocks_pure.pack, with up to ``threads`` threads."""
    number = library(algorithm)
    if number is None:
        return zblocks_pure.pack(data, block_size, algorithm, verify, threads)
    blocks, raw = _zblocks.pack(data, block_size, number, verify, threads)
    sizes = array("I")
    sizes.frombytes(raw)
    return blocks, sizes


def crc32c(data: Buffer, seed: int) -> int:
    """As zblocks_pure.crc32c: at once, for records and indexes. For what is larger the package is
    three times as fast.
    """
    return _zblocks.crc32c(~seed & _ALL_ONES, data, False) ^ _ALL_ONES


@cache
def library(algorithm: str) -> int | None:
    """The extension's number of an algorithm; None if it cannot use what the package brings."""
    try:
        return _LIBRARIES[algorithm]()
    except ImportError as error:
        logger.info("%s blocks are handled in Python: %s", algorithm, error)
        return None


def _bind_lz4() -> int:
    _bind(_zblocks.bind_lz4, "lz4.block._block")
    return _zblocks.LZ4


def _bind_zstd() -> int:
    """Of the package's two builds of one source, the one for cffi shows its functions."""
    import zstandard

    _bind(_zblocks.bind_zstd, "zstandard._cffi")
    major, minor, patch = zstandard.ZSTD_VERSION
    if _zblocks.zstd_version() != (major * 100 + minor) * 100 + patch:
        raise ImportError("zstandard brings two versions of zstd")
    return _zblocks.ZSTD


def _bind(bind: Callable[[str], None], module: str) -> None:
    import_module(module.rpartition(".")[0])
    spec = find_spec(module)
    if spec is None or not spec.origin:
        raise ImportError(f"no {module}")
    bind(spec.origin)


_LIBRARIES: dict[str, Callable[[], int]] = {"lz4": _bind_lz4, "zstd": _bind_zstd}

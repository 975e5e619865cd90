"""The format of the file of one cached blob. PURE: names, numbers and bytes; docs/cache.md has it.

A header, a map with one u32 per chunk of 64 KiB, the data. A map entry is 0 while the chunk is
absent, else the CRC-32C of the chunk. The file is sparse.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import NamedTuple

from hybrid.core.device import Buffer

CHUNK_SHIFT = 16
CHUNK_SIZE = 1 << CHUNK_SHIFT
"""Bytes of a chunk, the unit of presence."""

MAGIC = b"hybridBC"
VERSION = 2
HEADER = struct.Struct("<8sIIQ32s")
"""magic, version, chunk size (bytes), blob size (bytes), identity (CacheKey.identity)"""
MAP_OFFSET = 64
ENTRY_SIZE = 4
DATA_ALIGNMENT = 4096

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
# Version 1 knew neither the size nor who vouches: its files are recognized to be removed.
_FILE_NAME = re.compile(
    r"(?:sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})(?:-[0-9]+-[0-9a-f]{16})?\.blob"
)


class CacheKey(NamedTuple):
    """Which bytes a cached blob holds. Only equal keys share them.

    The digest is not enough: what is read piece by piece was never compared with it, so the bytes
    are as good as whoever served them. The same holds for the size, which a manifest claims.
    """

    vouched_by: str
    """Whose word it is that the bytes have this digest, e.g. ``https://registry.example.com``."""
    digest: str
    size: int
    """Bytes of the blob."""

    @property
    def cacheable(self) -> bool:
        """Whether the digest is of a kind that may become a file name."""
        return _DIGEST.fullmatch(self.digest) is not None

    @property
    def file_name(self) -> str:
        """The name of the file in the cache's directory; only for cacheable keys."""
        voucher = hashlib.sha256(self.vouched_by.encode()).hexdigest()[:16]
        return f"{self.digest.replace(':', '-')}-{self.size}-{voucher}.blob"

    @property
    def identity(self) -> bytes:
        """SHA-256 (32 bytes) of digest and voucher: what a renamed file still says of itself."""
        return hashlib.sha256(f"{self.digest}\n{self.vouched_by}".encode()).digest()

    @property
    def header(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, CHUNK_SIZE, self.size, self.identity)


def is_cache_file(name: str) -> bool:
    """Whether a file of this name belongs to a cache, of this version or an older one."""
    return _FILE_NAME.fullmatch(name) is not None


def chunk_span(offset: int, length: int) -> tuple[int, int]:
    """The chunks [first, end) that a range of bytes touches. ``length`` must not be 0."""
    return offset >> CHUNK_SHIFT, (offset + length - 1 >> CHUNK_SHIFT) + 1


def data_offset(size: int) -> int:
    """Where the data of a blob of ``size`` bytes starts in its file, in bytes."""
    map_end = MAP_OFFSET + ENTRY_SIZE * chunk_count(size)
    return -(-map_end // DATA_ALIGNMENT) * DATA_ALIGNMENT


def chunk_count(size: int) -> int:
    return -(-size // CHUNK_SIZE)


def chunk_checksum(data: Buffer) -> int:
    """The map entry of a chunk: its CRC-32C, and 1 instead of 0, which means absent."""
    # Imported late: it takes 10 ms, and not everybody who looks at a cache needs it.
    from crc32c import crc32c

    return crc32c(data) or 1

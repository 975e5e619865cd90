"""ZFile codec: one byte stream cut into blocks that are compressed one by one (spec: zfile).

Pure: bytes in, values and plans out; no I/O. Integers on disk are little-endian.

    0          512          index_offset        EOF-512     EOF
    | header   | blocks ... | u32 sizes[N]      | trailer   |

Header and trailer are 512-byte blocks with the same record in their first 96 bytes:

    offset size field             offset size field
         0   24 magic                  64    4 index_crc
        24    4 record size (96)       72    4 block_size (bytes)
        28    4 digest                 76    1 algorithm (1 LZ4, 2 zstd)
        32    8 flags                  78    1 use_dict
        40    8 index_offset           84    4 dict_size
        48    8 index_size (blocks)    88    1 verify (blocks carry a CRC)
        56    8 original_size

A block is the compressed bytes followed by their CRC (4 bytes, if ``verify``); ``sizes[i]`` is the
length of both. Every block but the last expands to exactly ``block_size`` bytes.
"""

from __future__ import annotations

import struct
import sys
from array import array
from dataclasses import dataclass
from itertools import accumulate

from hybrid.core import zblocks
from hybrid.core.device import Buffer
from hybrid.core.zblocks import ALGORITHMS, WRITABLE_BLOCK_SIZES, encode_blocks
from hybrid.core.zblocks_pure import CHECKSUM_SIZE, BadBlockError
from hybrid.errors import FormatError, UnsupportedError

__all__ = [
    "ALGORITHMS",
    "WRITABLE_BLOCK_SIZES",
    "BlockMap",
    "DamagedBlockError",
    "ZFileRecord",
    "ZFileWriter",
    "check_same",
    "crc_raw",
    "encode_blocks",
    "is_zfile",
    "parse_header",
    "parse_index",
    "parse_trailer",
]

HEADER_SIZE = 512
"""Bytes of the header, and of the trailer."""
MAGIC = b"ZFile\x00\x01\x00tuji.yyf@Alibaba"
MAX_BLOCK_SIZE = 65536
MIN_BLOCK_SIZE = 512
MAX_BLOCKS = 1 << 26
"""Blocks of one file: 256 GiB in the smallest usual blocks. The format's own limit is 10^9, which
would be 12 GB of memory for an index that a damaged or hostile file only claims to have."""

FLAG_HEADER = 1
FLAG_DATA = 2
FLAG_SEALED = 4
FLAG_OVERWRITTEN = 8
FLAG_DIGEST = 16

_RECORD = struct.Struct("<24sIIQQQQI4xIBBBx4xIB7x")
_DIGEST = slice(28, 32)
_ALL_ONES = 0xFFFFFFFF
_PIECE_BYTES = 4 << 20
"""Of the stream: what the writer packs at once, since packing needs about as much memory again."""


def crc_raw(seed: int, data: Buffer) -> int:
    """CRC-32C as a bare register update: no inversion before or after (spec: zfile 3)."""
    # crc32c() takes and gives inverted registers.
    return zblocks.active.crc32c(data, ~seed & _ALL_ONES) ^ _ALL_ONES


@dataclass(frozen=True, slots=True)
class ZFileRecord:
    """The record of a header or trailer. Sizes and offsets in bytes, relative to the ZFile."""

    flags: int
    index_offset: int
    block_count: int
    original_size: int
    index_crc: int
    block_size: int
    algorithm: str
    verify: bool

    @property
    def overwritten(self) -> bool:
        """The header was rewritten at the end: it holds all that the trailer holds."""
        return bool(self.flags & FLAG_OVERWRITTEN)

    @property
    def has_digest(self) -> bool:
        """``digest`` and ``index_crc`` were computed. Old files leave garbage in both."""
        return bool(self.flags & FLAG_DIGEST)

    @property
    def zfile_size(self) -> int:
        """Bytes of the whole ZFile, by the numbers of this record."""
        return self.index_offset + 4 * self.block_count + HEADER_SIZE


def is_zfile(head: Buffer) -> bool:
    """True if ``head`` (at least 24 bytes) begins with the ZFile magic."""
    return bytes(head[:24]) == MAGIC


def parse_header(block: Buffer, name: str) -> ZFileRecord:
    """Parse and check a header; ``index_*`` of it mean something only if ``overwritten``.

    Raises FormatError (damaged) or UnsupportedError (dictionary, unknown algorithm).
    """
    record = _parse_record(block, name, "header")
    if not record.flags & FLAG_HEADER:
        raise FormatError(f"{name}: ZFile header is not marked as header")
    if not record.flags & (FLAG_OVERWRITTEN | FLAG_DATA):
        raise FormatError(f"{name}: ZFile header is not marked as that of a data file")
    if record.overwritten:
        _check_numbers(record, name)
    return record


def parse_trailer(block: Buffer, name: str) -> ZFileRecord:
    """Parse and check a trailer, digest included. Raises FormatError or UnsupportedError."""
    record = _parse_record(block, name, "trailer")
    if record.flags & (FLAG_HEADER | FLAG_DATA | FLAG_SEALED) != FLAG_DATA | FLAG_SEALED:
        raise FormatError(
            f"{name}: ZFile trailer has flags {record.flags & 0x1F:#x}, not those of a trailer"
        )
    _check_numbers(record, name)
    return record


def check_same(header: ZFileRecord, trailer: ZFileRecord, name: str) -> None:
    """Raise FormatError unless header and trailer describe the same ZFile."""
    fields = ["block_size", "algorithm", "verify"]
    if header.overwritten:
        fields += ["index_offset", "block_count", "original_size"]
        if header.has_digest and trailer.has_digest:
            fields.append("index_crc")
    for field in fields:
        if getattr(header, field) != getattr(trailer, field):
            raise FormatError(
                f"{name}: ZFile header and trailer disagree on {field}: "
                f"{getattr(header, field)} and {getattr(trailer, field)}"
            )


def _parse_record(block: Buffer, name: str, what: str) -> ZFileRecord:
    if len(block) != HEADER_SIZE:
        raise FormatError(f"{name}: ZFile {what} is cut off: {len(block)} of {HEADER_SIZE} bytes")
    (magic, _, digest, flags, index_offset, block_count, original_size, index_crc, block_size,
     algorithm, _, use_dict, dict_size, verify) = _RECORD.unpack_from(block)  # fmt: skip
    if magic != MAGIC:
        raise FormatError(f"{name}: no ZFile {what} where one should be (wrong magic)")
    if flags & FLAG_DIGEST:
        blanked = bytearray(block)
        blanked[_DIGEST] = bytes(4)
        if crc_raw(0, blanked) != digest:
            raise FormatError(f"{name}: ZFile {what} is damaged (its digest does not match)")
    if algorithm not in ALGORITHMS:
        raise UnsupportedError(f"{name}: unknown ZFile compression algorithm {algorithm}")
    if use_dict == 1 and dict_size:
        raise UnsupportedError(f"{name}: ZFile with a dictionary of {dict_size} bytes")
    if flags & FLAG_DIGEST and verify > 1:
        raise FormatError(f"{name}: ZFile {what} has {verify} in place of a yes or no")
    if block_size & (block_size - 1) or not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE:
        raise FormatError(f"{name}: impossible ZFile block size {block_size}")
    return ZFileRecord(
        flags, index_offset, block_count, original_size, index_crc, block_size,
        ALGORITHMS[algorithm], verify == 1,
    )  # fmt: skip


def _check_numbers(record: ZFileRecord, name: str) -> None:
    blocks = -(-record.original_size // record.block_size)
    if record.block_count != blocks:
        raise FormatError(
            f"{name}: ZFile of {record.original_size} bytes needs {blocks} blocks of "
            f"{record.block_size}, but its index has {record.block_count}"
        )
    if blocks > MAX_BLOCKS:
        raise FormatError(f"{name}: ZFile of {blocks} blocks; at most {MAX_BLOCKS} can be used")
    if record.index_offset < HEADER_SIZE:
        raise FormatError(f"{name}: ZFile index begins at {record.index_offset}, in the header")


class BlockMap:
    """Where each block of a ZFile lies, and how to expand a run of them."""

    __slots__ = ("algorithm", "block_size", "name", "offsets", "record", "size", "verify")

    def __init__(self, record: ZFileRecord, offsets: array[int], name: str) -> None:
        self.name = name
        self.record = record
        self.size = record.original_size
        """Bytes of the expanded stream."""
        self.block_size = record.block_size
        self.algorithm = record.algorithm
        self.verify = record.verify
        self.offsets = offsets
        """Byte offset of block i in the ZFile; one more for the end of the last (8 bytes each)."""

    @property
    def block_count(self) -> int:
        return len(self.offsets) - 1

    def blocks_of(self, offset: int, length: int) -> tuple[int, int]:
        """First block, and last block + 1, of a byte range of the stream (length > 0)."""
        return offset // self.block_size, (offset + length - 1) // self.block_size + 1

    def decode(self, data: Buffer, first: int, last: int) -> bytes:
        """Check and expand blocks ``first`` to ``last - 1``, which ``data`` begins with.

        Raises DamagedBlockError, which names the first block that is damaged.
        """
        try:
            return zblocks.active.expand(
                data, self.offsets, first, last, self.size,
                self.block_size, self.algorithm, self.verify,
            )  # fmt: skip
        except BadBlockError as bad:
            where = self.offsets[bad.block]
            raise DamagedBlockError(self.name, bad.block, where, bad.reason) from bad


class DamagedBlockError(FormatError):
    """A block whose checksum or content is wrong. ``block`` is its number, ``offset`` its byte."""

    def __init__(self, name: str, block: int, offset: int, reason: str) -> None:
        super().__init__(f"{name}: block {block} at byte {offset}: {reason}", offset=offset)
        self.block = block


def parse_index(raw: Buffer, record: ZFileRecord, name: str) -> BlockMap:
    """Turn the index (4 bytes a block) into a BlockMap. Raises FormatError."""
    if len(raw) != 4 * record.block_count:
        raise FormatError(f"{name}: ZFile index has {len(raw)} bytes, not {4 * record.block_count}")
    if record.has_digest and crc_raw(0, raw) != record.index_crc:
        raise FormatError(f"{name}: ZFile index is damaged (its CRC does not match)")
    sizes = array("I")
    sizes.frombytes(raw)
    if sys.byteorder == "big":
        sizes.byteswap()
    smallest = CHECKSUM_SIZE + 1 if record.verify else 1
    if sizes and (min(sizes) < smallest or max(sizes) > _largest_block(record)):
        number = next(i for i, n in enumerate(sizes) if not smallest <= n <= _largest_block(record))
        raise FormatError(f"{name}: ZFile block {number} has impossible size {sizes[number]}")
    offsets = array("Q", accumulate(sizes, initial=HEADER_SIZE))
    if offsets[-1] != record.index_offset:
        raise FormatError(
            f"{name}: ZFile blocks end at byte {offsets[-1]}, but the index begins at "
            f"{record.index_offset}"
        )
    return BlockMap(record, offsets, name)


def _largest_block(record: ZFileRecord) -> int:
    # LZ4 expands by n/255 + 16, zstd by n/256 + 64 and a frame header: both well below this.
    return record.block_size + record.block_size // 128 + 1024


class ZFileWriter:
    """Makes a ZFile from a stream: each method returns the bytes to append to the output.

    ``header()``, then ``write()`` or ``add_encoded()`` any number of times, then ``finish()``.
    Where the output can seek, ``overwritten_header()`` afterwards replaces the first 512 bytes:
    readers then need one read less. 64 KiB blocks must be asked for: the reference cannot read one
    that does not compress (spec: zfile 11). ``threads`` share what one ``write()`` is given; the
    output does not depend on them. Raises ValueError for an option that the format does not have.
    """

    def __init__(
        self,
        algorithm: str = "lz4",
        block_size: int = 4096,
        *,
        verify: bool = True,
        threads: int = 1,
    ) -> None:
        zblocks.check_options(algorithm, block_size)
        self.algorithm = algorithm
        self.block_size = block_size
        self.verify = verify
        self.threads = threads
        self._pending = bytearray()
        self._sizes = array("I")
        self._original_size = 0
        self._index_offset = HEADER_SIZE
        self._index_crc = 0

    def header(self) -> bytes:
        """The 512 bytes at the start, index fields zero."""
        return self._record(FLAG_HEADER | FLAG_DATA | FLAG_DIGEST, with_index=False)

    def write(self, data: Buffer) -> bytes:
        """Take stream bytes; return the blocks that are complete now (may be empty).

        Nothing is copied but what is left over for the next call. Large pieces are best: of 1 MiB
        and more if there are threads. Raises ValueError after a short block of ``add_encoded``.
        """
        self._check_whole()
        view = memoryview(data).cast("B")
        done = []
        if self._pending:
            head = view[: self.block_size - len(self._pending)]
            self._pending += head
            view = view[len(head) :]
            if len(self._pending) < self.block_size:
                return b""
            full, self._pending = self._pending, bytearray()
            done.append(self._encode(full))
        whole = len(view) // self.block_size * self.block_size
        for start in range(0, whole, _PIECE_BYTES):
            done.append(self._encode(view[start : min(start + _PIECE_BYTES, whole)]))
        self._pending += view[whole:]
        return done[0] if len(done) == 1 else b"".join(done)

    def add_encoded(self, blocks: bytes, sizes: array[int], original_size: int) -> bytes:
        """Take blocks that ``encode_blocks`` made of the next ``original_size`` bytes (with the
        options of this writer, perhaps in another thread); returns ``blocks``, for appending.

        Only the last block of the stream may be shorter than ``block_size``. Raises ValueError if
        these blocks cannot come here.
        """
        self._check_whole()
        if self._pending:
            raise ValueError(f"{len(self._pending)} bytes of an incomplete block come first")
        if len(sizes) != -(-original_size // self.block_size) or len(blocks) != sum(sizes):
            raise ValueError(
                f"{len(sizes)} blocks of {len(blocks)} bytes are not those of {original_size} bytes"
            )
        return self._append(blocks, sizes, original_size)

    def finish(self) -> bytes:
        """The last block, the index and the trailer."""
        pending, self._pending = self._pending, bytearray()
        last = self._encode(pending) if pending else b""
        sizes = array("I", self._sizes)
        if sys.byteorder == "big":
            sizes.byteswap()
        index = sizes.tobytes()
        self._index_crc = crc_raw(0, index)
        return last + index + self._record(FLAG_DATA | FLAG_SEALED | FLAG_DIGEST)

    def overwritten_header(self) -> bytes:
        """After ``finish()``: the header that carries the index information as well."""
        return self._record(FLAG_HEADER | FLAG_DATA | FLAG_OVERWRITTEN | FLAG_DIGEST)

    def _encode(self, data: Buffer) -> bytes:
        blocks, sizes = encode_blocks(
            data, self.algorithm, self.block_size, self.verify, threads=self.threads
        )
        return self._append(blocks, sizes, len(data))

    def _append(self, blocks: bytes, sizes: array[int], original_size: int) -> bytes:
        self._sizes.extend(sizes)
        self._index_offset += len(blocks)
        self._original_size += original_size
        return blocks

    def _check_whole(self) -> None:
        if self._original_size % self.block_size:
            raise ValueError("the stream has ended with an incomplete block")

    def _record(self, flags: int, *, with_index: bool = True) -> bytes:
        numbers = (self._index_offset, len(self._sizes), self._original_size, self._index_crc)
        algorithm = next(k for k, v in ALGORITHMS.items() if v == self.algorithm)
        block = bytearray(HEADER_SIZE)
        _RECORD.pack_into(
            block, 0, MAGIC, _RECORD.size, 0, flags, *(numbers if with_index else (0, 0, 0, 0)),
            self.block_size, algorithm, 0, 0, 0, int(self.verify),
        )  # fmt: skip
        block[_DIGEST] = crc_raw(0, block).to_bytes(4, "little")
        return bytes(block)

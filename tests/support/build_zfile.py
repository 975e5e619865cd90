"""An independent ZFile writer and a strict reader, by zfile.md alone.

Nothing here imports the product: a mistake in a codec must not hide behind the same mistake here.
Sizes and offsets are bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import lz4.block
import zstandard
from support.build_crc import crc32c_cached, crc32c_raw

MAGIC0 = b"ZFile\0\x01\0"
MAGIC1 = b"tuji.yyf@Alibaba"
BLOCK_SEED = 100007
HT_SIZE = 512
"""Bytes of a header or trailer."""
LZ4, ZSTD = 1, 2
ALGOS = {"lz4": LZ4, "zstd": ZSTD}

IS_HEADER, IS_DATA, IS_SEALED, IS_OVERWRITTEN, HAS_DIGEST = 1, 2, 4, 8, 16

FIELDS = (  # name, struct code; in order, the packed record of section 2
    ("magic0", "8s"), ("magic1", "16s"), ("size", "I"), ("digest", "I"), ("flags", "Q"),
    ("index_offset", "Q"), ("index_size", "Q"), ("original_size", "Q"), ("index_crc", "I"),
    ("reserved1", "I"), ("block_size", "I"), ("algo", "B"), ("level", "B"), ("use_dict", "B"),
    ("pad1", "B"), ("reserved2", "I"), ("dict_size", "I"), ("verify", "B"), ("pad2", "7s"),
    ("padding", "416s"),
)  # fmt: skip
RECORD = struct.Struct("<" + "".join(code for _, code in FIELDS))
DEFAULTS: dict[str, Any] = {name: 0 for name, _ in FIELDS} | {
    "magic0": MAGIC0, "magic1": MAGIC1, "size": 96, "pad2": b"", "padding": b"",
}  # fmt: skip


def pack_ht(fields: Mapping[str, Any]) -> bytes:
    """One 512-byte block. The digest is computed if flag bit 4 is set, unless ``fields`` has it."""
    values = DEFAULTS | dict(fields)
    if "digest" not in fields and values["flags"] & HAS_DIGEST:
        blank = RECORD.pack(*(values[name] for name, _ in FIELDS))
        values["digest"] = crc32c_raw(0, blank)
    return RECORD.pack(*(values[name] for name, _ in FIELDS))


def unpack_ht(block: bytes) -> dict[str, Any]:
    """The fields of a 512-byte block by name."""
    return dict(zip((name for name, _ in FIELDS), RECORD.unpack(block), strict=True))


def redigest(block: bytes, **changes: Any) -> bytes:
    """The block with some fields changed and its digest made right again."""
    fields = unpack_ht(block) | changes
    if "digest" not in changes:
        del fields["digest"]
    return pack_ht(fields)


def compress_block(data: bytes, algo: str) -> bytes:
    """A raw LZ4 block, or one complete zstd frame with its content size."""
    if algo == "lz4":
        return bytes(lz4.block.compress(data, mode="default", store_size=False))
    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(data)


def garbage_fields(seed: int) -> dict[str, Any]:
    """What old files carry in unused places: digest, upper flag bits, reserved and pad bytes."""
    random = Random(seed)
    return {
        "size": random.getrandbits(32), "digest": random.getrandbits(32),
        "index_crc": random.getrandbits(32), "reserved1": random.getrandbits(32),
        "level": random.getrandbits(8), "pad1": random.getrandbits(8),
        "reserved2": random.getrandbits(32), "pad2": random.randbytes(7),
        "padding": random.randbytes(416),
    }  # fmt: skip


def build_zfile(
    data: bytes,
    *,
    algo: str = "lz4",
    block_size: int = 4096,
    verify: bool = True,
    overwrite_header: bool = False,
    digests: bool = True,
    garbage: int | None = None,
    header: Mapping[str, Any] | None = None,
    trailer: Mapping[str, Any] | None = None,
    sizes: Sequence[int] | None = None,
    stored_block: Callable[[int, bytes], bytes] = lambda number, block: block,
    block_data: Callable[[int, bytes], bytes] = lambda number, plain: plain,
) -> bytes:
    """A ZFile of ``data``.

    ``digests=False`` leaves flag bit 4 clear, and ``garbage`` (a seed) then fills unused fields as
    files of 2021 have them. ``header`` and ``trailer`` override fields (see FIELDS); digests are
    computed after that unless overridden themselves. ``sizes`` replaces the index entries.
    ``block_data(number, plain)`` changes what is compressed; ``stored_block(number, bytes)``
    changes what lands in the file for a block, checksum included: the index and the checksums do
    not follow, so that is damage. Damage to lengths is made with both.
    """
    blocks = []
    for number, start in enumerate(range(0, len(data), block_size)):
        packed = compress_block(block_data(number, data[start : start + block_size]), algo)
        if verify:
            packed += struct.pack("<I", crc32c_cached(BLOCK_SEED, packed))
        blocks.append(packed)
    entries = list(sizes) if sizes is not None else [len(block) for block in blocks]
    body = b"".join(stored_block(number, block) for number, block in enumerate(blocks))
    index = struct.pack(f"<{len(entries)}I", *entries)
    common: dict[str, Any] = {
        "block_size": block_size,
        "algo": ALGOS[algo],
        "verify": int(verify),
    }
    info = common | {
        "index_offset": HT_SIZE + len(body),
        "index_size": len(entries),
        "original_size": len(data),
        "index_crc": crc32c_raw(0, index) if digests else 0,
    }
    head = dict(info if overwrite_header else common)
    head["flags"] = IS_HEADER | IS_DATA | (IS_OVERWRITTEN if overwrite_header else 0)
    info["flags"] = IS_DATA | IS_SEALED
    for fields, salt in ((head, 1), (info, 2)):
        if digests:
            fields["flags"] |= HAS_DIGEST
        elif garbage is not None:
            unused = garbage_fields(garbage * 2 + salt)
            fields.update(unused)
            fields["flags"] |= Random(garbage + salt).getrandbits(58) << 6
    if garbage is not None and not digests and not overwrite_header:
        random = Random(garbage + 3)
        for name in ("index_offset", "index_size", "original_size"):
            head[name] = random.getrandbits(64)
    return pack_ht(head | dict(header or {})) + body + index + pack_ht(info | dict(trailer or {}))


@dataclass(frozen=True)
class ParsedZFile:
    header: dict[str, Any]
    trailer: dict[str, Any]
    sizes: list[int]
    blocks: list[bytes]
    """Compressed bytes without their checksums."""
    plain: bytes


def decompress_block(block: bytes, algo: int, length: int) -> bytes:
    if algo == LZ4:
        return bytes(lz4.block.decompress(block, uncompressed_size=length))
    frame = zstandard.ZstdDecompressor().decompressobj()
    plain = frame.decompress(block)
    assert frame.eof, "a block is a complete zstd frame"
    assert not frame.unused_data, "a block is one zstd frame"
    assert zstandard.frame_content_size(block) == len(plain), "the frame states its content size"
    return plain


def check_ht(block: bytes, flags: int) -> dict[str, Any]:
    """Assert everything section 2 says of a block that a present-day writer makes."""
    fields = unpack_ht(block)
    assert fields["magic0"] == MAGIC0
    assert fields["magic1"] == MAGIC1
    assert fields["size"] == 96
    assert fields["flags"] == flags, f"flags {fields['flags']:#x}, not {flags:#x}"
    for name in ("reserved1", "level", "use_dict", "pad1", "reserved2", "dict_size"):
        assert fields[name] == 0, name
    assert not any(fields["pad2"])
    assert not any(fields["padding"])
    assert fields["verify"] in (0, 1)
    blank = bytearray(block)
    blank[28:32] = bytes(4)
    assert fields["digest"] == crc32c_raw(0, bytes(blank)), "digest"
    return fields


def parse_zfile(data: bytes) -> ParsedZFile:
    """Read a whole ZFile, asserting every rule of sections 1-5 and 8 that writers must keep."""
    assert len(data) >= 2 * HT_SIZE
    overwritten = bool(unpack_ht(data[:HT_SIZE])["flags"] & IS_OVERWRITTEN)
    header = check_ht(data[:HT_SIZE], 0x1B if overwritten else 0x13)
    trailer = check_ht(data[-HT_SIZE:], 0x16)
    shared = ("block_size", "algo", "verify")
    index_fields = ("index_offset", "index_size", "original_size", "index_crc")
    for name in (*shared, *(index_fields if overwritten else ())):
        assert header[name] == trailer[name], name
    if not overwritten:
        assert all(header[name] == 0 for name in index_fields)
    start, count = trailer["index_offset"], trailer["index_size"]
    raw_index = data[start : len(data) - HT_SIZE]
    assert len(raw_index) == 4 * count, "the index ends where the trailer begins"
    assert trailer["index_crc"] == crc32c_raw(0, raw_index), "index_crc"
    sizes = list(struct.unpack(f"<{count}I", raw_index))
    assert HT_SIZE + sum(sizes) == start, "blocks are back to back up to the index"
    block_size, original = trailer["block_size"], trailer["original_size"]
    assert count == -(-original // block_size)
    position, blocks, plain = HT_SIZE, [], []
    for number, size in enumerate(sizes):
        block = data[position : position + size]
        position += size
        if trailer["verify"]:
            (stored,) = struct.unpack("<I", block[-4:])
            block = block[:-4]
            assert stored == crc32c_cached(BLOCK_SEED, block), f"checksum of block {number}"
        length = min(block_size, original - number * block_size)
        part = decompress_block(block, trailer["algo"], length)
        assert len(part) == length, f"block {number} expands to {len(part)}, not {length}"
        blocks.append(block)
        plain.append(part)
    return ParsedZFile(header, trailer, sizes, blocks, b"".join(plain))

"""ZFile codec: against an independent writer and reader, rule by rule, and with damage."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import lz4.block
import pytest
import trio
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden
from support.build_zfile import (
    BLOCK_SEED,
    HT_SIZE,
    compress_block,
    redigest,
    unpack_ht,
)
from support.builders import build_tar, build_zfile, crc32c_raw, parse_zfile
from support.implementations import IMPLEMENTATIONS, using

from hybrid.core import zfile
from hybrid.core.opening import open_stream
from hybrid.core.source import FaultySource, MemorySource
from hybrid.core.zfile import BlockMap, DamagedBlockError, ZFileWriter
from hybrid.errors import FormatError, HybridError, UnsupportedError

ALGORITHMS = ("lz4", "zstd")
BLOCK_SIZES = (4096, 8192, 16384, 32768, 65536)
NAME = "blob"


@pytest.fixture(autouse=True, scope="module", params=IMPLEMENTATIONS)
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


def text(size: int, seed: int = 1) -> bytes:
    """Compressible bytes without a period."""
    random = Random(seed)
    words = [random.randbytes(random.randint(3, 9)).hex().encode() for _ in range(40)]
    return b" ".join(random.choice(words) for _ in range(size // 8 + 1))[:size].ljust(size, b"x")


def mixed(size: int, seed: int = 1) -> bytes:
    """Text, zeros and incompressible bytes in turns."""
    random = Random(seed)
    out = bytearray()
    while len(out) < size:
        length = random.randint(1, 9000)
        kind = random.randrange(3)
        out += (text(length, length), bytes(length), random.randbytes(length))[kind]
    return bytes(out[:size])


def open_map(data: bytes) -> BlockMap:
    """Parse a bare ZFile from its trailer, as a reader that has all of it would."""
    zfile.parse_header(data[:HT_SIZE], NAME)
    record = zfile.parse_trailer(data[-HT_SIZE:], NAME)
    raw = data[record.index_offset : len(data) - HT_SIZE]
    return zfile.parse_index(raw, record, NAME)


def decode_all(data: bytes) -> bytes:
    blocks = open_map(data)
    body = data[HT_SIZE : blocks.offsets[-1]]
    return blocks.decode(body, 0, blocks.block_count)


async def stream_bytes(data: bytes) -> bytes:
    """All bytes by way of open_stream, which finds trailer and wrapper itself."""
    stream, _ = await open_stream(MemorySource(data, NAME))
    return await stream.read(0, stream.size)


def write_all(
    pieces: list[bytes], algorithm: str, block_size: int, *, verify: bool = True, over: bool = False
) -> bytes:
    writer = ZFileWriter(algorithm, block_size, verify=verify)
    out = writer.header() + b"".join(writer.write(piece) for piece in pieces) + writer.finish()
    return writer.overwritten_header() + out[HT_SIZE:] if over else out


# --- CRC (spec: zfile 13)


@pytest.mark.parametrize(
    ("seed", "data", "register"),
    [
        (0xFFFFFFFF, b"123456789", 0xE3069283 ^ 0xFFFFFFFF),
        (0, b"123456789", 0x58E3FA20),
        (100007, b"123456789", 0x3C9BD4E0),
        (0, bytes(4), 0),
        (100007, bytes(4), 0xD5B17C5D),
        (0, b"", 0),
        (100007, b"", 100007),
    ],
)
def test_crc_vectors(seed: int, data: bytes, register: int) -> None:
    assert zfile.crc_raw(seed, data) == register
    assert crc32c_raw(seed, data) == register


@given(seed=st.integers(0, 2**32 - 1), data=st.binary(max_size=300))
def test_crc_equals_the_table_walk(seed: int, data: bytes) -> None:
    assert zfile.crc_raw(seed, data) == crc32c_raw(seed, data)


def test_empty_stream_has_the_published_digests() -> None:
    out = write_all([], "lz4", 4096)
    assert out == build_zfile(b"")
    assert len(out) == 1024
    assert unpack_ht(out[:HT_SIZE])["digest"] == 0xC7A212FC
    assert unpack_ht(out[HT_SIZE:])["digest"] == 0x85C895BF
    assert unpack_ht(out[HT_SIZE:])["index_offset"] == 512


# --- reading what an independent writer made


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_reads_every_option(algorithm: str, block_size: int, verify: bool, overwrite: bool) -> None:
    data = mixed(block_size * 3 + 777)
    packed = build_zfile(
        data, algo=algorithm, block_size=block_size, verify=verify, overwrite_header=overwrite
    )
    assert decode_all(packed) == data


@pytest.mark.parametrize("block_size", [512, 1024, 2048])
async def test_reads_powers_of_two_below_4096(block_size: int) -> None:
    data = mixed(block_size * 5 + 3)
    assert await stream_bytes(build_zfile(data, block_size=block_size)) == data


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 40000),
    seed=st.integers(0, 1000),
    algorithm=st.sampled_from(ALGORITHMS),
    block_size=st.sampled_from(BLOCK_SIZES),
    verify=st.booleans(),
    overwrite=st.booleans(),
    garbage=st.none() | st.integers(0, 1000),
)
def test_reads_any_stream(
    size: int,
    seed: int,
    algorithm: str,
    block_size: int,
    verify: bool,
    overwrite: bool,
    garbage: int | None,
) -> None:
    data = mixed(size, seed)
    packed = build_zfile(
        data,
        algo=algorithm,
        block_size=block_size,
        verify=verify,
        overwrite_header=overwrite,
        digests=garbage is None,
        garbage=garbage,
    )
    assert trio.run(stream_bytes, packed) == data
    assert trio.run(stream_bytes, build_tar(packed)) == data


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_incompressible_64_kib_blocks_are_readable(algorithm: str) -> None:
    # The reference writes such files and cannot read them (spec: zfile 11).
    data = Random(5).randbytes(200_000)
    packed = build_zfile(data, algo=algorithm, block_size=65536)
    assert max(parse_zfile(packed).sizes) > 65536
    assert await stream_bytes(packed) == data


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_ranges(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60000))
    plain = mixed(size, size)
    packed = build_zfile(plain, block_size=data.draw(st.sampled_from((512, 4096, 16384))))
    ranges = data.draw(
        st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, size)), min_size=1, max_size=20)
    )

    async def check() -> None:
        # One stream for all ranges: remembered blocks must not leak into other answers.
        stream, _ = await open_stream(MemorySource(packed, NAME))
        remote, _ = await open_stream(FaultySource(MemorySource(packed, NAME), remote=True))
        for offset, length in ranges:
            length = min(length, size - offset)
            wanted = plain[offset : offset + length]
            quick = stream.parts_nowait(offset, length)
            assert quick is not None
            assert b"".join(quick) == wanted
            assert await stream.read(offset, length) == wanted
            assert await remote.read(offset, length) == wanted

    trio.run(check)


def test_decode_of_a_run_in_the_middle() -> None:
    data = mixed(4096 * 10)
    packed = build_zfile(data)
    blocks = open_map(packed)
    run = packed[blocks.offsets[3] : blocks.offsets[7]]
    assert blocks.decode(run, 3, 7) == data[3 * 4096 : 7 * 4096]


def test_blocks_of_a_range() -> None:
    blocks = open_map(build_zfile(bytes(4096 * 4)))
    assert blocks.blocks_of(0, 1) == (0, 1)
    assert blocks.blocks_of(4095, 2) == (0, 2)
    assert blocks.blocks_of(4096, 4096) == (1, 2)
    assert blocks.blocks_of(0, 16384) == (0, 4)


# --- writing, read by an independent strict parser


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 40000),
    cuts=st.lists(st.integers(0, 40000), max_size=6),
    algorithm=st.sampled_from(ALGORITHMS),
    block_size=st.sampled_from(BLOCK_SIZES),
    verify=st.booleans(),
    over=st.booleans(),
)
def test_writes_what_a_strict_reader_accepts(
    size: int, cuts: list[int], algorithm: str, block_size: int, verify: bool, over: bool
) -> None:
    data = mixed(size, size)
    borders = sorted({0, size, *(cut for cut in cuts if cut < size)})
    pieces = [data[a:b] for a, b in pairwise(borders)]
    packed = write_all(pieces, algorithm, block_size, verify=verify, over=over)
    parsed = parse_zfile(packed)
    assert parsed.plain == data
    assert parsed.trailer["verify"] == verify
    assert parsed.trailer["block_size"] == block_size
    # How the stream was handed over must not show: blocks are filled before they are compressed.
    assert packed == write_all([data], algorithm, block_size, verify=verify, over=over)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_write_one_byte_at_a_time(algorithm: str) -> None:
    data = mixed(4096 + 100)
    pieces = [data[i : i + 1] for i in range(len(data))]
    assert parse_zfile(write_all(pieces, algorithm, 4096)).plain == data


def test_written_header_flags() -> None:
    assert unpack_ht(write_all([b"x"], "lz4", 4096)[:HT_SIZE])["flags"] == 0x13
    assert unpack_ht(write_all([b"x"], "lz4", 4096, over=True)[:HT_SIZE])["flags"] == 0x1B


@pytest.mark.parametrize(
    ("algorithm", "block_size"),
    [("lzo", 4096), ("", 4096), ("lz4", 0), ("lz4", 4095), ("lz4", 2048), ("zstd", 131072)],
)
def test_writer_refuses_options_that_the_tools_do_not_have(algorithm: str, block_size: int) -> None:
    with pytest.raises(ValueError, match=r"algorithm|block size"):
        ZFileWriter(algorithm, block_size)


@pytest.mark.parametrize("name", ["zeros100000.lz4-32k.zfile", "b65536.zstd-16k.zfile"])
def test_writes_the_same_layout_as_the_reference(name: str) -> None:
    reference = parse_zfile(golden.data_of(f"zfile/{name}"))
    algorithm, _, size = name.split(".")[1].partition("-")
    packed = write_all([reference.plain], algorithm, 1024 * int(size.rstrip("k")))
    assert packed[:HT_SIZE] == golden.data_of(f"zfile/{name}")[:HT_SIZE]
    assert len(parse_zfile(packed).sizes) == len(reference.sizes)


# --- rules for header and trailer (spec: zfile 2, 6, 14)


SAMPLE = mixed(30000, 3)
REPLACED = 5
"""A block of SAMPLE that compresses well, for tests that put something else in its place."""
PLAIN = SAMPLE[REPLACED * 4096 : (REPLACED + 1) * 4096]


def with_header(packed: bytes, **changes: Any) -> bytes:
    return redigest(packed[:HT_SIZE], **changes) + packed[HT_SIZE:]


def with_trailer(packed: bytes, **changes: Any) -> bytes:
    return packed[:-HT_SIZE] + redigest(packed[-HT_SIZE:], **changes)


HEADER_RULES: dict[str, tuple[dict[str, Any], type[HybridError]]] = {
    "magic0": ({"magic0": b"ZFile\0\x02\0"}, FormatError),
    "magic1": ({"magic1": b"tuji.yyf@alibaba"}, FormatError),
    "header-bit": ({"flags": 0x12}, FormatError),
    "data-bit": ({"flags": 0x11}, FormatError),
    "digest": ({"digest": 1}, FormatError),
    "algo-minilzo": ({"algo": 0}, UnsupportedError),
    "algo-unknown": ({"algo": 3}, UnsupportedError),
    "dictionary": ({"use_dict": 1, "dict_size": 100}, UnsupportedError),
    "block-size-0": ({"block_size": 0}, FormatError),
    "block-size-no-power": ({"block_size": 12288}, FormatError),
    "block-size-above-64k": ({"block_size": 131072}, FormatError),
}


@pytest.mark.parametrize("rule", HEADER_RULES)
def test_header_rule(rule: str) -> None:
    changes, error = HEADER_RULES[rule]
    packed = with_header(build_zfile(SAMPLE), **changes)
    with pytest.raises(error, match=NAME):
        zfile.parse_header(packed[:HT_SIZE], NAME)


TRAILER_RULES: dict[str, tuple[dict[str, Any], type[HybridError]]] = {
    "magic0": ({"magic0": bytes(8)}, FormatError),
    "magic1": ({"magic1": bytes(16)}, FormatError),
    "header-bit": ({"flags": 0x17}, FormatError),
    "data-bit": ({"flags": 0x14}, FormatError),
    "sealed-bit": ({"flags": 0x12}, FormatError),
    "digest": ({"digest": 1}, FormatError),
    "algo-minilzo": ({"algo": 0}, UnsupportedError),
    "algo-unknown": ({"algo": 200}, UnsupportedError),
    "dictionary": ({"use_dict": 1, "dict_size": 100}, UnsupportedError),
    "block-size-0": ({"block_size": 0}, FormatError),
    "block-size-no-power": ({"block_size": 5000}, FormatError),
    "block-size-above-64k": ({"block_size": 1 << 20}, FormatError),
    "index-size-huge": ({"index_size": 1_000_000_001}, FormatError),
    "index-size-short": ({"index_size": 7}, FormatError),
    "index-size-64-bit": ({"index_size": 2**62 + 8}, FormatError),
    "original-size-more": ({"original_size": 30000 + 4096}, FormatError),
    "original-size-huge": ({"original_size": 2**64 - 1}, FormatError),
    "original-size-zero": ({"original_size": 0}, FormatError),
    "index-offset-in-header": ({"index_offset": 511}, FormatError),
    "index-offset-zero": ({"index_offset": 0}, FormatError),
}


@pytest.mark.parametrize("rule", TRAILER_RULES)
def test_trailer_rule(rule: str) -> None:
    changes, error = TRAILER_RULES[rule]
    packed = with_trailer(build_zfile(SAMPLE), **changes)
    with pytest.raises(error, match=NAME):
        zfile.parse_trailer(packed[-HT_SIZE:], NAME)


@pytest.mark.parametrize("overwrite", [True, False], ids=["overwritten", "streamed"])
@pytest.mark.parametrize("rule", TRAILER_RULES)
async def test_trailer_rule_when_opened(rule: str, overwrite: bool) -> None:
    changes, error = TRAILER_RULES[rule]
    packed = build_zfile(SAMPLE, overwrite_header=overwrite)
    packed = with_trailer(packed, **changes)
    if overwrite:
        # An overwritten header has all that the trailer had, so nothing is lost.
        assert await answer(packed) in (SAMPLE, None)
    else:
        with pytest.raises((error, FormatError)):
            await stream_bytes(packed)


async def answer(packed: bytes) -> bytes | None:
    """The expanded stream, or None for a declared error."""
    try:
        return await stream_bytes(packed)
    except HybridError:
        return None


@pytest.mark.parametrize("offset", [0, 511, 2**63, 2**64 - 1, 2**64 - 4 * 8])
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwritten", "streamed"])
async def test_index_offset_that_would_underflow(offset: int, overwrite: bool) -> None:
    packed = build_zfile(
        SAMPLE,
        overwrite_header=overwrite,
        header={"index_offset": offset} if overwrite else {},
        trailer={"index_offset": offset},
    )
    with pytest.raises(FormatError):
        await stream_bytes(packed)


@pytest.mark.parametrize("delta", [-4, -1, 1, 4, 512])
async def test_blocks_must_end_where_the_index_begins(delta: int) -> None:
    packed = build_zfile(SAMPLE)
    right = unpack_ht(packed[-HT_SIZE:])["index_offset"]
    with pytest.raises(FormatError):
        await stream_bytes(with_trailer(packed, index_offset=right + delta))


@pytest.mark.parametrize("number", [0, 3, 7])
async def test_bytes_that_belong_to_no_block(number: int) -> None:
    def add(at: int, block: bytes) -> bytes:
        return block + b"junk" if at == number else block

    with pytest.raises(FormatError, match="index begins"):
        await stream_bytes(build_zfile(SAMPLE, stored_block=add))


@pytest.mark.parametrize("size", [0, 4, 2**32 - 1, 70000])
@pytest.mark.parametrize("number", [0, 3, 7])
async def test_impossible_block_size_in_the_index(size: int, number: int) -> None:
    sizes = parse_zfile(build_zfile(SAMPLE)).sizes
    sizes[number] = size
    with pytest.raises(FormatError):
        await stream_bytes(build_zfile(SAMPLE, sizes=sizes))


async def test_block_of_no_bytes_without_checksums() -> None:
    sizes = parse_zfile(build_zfile(SAMPLE, verify=False)).sizes
    sizes[2] += sizes[1]
    sizes[1] = 0
    with pytest.raises(FormatError):
        await stream_bytes(build_zfile(SAMPLE, verify=False, sizes=sizes))


@pytest.mark.parametrize("where", [0, 4, 31])
async def test_index_crc(where: int) -> None:
    packed = bytearray(build_zfile(SAMPLE))
    packed[unpack_ht(bytes(packed[-HT_SIZE:]))["index_offset"] + where] ^= 1
    with pytest.raises(FormatError, match="index"):
        await stream_bytes(bytes(packed))


async def test_index_swapped_sizes_without_crc_are_found_by_the_blocks() -> None:
    sizes = parse_zfile(build_zfile(SAMPLE)).sizes
    sizes[0], sizes[1] = sizes[1], sizes[0]
    assert sizes[0] != sizes[1]
    packed = build_zfile(SAMPLE, sizes=sizes, digests=False, garbage=4)
    with pytest.raises(FormatError, match="block 0"):
        await stream_bytes(packed)


IGNORED = {
    "size": {"size": 0}, "level": {"level": 7}, "upper-flags": {"flags": 0x13 | 0xFFFFFFFFFFFFFFC0},
    "compressed-index-bit": {"flags": 0x33}, "reserved": {"reserved1": 9, "reserved2": 9},
    "pads": {"pad1": 1, "pad2": b"garbage"}, "padding": {"padding": b"\xff" * 416},
}  # fmt: skip


@pytest.mark.parametrize("field", IGNORED)
async def test_ignored_field(field: str) -> None:
    changes = IGNORED[field]
    packed = with_header(build_zfile(SAMPLE), **changes)
    if "flags" in changes:
        changes = {"flags": changes["flags"] & ~0x13 | 0x16}
    assert await stream_bytes(with_trailer(packed, **changes)) == SAMPLE


@pytest.mark.parametrize("seed", range(5))
async def test_old_file_with_garbage_and_no_digests(seed: int) -> None:
    packed = build_zfile(SAMPLE, digests=False, garbage=seed)
    assert not unpack_ht(packed[:HT_SIZE])["flags"] & 0x10
    assert await stream_bytes(packed) == SAMPLE


@pytest.mark.parametrize("cut", [0, 23, 511])
def test_cut_off_header_and_trailer(cut: int) -> None:
    packed = build_zfile(SAMPLE)
    with pytest.raises(FormatError):
        zfile.parse_header(packed[:cut], NAME)
    with pytest.raises(FormatError):
        zfile.parse_trailer(packed[-HT_SIZE:][:cut], NAME)


def test_parse_index_of_wrong_length() -> None:
    packed = build_zfile(SAMPLE)
    record = zfile.parse_trailer(packed[-HT_SIZE:], NAME)
    raw = packed[record.index_offset : -HT_SIZE]
    for bad in (raw[:-4], raw[:-1], raw + bytes(4), b""):
        with pytest.raises(FormatError):
            zfile.parse_index(bad, record, NAME)


def test_magic_probe() -> None:
    packed = build_zfile(b"x")
    assert zfile.is_zfile(packed[:24])
    assert zfile.is_zfile(packed)
    assert not zfile.is_zfile(packed[:23])
    assert not zfile.is_zfile(b"")
    assert not zfile.is_zfile(b"Y" + packed[1:24])


# --- rules for blocks (spec: zfile 4, 7, 14)


def damaged(packed: bytes, number: int) -> DamagedBlockError:
    """The error that reading all blocks raises; it must name the file and this block."""
    with pytest.raises(DamagedBlockError, match=f"{NAME}: block {number} ") as caught:
        decode_all(packed)
    assert caught.value.block == number
    assert caught.value.offset == open_map(packed).offsets[number]
    return caught.value


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("number", [0, 4, 7])
@pytest.mark.parametrize("where", [0, 2, -1, -5])
def test_block_checksum(algorithm: str, number: int, where: int) -> None:
    def flip(at: int, block: bytes) -> bytes:
        changed = bytearray(block)
        changed[where] ^= 0x10
        return bytes(changed) if at == number else block

    damaged(build_zfile(SAMPLE, algo=algorithm, stored_block=flip), number)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("keep", [1, 100, 4095])
def test_block_that_expands_to_too_few_bytes(algorithm: str, verify: bool, keep: int) -> None:
    # The reference serves stale buffer content here (spec: zfile 14).
    def shorten(number: int, plain: bytes) -> bytes:
        return plain[:keep] if number == 2 else plain

    damaged(build_zfile(SAMPLE, algo=algorithm, verify=verify, block_data=shorten), 2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("extra", [1, 4096, 600_000])
def test_block_that_expands_to_too_many_bytes(algorithm: str, verify: bool, extra: int) -> None:
    # 600 kB of zeros in one block: a decompression bomb must not be expanded.
    def lengthen(number: int, plain: bytes) -> bytes:
        return plain + bytes(extra) if number == REPLACED else plain

    packed = build_zfile(SAMPLE, algo=algorithm, verify=verify, block_data=lengthen)
    damaged(packed, REPLACED)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_last_block_padded_with_zeros_is_damage(algorithm: str) -> None:
    def fill(number: int, plain: bytes) -> bytes:
        return plain.ljust(4096, b"\0")

    packed = build_zfile(SAMPLE, algo=algorithm, block_data=fill)
    damaged(packed, len(parse_sizes(packed)) - 1)


def parse_sizes(packed: bytes) -> tuple[int, ...]:
    info = unpack_ht(packed[-HT_SIZE:])
    return struct.unpack(f"<{info['index_size']}I", packed[info["index_offset"] : -HT_SIZE])


def store(number: int, replacement: bytes) -> Callable[[int, bytes], bytes]:
    """A stored_block that puts ``replacement`` with a right checksum in place of one block."""
    whole = replacement + struct.pack("<I", crc32c_raw(BLOCK_SEED, replacement))
    return lambda at, block: whole if at == number else block


def replaced(algorithm: str, replacement: bytes) -> bytes:
    """A ZFile whose block REPLACED is ``replacement``, with a right index and checksum."""
    sizes = parse_zfile(build_zfile(SAMPLE, algo=algorithm)).sizes
    sizes[REPLACED] = len(replacement) + 4
    stored = store(REPLACED, replacement)
    packed = build_zfile(SAMPLE, algo=algorithm, sizes=sizes, stored_block=stored)
    assert unpack_ht(packed[-HT_SIZE:])["index_offset"] == HT_SIZE + sum(sizes)
    return packed


@pytest.mark.parametrize(
    ("algorithm", "replacement"),
    [
        ("lz4", b"\xff" * 40),
        ("lz4", b"\0"),
        ("lz4", b"\x10A\0\0"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("zstd", b"not a frame"),
        ("zstd", compress_block(bytes(4096), "zstd") + b"tail"),
        ("zstd", compress_block(bytes(2048), "zstd") * 2),
        ("zstd", compress_block(b"", "zstd")),
        ("zstd", compress_block(b"", "zstd") + compress_block(bytes(4096), "zstd")),
    ],
)
def test_block_with_a_right_checksum_and_broken_content(algorithm: str, replacement: bytes) -> None:
    damaged(replaced(algorithm, replacement), REPLACED)


def test_zstd_frame_that_claims_to_be_huge() -> None:
    # Frame header with an 8-byte content size, then one raw block: nothing may be allocated for it.
    frame = b"\x28\xb5\x2f\xfd\xc0\x00" + (1 << 50).to_bytes(8, "little") + b"\x09\0\0x"
    assert zstandard.frame_content_size(frame) == 1 << 50
    damaged(replaced("zstd", frame), REPLACED)


def test_zstd_frame_without_content_size_is_read() -> None:
    frame = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(PLAIN)
    assert decode_all(replaced("zstd", frame)) == SAMPLE


def test_lz4_block_of_another_compressor_is_read() -> None:
    block = lz4.block.compress(PLAIN, mode="high_compression", compression=12, store_size=False)
    assert block != compress_block(PLAIN, "lz4")
    assert decode_all(replaced("lz4", block)) == SAMPLE


def test_short_blocks_in_the_middle_are_damage() -> None:
    # What the reference's zfile tool writes when its source gives short reads (spec: zfile 8).
    def shorten(number: int, plain: bytes) -> bytes:
        return plain[:1000] if number == 3 else plain

    damaged(build_zfile(SAMPLE, block_data=shorten), 3)


# --- fuzz: a declared error, or the right bytes


def mutate(packed: bytes, random: Random) -> bytes:
    """One random damage: flipped bits, a cut, an insertion, a removal, an overwritten range."""
    data = bytearray(packed)
    at = random.randrange(len(data) + 1)
    kind = random.randrange(6)
    if kind in (0, 1) and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        data[at:at] = random.randbytes(random.choice((1, 4, 512, 4096)))
    elif kind == 4:
        del data[at : at + random.choice((1, 4, 512, 4096))]
    else:
        data[at : at + 8] = random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
    return bytes(data)


FUZZED = {
    "streamed": build_zfile(SAMPLE),
    "overwritten": build_zfile(SAMPLE, overwrite_header=True),
    "zstd": build_zfile(SAMPLE, algo="zstd", block_size=8192),
    "old": build_zfile(SAMPLE, digests=False, garbage=1),
    "unverified": build_zfile(SAMPLE, algo="zstd", verify=False),
    "tar": build_tar(build_zfile(SAMPLE, overwrite_header=True)),
}


@pytest.mark.parametrize("kind", FUZZED)
def test_fuzz_whole_file(kind: str) -> None:
    random = Random(kind)
    packed = FUZZED[kind]
    rejected = 0

    async def run() -> None:
        nonlocal rejected
        for _ in range(400):
            data = await answer(mutate(packed, random))
            rejected += data is None
            if kind == "unverified":
                assert data is None or len(data) <= len(SAMPLE)  # no checksum: no promise of bytes
            else:
                assert data in (SAMPLE, None)

    trio.run(run)
    assert rejected > 100


@pytest.mark.parametrize("overwrite", [True, False], ids=["overwritten", "streamed"])
@pytest.mark.parametrize("bit", [0, 7])
def test_every_flipped_byte_of_trailer_and_index(overwrite: bool, bit: int) -> None:
    packed = build_zfile(SAMPLE[:9000], overwrite_header=overwrite)
    start = unpack_ht(packed[-HT_SIZE:])["index_offset"]

    async def run() -> None:
        for at in range(start, len(packed)):
            data = bytearray(packed)
            data[at] ^= 1 << bit
            found = await answer(bytes(data))
            assert found in ((SAMPLE[:9000], None) if overwrite else (None,)), at

    trio.run(run)


def test_every_truncation_of_a_small_file() -> None:
    packed = build_zfile(SAMPLE[:5000])

    async def run() -> None:
        for size in range(len(packed)):
            assert await answer(packed[:size]) is None, size

    trio.run(run)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=1500))
def test_fuzz_parsers_with_any_bytes(data: bytes) -> None:
    for parse in (zfile.parse_header, zfile.parse_trailer):
        for block in (data, data.ljust(HT_SIZE, b"\0")[:HT_SIZE],
                      (zfile.MAGIC + data).ljust(HT_SIZE, b"\0")[:HT_SIZE]):  # fmt: skip
            with pytest.raises(HybridError):
                parse(block, NAME)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=1, max_size=300), algorithm=st.sampled_from(ALGORITHMS))
def test_fuzz_decode_of_any_bytes(data: bytes, algorithm: str) -> None:
    packed = build_zfile(bytes(4096), algo=algorithm, verify=False)
    size = len(data)
    trailer = redigest(packed[-HT_SIZE:], index_offset=HT_SIZE + size, index_crc=index_crc(size))
    record = zfile.parse_trailer(trailer, NAME)
    blocks = zfile.parse_index(struct.pack("<I", size), record, NAME)
    try:
        block = blocks.decode(data, 0, 1)
    except DamagedBlockError:
        return
    assert len(block) == 4096


def index_crc(size: int) -> int:
    return crc32c_raw(0, struct.pack("<I", size))

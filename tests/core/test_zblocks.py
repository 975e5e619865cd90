"""Runs of blocks: the compiled implementation against the one in Python, and against threads."""

from __future__ import annotations

import os
import subprocess
import sys
from array import array
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build_zfile import compress_block, decompress_block
from support.builders import build_zfile, crc32c_raw, parse_zfile
from support.codec_fuzz import compare, outcome
from support.implementations import IMPLEMENTATIONS, implementation, using

from hybrid.core import zblocks, zblocks_pure
from hybrid.core.opening import open_stream
from hybrid.core.source import MemorySource
from hybrid.core.zblocks import encode_blocks
from hybrid.core.zfile import ZFileWriter

ALGORITHMS = ("lz4", "zstd")
BLOCK_SIZES = (4096, 8192, 16384, 32768, 65536)
ROOT = Path(__file__).resolve().parents[2]


def content(size: int, seed: int = 1) -> bytes:
    """Incompressible bytes, zeros and repeated ones in turns."""
    random = Random(seed)
    out = bytearray()
    while len(out) < size:
        length = random.randint(1, 20_000)
        piece = random.randbytes(random.randint(1, 200))
        out += random.choice((bytes(length), random.randbytes(length), piece * (length // 50)))
    return bytes(out[:size])


LARGE = content(700_001)
"""Enough for several threads."""


@pytest.fixture(params=IMPLEMENTATIONS)
def each(request: pytest.FixtureRequest) -> Any:
    with using(request.param):
        yield request.param


# --- what was built, and which is used


def test_the_extension_was_built_with_both_libraries() -> None:
    implementation("compiled")
    from hybrid.core import zblocks_compiled

    for algorithm in ALGORITHMS:
        assert zblocks_compiled.library(algorithm) is not None, (
            f"{algorithm}: the package shows no functions, so that Python handles the blocks"
        )


@pytest.mark.parametrize(
    ("value", "module"),
    [(None, "zblocks_compiled"), ("", "zblocks_compiled"), ("0", "zblocks_compiled"),
     ("1", "zblocks_pure")],
)  # fmt: skip
def test_the_environment_chooses(value: str | None, module: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HYBRID_PURE_PYTHON"}
    if value is not None:
        environment["HYBRID_PURE_PYTHON"] = value
    program = "from hybrid.core import zblocks; print(zblocks.active.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"hybrid.core.{module}"


def test_without_the_extension_python_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import hybrid.core

    monkeypatch.setitem(sys.modules, "hybrid.core._zblocks", None)
    monkeypatch.delitem(sys.modules, "hybrid.core.zblocks_compiled", raising=False)
    for name in ("_zblocks", "zblocks_compiled"):
        monkeypatch.delattr(hybrid.core, name, raising=False)
    monkeypatch.delenv("HYBRID_PURE_PYTHON", raising=False)
    assert zblocks.find_compiled() is None
    assert zblocks._choose() is zblocks_pure


def test_without_a_library_python_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid.core import zblocks_compiled

    def missing() -> int:
        raise ImportError("no functions")

    monkeypatch.setattr(zblocks_compiled, "_LIBRARIES", {"lz4": missing})
    zblocks_compiled.library.cache_clear()
    try:
        packed, sizes = zblocks_compiled.pack(memoryview(LARGE), 4096, "lz4", True, 2)
        offsets = array("Q", accumulate(sizes, initial=512))
        plain = zblocks_compiled.expand(
            packed, offsets, 0, len(sizes), len(LARGE), 4096, "lz4", True
        )
    finally:
        zblocks_compiled.library.cache_clear()
    assert plain == LARGE
    assert packed == zblocks_pure.pack(memoryview(LARGE), 4096, "lz4", True, 1)[0]


def test_a_file_without_the_functions_changes_nothing(tmp_path: Path) -> None:
    from hybrid.core import _zblocks, zblocks_compiled

    assert zblocks_compiled.library("lz4") == _zblocks.LZ4
    for path in (tmp_path / "none.so", Path(_zblocks.__file__)):
        for bind in (_zblocks.bind_lz4, _zblocks.bind_zstd):
            with pytest.raises(ImportError):
                bind(str(path))
    with using("compiled"):
        assert encode_blocks(LARGE) == zblocks_pure.pack(memoryview(LARGE), 4096, "lz4", True, 1)


# --- CRC


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), data=st.binary(max_size=200), cut=st.integers(0, 8),
    portable=st.booleans(),
)  # fmt: skip
def test_crc_of_either_kind(seed: int, data: bytes, cut: int, portable: bool) -> None:
    from hybrid.core import _zblocks

    piece = memoryview(data)[cut:]  # at any alignment
    assert _zblocks.crc32c(seed, piece, portable) == crc32c_raw(seed, bytes(piece))
    expected = ~crc32c_raw(seed, bytes(piece)) & 0xFFFFFFFF
    for name in IMPLEMENTATIONS:
        assert implementation(name).crc32c(piece, ~seed & 0xFFFFFFFF) == expected


# --- expanding


def test_both_find_the_same_in_damaged_runs() -> None:
    implementation("compiled")
    damaged = sum(compare(Random(f"suite-{number}")) for number in range(700))
    assert 200 < damaged < 600


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("block_size", [4096, 65536])
def test_the_first_damaged_block_is_named(algorithm: str, block_size: int) -> None:
    from hybrid.core import _zblocks, zblocks_compiled

    packed, sizes = zblocks_pure.pack(memoryview(LARGE), block_size, algorithm, True, 1)
    offsets = array("Q", accumulate(sizes, initial=512))
    number = zblocks_compiled.library(algorithm)
    assert number is not None
    random = Random(algorithm)

    def expand(data: bytes) -> bytes | int:
        return _zblocks.expand(data, offsets, 0, len(sizes), len(LARGE), block_size, number, True)

    assert expand(packed) == LARGE
    for _ in range(30):
        bad = sorted(random.sample(range(len(sizes)), 3))
        data = bytearray(packed)
        for block in bad:
            data[offsets[block] - 512 + random.randrange(sizes[block])] ^= 4
        assert expand(bytes(data)) == bad[0]


@pytest.mark.parametrize(
    ("first", "last", "size"),
    [(0, 0, 8192), (1, 1, 8192), (1, 0, 8192), (0, 3, 8192), (0, 2, 4096), (0, 2, 0),
     (2**63, 2**63 + 1, 8192), (0, 2**64 - 1, 2**64 - 1), (1, 2**48, 2**64 - 1)],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(first: int, last: int, size: int) -> None:
    from hybrid.core import _zblocks

    offsets = array("Q", [512, 600, 700])
    with pytest.raises(ValueError, match="no blocks"):
        _zblocks.expand(bytes(188), offsets, first, last, size, 4096, 0, True)


@pytest.mark.parametrize("block_size", [0, 511, 3000, 131072])
def test_impossible_block_sizes_are_refused(block_size: int) -> None:
    from hybrid.core import _zblocks

    offsets = memoryview(array("Q", [512, 600]))
    with pytest.raises(ValueError, match="block size"):
        _zblocks.expand(bytes(88), offsets, 0, 1, 1, block_size, 0, True)
    with pytest.raises(ValueError, match="block size"):
        _zblocks.pack(bytes(88), block_size, 0, True, 1)


def test_offsets_of_another_kind_are_refused() -> None:
    from hybrid.core import _zblocks

    for offsets in (memoryview(array("I", [512, 600, 0, 0])), bytes(64)):
        with pytest.raises(ValueError, match="64-bit"):
            _zblocks.expand(bytes(88), offsets, 0, 1, 1, 4096, 0, True)


@pytest.mark.parametrize("algorithm", [-1, 2, 1000])
def test_unknown_algorithm_is_refused(algorithm: int) -> None:
    from hybrid.core import _zblocks

    with pytest.raises(ValueError, match="algorithm"):
        _zblocks.pack(b"x", 4096, algorithm, True, 1)


def test_a_frame_with_a_frame_behind_it_and_a_skippable_one(each: str) -> None:
    # One call of zstd may take several frames: a block is exactly one.
    frame = compress_block(bytes(2048), "zstd")
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    for block in (frame * 2, skippable + frame, frame + skippable, skippable):
        offsets = array("Q", [0, len(block)])
        for size in (2048, 4096):
            with pytest.raises(zblocks_pure.BadBlockError):
                zblocks.active.expand(block, offsets, 0, 1, size, 4096, "zstd", False)


# --- packing


@settings(max_examples=60)
@given(
    size=st.integers(0, 150_000), seed=st.integers(0, 1000), verify=st.booleans(),
    algorithm=st.sampled_from(ALGORITHMS), block_size=st.sampled_from(BLOCK_SIZES),
)  # fmt: skip
def test_both_pack_alike(
    size: int, seed: int, verify: bool, algorithm: str, block_size: int
) -> None:
    data = memoryview(content(size, seed))
    arguments = data, block_size, algorithm, verify, 1
    assert implementation("compiled").pack(*arguments) == zblocks_pure.pack(*arguments)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_threads_do_not_show(each: str, algorithm: str, block_size: int) -> None:
    packed, sizes = zblocks_pure.pack(memoryview(LARGE), block_size, algorithm, True, 1)
    for threads in (1, 2, 3, 100):
        for _ in range(3):
            done = encode_blocks(LARGE, algorithm, block_size, threads=threads)
            assert done == (packed, sizes), threads


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_packed_blocks_are_those_of_the_format(each: str, algorithm: str) -> None:
    packed, sizes = encode_blocks(LARGE, algorithm, 16384, verify=True)
    plain, start = [], 0
    for size in sizes:
        block, stored = packed[start : start + size - 4], packed[start + size - 4 : start + size]
        assert crc32c_raw(100007, block) == int.from_bytes(stored, "little")
        plain.append(decompress_block(block, {"lz4": 1, "zstd": 2}[algorithm], 16384))
        start += size
    assert start == len(packed)
    assert b"".join(plain) == LARGE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_many_callers_at_once(each: str, algorithm: str) -> None:
    pieces = [LARGE[start : start + 65536] for start in range(0, len(LARGE), 65536)] * 3
    wanted = [encode_blocks(piece, algorithm) for piece in pieces]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda p: encode_blocks(p, algorithm, threads=2), pieces)) == wanted


def test_any_buffer(each: str) -> None:
    data = array("Q", range(3000))
    wanted = encode_blocks(data.tobytes())
    for buffer in (memoryview(data), bytearray(data.tobytes()), memoryview(data.tobytes())):
        assert encode_blocks(buffer) == wanted
        writer = ZFileWriter()
        assert writer.write(buffer) + writer.finish() == build_zfile(data.tobytes())[512:]


@pytest.mark.parametrize(("algorithm", "block_size"), [("lzo", 4096), ("lz4", 2048), ("lz4", 1)])
def test_options_that_the_format_does_not_have(each: str, algorithm: str, block_size: int) -> None:
    with pytest.raises(ValueError, match=r"algorithm|block size"):
        encode_blocks(b"x", algorithm, block_size)


# --- the writer on top


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_writer_with_threads(each: str, algorithm: str, threads: int) -> None:
    data = LARGE * 8  # more than the writer takes at once
    writer = ZFileWriter(algorithm, threads=threads)
    out = writer.header() + writer.write(data[:5000]) + writer.write(data[5000:]) + writer.finish()
    assert out == build_zfile(data, algo=algorithm)


@pytest.mark.parametrize("step", [4096, 65536, 4096 * 171])
def test_blocks_that_were_packed_elsewhere(each: str, step: int) -> None:
    writer = ZFileWriter()
    out = writer.header()
    for start in range(0, len(LARGE), step):
        piece = LARGE[start : start + step]
        out += writer.add_encoded(*encode_blocks(piece), len(piece))
    assert out + writer.finish() == build_zfile(LARGE)


def test_write_and_packed_blocks_in_turns(each: str) -> None:
    writer = ZFileWriter("zstd", 8192)
    out = writer.header() + writer.write(LARGE[:8192])
    out += writer.add_encoded(*encode_blocks(LARGE[8192:16384], "zstd", 8192), 8192)
    out += writer.write(LARGE[16384:20000]) + writer.finish()
    assert parse_zfile(out).plain == LARGE[:20000]


def test_blocks_that_cannot_come_here(each: str) -> None:
    blocks, sizes = encode_blocks(LARGE[:8192])
    writer = ZFileWriter()
    for arguments in (
        (blocks, sizes, 4096), (blocks, sizes, 8193), (blocks[1:], sizes, 8192),
        (blocks, sizes[:1], 8192), (b"", array("I"), 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="not those of"):
            writer.add_encoded(*arguments)
    writer.write(b"x")
    with pytest.raises(ValueError, match="incomplete"):
        writer.add_encoded(blocks, sizes, 8192)
    ended = ZFileWriter()
    ended.add_encoded(*encode_blocks(b"abc"), 3)
    with pytest.raises(ValueError, match="ended"):
        ended.write(b"x")
    with pytest.raises(ValueError, match="ended"):
        ended.add_encoded(blocks, sizes, 8192)
    assert parse_zfile(ended.header() + encode_blocks(b"abc")[0] + ended.finish()).plain == b"abc"


# --- the stream above


async def test_a_remembered_block_does_not_keep_the_run(each: str) -> None:
    stream, _ = await open_stream(MemorySource(build_zfile(LARGE), "blob"))
    for _ in range(2):
        parts = stream.parts_nowait(5000, 400_000)
        assert parts is not None
        assert b"".join(parts) == LARGE[5000:405_000]
    kept = stream._remembered
    assert sorted(kept) == [1, 98]
    assert [(type(block), len(block)) for block in kept.values()] == [(bytes, 4096)] * 2


async def test_a_whole_run_is_not_copied(each: str) -> None:
    stream, _ = await open_stream(MemorySource(build_zfile(LARGE), "blob"))
    parts = stream.parts_nowait(4096, 409_600)
    assert parts is not None
    assert [type(part) for part in parts] == [bytes]


def test_a_run_that_was_cut_off_names_its_first_missing_block(each: str) -> None:
    blocks, sizes = encode_blocks(LARGE[:40960])
    offsets = array("Q", accumulate(sizes, initial=512))

    def expand(*arguments: Any) -> bytes:
        return zblocks.active.expand(*arguments)

    for number in range(10):
        with pytest.raises(zblocks_pure.BadBlockError, match=f"block {number}: lies outside"):
            expand(blocks[: offsets[number + 1] - 513], offsets, 0, 10, 40960, 4096, "lz4", True)


def test_outcome_helper_tells_both_ends() -> None:
    # The fuzz above compares outcomes: they must not be all alike.
    random = Random(3)
    found = {type(outcome(zblocks_pure.expand, run)) for run in _some_runs(random)}
    assert found == {bytes, tuple}


def _some_runs(random: Random) -> Any:
    from support.codec_fuzz import damage, make_run

    return [damage(make_run(random), random) for _ in range(20)]

"""Opening layers: what is asked of the registry, what is checked when, what damage leads to."""

from __future__ import annotations

import gzip
import io
import logging
import tarfile
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import zstandard
from support import golden
from support.build_faults import StaleCache, flipped
from support.build_lsmt import HT_SIZE
from support.build_tar import STYLES, pad, tar_prefix
from support.builders import (
    SECTOR,
    ModelLayer,
    Write,
    build_blob,
    build_tar,
    build_zfile,
    model_merge,
    parse_zfile,
)
from support.golden_disk import disk_of, open_disk, read

from hybrid.core.device import Source
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer, open_stream
from hybrid.core.source import FaultySource, FileSource, MemorySource
from hybrid.errors import FormatError, HybridError, NetworkError, UnsupportedError


def sectors(count: int, seed: int) -> bytes:
    """Half compressible, half not; no two sectors alike."""
    random = Random(seed)
    return b"".join(
        random.randbytes(SECTOR // 2) + number.to_bytes(SECTOR // 2, "big")
        for number in range(count)
    )


BIG = ModelLayer(
    (*(Write(100 * i, sectors(80, i)) for i in range(40)), Write(5000, 50)), 5120 * SECTOR
)
"""1.6 MiB of data: its tail is a small part of it."""
SMALL = ModelLayer((Write(3, sectors(20, 7)), Write(40, 5)), 64 * SECTOR)

BIG_LSMT = BIG.build()
SMALL_LSMT = SMALL.build()
BIG_BLOB = build_blob(BIG_LSMT)
SMALL_BLOB = build_blob(SMALL_LSMT)
BIG_DISK = model_merge([BIG])
SMALL_DISK = model_merge([SMALL])


def remote(data: bytes) -> FaultySource:
    return FaultySource(MemorySource(data), remote=True)


async def layer_bytes(layer: Layer, offset: int, length: int) -> bytes:
    """A range of the layer's LSMT stream."""
    return b"".join(await layer.parts(offset, length))


def blocks_of(blob: bytes) -> tuple[int, list[int]]:
    """Where the ZFile begins in a blob, and where each of its blocks does (bytes of the blob)."""
    base = blob.index(b"ZFile\0\x01\0")
    end = blob.rindex(b"ZFile\0\x01\0") + 512
    sizes = parse_zfile(blob[base:end]).sizes
    starts = [base + 512]
    for size in sizes:
        starts.append(starts[-1] + size)
    return base, starts


# --- how many requests opening takes


ENCODINGS: dict[str, dict[str, Any]] = {
    "lz4-4k-tar": {},
    "lz4-4k-bare": {"tar": None},
    "lz4-4k-streamed": {"tar": None, "overwrite_header": False},
    "zstd-16k-tar": {"algo": "zstd", "block_size": 16384},
    "lz4-64k-ustar": {"tar": "ustar", "block_size": 65536},
    "old": {"tar": "ustar", "digests": False, "garbage": 3, "overwrite_header": False},
    "unverified": {"verify": False},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_opening_takes_one_read_of_the_tail(encoding: str) -> None:
    blob = build_blob(BIG_LSMT, **ENCODINGS[encoding])
    source = remote(blob)
    layer = await open_layer(source)
    ((offset, length),) = source.requests
    assert offset + length == len(blob)
    assert length < len(blob) // 4
    assert layer.record.virtual_size == BIG.vsize
    assert source.evictions == []


@pytest.mark.parametrize("name", ["L1.lz4-4k.tar", "L2.zstd-16k", "L3.lz4-4k.tar", "L1.lz4-64k"])
async def test_opening_a_golden_layer_takes_one_read(name: str) -> None:
    source = FaultySource(FileSource(golden.tree() / "img" / name), remote=True)
    layer = await open_layer(source)
    assert len(source.requests) == 1
    assert layer.segments is not None
    assert len(layer.segments) > 10
    await layer.aclose()


async def test_opening_a_converters_tar_with_extra_zero_blocks_takes_one_read() -> None:
    blob = build_tar(build_zfile(BIG_LSMT), extra_blocks=2)
    source = remote(blob)
    async with open_disk([source]) as disk:
        assert len(source.requests) == 1
        assert await read(disk, 0, disk.size) == BIG_DISK


@pytest.mark.parametrize("padding", range(0, 512, 73))
async def test_tail_is_found_whatever_the_tar_padding(padding: int) -> None:
    packed = build_zfile(SMALL_LSMT)
    payload = build_zfile(SMALL_LSMT, stored_block=lambda _, block: block)
    assert payload == packed
    grown = ModelLayer(SMALL.writes, SMALL.vsize).build(user_tag=Random(padding).randbytes(padding))
    blob = build_blob(grown)
    source = remote(blob)
    async with open_disk([source]) as disk:
        assert len(source.requests) == 1
        assert await read(disk, 0, disk.size) == SMALL_DISK


async def test_small_blob_is_read_once_as_a_whole_to_open_it() -> None:
    source = remote(SMALL_BLOB)
    await open_layer(source)
    assert source.requests == [(0, len(SMALL_BLOB))]


async def test_plain_layer_takes_few_reads() -> None:
    # Nothing at the end of a plain layer says whether it is in a tar: its head is needed too.
    for tar in (None, "pax"):
        source = remote(build_blob(BIG_LSMT, zfile=False, tar=tar))
        await open_layer(source)
        assert len(source.requests) <= 3


LONG = ModelLayer(tuple(Write(2 * i, sectors(1, i)) for i in range(6000)), 12000 * SECTOR)
LONG_BLOB = build_blob(LONG.build(), block_size=512)
"""A blob whose indexes do not fit into the tail that is read first."""


async def test_index_larger_than_the_tail() -> None:
    source = remote(LONG_BLOB)
    async with open_disk([source]) as disk:
        assert 1 < len(source.requests) <= 4
        assert await read(disk, 0, disk.size) == model_merge([LONG])


async def test_reading_fetches_only_the_blocks_that_are_needed() -> None:
    source = remote(BIG_BLOB)
    async with open_disk([source]) as disk:
        await disk.pread(0, 512)  # the head is checked with it
        del source.requests[:]
        assert bytes(await disk.pread(2000 * SECTOR, 4096)) == BIG_DISK[2000 * SECTOR :][:4096]
        assert len(source.requests) == 1
        assert sum(length for _, length in source.requests) < 16384


async def test_zeros_and_holes_ask_nothing() -> None:
    source = remote(BIG_BLOB)
    async with open_disk([source]) as disk:
        del source.requests[:]
        for offset, length in ((85 * SECTOR, 10 * SECTOR), (5000 * SECTOR, 50 * SECTOR)):
            quick = disk.pread_nowait(offset, length)
            assert quick is not None
            assert bytes(quick) == bytes(length)
            assert bytes(await disk.pread(offset, length)) == bytes(length)
        assert source.requests == []


# --- every combination of wrappers


@pytest.mark.parametrize("tar", [None, *STYLES])
@pytest.mark.parametrize("packed", ["plain", "lz4", "zstd", "streamed"])
@pytest.mark.parametrize("where", ["local", "remote"])
async def test_every_combination_of_wrappers(tar: str | None, packed: str, where: str) -> None:
    options = {"lz4": {}, "zstd": {"algo": "zstd"}, "streamed": {"overwrite_header": False}}
    blob = build_blob(SMALL_LSMT, zfile=packed != "plain", tar=tar, **options.get(packed, {}))
    source: Source = remote(blob) if where == "remote" else MemorySource(blob)
    assert await disk_of([source]) == SMALL_DISK


async def test_local_layers_never_need_to_wait(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(BIG_BLOB)
    async with open_disk([path]) as disk:
        assert await read(disk, 0, disk.size) == BIG_DISK
        quick = disk.pread_nowait(0, disk.size)
        assert quick is not None
        assert bytes(quick) == BIG_DISK


async def test_wrapper_without_its_end_mark() -> None:
    end = BIG_BLOB.rindex(b"ZFile\0\x01\0") + 512
    assert await disk_of([BIG_BLOB[:end]]) == BIG_DISK


# --- the head is checked before anything is served


def head_damages() -> dict[str, bytes]:
    base, starts = blocks_of(BIG_BLOB)
    return {
        "tar-pax-header": flipped(BIG_BLOB, 10),
        "tar-pax-record": flipped(BIG_BLOB, 520),
        "tar-member-header": flipped(BIG_BLOB, 1030),
        "tar-member-is-cut": tar_prefix(starts[-1]) + BIG_BLOB[1536:],
        "zfile-header-magic": flipped(BIG_BLOB, base + 1),
        "zfile-header-digest": flipped(BIG_BLOB, base + 300),
        "zfile-header-of-another": BIG_BLOB[:base]
        + build_zfile(BIG_LSMT, block_size=8192)[:512]
        + BIG_BLOB[base + 512 :],
        "zfile-header-of-another-size": BIG_BLOB[:base]
        + build_zfile(SMALL_LSMT, overwrite_header=True)[:512]
        + BIG_BLOB[base + 512 :],
        "first-block": flipped(BIG_BLOB, starts[0] + 5),
        "lsmt-header-magic": build_blob(flipped(BIG_LSMT, 3)),
        "lsmt-header-flags": build_blob(flipped(BIG_LSMT, 28, mask=2)),
    }


@pytest.mark.parametrize("damage", head_damages())
async def test_damaged_head_is_found_before_the_first_block_is_served(damage: str) -> None:
    blob = head_damages()[damage]
    source = remote(blob)
    layer = await open_layer(source)
    assert len(source.requests) == 1
    # The end of the layer is far from its head: the check must come first all the same.
    for offset in (HT_SIZE, len(BIG_LSMT) // 2):
        with pytest.raises(FormatError, match="memory"):
            await layer.parts(offset, 512)


@pytest.mark.parametrize("damage", head_damages())
async def test_damaged_head_of_a_local_layer(damage: str) -> None:
    layer = await open_layer(MemorySource(head_damages()[damage]))
    assert layer.parts_nowait(HT_SIZE, 512) is None
    with pytest.raises(FormatError):
        await layer.parts(HT_SIZE, 512)
    assert layer.parts_nowait(HT_SIZE, 512) is None


@pytest.mark.parametrize("damage", [name for name in head_damages() if "lsmt" not in name])
async def test_damaged_head_in_the_cache_is_fetched_again(damage: str) -> None:
    damaged = head_damages()[damage]
    assert len(damaged) == len(BIG_BLOB), "a cache holds files of the right size"
    source = StaleCache(damaged, BIG_BLOB)
    async with open_disk([source]) as disk:
        assert await read(disk, 0, disk.size) == BIG_DISK
    assert source.evictions


async def test_head_is_checked_once_however_many_readers_wait() -> None:
    source = remote(BIG_BLOB)
    layer = await open_layer(source)
    del source.requests[:]
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(layer.parts, HT_SIZE + number * 40960, 512)
    assert sum(1 for offset, _ in source.requests if offset == 0) == 1
    assert len(source.requests) == 11
    await layer.parts(HT_SIZE + 12288, 512)
    assert sum(1 for offset, _ in source.requests if offset == 0) == 1


async def test_head_check_that_failed_is_tried_again() -> None:
    # A registry that was away for a moment must not make the layer useless for ever.
    away = True

    def fault(offset: int, length: int) -> bytes | None:
        if away and offset == 0:
            raise NetworkError("registry is away")
        return None

    source = FaultySource(MemorySource(BIG_BLOB), fault, remote=True)
    layer = await open_layer(source)
    with pytest.raises(NetworkError):
        await layer.parts(HT_SIZE, 512)
    away = False
    assert await layer_bytes(layer, HT_SIZE, 512) == BIG_LSMT[HT_SIZE : HT_SIZE + 512]


# --- damaged blocks


def damaged_block(number: int, blob: bytes = BIG_BLOB) -> bytes:
    _, starts = blocks_of(blob)
    return flipped(blob, starts[number] + 7)


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("number", [1, 5, 200])
async def test_damaged_block_is_evicted_and_fetched_once_more(
    where: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, starts = blocks_of(BIG_BLOB)
    block = (starts[number], starts[number + 1] - starts[number])
    source = StaleCache(damaged_block(number), BIG_BLOB, remote=where == "remote")
    layer = await open_layer(source)
    await layer.check_head()
    del source.requests[:]
    with caplog.at_level(logging.WARNING):
        found = await layer_bytes(layer, number * 4096, 4096)
    assert found == BIG_LSMT[number * 4096 : (number + 1) * 4096]
    assert source.requests == [block, block]
    assert set(source.evictions) == {block}
    assert f"block {number} " in caplog.text
    assert "stale" in caplog.text


async def test_several_damaged_blocks_in_one_read() -> None:
    _, starts = blocks_of(BIG_BLOB)
    copy = flipped(BIG_BLOB, *(starts[number] + 3 for number in (20, 23, 29)))
    source = StaleCache(copy, BIG_BLOB)
    layer = await open_layer(source)
    await layer.check_head()
    del source.requests[:]
    found = await layer_bytes(layer, 20 * 4096, 10 * 4096)
    assert found == BIG_LSMT[20 * 4096 : 30 * 4096]
    assert len(source.requests) <= 4


async def test_bytes_in_front_of_a_zfile() -> None:
    packed = build_zfile(SMALL_LSMT, overwrite_header=True)
    for junk in (b"x" * 100, b"x" * 512, bytes(512), bytes(1536)):
        with pytest.raises((FormatError, UnsupportedError)):
            await disk_of([junk + packed])


@pytest.mark.parametrize("where", ["local", "remote"])
async def test_block_that_is_damaged_at_the_origin_too(where: str) -> None:
    bad = damaged_block(9)
    source = StaleCache(bad, bad, remote=where == "remote")
    layer = await open_layer(source)
    await layer.check_head()
    del source.requests[:]
    with pytest.raises(FormatError) as caught:
        await layer.parts(9 * 4096 + 100, 512)
    assert "stale" in caught.value.message
    assert "block 9 " in caught.value.message
    assert len(source.requests) == 2  # bounded: the read, and once more
    # Its neighbours stay readable, and asking again gives the same answer.
    assert await layer_bytes(layer, 10 * 4096, 4096) == BIG_LSMT[10 * 4096 : 11 * 4096]
    with pytest.raises(FormatError, match="block 9 "):
        await layer.parts(9 * 4096, 4096)


async def test_damaged_block_of_a_source_that_cannot_ask_again() -> None:
    reads = []

    def fault(offset: int, length: int) -> bytes | None:
        reads.append((offset, length))
        return None

    class Origin(FaultySource):
        async def evict(self, offset: int, length: int) -> bool:
            return False

    layer = await open_layer(Origin(MemorySource(damaged_block(9)), fault, remote=True))
    await layer.check_head()
    del reads[:]
    with pytest.raises(FormatError, match="block 9 "):
        await layer.parts(9 * 4096, 4096)
    assert len(reads) == 1


async def test_damaged_local_block(tmp_path: Path) -> None:
    path = tmp_path / "layer.tar"
    path.write_bytes(damaged_block(9))
    async with open_disk([path]) as disk:
        layer = disk.layers[0]
        with pytest.raises(FormatError) as caught:
            await layer.parts(9 * 4096, 4096)
        assert str(path) in caught.value.message
        assert layer.parts_nowait(9 * 4096, 4096) is None
        assert layer.parts_nowait(10 * 4096, 4096) is not None


@pytest.mark.parametrize("bad", [NetworkError("gone"), FormatError("bad")])
async def test_errors_of_the_source_pass_through(bad: HybridError) -> None:
    calls = 0

    def fault(offset: int, length: int) -> bytes | None:
        nonlocal calls
        calls += 1
        if calls > allowed:
            raise bad
        return None

    for allowed in (0, 1, 2):
        calls = 0
        source = FaultySource(MemorySource(BIG_BLOB), fault, remote=True)
        with pytest.raises(type(bad)):
            await disk_of([source])
        assert calls <= allowed + len(BIG.writes) + 4


# --- damage in the tail


def tail_positions(blob: bytes) -> dict[str, int]:
    _, starts = blocks_of(blob)
    end = blob.rindex(b"ZFile\0\x01\0")
    return {
        "zfile-trailer": end + 60, "zfile-index": end - 6, "lsmt-trailer": starts[-2] + 3,
        "lsmt-index": starts[-3] + 3,
    }  # fmt: skip


@pytest.mark.parametrize("where", tail_positions(BIG_BLOB))
@pytest.mark.parametrize("overwrite", [True, False], ids=["overwritten", "streamed"])
async def test_damaged_tail_in_the_cache_is_fetched_again(where: str, overwrite: bool) -> None:
    blob = build_blob(BIG_LSMT, overwrite_header=overwrite)
    source = StaleCache(flipped(blob, tail_positions(blob)[where]), blob)
    async with open_disk([source]) as disk:
        assert await read(disk, 0, disk.size) == BIG_DISK
    assert len(source.requests) < len(BIG.writes) + 10


@pytest.mark.parametrize("where", tail_positions(BIG_BLOB))
async def test_damaged_tail_at_the_origin(where: str) -> None:
    blob = build_blob(BIG_LSMT, overwrite_header=False)
    bad = flipped(blob, tail_positions(blob)[where])
    source = StaleCache(bad, bad)
    with pytest.raises(FormatError, match="stale"):
        await open_layer(source)
    assert len(source.requests) <= 6


@pytest.mark.parametrize("what", ["lsmt-index", "zfile-index"])
async def test_damage_in_front_of_the_tail_while_opening_is_fetched_again(what: str) -> None:
    # Opening reads more than the tail here; what it reads besides must be evicted as well.
    if what == "lsmt-index":
        blob = LONG_BLOB
        _, starts = blocks_of(blob)
        position = starts[(HT_SIZE + 6000 * SECTOR) // 512 + 3] + 7
    else:
        zeros = ModelLayer((Write(0, bytes(12 << 20)),), 12 << 20)
        blob = build_blob(zeros.build(), block_size=512)
        position = blocks_of(blob)[1][-1] + 8
    source = StaleCache(flipped(blob, position), blob)
    await open_layer(source)
    assert position < source.requests[0][0]
    assert source.evictions


@pytest.mark.parametrize(
    ("tar", "where"), [(None, "header"), (None, "trailer"), ("pax", "trailer")]
)
async def test_damaged_plain_layer_in_the_cache_is_fetched_again(
    tar: str | None, where: str
) -> None:
    blob = build_blob(BIG_LSMT, zfile=False, tar=tar)
    base = 1536 if tar else 0
    position = base + 3 if where == "header" else base + len(BIG_LSMT) - HT_SIZE + 3
    source = StaleCache(flipped(blob, position), blob)
    async with open_disk([source]) as disk:
        assert await read(disk, 0, disk.size) == BIG_DISK


async def test_lost_trailer_is_made_good_by_an_overwritten_header() -> None:
    end = BIG_BLOB.rindex(b"ZFile\0\x01\0")
    assert await disk_of([flipped(BIG_BLOB, end + 2)]) == BIG_DISK
    assert await disk_of([flipped(BIG_BLOB, end + 45)]) == BIG_DISK
    bare = BIG_BLOB[1536 : end + 512]
    assert await disk_of([bare[:-512]]) == BIG_DISK


# --- ZFiles that are no layers


async def stream_bytes(data: bytes) -> bytes:
    stream, _ = await open_stream(MemorySource(data))
    return await stream.read(0, stream.size)


async def test_open_stream_checks_the_header_as_well() -> None:
    packed = build_zfile(b"some text" * 1000)
    for position in (1, 60, 300):
        with pytest.raises(FormatError):
            await stream_bytes(flipped(packed, position))


async def test_open_stream_checks_that_the_wrapper_fits() -> None:
    packed = build_zfile(b"some text" * 1000)
    wrong = tar_prefix(len(packed) - 512) + pad(packed) + bytes(1024)
    with pytest.raises(FormatError):
        await stream_bytes(wrong)


# --- what is no layer


def tar_of(names: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


NO_LAYERS = {
    "empty": (b"", "empty"),
    "one-byte": (b"x", "magic"),
    "random": (Random(1).randbytes(100_000), "magic"),
    "zeros": (bytes(100_000), "magic"),
    "gzip": (gzip.compress(tar_of(["etc/passwd"])), "gzip"),
    "zstd": (zstandard.compress(tar_of(["etc/passwd"])), "zstd"),
    "tar": (tar_of(["etc/passwd"]), "etc/passwd"),
    "raw-image": (bytes(1080) + b"\x53\xef" + bytes(200_000), "magic"),
    "tar-in-zfile": (build_zfile(build_tar(SMALL_LSMT)), ""),
    "zfile-in-zfile": (build_zfile(build_zfile(SMALL_LSMT)), ""),
    "text-in-zfile": (build_zfile(b"text" * 5000), ""),
}


@pytest.mark.parametrize("kind", NO_LAYERS)
@pytest.mark.parametrize("where", ["local", "remote"])
async def test_what_is_no_layer_is_named(kind: str, where: str) -> None:
    data, words = NO_LAYERS[kind]
    source: Source = remote(data) if where == "remote" else MemorySource(data)
    with pytest.raises((UnsupportedError, FormatError)) as caught:
        await open_layer(source)
    assert words in str(caught.value)
    assert "memory" in caught.value.message
    assert "\n" not in str(caught.value)
    if words:
        assert isinstance(caught.value, UnsupportedError)


# --- truncation and fuzz: a declared error, or the right bytes


async def answer(blob: bytes, *, far: bool = False) -> bytes | None:
    try:
        return await disk_of([remote(blob) if far else blob])
    except HybridError:
        return None


@pytest.mark.parametrize("overwrite", [True, False], ids=["overwritten", "streamed"])
async def test_truncated_blob(overwrite: bool) -> None:
    blob = build_blob(SMALL_LSMT, overwrite_header=overwrite)
    trailer = blob.rindex(b"ZFile\0\x01\0")
    index = blocks_of(blob)[1][-1]
    with trio.fail_after(30):
        for size in [*range(0, 3000, 7), *range(index - 600, len(blob), 3)]:
            found = await answer(blob[:size], far=bool(size & 1))
            if size >= trailer + 512:
                assert found == SMALL_DISK
            elif size < trailer or not overwrite:
                assert found is None, size
            else:
                assert found in (None, SMALL_DISK), size


def mutate(data: bytes, random: Random) -> bytes:
    out = bytearray(data)
    at = random.choice((random.randrange(len(out)), random.randrange(4096),
                        len(out) - 1 - random.randrange(4096)))  # fmt: skip
    kind = random.randrange(6)
    if kind <= 1:
        out[at] ^= 1 << random.randrange(8)
    elif kind == 2:
        out[at : at + 8] = random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
    elif kind == 3:
        del out[at : at + random.choice((1, 4, 512, 1024))]
    elif kind == 4:
        out[at:at] = random.choice((bytes, random.randbytes))(random.choice((1, 4, 512, 1024)))
    else:
        del out[at:]
    return bytes(out)


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "unverified"])
async def test_fuzz_whole_blob(encoding: str) -> None:
    random = Random(encoding)
    blob = build_blob(SMALL_LSMT, **ENCODINGS[encoding])
    rejected = 0
    with trio.fail_after(60):
        for number in range(300):
            found = await answer(mutate(blob, random), far=bool(number & 1))
            assert found in (None, SMALL_DISK), number
            rejected += found is None
    assert rejected > 100


@pytest.mark.parametrize("name", ["e1.commit.zfile", "e3.commit.zstd.tar", "e.merged.lz4"])
async def test_fuzz_golden_blob(name: str) -> None:
    random = Random(name)
    blob = golden.data_of(f"lsmt/{name}")
    good = await answer(blob)
    assert good is not None
    with trio.fail_after(60):
        for _ in range(60):
            assert await answer(mutate(blob, random)) in (None, good)


# --- memory


async def test_the_tail_is_not_kept() -> None:
    source = remote(BIG_BLOB)
    layer = await open_layer(source)
    stream = layer.stream
    assert getattr(stream, "source", source) is source
    assert layer.source is source

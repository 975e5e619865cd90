"""Files and numbers that were made, or are odd enough, to do harm: bounded errors, right bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest
import trio
from support.build_lsmt import Entry
from support.build_zfile import redigest
from support.builders import build_lsmt, build_sealed, build_tar, build_zfile
from support.golden_disk import disk_of
from support.implementations import IMPLEMENTATIONS, using

from hybrid.core import lsmt, zfile
from hybrid.core.disk import LayeredDevice, first_error
from hybrid.core.opening import open_layer
from hybrid.core.segments import MAX_MERGED_ENTRIES, SegmentMap, merge
from hybrid.core.source import FaultySource, MemorySource
from hybrid.core.tarball import parse_tar
from hybrid.core.zfile import ZFileWriter
from hybrid.errors import FormatError, UnsupportedError

VSIZE = 1 << 16


@pytest.fixture(autouse=True, scope="module", params=IMPLEMENTATIONS)
def _implementation(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


def layer() -> bytes:
    writer = lsmt.LayerWriter(VSIZE)
    return writer.header() + bytes(writer.add(8, b"data" * 2048)) + writer.finish()


DISK = bytes(8 * 512) + b"data" * 2048 + bytes(VSIZE - 24 * 512)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("overwrite", [True, False])
async def test_archives_of_ordinary_tar_programs(form: int, overwrite: bool) -> None:
    """They pad to 10 KiB, so that the trailer is far from the end of the file."""
    payload = build_zfile(layer(), overwrite_header=overwrite)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        member = tarfile.TarInfo("overlaybd.commit")
        member.size = len(payload)
        archive.addfile(member, io.BytesIO(payload))
    assert len(out.getvalue()) % 10240 == 0
    assert await disk_of([out.getvalue()]) == DISK


@pytest.mark.parametrize("distance", [3000, 2000, 600, 400, 100, 24])
async def test_zfile_magic_in_the_padding_of_a_plain_layer(distance: int) -> None:
    data = bytearray(layer())
    data[len(data) - distance :][:24] = zfile.MAGIC
    data = data[: len(data) - distance] + zfile.MAGIC + data[len(data) - distance + 24 :]
    assert len(data) == len(layer())
    assert await disk_of([bytes(data)]) == DISK


async def test_zfile_far_behind_the_start_of_the_file() -> None:
    """A trailer implies where the ZFile begins; megabytes of "tar headers" are not read."""
    source = FaultySource(MemorySource(bytes(8 << 20) + build_zfile(layer())))
    with pytest.raises(FormatError, match="cannot end at"):
        await open_layer(source)
    assert max(length for _, length in source.requests) <= 1 << 17


def test_pax_body_of_many_records() -> None:
    head = build_tar(b"x" * 100, "pax")
    records = b"5 a=\n" * 3000
    blocks = -(-len(records) // 512)
    pax = bytearray(head[:512])
    pax[124:136] = f"{len(records):011o} ".encode()
    pax[148:156] = b" " * 8
    pax[148:156] = f"{sum(pax):06o}\0 ".encode()
    data = bytes(pax) + records.ljust(blocks * 512, b"\0") + head[1024:]
    assert parse_tar(data[:16384], len(data), "x").offset == 512 * (blocks + 2)


def test_index_that_claims_billions_of_blocks() -> None:
    block = bytearray(ZFileWriter().finish()[-512:])
    claimed = 1 << 30
    block[48:56] = claimed.to_bytes(8, "little")
    block[56:64] = (claimed * 4096).to_bytes(8, "little")
    with pytest.raises(FormatError, match="at most"):
        zfile.parse_trailer(redigest(bytes(block)), "x")


def test_block_that_is_neither_verified_nor_not() -> None:
    block = bytearray(ZFileWriter().finish()[-512:])
    block[88] = 2
    with pytest.raises(FormatError, match="2 in place of"):
        zfile.parse_trailer(redigest(bytes(block)), "x")


@pytest.mark.parametrize("size", [1 << 60, (1 << 63) - 512, (1 << 64) - 512])
async def test_impossible_virtual_size(size: int) -> None:
    with pytest.raises(FormatError, match="virtual size"):
        await disk_of([build_lsmt([], size)])


def test_merge_of_too_many_segments() -> None:
    count = MAX_MERGED_ENTRIES // 4
    many = SegmentMap(range(0, 2 * count, 2), range(1, 2 * count, 2), bytes(8))
    with pytest.raises(UnsupportedError, match="8000008 segments"):
        merge([many] * 4 + [SegmentMap(range(8), range(8), range(8))])


async def test_scattered_extents_do_not_hold_up_the_others() -> None:
    """One request over very many extents is not expanded in one go without a checkpoint."""
    entries = [Entry(2 * i, 1, 8 + i) for i in range(1000)]
    data = b"".join(i.to_bytes(2, "big") * 256 for i in range(1000))
    blob = build_zfile(build_sealed(entries, data, vsize=1 << 20), block_size=65536)
    opened = await open_layer(MemorySource(blob))
    disk = LayeredDevice([opened], "scattered")
    assert disk.pread_nowait(0, 1 << 20) is None
    expected = b"".join(i.to_bytes(2, "big") * 256 + bytes(512) for i in range(1000))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        assert await disk.pread(0, len(expected)) == expected
        nursery.cancel_scope.cancel()
    assert turns >= 5


def test_the_most_urgent_error_is_the_one_to_raise() -> None:
    format_error = FormatError("x")
    nested = BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()])
    found = first_error(BaseExceptionGroup("", [format_error, nested]))
    assert isinstance(found, KeyboardInterrupt)
    assert first_error(BaseExceptionGroup("", [format_error, ValueError()])) is format_error


@pytest.mark.parametrize("style", ["pax", "ustar", "gnu-long-pax", "global-pax"])
async def test_every_number_of_zero_blocks_behind(style: str) -> None:
    for overwrite in (True, False):
        payload = build_zfile(layer(), overwrite_header=overwrite)
        for extra in (0, 1, 2, 3, 7, 40):
            assert await disk_of([build_tar(payload, style, extra_blocks=extra)]) == DISK

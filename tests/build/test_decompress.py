"""Expanding layers: compressions by magic, several members, damage, and bombs."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hybrid.build.tar.decompress import Expander, open_expander
from hybrid.build.tar.zstd_frames import FrameWalker
from hybrid.errors import FormatError, UnsupportedError

TEXT = b"".join(b"line %d of a layer\n" % i for i in range(20_000))
SKIPPABLE = b"\x55\x2a\x4d\x18" + (1000).to_bytes(4, "little") + bytes(1000)


def zstd(data: bytes, **options: bool | int) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


def opened(data: bytes, step: int = 1 << 20) -> Expander:
    stream = io.BytesIO(data)
    return open_expander(lambda size: stream.read(min(size, step)), "blob")


def expand(data: bytes, step: int = 1 << 20, size: int = 1 << 16) -> bytes:
    expander = opened(data, step)
    parts = []
    while part := expander.read(size):
        assert len(part) <= size
        parts.append(part)
    assert expander.read(size) == b""
    return b"".join(parts)


CASES = {
    "none": (TEXT, TEXT),
    "empty": (b"", b""),
    "short": (b"\x1f", b"\x1f"),
    "gzip": (gzip.compress(TEXT), TEXT),
    "gzip of nothing": (gzip.compress(b""), b""),
    "two members": (gzip.compress(TEXT) + gzip.compress(b"more"), TEXT + b"more"),
    "padded gzip": (gzip.compress(TEXT) + bytes(3000), TEXT),
    "zstd": (zstd(TEXT), TEXT),
    "zstd with checksum": (zstd(TEXT, write_checksum=True, level=9), TEXT),
    "zstd of nothing": (zstd(b""), b""),
    "two frames": (zstd(TEXT, write_content_size=False) + zstd(b"more"), TEXT + b"more"),
    "skippable frames": (SKIPPABLE + zstd(TEXT) + SKIPPABLE + zstd(b"more") + SKIPPABLE,
                         TEXT + b"more"),
}  # fmt: skip


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("case", CASES)
def test_expands(case: str, step: int) -> None:
    stored, plain = CASES[case]
    if step > 7 or len(stored) < 100_000:
        assert expand(stored, step) == plain


def test_kinds() -> None:
    assert [opened(CASES[case][0]).kind for case in ("none", "gzip", "zstd")] == [
        "none", "gzip", "zstd",
    ]  # fmt: skip
    assert opened(SKIPPABLE + zstd(b"x")).kind == "zstd"


@pytest.mark.parametrize("options", [["-1"], ["--ultra", "-22"], ["--long=27"], ["--no-check"]])
def test_what_the_zstd_program_writes(options: list[str]) -> None:
    data = os.urandom(300_000) + TEXT + bytes(1 << 20)
    done = subprocess.run(["zstd", "-q", *options], input=data, capture_output=True, check=True)
    assert expand(done.stdout) == data


@pytest.mark.parametrize(
    "case", ["gzip", "two members", "zstd", "zstd with checksum", "two frames", "skippable frames"]
)
def test_every_truncation_is_told(case: str) -> None:
    stored, _ = CASES[case]
    boundaries = {len(stored)}
    walker = FrameWalker()
    for i in range(len(stored) if stored[:2] != b"\x1f\x8b" else 0):
        walker.feed(stored[i : i + 1])
        if walker.at_boundary:
            boundaries.add(i + 1)
    if case == "two members":
        boundaries.add(len(gzip.compress(TEXT)))
    lengths = {*range(12, len(stored), 211), *range(len(stored) - 40, len(stored)), *boundaries}
    for length in sorted(lengths):
        if length in boundaries:
            expand(stored[:length])
        else:
            with pytest.raises(FormatError, match="blob"):
                expand(stored[:length])


@given(st.integers(8, 2000), st.integers(1, 255), st.booleans())
def test_damage_is_told_or_harmless(place: int, change: int, use_zstd: bool) -> None:
    plain = TEXT[:20_000]
    packed = zstd(plain, write_checksum=True) if use_zstd else gzip.compress(plain, mtime=0)
    damaged = bytearray(packed)
    damaged[place % len(packed)] ^= change
    try:
        assert expand(bytes(damaged)) in (plain, bytes(damaged))
    except (FormatError, UnsupportedError) as error:
        told = error.message
    else:
        told = "blob"
    assert told.startswith("blob")


@pytest.mark.parametrize("tail", [b"garbage", b"\0\0\0x", b"\x1f"])
def test_garbage_behind_gzip(tail: bytes) -> None:
    with pytest.raises(FormatError, match="behind a gzip stream"):
        expand(gzip.compress(TEXT) + tail)


def test_garbage_behind_zstd() -> None:
    with pytest.raises(FormatError, match="zstd"):
        expand(zstd(TEXT) + b"garbage")


def test_other_compressions() -> None:
    for data, name in ((b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0\0", "xz")):
        with pytest.raises(UnsupportedError, match=f"blob is compressed with {name}"):
            opened(data)


def test_a_window_that_is_too_large() -> None:
    data = bytes(1000)
    options = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    with pytest.raises(FormatError, match="damaged zstd stream"):
        expand(packer.compress(data) + packer.flush())


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_bombs_take_no_memory(kind: str) -> None:
    plain = bytes(64 << 20)
    stored = gzip.compress(plain, 1) if kind == "gzip" else zstd(plain)
    expander = opened(stored)
    tracemalloc.start()
    total = 0
    while part := expander.read(1 << 16):
        total += len(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == len(plain)
    assert peak < 4 << 20

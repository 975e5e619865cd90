"""The limit of the cache: least recently used blobs go, blobs in use stay, foreign files too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.caching import CHUNK, REGISTRY, blob_bytes, blob_path, digest, make_cache, remote

from hybrid.core import cache as cache_module

DATA = blob_bytes(4 * CHUNK)
BLOB_BYTES = 4 * CHUNK + 4096


async def store(directory: Path, number: int, *, used_at: int) -> None:
    source = make_cache(directory).open(remote(DATA), digest(number), REGISTRY)
    await source.pread(0, len(DATA))
    await source.aclose()
    os.utime(blob_path(directory, len(DATA), digest(number)), (used_at, used_at))


def stored(directory: Path) -> list[int]:
    return sorted(int(path.name[7:71], 16) for path in directory.glob("sha256-*.blob"))


async def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    for number, used_at in ((1, 300), (2, 100), (3, 400), (4, 200)):
        await store(tmp_path, number, used_at=used_at)
    cache = make_cache(tmp_path, limit_bytes=2 * BLOB_BYTES + 8192)
    freed = cache.trim()
    assert stored(tmp_path) == [1, 3]
    assert 2 * len(DATA) <= freed <= 2 * BLOB_BYTES + 16384
    assert cache.trim() == 0


async def test_opening_counts_as_use_and_trims(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        await store(tmp_path, number, used_at=100 * number)
    source = make_cache(tmp_path).open(remote(DATA), digest(1), REGISTRY)
    await source.aclose()
    other = make_cache(tmp_path, limit_bytes=BLOB_BYTES + 8192).open(
        remote(DATA), digest(3), REGISTRY
    )
    assert stored(tmp_path) == [3]
    await other.aclose()
    await store(tmp_path, 2, used_at=10**9)
    source = make_cache(tmp_path).open(remote(DATA), digest(3), REGISTRY)
    await source.aclose()
    make_cache(tmp_path, limit_bytes=BLOB_BYTES + 8192).trim()
    assert stored(tmp_path) == [3]


async def test_both_opening_and_closing_are_uses(tmp_path: Path) -> None:
    """A process may read for days after it opened a blob, or be killed before it closes it."""
    await store(tmp_path, 1, used_at=100)
    path = blob_path(tmp_path, len(DATA), digest(1))
    source = make_cache(tmp_path).open(remote(DATA), digest(1), REGISTRY)
    assert path.stat().st_mtime > 100
    os.utime(path, (100, 100))
    await source.aclose()
    assert path.stat().st_mtime > 100


async def test_a_blob_in_use_is_never_removed(tmp_path: Path) -> None:
    await store(tmp_path, 2, used_at=100)
    source = make_cache(tmp_path).open(remote(DATA), digest(1), REGISTRY)
    await source.pread(0, len(DATA))
    os.utime(blob_path(tmp_path, len(DATA), digest(1)), (1, 1))
    strict = make_cache(tmp_path, limit_bytes=0)
    assert strict.trim() > 0
    assert stored(tmp_path) == [1]
    assert source.pread_nowait(0, len(DATA)) == DATA
    await source.aclose()
    assert strict.trim() > 0
    assert stored(tmp_path) == []


async def test_growth_trims(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, limit_bytes=2 * BLOB_BYTES)
    source = cache.open(remote(DATA), digest(9), REGISTRY)
    await store(tmp_path, 1, used_at=100)
    await store(tmp_path, 2, used_at=200)
    await source.pread(0, len(DATA))
    await source.evict(0, 1)
    await source.pread(0, 1)
    assert stored(tmp_path) == [2, 9]
    await source.aclose()


async def test_a_cache_over_its_limit_serves_without_storing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_FULL_SECONDS", 0.0)
    big = blob_bytes(40 * CHUNK)
    cache = make_cache(tmp_path, limit_bytes=16 * CHUNK)
    source = cache.open(remote(big), digest(1), REGISTRY)
    for offset in range(0, len(big), CHUNK):
        assert await source.pread(offset, CHUNK) == big[offset : offset + CHUNK]
    present = source.bytes_present
    # It looks every limit / 8 bytes and at most one refill (4 chunks) is stored in one go.
    assert 16 * CHUNK <= present <= 22 * CHUNK
    assert ["has reached its limit" in record.getMessage() for record in caplog.records] == [True]
    # Room again: it looks after a while, and stores again.
    cache.limit_bytes = 100 * CHUNK
    await source.pread(20 * CHUNK, 20 * CHUNK)
    assert source.bytes_present > present
    await source.aclose()


async def test_files_of_version_1_are_removed_not_read(tmp_path: Path) -> None:
    """They were named by the digest alone."""
    old = tmp_path / f"{digest(1).replace(':', '-')}.blob"
    await store(tmp_path, 1, used_at=200)
    blob_path(tmp_path, len(DATA), digest(1)).rename(old)
    source = make_cache(tmp_path).open(remote(DATA), digest(1), REGISTRY)
    assert source.bytes_present == 0
    await source.aclose()
    await store(tmp_path, 2, used_at=300)
    make_cache(tmp_path, limit_bytes=BLOB_BYTES + 12288).trim()
    assert not old.exists()
    assert 2 in stored(tmp_path)


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    names = ["sha256:" + "0" * 64, "notes.blob", "sha256-12.blob", "sha256-" + "0" * 64]
    names += [f"sha256-{'0' * 64}-{end}.blob" for end in ("12", "-" + "0" * 16, "12-" + "0" * 15)]
    for name in names:
        (tmp_path / name).write_bytes(bytes(100000))
    assert make_cache(tmp_path, limit_bytes=0).trim() == 0
    assert all((tmp_path / name).exists() for name in names)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert make_cache(tmp_path / "nowhere", limit_bytes=0).trim() == 0

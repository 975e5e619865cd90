"""The file of a cached blob: its bytes, damage, files that do not fit, disks that are full."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crc32c import crc32c
from support.caching import (
    CHUNK,
    DIGEST,
    REGISTRY,
    blob_bytes,
    blob_path,
    digest,
    make_cache,
    remote,
)

from hybrid.core.cachefile import CacheFile, remove_unused
from hybrid.core.cacheformat import CacheKey, chunk_checksum, data_offset
from hybrid.core.source import MemorySource

SIZE = 3 * CHUNK + 100
DATA = blob_bytes(SIZE)
KEY = CacheKey(REGISTRY, DIGEST, SIZE)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs", place)
    yield place
    # Lazily: a test that failed has the file still open, and must not leave its mount behind.
    run("umount", "--lazy", place)


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


def fill_up(path: Path, leave: int = 0) -> None:
    """Write until the disk is full, but for ``leave`` bytes."""
    with path.open("wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            write_without_end(file)
        file.truncate(file.tell() - leave)


def write_without_end(file: io.RawIOBase) -> None:
    while True:
        file.write(bytes(4096))


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


async def fill(directory: Path, data: bytes = DATA) -> Path:
    """A cache that has all chunks of a blob, closed again."""
    source = make_cache(directory).open(remote(data), DIGEST, REGISTRY)
    await source.pread(0, len(data))
    await source.aclose()
    return blob_path(directory, len(data))


# --- Format ---


async def test_layout_of_the_file(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    source = make_cache(directory).open(remote(DATA), DIGEST, REGISTRY)
    await source.pread(CHUNK, CHUNK)
    await source.pread(SIZE - 1, 1)
    await source.aclose()
    path = blob_path(directory, len(DATA))
    raw = path.read_bytes()
    assert raw[:24] == struct.pack("<8sIIQ", b"hybridBC", 2, 65536, SIZE)
    assert raw[24:56] == hashlib.sha256(f"{DIGEST}\n{REGISTRY}".encode()).digest()
    assert raw[56:64] == bytes(8)
    last = DATA[3 * CHUNK :]
    assert struct.unpack_from("<4I", raw, 64) == (
        0,
        crc32c(DATA[CHUNK : 2 * CHUNK]),
        0,
        crc32c(last),
    )
    assert raw[4096:] == bytes(CHUNK) + DATA[CHUNK : 2 * CHUNK] + bytes(CHUNK) + last
    assert path.stat().st_blocks * 512 < SIZE
    assert path.stat().st_mode & 0o7777 == 0o600
    assert directory.stat().st_mode & 0o7777 == 0o700


def test_data_starts_after_the_map_on_a_page() -> None:
    assert data_offset(0) == 4096
    assert data_offset(1008 * CHUNK) == 4096
    assert data_offset(1008 * CHUNK + 1) == 8192


def test_a_checksum_is_never_the_mark_of_absence() -> None:
    data = b"\xab\x9b\xe0\x9b"
    assert crc32c(data) == 0
    assert chunk_checksum(data) == 1
    assert chunk_checksum(b"123456789") == 0xE3069283


# --- Damage ---


@pytest.mark.parametrize("offset", [0, CHUNK - 1, CHUNK // 2])
async def test_a_flipped_byte_makes_the_chunk_absent(
    tmp_path: Path, offset: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = await fill(tmp_path)
    where = CHUNK + offset
    patch(path, data_offset(SIZE) + where, bytes([DATA[where] ^ 1]))
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert source.pread_nowait(CHUNK, 1) is None
    assert await source.pread(0, SIZE) == DATA
    assert origin.requests == [(CHUNK, CHUNK)]
    assert [record.getMessage()[:19] for record in caplog.records] == [f"chunk 1 of {path}"[:19]]
    await source.aclose()


async def test_a_torn_map_makes_chunks_absent(tmp_path: Path) -> None:
    path = await fill(tmp_path)
    patch(path, 64 + 2, b"\x01\x02\x03")  # The second half of entry 0, the first byte of entry 1.
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert await source.pread(0, SIZE) == DATA
    assert origin.requests == [(0, 2 * CHUNK)]
    await source.aclose()


async def test_an_entry_without_its_data_is_noticed(tmp_path: Path) -> None:
    """After a power cut the map may be on the disk and the data not."""
    path = await fill(tmp_path)
    patch(path, data_offset(SIZE), bytes(CHUNK))
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert await source.pread(0, 10) == DATA[:10]
    assert origin.requests == [(0, CHUNK)]
    await source.aclose()


async def test_a_file_cut_while_in_use_is_replaced_at_the_next_opening(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    await source.pread(0, SIZE)
    os.truncate(blob_path(tmp_path, len(DATA)), data_offset(SIZE) + CHUNK)
    assert source.pread_nowait(CHUNK, 10) is None
    assert await source.pread(0, SIZE) == DATA
    assert origin.requests == [(0, SIZE), (CHUNK, SIZE - CHUNK)]
    await source.aclose()
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.bytes_present == 0
    assert await source.pread(0, SIZE) == DATA
    assert source.pread_nowait(0, SIZE) == DATA
    await source.aclose()


@pytest.mark.parametrize("length", [0, data_offset(SIZE), data_offset(SIZE) + CHUNK])
async def test_a_cut_file_does_not_grow_again_and_give_zeros(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    await source.pread(0, 3 * CHUNK)
    os.truncate(blob_path(tmp_path, SIZE), length)
    # To store the last chunk would make holes of those before it that were cut off.
    assert await source.pread(SIZE - 1, 1) == DATA[-1:]
    assert "cut or extended while in use" in caplog.text
    for start in (0, CHUNK, 2 * CHUNK):
        assert await source.pread(start, CHUNK) == DATA[start : start + CHUNK]
    await source.aclose()


async def test_a_file_that_was_cut_and_made_long_again_is_not_believed(tmp_path: Path) -> None:
    path = await fill(tmp_path)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.pread_nowait(0, SIZE) == DATA
    os.truncate(path, 0)
    assert source.pread_nowait(0, 10) is None
    os.truncate(path, data_offset(SIZE) + SIZE)
    assert await source.pread(CHUNK, 2 * CHUNK) == DATA[CHUNK : 3 * CHUNK]
    await source.aclose()


# --- Files that do not fit ---


@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"X"), (8, b"\x01"), (12, b"\x00\x10\x00"), (16, b"\x00"), (24, bytes(32))],
    ids=["magic", "version", "chunk size", "blob size", "identity"],
)
async def test_a_file_that_does_not_fit_is_replaced(
    tmp_path: Path, offset: int, data: bytes
) -> None:
    path = await fill(tmp_path)
    user = os.open(path, os.O_RDONLY)
    before = os.fstat(user).st_ino
    patch(path, offset, data)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.bytes_present == 0
    assert os.stat(path).st_ino != before, "a process that has the old file open must not notice"
    assert os.pread(user, SIZE, data_offset(SIZE)) == DATA
    assert await source.pread(0, SIZE) == DATA
    os.close(user)
    await source.aclose()
    again = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert again.pread_nowait(0, SIZE) == DATA
    await again.aclose()


@pytest.mark.parametrize("length", [1, 24, 5000, data_offset(SIZE) + SIZE - 1])
async def test_a_file_that_was_cut_is_replaced(tmp_path: Path, length: int) -> None:
    path = await fill(tmp_path)
    os.truncate(path, length)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.bytes_present == 0
    assert await source.pread(0, SIZE) == DATA
    await source.aclose()


@pytest.mark.parametrize(
    ("data", "registry"), [(DATA[:-1], REGISTRY), (DATA, "https://evil.example")]
)
async def test_a_lie_of_a_manifest_does_not_cost_the_good_file(
    tmp_path: Path, data: bytes, registry: str
) -> None:
    await fill(tmp_path)
    liar = make_cache(tmp_path).open(remote(data), DIGEST, registry)
    assert liar.bytes_present == 0
    await liar.aclose()
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.pread_nowait(0, SIZE) == DATA
    await source.aclose()


async def test_two_sizes_of_one_digest_in_a_process_do_not_mix(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    one = cache.open(remote(DATA), DIGEST, REGISTRY)
    two = cache.open(remote(DATA[:CHUNK]), DIGEST, REGISTRY)
    assert await one.pread(0, SIZE) == DATA
    assert await two.pread(0, CHUNK) == DATA[:CHUNK]
    assert one.pread_nowait(0, SIZE) == DATA
    await one.aclose()
    await two.aclose()


@needs_root
async def test_a_file_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    path = await fill(tmp_path)
    os.chown(path, 12345, 12345)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.bytes_present == 0
    assert path.stat().st_uid == 0
    await source.aclose()


@pytest.mark.parametrize("mode", [0o620, 0o602])
@pytest.mark.parametrize("length", [0, data_offset(SIZE) + SIZE], ids=["empty", "full"])
async def test_a_file_that_others_may_write_to_is_not_trusted(
    tmp_path: Path, mode: int, length: int
) -> None:
    path = await fill(tmp_path)
    os.truncate(path, length)
    path.chmod(mode)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert source.bytes_present == 0
    assert await source.pread(0, SIZE) == DATA
    assert source.pread_nowait(0, SIZE) == DATA
    assert path.stat().st_mode & 0o777 == 0o600
    await source.aclose()


def open_to_group(directory: Path) -> None:
    directory.chmod(0o770)


def open_to_all(directory: Path) -> None:
    directory.chmod(0o1777)


def given_away(directory: Path) -> None:
    os.chown(directory, 12345, 12345)


@pytest.mark.parametrize(
    "spoil", [open_to_group, open_to_all, pytest.param(given_away, marks=needs_root)]
)
async def test_a_directory_of_others_is_not_used(
    tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "cache"
    path = await fill(directory)
    spoil(directory)
    origin = remote(DATA)
    source = make_cache(directory, limit_bytes=0).open(origin, DIGEST, REGISTRY)
    assert await source.pread(0, SIZE) == DATA
    assert origin.requests == [(0, SIZE)]
    assert source.bytes_present == 0
    assert path.exists()
    assert [str(directory) in record.getMessage() for record in caplog.records] == [True]
    assert "others may write to it" in caplog.text
    await source.aclose()


async def test_a_file_renamed_to_another_blob_is_not_believed(tmp_path: Path) -> None:
    path = await fill(tmp_path, blob_bytes(SIZE, seed=2))
    path.rename(blob_path(tmp_path, SIZE, digest(7)))
    source = make_cache(tmp_path).open(remote(DATA), digest(7), REGISTRY)
    assert await source.pread(0, SIZE) == DATA
    await source.aclose()


async def test_a_file_renamed_to_another_registry_is_not_believed(tmp_path: Path) -> None:
    path = await fill(tmp_path, blob_bytes(SIZE, seed=2))
    other = "https://other.example"
    path.rename(tmp_path / CacheKey(other, DIGEST, SIZE).file_name)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, other)
    assert await source.pread(0, SIZE) == DATA
    await source.aclose()


class HugeSource(MemorySource):
    """Claims to have 1 TiB."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.size = 1 << 40


async def test_a_huge_blob_costs_no_memory_before_it_is_read(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    before = resident_bytes()
    sources = [cache.open(HugeSource(), digest(number), REGISTRY) for number in range(16)]
    assert resident_bytes() - before < 16 << 20  # 256 MiB with a byte per chunk.
    for source in sources:
        await source.aclose()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_a_symbolic_link_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "elsewhere"
    blob_path(tmp_path, len(DATA)).symlink_to(target)
    source = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert await source.pread(0, SIZE) == DATA
    assert not target.exists()
    assert len(caplog.records) == 1
    await source.aclose()


# --- Races, made to happen ---


@pytest.fixture
def before_flock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Let something happen between the next open() and its flock()."""
    real = fcntl.flock

    def arrange(event: Callable[[], None]) -> None:
        def flock(descriptor: int, operation: int) -> None:
            monkeypatch.setattr(fcntl, "flock", real)
            event()
            real(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", flock)

    return arrange


async def test_a_file_removed_while_it_is_opened_is_made_anew(
    tmp_path: Path, before_flock: Callable[[Callable[[], None]], None]
) -> None:
    path = await fill(tmp_path)
    before_flock(path.unlink)
    file = CacheFile.open(path, KEY)
    assert file.bytes_present() == 0
    file.store(0, DATA)
    file.close()
    again = CacheFile.open(path, KEY)
    assert again.read(0, SIZE) == DATA
    again.close()


async def test_a_file_replaced_while_it_is_to_be_removed_stays(
    tmp_path: Path, before_flock: Callable[[Callable[[], None]], None]
) -> None:
    path = await fill(tmp_path)

    def replace() -> None:
        path.unlink()
        path.write_bytes(b"new")

    before_flock(replace)
    assert remove_unused(path) is False
    assert path.read_bytes() == b"new"
    assert remove_unused(path) is True
    assert not path.exists()


def test_only_one_process_at_a_time_lays_a_file_out(tmp_path: Path) -> None:
    path = tmp_path / "some.blob"
    path.touch()
    with path.open("r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 1, 0))
        with pytest.raises(BlockingIOError):
            CacheFile.open(path, KEY)
        assert path.stat().st_size == 0
    CacheFile.open(path, KEY).close()
    assert path.stat().st_size == data_offset(SIZE) + SIZE


def test_a_file_in_the_hands_of_a_stopped_remover_is_given_up(tmp_path: Path) -> None:
    """Opening waits for a bounded time only, then says so."""
    path = tmp_path / "some.blob"
    path.touch()
    with path.open("rb") as remover:
        fcntl.flock(remover, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            CacheFile.open(path, KEY)


# --- Disks that do not take it ---


@needs_root
async def test_a_full_disk_serves_and_stores_again_when_there_is_room(
    tmpfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    origin = remote(DATA)
    source = make_cache(tmpfs, refill_size=CHUNK).open(origin, DIGEST, REGISTRY)
    fill_up(tmpfs / "ballast", leave=CHUNK - 4096)
    for chunk in range(3):
        for _ in range(3):
            start = chunk * CHUNK
            assert await source.pread(start, 5000) == DATA[start : start + 5000]
    # Not once per read: the last chunks stay in memory.
    assert [offset for offset, _ in origin.requests] == [0, CHUNK, 2 * CHUNK]
    assert source.bytes_present == 0
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    (tmpfs / "ballast").unlink()
    await source.evict(0, CHUNK)
    assert await source.pread(0, 10) == DATA[:10]
    assert source.bytes_present == CHUNK
    assert source.pread_nowait(0, CHUNK) == DATA[:CHUNK]
    await source.aclose()


@needs_root
async def test_a_full_disk_at_opening(tmpfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill_up(tmpfs / "ballast")
    cache = make_cache(tmpfs / "cache")
    origin = remote(DATA)
    source = cache.open(origin, DIGEST, REGISTRY)
    assert await source.pread(0, SIZE) == DATA
    assert await source.pread(5, 10) == DATA[5:15]
    assert origin.requests == [(0, SIZE)]
    assert len(caplog.records) == 1
    await source.aclose()


@needs_root
async def test_a_read_only_disk_gives_what_it_has(
    tmpfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_cache(tmpfs).open(remote(DATA), DIGEST, REGISTRY)
    await source.pread(0, CHUNK)
    await source.aclose()
    run("mount", "-o", "remount,ro", tmpfs)
    origin = remote(DATA)
    cache = make_cache(tmpfs)
    source = cache.open(origin, DIGEST, REGISTRY)
    assert source.pread_nowait(0, CHUNK) == DATA[:CHUNK]
    assert await source.pread(CHUNK, 10) == DATA[CHUNK : CHUNK + 10]
    assert await source.pread(CHUNK, 20) == DATA[CHUNK : CHUNK + 20]
    # Evicted, although the map cannot be changed.
    assert await source.evict(0, 10) is True
    assert source.pread_nowait(0, 10) is None
    assert await source.pread(0, 10) == DATA[:10]
    assert origin.requests == [(CHUNK, CHUNK), (0, CHUNK)]
    await source.aclose()
    other = cache.open(remote(DATA), "sha256:" + "0" * 64, REGISTRY)
    assert await other.pread(0, 10) == DATA[:10]
    await other.aclose()
    assert len(caplog.records) == 1


async def test_a_directory_that_is_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("no directory")
    cache = make_cache(tmp_path / "cache")
    source = cache.open(remote(DATA), DIGEST, REGISTRY)
    assert await source.pread(0, SIZE) == DATA
    assert cache.trim() == 0
    assert len(caplog.records) == 1
    await source.aclose()

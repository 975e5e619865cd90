"""The cache as one process sees it: what is fetched, kept, forgotten, shared between tasks."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.caching import (
    CHUNK,
    DIGEST,
    REGISTRY,
    blob_bytes,
    blob_path,
    digest,
    fetched_chunks,
    make_cache,
    remote,
)

from hybrid.config import RegistryHost
from hybrid.core.cacheformat import data_offset
from hybrid.core.device import Source
from hybrid.core.remote import vouched_by
from hybrid.core.source import MemorySource
from hybrid.errors import ConfigError, FormatError, NetworkError

DATA = blob_bytes(10 * CHUNK + 1234)


class GatedSource(Source):
    """An origin whose reads wait until the test opens the gate."""

    def __init__(self, data: bytes, name: str = "gated") -> None:
        self.name = name
        self.size = len(data)
        self.gate = trio.Event()
        self.requests: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.closed = False
        self._data = data

    def pread_nowait(self, offset: int, length: int) -> None:
        return None

    async def pread(self, offset: int, length: int) -> bytes:
        self.requests.append((offset, length))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self._data[offset : offset + length]

    async def aclose(self) -> None:
        self.closed = True


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0xFF]))


# --- Reading ---


async def test_a_read_fetches_whole_chunks_once_then_comes_from_disk(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert source.pread_nowait(CHUNK - 10, 20) is None
    assert await source.pread(CHUNK - 10, 20) == DATA[CHUNK - 10 : CHUNK + 10]
    assert origin.requests == [(0, 2 * CHUNK)]
    assert source.pread_nowait(0, 2 * CHUNK) == DATA[: 2 * CHUNK]
    assert source.pread_nowait(0, 2 * CHUNK + 1) is None
    assert (source.bytes_fetched, source.bytes_present) == (2 * CHUNK, 2 * CHUNK)
    assert source.bytes_served == 20 + 2 * CHUNK
    await source.aclose()


async def test_the_tail_is_one_request_that_ends_with_the_blob(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert await source.pread(len(DATA) - 100, 100) == DATA[-100:]
    assert origin.requests == [(10 * CHUNK, 1234)]
    assert source.bytes_present == 1234
    await source.aclose()


async def test_neighbouring_misses_are_one_request_and_gaps_are_respected(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    await source.pread(4 * CHUNK, 1)
    origin.requests.clear()
    assert await source.pread(CHUNK, 7 * CHUNK) == DATA[CHUNK : 8 * CHUNK]
    assert origin.requests == [(CHUNK, 3 * CHUNK), (5 * CHUNK, 3 * CHUNK)]
    await source.aclose()


async def test_a_sequential_reader_fetches_up_to_the_refill_border(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path, refill_size=4 * CHUNK).open(origin, DIGEST, REGISTRY)
    for offset in range(0, len(DATA) - 1000, 1000):
        assert await source.pread(offset, 1000) == DATA[offset : offset + 1000]
    assert origin.requests == [
        (0, CHUNK),
        (CHUNK, 3 * CHUNK),
        (4 * CHUNK, 4 * CHUNK),
        (8 * CHUNK, 2 * CHUNK + 1234),
    ]
    await source.aclose()


async def test_a_sequential_fetch_stops_before_a_chunk_that_is_there(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path, refill_size=8 * CHUNK).open(origin, DIGEST, REGISTRY)
    await source.pread(3 * CHUNK, 1)
    await source.pread(0, 1)
    await source.pread(CHUNK, 1)
    assert origin.requests[-1] == (CHUNK, 2 * CHUNK)
    await source.aclose()


async def test_ranges_outside_and_empty_ones(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert source.pread_nowait(len(DATA), 0) == b""
    assert await source.pread(0, 0) == b""
    for offset, length in ((-1, 1), (0, -1), (len(DATA), 1)):
        with pytest.raises(ValueError, match="leaves blob"):
            source.pread_nowait(offset, length)
        with pytest.raises(ValueError, match="leaves blob"):
            await source.pread(offset, length)
        with pytest.raises(ValueError, match="leaves blob"):
            await source.evict(offset, length)
    assert origin.requests == []
    await source.aclose()


async def test_an_empty_blob(tmp_path: Path) -> None:
    source = make_cache(tmp_path).open(remote(b""), DIGEST, REGISTRY)
    assert await source.pread(0, 0) == b""
    assert source.bytes_present == 0
    await source.aclose()


async def test_an_origin_that_gives_too_little_is_an_error_and_not_stored(tmp_path: Path) -> None:
    source = make_cache(tmp_path).open(
        remote(DATA, lambda offset, length: b"short"), DIGEST, REGISTRY
    )
    with pytest.raises(FormatError, match="blob gave 5 bytes at 0 instead of 65536"):
        await source.pread(0, 10)
    assert source.bytes_present == 0
    await source.aclose()


@st.composite
def _operations(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    kinds = st.sampled_from(["read", "read", "read", "nowait", "evict", "reopen", "damage"])
    operations = []
    for _ in range(draw(st.integers(1, 20))):
        offset = draw(st.integers(0, len(DATA)))
        limit = min(len(DATA) - offset, draw(st.sampled_from([100, CHUNK, 4 * CHUNK])))
        operations.append((draw(kinds), offset, draw(st.integers(0, limit))))
    return operations


@settings(max_examples=60)
@given(operations=_operations(), refill=st.sampled_from([CHUNK, 4 * CHUNK]))
def test_model(operations: list[tuple[str, int, int]], refill: int) -> None:
    """Any sequence gives the right bytes, and asks the origin only for chunks that are absent."""
    with tempfile.TemporaryDirectory() as name:
        trio.run(_run_model, Path(name), operations, refill)


async def _run_model(directory: Path, operations: list[tuple[str, int, int]], refill: int) -> None:
    present: set[int] = set()

    def note(offset: int, length: int) -> None:
        assert offset % CHUNK == 0
        chunks = set(range(offset // CHUNK, -(-(offset + length) // CHUNK)))
        assert not chunks & present, "fetched again"
        present.update(chunks)

    def reopen() -> Source:
        return make_cache(directory, refill_size=refill).open(remote(DATA, note), DIGEST, REGISTRY)

    source = reopen()
    for kind, offset, length in operations:
        chunks = set(range(offset // CHUNK, -(-(offset + length) // CHUNK))) if length else set()
        if kind == "read":
            assert await source.pread(offset, length) == DATA[offset : offset + length]
        elif kind == "nowait":
            expected = DATA[offset : offset + length] if chunks <= present else None
            assert source.pread_nowait(offset, length) == expected
        elif kind == "evict":
            assert await source.evict(offset, length)
            present -= chunks
        else:
            await source.aclose()
            if kind == "damage" and offset < len(DATA):
                flip_byte(blob_path(directory, len(DATA)), data_offset(len(DATA)) + offset)
                present.discard(offset // CHUNK)
            source = reopen()
    for chunk in range(11):
        start, end = chunk * CHUNK, min(len(DATA), (chunk + 1) * CHUNK)
        assert await source.pread(start, end - start) == DATA[start:end]
    assert source.bytes_present == len(DATA)
    await source.aclose()


# --- Tasks that share fetches ---


async def test_tasks_that_want_the_same_chunk_share_one_fetch(tmp_path: Path) -> None:
    origin = GatedSource(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    results = []

    async def reader(offset: int) -> None:
        results.append(bytes(await source.pread(offset, 10)) == DATA[offset : offset + 10])

    async with trio.open_nursery() as nursery:
        for offset in (5, 100, 200, 65000):
            nursery.start_soon(reader, offset)
        await trio.testing.wait_all_tasks_blocked()
        assert origin.requests == [(0, CHUNK)]
        origin.gate.set()
    assert results == [True] * 4
    assert origin.requests == [(0, CHUNK)]
    await source.aclose()


async def test_overlapping_reads_fetch_side_by_side(tmp_path: Path) -> None:
    """The second reader does not wait for the first before it fetches its own part."""
    origin = GatedSource(DATA)
    source = make_cache(tmp_path, refill_size=CHUNK).open(origin, DIGEST, REGISTRY)
    results = {}

    async def reader(first: int, end: int) -> None:
        results[first] = await source.pread(first * CHUNK, (end - first) * CHUNK)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, 0, 3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader, 2, 5)
        await trio.testing.wait_all_tasks_blocked()
        assert origin.requests == [(0, 3 * CHUNK), (3 * CHUNK, 2 * CHUNK)]
        origin.gate.set()
    assert results == {0: DATA[: 3 * CHUNK], 2: DATA[2 * CHUNK : 5 * CHUNK]}
    assert set(fetched_chunks(origin).values()) == {1}
    await source.aclose()


async def test_a_sequential_fetch_does_not_hold_up_what_lies_beyond_it(tmp_path: Path) -> None:
    origin = GatedSource(DATA)
    origin.gate.set()
    source = make_cache(tmp_path, refill_size=8 * CHUNK).open(origin, DIGEST, REGISTRY)
    await source.pread(3 * CHUNK, 1)
    await source.pread(0, 1)
    origin.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.pread, CHUNK, 1)  # Goes on up to chunk 3, which is there.
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(source.pread, 5 * CHUNK, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert origin.requests[2:] == [(CHUNK, 2 * CHUNK), (5 * CHUNK, CHUNK)]
        origin.gate.set()
    await source.aclose()


async def test_a_waiter_takes_over_when_the_fetching_task_is_cancelled(tmp_path: Path) -> None:
    origin = GatedSource(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    fetcher = trio.CancelScope()
    results = []

    async def cancelled_reader() -> None:
        with fetcher:
            await source.pread(0, 10)
            pytest.fail("the read was to be cancelled")

    async def reader() -> None:
        results.append(await source.pread(0, 10))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled_reader)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            fetcher.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert origin.requests == [(0, CHUNK)] * 2
            origin.gate.set()
    assert results == [DATA[:10]] * 3
    assert origin.requests == [(0, CHUNK)] * 2
    await source.aclose()


async def test_an_error_reaches_all_waiters_and_is_not_remembered(tmp_path: Path) -> None:
    origin = GatedSource(DATA)
    origin.error = NetworkError("registry gone")
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    failures = []

    async def reader() -> None:
        with pytest.raises(NetworkError, match="registry gone"):
            await source.pread(0, 10)
        failures.append(1)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        origin.gate.set()
    assert len(failures) == 3
    assert len(origin.requests) == 1
    origin.error = None
    assert await source.pread(0, 10) == DATA[:10]
    await source.aclose()


# --- Two sources of one digest in a process ---


async def test_two_sources_of_one_digest_share_file_and_fetches(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    first, second = GatedSource(DATA), GatedSource(DATA)
    one, two = cache.open(first, DIGEST, REGISTRY), cache.open(second, DIGEST, REGISTRY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.pread, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(two.pread, 20, 10)
        await trio.testing.wait_all_tasks_blocked()
        first.gate.set()
    assert (first.requests, second.requests) == ([(0, CHUNK)], [])
    await one.aclose()
    await one.aclose()
    assert first.closed
    assert not second.closed
    assert two.pread_nowait(0, 10) == DATA[:10]
    await two.aclose()
    assert second.closed


async def test_a_failing_origin_does_not_fail_the_reader_of_another(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    broken, good = GatedSource(DATA), GatedSource(DATA)
    broken.error = NetworkError("this repository is gone")
    good.gate.set()
    one, two = cache.open(broken, DIGEST, REGISTRY), cache.open(good, DIGEST, REGISTRY)
    results = []

    async def failing_reader() -> None:
        with pytest.raises(NetworkError):
            await one.pread(0, 10)

    async def reader() -> None:
        results.append(await two.pread(0, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(failing_reader)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        broken.gate.set()
    assert results == [DATA[:10]]
    await one.aclose()
    await two.aclose()


async def test_the_file_stays_open_for_a_fetch_that_outlives_its_source(tmp_path: Path) -> None:
    origin = GatedSource(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.pread, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        await source.aclose()
        origin.gate.set()
    again = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert again.pread_nowait(0, 10) == DATA[:10]
    await again.aclose()


# --- Who vouches for the bytes ---


async def test_the_bytes_of_one_registry_are_not_those_of_another(tmp_path: Path) -> None:
    """Anybody may list the digest and size of another's layer, and answer with other bytes."""
    evil = remote(blob_bytes(len(DATA), seed=2))
    cache = make_cache(tmp_path)
    trap = cache.open(evil, DIGEST, "https://evil.example")
    assert await trap.pread(0, len(DATA)) != DATA
    in_use = cache.open(remote(DATA), DIGEST, REGISTRY)
    assert await in_use.pread(0, len(DATA)) == DATA
    await in_use.aclose()
    await trap.aclose()
    later = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert later.pread_nowait(0, len(DATA)) == DATA
    await later.aclose()


HOSTS = {
    "insecure.example": RegistryHost(insecure=True),
    "plain.example:5000": RegistryHost(plain_http=True),
    "127.0.0.1:5000": RegistryHost(insecure=True),
}


@pytest.mark.parametrize(
    ("host", "scheme", "expected"),
    [
        ("a.example:5000", None, "https://a.example:5000"),
        ("a.example", "https", "https://a.example"),
        ("a.example", "http", "unverified a.example"),
        ("plain.example:5000", None, "unverified plain.example:5000"),
        ("plain.example:5000", "https", "https://plain.example:5000"),
        ("insecure.example", None, "unverified insecure.example"),
        ("insecure.example", "https", "unverified insecure.example"),
        ("127.0.0.1:5000", None, "loopback 127.0.0.1:5000"),
        ("localhost:5001", "http", "loopback localhost:5001"),
        ("[::1]:5001", None, "loopback [::1]:5001"),
    ],
)
def test_on_whose_word_a_blob_has_its_digest(host: str, scheme: str | None, expected: str) -> None:
    hosts = {name: options for name, options in HOSTS.items() if name == host}
    assert vouched_by(host, hosts, scheme) == expected


def test_a_host_that_need_not_be_verified_may_serve_for_one_that_must() -> None:
    """An https registry may redirect to it, so its bytes are not those of TLS alone."""
    assert vouched_by("a.example", HOSTS, None) == "https://a.example insecure.example"
    assert vouched_by("insecure.example", HOSTS, None) == "unverified insecure.example"


# --- Forgetting ---


async def test_evict_asks_the_origin_again_also_after_a_restart(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    await source.pread(0, 3 * CHUNK)
    assert await source.evict(CHUNK + 5, 1) is True
    assert source.pread_nowait(CHUNK, 1) is None
    assert source.pread_nowait(0, CHUNK) == DATA[:CHUNK]
    assert source.bytes_present == 2 * CHUNK
    await source.aclose()
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    assert await source.pread(0, 3 * CHUNK) == DATA[: 3 * CHUNK]
    assert origin.requests == [(0, 3 * CHUNK), (CHUNK, CHUNK)]
    await source.aclose()


async def test_wrong_bytes_of_the_origin_are_gone_after_evict(tmp_path: Path) -> None:
    answers = [b"\0" * CHUNK, None]
    source = make_cache(tmp_path).open(remote(DATA, lambda *_: answers.pop(0)), DIGEST, REGISTRY)
    assert await source.pread(0, 10) == bytes(10)
    await source.evict(0, 10)
    assert await source.pread(0, 10) == DATA[:10]
    await source.aclose()


async def test_evict_during_a_fetch_takes_out_what_came_from_disk(tmp_path: Path) -> None:
    """A chunk that the flight found on disk must not reach a reader who has just evicted it."""
    cache = make_cache(tmp_path, refill_size=4 * CHUNK)
    origin = GatedSource(DATA)
    other = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    source = cache.open(origin, DIGEST, REGISTRY)
    results = []

    async def reader(offset: int, length: int) -> None:
        results.append(await source.pread(offset, length) == DATA[offset : offset + length])

    assert other._file.try_lock(2, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader, CHUNK, 3 * CHUNK)
        await trio.testing.wait_all_tasks_blocked()
        other._file.store(2, bytes(CHUNK))  # Wrong bytes, which came from the other's origin.
        other._file.unlock(2, 3)
        with trio.fail_after(5):
            while not origin.requests:  # noqa: ASYNC110 - the flight polls for the lock
                await trio.sleep(0.001)
        await source.evict(2 * CHUNK, 1)
        nursery.start_soon(reader, 2 * CHUNK, 10)
        await trio.testing.wait_all_tasks_blocked()
        origin.gate.set()
    assert results == [True, True]
    await source.aclose()
    await other.aclose()


async def test_the_data_counts_not_the_lock(tmp_path: Path) -> None:
    """An owner that was stopped between storing and unlocking holds nobody up."""
    other = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    origin = remote(DATA)
    source = make_cache(tmp_path, lock_wait_seconds=60).open(origin, DIGEST, REGISTRY)
    results = []

    async def reader() -> None:
        results.append(await source.pread(CHUNK, 10))

    assert other._file.try_lock(1, 2)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            other._file.store(1, DATA[CHUNK : 2 * CHUNK])
    assert results == [DATA[CHUNK : CHUNK + 10]]
    assert origin.requests == []
    await source.aclose()
    await other.aclose()


# --- Settings ---


@pytest.mark.parametrize("refill", [0, -CHUNK, 4096, CHUNK - 1, 3 * CHUNK])
def test_the_refill_size_must_be_a_power_of_two_from_64_kib(tmp_path: Path, refill: int) -> None:
    with pytest.raises(ConfigError, match="refill size"):
        make_cache(tmp_path, refill_size=refill)


def test_the_limit_cannot_be_negative(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit"):
        make_cache(tmp_path, limit_bytes=-1)


async def test_sha512_is_cached_and_other_digests_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make_cache(tmp_path)
    long = cache.open(remote(DATA), "sha512:" + "ab" * 64, REGISTRY)
    await long.pread(0, 1)
    assert long.bytes_present == CHUNK
    await long.aclose()
    assert not caplog.records
    for name in ("md5:" + "0" * 32, "sha256:../../etc/passwd", "sha256:" + "A" * 64):
        source = cache.open(remote(DATA), name, REGISTRY)
        assert await source.pread(0, 10) == DATA[:10]
        assert source.bytes_present == 0
        await source.aclose()
    blobs = [name for name in os.listdir(tmp_path) if name.endswith(".blob")]
    assert [name[:7] for name in blobs] == ["sha512-"]
    assert len(caplog.records) == 1


async def test_blobs_are_kept_apart(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    contents = [blob_bytes(CHUNK, seed) for seed in range(3)]
    sources = [
        cache.open(MemorySource(data), digest(i), REGISTRY) for i, data in enumerate(contents)
    ]
    for source, data in zip(sources, contents, strict=True):
        assert await source.pread(0, CHUNK) == data
    for source, data in zip(sources, contents, strict=True):
        assert source.pread_nowait(0, CHUNK) == data
        await source.aclose()

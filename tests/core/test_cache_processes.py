"""The cache shared by real processes: one fetches, one waits, one dies, one is stopped."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from support.caching import (
    CHUNK,
    DIGEST,
    REGISTRY,
    Child,
    blob_bytes,
    blob_path,
    child,
    digest,
    make_cache,
    remote,
)

SIZE = 8 * CHUNK + 77
DATA = blob_bytes(SIZE)


def start_fetch(reader: Child) -> None:
    """Let the child get as far as its origin: from now on it holds the lock."""
    reader.expect("open")
    reader.go_on()
    reader.expect("fetching")


async def test_what_another_process_stored_is_not_fetched(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    with child(tmp_path, SIZE, "read", "0", str(2 * CHUNK)) as reader:
        start_fetch(reader)
        assert source.pread_nowait(0, 10) is None
        reader.go_on()
        assert reader.expect("done") == f"True {2 * CHUNK}"
        # The child is still there: what counts is the file, not its exit.
        assert source.pread_nowait(0, 2 * CHUNK) == DATA[: 2 * CHUNK]
    assert origin.requests == []
    assert source.bytes_present == 2 * CHUNK
    await source.aclose()


async def test_a_reader_waits_for_the_fetch_of_another_process(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path).open(origin, DIGEST, REGISTRY)
    results = []

    async def read() -> None:
        results.append(await source.pread(0, 3 * CHUNK))

    with child(tmp_path, SIZE, "read", "0", str(2 * CHUNK)) as reader, trio.fail_after(5):
        start_fetch(reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert origin.requests == []
            # Chunks that nobody has locked are not held up.
            assert await source.pread(5 * CHUNK, 10) == DATA[5 * CHUNK : 5 * CHUNK + 10]
            reader.go_on()
    assert results == [DATA[: 3 * CHUNK]]
    assert origin.requests == [(5 * CHUNK, CHUNK), (2 * CHUNK, CHUNK)]
    await source.aclose()


async def test_a_killed_process_leaves_its_fetch_to_others(tmp_path: Path) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path, lock_wait_seconds=60).open(origin, DIGEST, REGISTRY)
    results = []

    async def read() -> None:
        results.append(await source.pread(0, 10))

    with child(tmp_path, SIZE, "read", "0", "10") as reader, trio.fail_after(5):
        start_fetch(reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert origin.requests == []
            os.kill(reader.pid, signal.SIGKILL)
    assert results == [DATA[:10]]
    assert origin.requests == [(0, CHUNK)]
    await source.aclose()
    again = make_cache(tmp_path).open(remote(DATA), DIGEST, REGISTRY)
    assert again.pread_nowait(0, CHUNK) == DATA[:CHUNK]
    await again.aclose()


async def test_a_stopped_process_is_not_waited_for_without_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    origin = remote(DATA)
    source = make_cache(tmp_path, lock_wait_seconds=0.2).open(origin, DIGEST, REGISTRY)
    with child(tmp_path, SIZE, "read", "0", "10") as reader:
        start_fetch(reader)
        os.kill(reader.pid, signal.SIGSTOP)
        begin = time.monotonic()
        with trio.fail_after(5):
            assert await source.pread(0, 10) == DATA[:10]
        assert time.monotonic() - begin >= 0.2
        assert origin.requests == [(0, CHUNK)]
        assert source.pread_nowait(0, CHUNK) == DATA[:CHUNK]
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        os.kill(reader.pid, signal.SIGCONT)
        reader.go_on()
        assert reader.expect("done").startswith("True")
    assert source.pread_nowait(0, CHUNK) == DATA[:CHUNK]
    await source.aclose()


def test_processes_that_read_the_same_blob_fetch_each_chunk_once(tmp_path: Path) -> None:
    size = 96 * CHUNK
    with (
        child(tmp_path, size, "scan", "1") as one,
        child(tmp_path, size, "scan", "2") as two,
    ):
        for reader in (one, two):
            reader.expect("open")
        for reader in (one, two):
            reader.go_on()
        answers = [reader.expect("done").split() for reader in (one, two)]
    assert [right for right, _ in answers] == ["True", "True"]
    fetched = [int(count) for _, count in answers]
    assert sum(fetched) == size
    assert min(fetched) > 0, "they did not run at the same time"


# --- Removal ---


async def test_trim_spares_what_another_process_has_open(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, limit_bytes=0)
    with child(tmp_path, SIZE, "read", "0", "10") as reader:
        start_fetch(reader)
        reader.go_on()
        reader.expect("done")
        assert cache.trim() == 0
        assert blob_path(tmp_path, len(DATA)).exists()
        reader.process.kill()
        reader.process.wait(timeout=5)
        assert cache.trim() > 0
    assert not blob_path(tmp_path, len(DATA)).exists()


def test_trim_against_opening(tmp_path: Path) -> None:
    """One process removes without pause what another opens, reads and closes."""
    cache = make_cache(tmp_path, limit_bytes=0)
    freed = 0
    with child(tmp_path, SIZE, "cycle", "150") as user:
        user.expect("open")
        user.go_on()
        give_up = time.monotonic() + 20
        while user.process.poll() is None:
            assert time.monotonic() < give_up
            freed += cache.trim() > 0
        assert user.expect("done") == "True"
    assert freed > 0, "they did not run at the same time"


async def test_the_child_may_have_been_first(tmp_path: Path) -> None:
    """A blob of another digest is none of the child's business."""
    with child(tmp_path, SIZE, "read", "0", "10") as reader:
        start_fetch(reader)
        source = make_cache(tmp_path).open(remote(DATA), digest(7), REGISTRY)
        with trio.fail_after(1):
            assert await source.pread(0, 10) == DATA[:10]
        await source.aclose()

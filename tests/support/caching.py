"""Helpers of the cache tests: known bytes, an origin that counts, and real child processes.

The child's program is ``cache_child.py``. It talks in lines: it says ``open``, ``fetching`` and
``done ...`` on stdout, and does the next step when it gets a line on stdin.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid.core.cache import BlobCache
from hybrid.core.cacheformat import CacheKey
from hybrid.core.source import FaultySource, MemorySource

CHUNK = 65536
GIB = 1 << 30
DIGEST = "sha256:" + "0123456789abcdef" * 4
REGISTRY = "https://registry.example"
CHILD = Path(__file__).with_name("cache_child.py")


def blob_bytes(size: int, seed: int = 1) -> bytes:
    """The same bytes in each process."""
    return random.Random(seed).randbytes(size)


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def blob_path(directory: Path, size: int, name: str = DIGEST) -> Path:
    return directory / CacheKey(REGISTRY, name, size).file_name


def remote(data: bytes, fault=lambda offset, length: None) -> FaultySource:
    """An origin that never answers at once, as a registry."""
    return FaultySource(MemorySource(data, "blob"), fault, remote=True)


def fetched_chunks(origin: FaultySource) -> Counter[int]:
    """How often each chunk was asked for."""
    return Counter(
        chunk
        for offset, length in origin.requests
        for chunk in range(offset // CHUNK, -(-(offset + length) // CHUNK))
    )


def make_cache(directory: Path, **settings: object) -> BlobCache:
    return BlobCache(directory, **{"limit_bytes": GIB, **settings})


class Child:
    """A process that reads through the cache; see cache_child.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def expect(self, word: str) -> str:
        line = self.process.stdout.readline()
        assert line.split()[:1] == [word], f"expected {word}, got {line!r}"
        return line[len(word) :].strip()

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@contextmanager
def child(directory: Path, size: int, *words: str) -> Iterator[Child]:
    """Run a child; it is dead when the block ends."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), str(directory), str(size), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=5)

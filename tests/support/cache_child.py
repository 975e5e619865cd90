"""A process that uses the cache, for test_cache_processes.py.

cache_child.py DIRECTORY SIZE read OFFSET LENGTH   read once; the origin waits for a line
cache_child.py DIRECTORY SIZE scan SEED            read all chunks in an order of its own
cache_child.py DIRECTORY SIZE cycle COUNT          open, read, check, close, COUNT times
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import trio

from hybrid.core.device import Buffer
from hybrid.core.source import MemorySource

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.caching import CHUNK, DIGEST, REGISTRY, blob_bytes, blob_path, make_cache, remote

DIRECTORY = Path(sys.argv[1])
DATA = blob_bytes(int(sys.argv[2]))


def say(*words: object) -> None:
    print(*words, flush=True)


def wait_for_line(offset: int, length: int) -> None:
    # Blocks the whole process on its pipe, on purpose: nothing happens until the test says so.
    say("fetching", offset, length)
    sys.stdin.readline()


async def read(offset: int, length: int) -> None:
    source = make_cache(DIRECTORY).open(remote(DATA, wait_for_line), DIGEST, REGISTRY)
    say("open")
    sys.stdin.readline()
    right = bytes(await source.pread(offset, length)) == DATA[offset : offset + length]
    say("done", right, source.bytes_fetched)
    sys.stdin.readline()
    await source.aclose()


class SlowSource(MemorySource):
    """Lets other tasks, and so other processes, run while a fetch is under way."""

    async def pread(self, offset: int, length: int) -> Buffer:
        await trio.sleep(0.002)
        return await super().pread(offset, length)


async def scan(seed: int) -> None:
    source = make_cache(DIRECTORY).open(SlowSource(DATA), DIGEST, REGISTRY)
    say("open")
    sys.stdin.readline()
    chunks = list(range(len(DATA) // CHUNK))
    random.Random(seed).shuffle(chunks)
    wrong = []

    async def reader(part: list[int]) -> None:
        for chunk in part:
            offset = chunk * CHUNK
            if bytes(await source.pread(offset, CHUNK)) != DATA[offset : offset + CHUNK]:
                wrong.append(chunk)

    async with trio.open_nursery() as nursery:
        for i in range(4):
            nursery.start_soon(reader, chunks[i::4])
    say("done", not wrong, source.bytes_fetched)
    await source.aclose()


async def cycle(count: int) -> None:
    cache = make_cache(DIRECTORY)
    path = blob_path(DIRECTORY, len(DATA))
    say("open")
    sys.stdin.readline()
    right = True
    for _ in range(count):
        source = cache.open(remote(DATA), DIGEST, REGISTRY)
        right = right and bytes(await source.pread(0, len(DATA))) == DATA
        # Nobody may take the name away while the file is in use.
        right = right and os.path.samestat(os.stat(path), os.fstat(source._file._fd))
        await source.aclose()
    say("done", right)


trio.run({"read": read, "scan": scan, "cycle": cycle}[sys.argv[3]], *map(int, sys.argv[4:]))

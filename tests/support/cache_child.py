"""A process that uses the cache, for test_cache_processes.py.

cache_child.py DIRECTORY SIZE read OFFSET LENGTH   read once; the origin waits for a line
cache_child.py DIRECTORY SIZE scan SEED            read all chunks in an order of its own
cache_child.py DIRECTORY SIZE cycle COUNT          open, read, check, close, COUNT times
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import trio
from support.caching import CHUNK, DIGEST, blob_bytes, make_cache, remote

DIRECTORY = Path(sys.argv[1])
DATA = blob_bytes(int(sys.argv[2]))


def say(*words: object) -> None:
    print(*words, flush=True)


def wait_for_line(offset: int, length: int) -> None:
    # Blocks the whole process on its pipe, on purpose: nothing happens until the test says so.
    say("fetching", offset, length)
    sys.stdin.readline()


async def read(offset: int, length: int) -> None:
    source = make_cache(DIRECTORY).open(remote(DATA, wait_for_line), DIGEST)
    say("open")
    sys.stdin.readline()
    right = bytes(await source.pread(offset, length)) == DATA[offset : offset + length]
    say("done", right, source.bytes_fetched)
    sys.stdin.readline()
    await source.aclose()


class SlowSource:
    """Lets other tasks, and so other processes, run while a fetch is under way."""

    def __init__(self) -> None:
        self.name = "blob"
        self.size = len(DATA)

    async def pread(self, offset: int, length: int) -> bytes:
        await trio.sleep(0.002)
        return DATA[offset : offset + length]

    async def aclose(self) -> None:
        pass


async def scan(seed: int) -> None:
    source = make_cache(DIRECTORY).open(SlowSource(), DIGEST)
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
    say("open")
    sys.stdin.readline()
    right = True
    for _ in range(count):
        source = cache.open(remote(DATA), DIGEST)
        right = right and bytes(await source.pread(0, len(DATA))) == DATA
        # A file that is unlinked while it is in use would show as a path that is not ours.
        right = right and source.bytes_present == len(DATA)
        await source.aclose()
    say("done", right)


trio.run({"read": read, "scan": scan, "cycle": cycle}[sys.argv[3]], *map(int, sys.argv[4:]))

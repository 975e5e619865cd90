"""Random damage to runs of blocks: both implementations must come to the same end.

    PYTHONPATH=tests python -m support.codec_fuzz SECONDS [SEED]

goes on for a while with new examples; the tests take a few fixed ones. docs/codec.md tells how to
do that with the sanitizers.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

import zstandard
from support.build_crc import crc32c_cached
from support.build_zfile import BLOCK_SEED, compress_block

from hybrid.core import zblocks_compiled, zblocks_pure
from hybrid.core.zblocks_pure import BadBlockError

BLOCK_SIZES = (512, 4096, 8192, 16384, 32768, 65536)
Outcome = bytes | tuple[int, str]


@dataclass(frozen=True)
class Run:
    """Blocks ``first`` to ``last - 1`` of a stream, as ``expand`` takes them."""

    data: bytes
    offsets: array[int]
    first: int
    last: int
    size: int
    block_size: int
    algorithm: str
    verify: bool


def outcome(expand: Callable[..., bytes], run: Run) -> Outcome:
    """The bytes, or number and reason of the block that is reported as damaged."""
    try:
        return expand(
            run.data, run.offsets, run.first, run.last,
            run.size, run.block_size, run.algorithm, run.verify,
        )  # fmt: skip
    except BadBlockError as bad:
        return bad.block, bad.reason


def make_run(random: Random) -> Run:
    """A run of good blocks, of a stream that may begin before it and end in a short block."""
    algorithm = random.choice(("lz4", "zstd"))
    block_size = random.choice(BLOCK_SIZES)
    verify = random.random() < 0.5
    first, count = random.choice((0, 0, 1, 7)), random.randint(1, 9)
    if random.random() < 0.02:
        count = (512 << 10) // block_size  # without the GIL, as larger ones
    last = first + count
    size = last * block_size - random.choice((0, 0, 1, random.randrange(block_size)))
    stored, place = [], random.choice((0, 512, 1 << 40))
    for number in range(first, last):
        length = min(block_size, size - number * block_size)
        stored.append(_store(_content(random, length), algorithm, verify, random))
    sizes = [1000] * first + list(map(len, stored))
    offsets = array("Q", accumulate(sizes, initial=place))
    return Run(b"".join(stored), offsets, first, last, size, block_size, algorithm, verify)


def _store(content: bytes, algorithm: str, verify: bool, random: Random) -> bytes:
    if algorithm == "zstd" and random.random() < 0.1:
        known, check = random.random() < 0.5, random.random() < 0.5
        compressor = zstandard.ZstdCompressor(
            level=random.choice((1, 3, 9)), write_content_size=known, write_checksum=check
        )
        block = compressor.compress(content)
    else:
        block = compress_block(content, algorithm)
    return block + _checksum(block) if verify else block


def _checksum(block: bytes) -> bytes:
    return crc32c_cached(BLOCK_SEED, block).to_bytes(4, "little")


def _content(random: Random, length: int) -> bytes:
    kind = random.randrange(4)
    if kind == 0:
        return random.randbytes(length)
    if kind == 1:
        return bytes(length)
    period = random.randbytes(random.randint(1, 300))
    content = (period * (length // len(period) + 1))[:length]
    if kind == 2:
        return content
    half = length // 2
    return random.randbytes(half) + content[half:]


def damage(run: Run, random: Random) -> Run:
    """The run with some things wrong: bytes, borders, numbers, the length that was read."""
    for _ in range(random.choice((0, 1, 1, 1, 2, 5))):
        run = random.choice((_flip, _flip, _overwrite, _cut, _move, _reseal, _resize))(run, random)
    return run


def _flip(run: Run, random: Random) -> Run:
    data = bytearray(run.data)
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return replace(run, data=bytes(data))


def _overwrite(run: Run, random: Random) -> Run:
    data, at = bytearray(run.data), random.randrange(len(run.data) + 1)
    piece = random.choice((bytes(8), b"\xff" * 40, random.randbytes(random.randint(1, 64))))
    data[at : at + len(piece)] = piece[: len(data) - at]
    return replace(run, data=bytes(data))


def _cut(run: Run, random: Random) -> Run:
    size = random.choice((0, 1, random.randrange(len(run.data) + 1)))
    return replace(run, data=run.data[:size])


def _move(run: Run, random: Random) -> Run:
    offsets = array("Q", run.offsets)
    at = random.randrange(len(offsets))
    offsets[at] = random.choice(
        (0, 2**64 - 1, 2**63, random.getrandbits(64), offsets[0], offsets[-1],
         (offsets[at] + random.choice((-5, -4, -1, 1, 4, 70000))) % 2**64)
    )  # fmt: skip
    return replace(run, offsets=offsets)


def _resize(run: Run, random: Random) -> Run:
    """Another length of the stream, with as many blocks."""
    size = run.last * run.block_size - random.randrange(run.block_size)
    return replace(run, size=size)


def _reseal(run: Run, random: Random) -> Run:
    """One block changed, but with a right checksum: the decompressor must find it."""
    number = random.randrange(run.first, run.last)
    base = run.offsets[run.first]
    begin, end = run.offsets[number] - base, run.offsets[number + 1] - base
    if not run.verify or not 0 <= begin <= end - 6 or end > len(run.data):
        return run
    block = bytearray(run.data[begin : end - 4])
    for _ in range(random.choice((1, 1, 3))):
        block[random.randrange(len(block))] = random.choice((0, 255, random.getrandbits(8)))
    sealed = bytes(block) + _checksum(bytes(block))
    return replace(run, data=run.data[:begin] + sealed + run.data[end:])


def compare(random: Random) -> bool:
    """One example; whether it was damaged. Raises AssertionError if the two disagree."""
    run = damage(make_run(random), random)
    pure = outcome(zblocks_pure.expand, run)
    compiled = outcome(zblocks_compiled.expand, run)
    assert compiled == pure, (compiled, pure, run)
    return not isinstance(pure, bytes)


def main(seconds: float, seed: int) -> None:
    ends = time.monotonic() + seconds
    count = damaged = 0
    while time.monotonic() < ends:
        damaged += compare(Random(f"{seed}-{count}"))
        count += 1
    print(f"seed {seed}: {count} runs, {damaged} of them damaged: no difference")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns())

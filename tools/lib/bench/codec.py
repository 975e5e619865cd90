"""tools/bench --codec: runs of ZFile blocks, in Python and compiled; packed with two threads too.

No server and no kernel: the functions alone, on 20 MiB from all over the disk, in runs of 1 MiB.
Rates are bytes of the expanded stream. The variants take turns, and each figure is a median.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import BinaryIO

from bench.data import ALGORITHMS, DISK_SIZE
from hybrid.core import _zblocks, zblocks_compiled, zblocks_pure

_RUN = 1 << 20
_STRIDE = 16 << 20
_SIZE = DISK_SIZE // _STRIDE * _RUN
_BLOCK_SIZES = (4096, 65536)
_THREADS = (1, 2)

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Medians in bytes a second: Python, then compiled with each number of threads."""

    direction: str
    algorithm: str
    block_size: int
    rates: list[float]


@dataclass(frozen=True)
class _Sample:
    """One run: its content, and its blocks."""

    plain: memoryview
    packed: bytes
    offsets: array[int]


def measure_codec(disk: Path, rounds: int) -> list[Row]:
    """Both directions, for all algorithms and the smallest and the largest usual block size."""
    with disk.open("rb") as file:
        runs = [_read(file, start) for start in range(0, DISK_SIZE, _STRIDE)]
    rows = []
    for algorithm in ALGORITHMS:
        for block_size in _BLOCK_SIZES:
            samples = [_sample(run, algorithm, block_size) for run in runs]
            for direction, works in (
                ("expand", _expanders(samples, algorithm, block_size)),
                ("pack", _packers(samples, algorithm, block_size)),
            ):
                rows.append(Row(direction, algorithm, block_size, _rates(works, rounds)))
    return rows


def codec_table(rows: list[Row]) -> str:
    """One line for each direction, algorithm and block size."""
    lines = ["direction  blocks        Python    1 thread          2 threads"]
    for row in rows:
        python, *compiled = (rate / 1e6 for rate in row.rates)
        cells = "  ".join(f"{rate:5.0f} MB/s {rate / python:5.2f}x" for rate in compiled)
        blocks = f"{row.algorithm} {row.block_size >> 10}K"
        lines.append(f"{row.direction:<10} {blocks:<9} {python:5.0f} MB/s  {cells}")
    return "\n".join(lines)


def _read(file: BinaryIO, start: int) -> memoryview:
    file.seek(start)
    return memoryview(file.read(_RUN))


def _sample(plain: memoryview, algorithm: str, block_size: int) -> _Sample:
    packed, sizes = zblocks_pure.pack(plain, block_size, algorithm, True, 1)
    return _Sample(plain, packed, array("Q", accumulate(sizes, initial=0)))


def _expanders(samples: list[_Sample], algorithm: str, block_size: int) -> list[Work]:
    number = zblocks_compiled.library(algorithm)
    assert number is not None
    count = _RUN // block_size

    def python() -> None:
        for one in samples:
            zblocks_pure.expand(
                one.packed, one.offsets, 0, count, _RUN, block_size, algorithm, True
            )

    def compiled() -> None:
        for one in samples:
            _zblocks.expand(one.packed, one.offsets, 0, count, _RUN, block_size, number, True)

    return [python, compiled]


def _packers(samples: list[_Sample], algorithm: str, block_size: int) -> list[Work]:
    def python() -> None:
        for one in samples:
            zblocks_pure.pack(one.plain, block_size, algorithm, True, 1)

    def compiled(threads: int) -> None:
        for one in samples:
            zblocks_compiled.pack(one.plain, block_size, algorithm, True, threads)

    return [python, *(lambda n=n: compiled(n) for n in _THREADS)]


def _rates(works: list[Work], rounds: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    for _ in range(rounds):
        for work, seconds in zip(works, taken, strict=True):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
    return [_SIZE / median(seconds) for seconds in taken]

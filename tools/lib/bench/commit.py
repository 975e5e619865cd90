"""tools/bench --commit: changes become a layer, against `lz4 -1` and `zstd -3` of the same bytes.

The disk of the other benchmarks is written to a writable layer: once as a whole, and once in pieces
of 4 to 96 KiB in random order, as it becomes by use. Each is committed with one thread on one core,
and with two on two, in a process of its own. lz4 and zstd are given the same bytes in one file, on
the same cores; lz4 has no threads, so with two cores two of them share the file. All take turns,
and each figure is a median. Everything lies in memory, if there is room.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import trio

from bench.aims import Aim, aim_rows
from bench.data import ALGORITHMS, DISK_SIZE, kept_data
from hybrid.build.base import Surroundings
from hybrid.build.blob_writer import Wrapping
from hybrid.build.changes import ChangeSet
from hybrid.build.commit import commit_layer
from hybrid.build.layer_file import Watcher
from hybrid.core.storage import Storage
from hybrid.core.unflushed import running_boot
from hybrid.core.upper import Upper, create_pair

_THREADS = (1, 2)
_PIECE = 1 << 20
_EXTENTS = (4 << 10, 96 << 10)
_BLOCK = 4096
_LIMIT = 250e6

Work = Callable[[], "Taken"]


@dataclass(frozen=True)
class Taken:
    """One run: seconds, seconds of processors, and the largest resident memory (bytes)."""

    seconds: float
    cpu_seconds: float
    peak: int = 0


@dataclass(frozen=True)
class Row:
    """Medians of one variant: bytes a second, and bytes a second of one processor."""

    what: str
    algorithm: str
    threads: int
    rate: float
    cpu_rate: float
    spread: float
    """Half the distance between fastest and slowest, as a share of the median."""
    peak: int


def show_commit(rounds: int, as_json: bool) -> None:
    """Measure and print."""
    rows = measure_commit(rounds)
    print(json.dumps([asdict(row) for row in rows], indent=2) if as_json else commit_table(rows))


def measure_commit(rounds: int) -> list[Row]:
    """All variants, ``rounds`` times."""
    with _prepared() as directory:
        size = (directory / "bytes").stat().st_size
        works: dict[tuple[str, str, int], Work] = {}
        for algorithm in ALGORITHMS:
            for threads in _THREADS:
                for what in ("whole", "scattered"):
                    works[f"commit, {what}", algorithm, threads] = _committer(
                        directory, what, algorithm, threads
                    )
                name = {"lz4": "lz4 -1", "zstd": "zstd -3"}[algorithm]
                works[name, algorithm, threads] = _program(directory, algorithm, threads)
        taken: dict[tuple[str, str, int], list[Taken]] = {key: [] for key in works}
        for _ in range(rounds):
            for key, work in works.items():
                taken[key].append(work())
    return [_row(key, found, size) for key, found in taken.items()]


def _row(key: tuple[str, str, int], found: list[Taken], size: int) -> Row:
    seconds = [one.seconds for one in found]
    middle = median(seconds)
    spread = (max(seconds) - min(seconds)) / 2 / middle
    cpu = median(one.cpu_seconds for one in found)
    return Row(*key, size / middle, size / cpu, spread, max(one.peak for one in found))


def commit_table(rows: list[Row]) -> str:
    """One line for each variant, and the aim."""
    lines = [
        f"ext4 of {DISK_SIZE >> 20} MiB; MB: 10^6 bytes of it; +- is the spread of the rounds",
        "",
        "what             threads/cores        rate   +-  of lz4/zstd   per CPU s      peak",
    ]
    for row in rows:
        other = next(r for r in rows if "-" in r.what and _same(r, row))
        ratio = f"{row.rate / other.rate:.0%}" if other is not row else "-"
        name = row.what if other is row else f"{row.what}, {row.algorithm}"
        peak = f"{row.peak >> 20} MiB" if row.peak else "-"
        lines.append(
            f"{name:<24} {row.threads}  {row.rate / 1e6:5.0f} MB/s  {row.spread:3.0%}  "
            f"{ratio:>11}  {row.cpu_rate / 1e6:4.0f} MB/s  {peak:>8}"
        )
    (one,) = (r for r in rows if (r.what, r.algorithm, r.threads) == ("commit, whole", "lz4", 1))
    aim = Aim("commit, lz4, one core", one.rate / 1e6, _LIMIT / 1e6, "MB/s")
    return "\n".join([*lines, "", *aim_rows([aim])])


def _same(one: Row, other: Row) -> bool:
    return (one.algorithm, one.threads) == (other.algorithm, other.threads)


# --- what is measured


def _committer(directory: Path, what: str, algorithm: str, threads: int) -> Work:
    def work() -> Taken:
        command = [sys.executable, "-m", "bench.commit", str(directory / what), algorithm]
        done = subprocess.run(
            [*_on_cores(threads), *command, str(threads)], check=True, capture_output=True
        )
        return Taken(**json.loads(done.stdout))

    return work


def _program(directory: Path, algorithm: str, threads: int) -> Work:
    commands = {
        ("lz4", 1): [["lz4", "-1", "-q", "-f", "bytes", "out"]],
        ("lz4", 2): [["lz4", "-1", "-q", "-f", f"half{n}", f"out{n}"] for n in (1, 2)],
        ("zstd", 1): [["zstd", "-3", "-T1", "-q", "-f", "bytes", "-o", "out"]],
        ("zstd", 2): [["zstd", "-3", "-T2", "-q", "-f", "bytes", "-o", "out"]],
    }[algorithm, threads]

    def work() -> Taken:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        running = [
            subprocess.Popen([*_on_cores(threads), *command], cwd=directory) for command in commands
        ]
        for process in running:
            if process.wait():
                raise subprocess.CalledProcessError(process.returncode, process.args)
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Taken(seconds, cpu)

    return work


def _on_cores(count: int) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))[:count]
    return ["taskset", "-c", ",".join(map(str, cores))]


# --- what it is measured with


@contextmanager
def _prepared() -> Iterator[Path]:
    """A directory with two writable layers, and the bytes that are in them in files."""
    kept = kept_data()
    memory = Path("/dev/shm")
    room = memory.is_dir() and shutil.disk_usage(memory).free > 8 * DISK_SIZE
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-", dir=memory if room else kept) as name:
        directory = Path(name)
        content = (kept / "disk.raw").read_bytes()
        pieces = list(_pieces(content, _PIECE, _PIECE, random.Random(1)))
        small = list(_pieces(content, *_EXTENTS, random.Random(2)))
        random.Random(3).shuffle(small)
        trio.run(_write_layer, directory / "whole", content, pieces)
        trio.run(_write_layer, directory / "scattered", content, small)
        mapped = b"".join(content[start:end] for start, end in pieces)
        (directory / "bytes").write_bytes(mapped)
        (directory / "half1").write_bytes(mapped[: len(mapped) // 2])
        (directory / "half2").write_bytes(mapped[len(mapped) // 2 :])
        yield directory


def _pieces(
    content: bytes, shortest: int, longest: int, numbers: random.Random
) -> Iterator[tuple[int, int]]:
    """Ranges of bytes that together are all blocks with something in them."""
    zero = bytes(_BLOCK)
    start = 0
    while start < len(content):
        if content[start : start + _BLOCK] == zero:
            start += _BLOCK
            continue
        limit = start + numbers.randrange(shortest, longest + 1, _BLOCK)
        end = start
        while end < min(limit, len(content)) and content[end : end + _BLOCK] != zero:
            end += _BLOCK
        yield start, end
        start = end


async def _write_layer(stem: Path, content: bytes, pieces: list[tuple[int, int]]) -> None:
    data, index = _files(stem)
    create_pair(Storage(), data, index, len(content))
    upper = Upper.open(Storage(), data, index, running_boot())
    view = memoryview(content)
    for start, end in pieces:
        upper.write(start // 512, view[start:end])
    await upper.aclose()


def _files(stem: Path) -> tuple[Path, Path]:
    return stem.with_suffix(".data"), stem.with_suffix(".index")


def commit_once(stem: Path, algorithm: str, threads: int) -> Taken:
    """In a process of its own: what a commit takes, without starting Python."""
    changes = ChangeSet(stem.name, *_files(stem), 0)
    wrapping = Wrapping(algorithm, threads=threads)
    started, cpu = time.perf_counter(), time.process_time()
    with open(stem.with_suffix(".out"), "w+b") as file:
        trio.run(commit_layer, changes, Surroundings(), wrapping, "", file, Watcher())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Taken(seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


if __name__ == "__main__":
    print(json.dumps(asdict(commit_once(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))

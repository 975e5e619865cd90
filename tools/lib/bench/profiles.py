"""Where the time goes: the read path of an image without FUSE, then the FUSE server under fio.

cProfile makes every call of Python dearer, so the shares in its tables lean towards small
functions. The rates of the read path are taken without it.
"""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import trio

from bench.data import ALGORITHMS, DISK_SIZE, Data
from bench.devices import layers_name, open_device
from bench.fio import WORKLOADS, Workload, run_fio
from bench.fronts import Environment, fuse_file
from hybrid.core.device import Device
from hybrid.fuse.loop import attach_loop

_RANDOM_READS = 50_000
_SEQUENTIAL = 1 << 20
_RANDOM = 4096
_ROWS = 12


def show_profiles(data: Data) -> None:
    """Print all of them."""
    for algorithm in ALGORITHMS:
        show_read_path(data, algorithm)
    show_fuse_server(data)


def show_read_path(data: Data, algorithm: str, random_reads: int = _RANDOM_READS) -> None:
    """Rates and profiles of reading an image without a front end."""
    device = trio.run(open_device, layers_name(data.layers(algorithm)))
    _show_reads(device, algorithm, random_reads)
    trio.run(device.aclose)


def _show_reads(device: Device, algorithm: str, random_reads: int) -> None:
    offsets = [
        (offset, _SEQUENTIAL) for offset in range(0, DISK_SIZE - _SEQUENTIAL + 1, _SEQUENTIAL)
    ]
    numbers = random.Random(1)
    scattered = [
        (numbers.randrange(DISK_SIZE // _RANDOM) * _RANDOM, _RANDOM) for _ in range(random_reads)
    ]
    for title, ranges in (("sequential 1 MiB", offsets), ("random 4 KiB", scattered)):
        seconds = _time_reads(device, ranges)
        size = sum(length for _, length in ranges)
        print(
            f"\n{algorithm}, {title}, alone: {size / seconds / (1 << 30):.2f} GiB/s, "
            f"{len(ranges) / seconds / 1000:.1f} k reads/s, {1e6 * seconds / len(ranges):.1f} us"
        )
        profile = cProfile.Profile()
        profile.runcall(_read_all, device, ranges)
        _print_profile(profile)


def _read_all(device: Device, ranges: Sequence[tuple[int, int]]) -> None:
    read = device.pread_nowait
    for offset, length in ranges:
        if read(offset, length) is None:
            raise RuntimeError("a local image would block")


def _time_reads(device: Device, ranges: Sequence[tuple[int, int]]) -> float:
    _read_all(device, ranges)  # the head of each layer is checked, caches are warm
    started = time.perf_counter()
    _read_all(device, ranges)
    return time.perf_counter() - started


def show_fuse_server(data: Data) -> None:
    """Profiles of the server of (b) while fio reads."""

    @contextmanager
    def disk(environment: Environment) -> Iterator[Path]:
        with fuse_file(f"memory:{data.disk}", environment) as (file, _):
            loop = attach_loop(file)
            try:
                yield loop.path
            finally:
                loop.close()

    show_server("FUSE server, in-memory Device", disk, WORKLOADS)


def show_server(
    title: str,
    disk: Callable[[Environment], AbstractContextManager[Path]],
    workloads: Sequence[Workload],
) -> None:
    """Profiles of one of our own servers while fio reads. ``disk`` starts it, each time anew."""
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-") as name:
        for workload in workloads:
            file = Path(name) / workload.key
            with disk({**os.environ, "HYBRID_BENCH_PROFILE": str(file)}) as device:
                reading = run_fio(workload, device, 2, 1)
            print(
                f"\n{title}, {workload.title}, under the profiler: "
                f"{reading.iops / 1000:.2f} k reads/s"
            )
            _print_profile(str(file))


def _print_profile(profile: cProfile.Profile | str) -> None:
    shown = io.StringIO()
    pstats.Stats(profile, stream=shown).strip_dirs().sort_stats("tottime").print_stats(_ROWS)
    for line in shown.getvalue().splitlines():
        if line.strip() and not line.strip().startswith(("Ordered by", "List reduced")):
            print("   ", line.rstrip())

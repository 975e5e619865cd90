"""What fio does not see: how long starting takes, and what an index takes in memory."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.data import Data
from bench.images import HYBRID, hybrid_state, run_hybrid
from hybrid.core.segments import SegmentMap, merge

_SEGMENTS = 100_000
_LAYERS = 3


@dataclass(frozen=True)
class Small:
    """Times are seconds (medians); memory is bytes."""

    help_seconds: float
    server_seconds: float
    mount_seconds: float
    memory_per_segment: float


def measure_small(data: Data, rounds: int) -> Small:
    """Start and stop things ``rounds`` times."""
    with (
        tempfile.TemporaryDirectory(prefix="hybrid-bench-") as mountpoint,
        hybrid_state() as environment,
    ):
        config = data.config("lz4")
        return Small(
            median(_timed(_show_help) for _ in range(rounds)),
            median(_time_server(config, environment) for _ in range(rounds)),
            median(_time_mount(config, Path(mountpoint), environment) for _ in range(rounds)),
            index_memory(),
        )


def _timed(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _show_help() -> None:
    # The installed program, not `python -m`: that is what users wait for.
    program = Path(HYBRID[0]).with_name("hybrid")
    subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)


def _time_server(config: Path, environment: Mapping[str, str]) -> float:
    """From the command to a file that can be read, without mounting."""
    started = time.perf_counter()
    run_hybrid(["mount", "--mode", "fuse", "--no-mount", str(config)], environment)
    spent = time.perf_counter() - started
    run_hybrid(["umount", _only_mount(environment)], environment)
    return spent


def _only_mount(environment: Mapping[str, str]) -> str:
    records = Path(environment["HYBRID_STATE_DIR"])
    (found,) = [path.name for path in records.iterdir() if not path.name.startswith(".")]
    return found


def _time_mount(config: Path, mountpoint: Path, environment: Mapping[str, str]) -> float:
    """From the command to a mount point whose files can be listed."""
    started = time.perf_counter()
    run_hybrid(["mount", "--mode", "fuse", str(config), str(mountpoint)], environment)
    any(mountpoint.iterdir())
    spent = time.perf_counter() - started
    run_hybrid(["umount", str(mountpoint)], environment)
    return spent


def index_memory() -> float:
    """Bytes a segment of a merged index takes, by what Python allocated for it."""
    layers = [_random_layer(seed) for seed in range(_LAYERS)]
    tracemalloc.start()
    merged = merge(layers)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / len(merged)


def _random_layer(seed: int) -> SegmentMap:
    numbers = random.Random(seed)
    starts, ends, locations = array("Q"), array("Q"), array("Q")
    sector = 0
    for number in range(_SEGMENTS // _LAYERS):
        sector += 8 * numbers.randint(1, 64)
        starts.append(sector)
        sector += 8 * numbers.randint(1, 24)
        ends.append(sector)
        locations.append(8 + 64 * number)
    return SegmentMap(starts, ends, locations)

"""tools/bench --write: writing to an image, against a raw file."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.command import run
from bench.writes.index import measure_index
from bench.writes.space import measure_space
from bench.writes.speed import measure_speed
from bench.writes.table import Results, json_results, text_table
from bench.writes.targets import DISK_SIZE

_MEMORY = Path("/dev/shm")
_COPIES = 6
"""Raw file and uppers, what they keep for writing included."""
_UNCOUNTED = ("tmpfs", "overlayfs")
"""File systems whose writes /proc/PID/io does not tell, or not reliably."""


def main(words: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="tools/bench --write", description=__doc__)
    options.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options.add_argument("--quick", action="store_true", help="three short rounds: rough figures")
    options.add_argument(
        "--directory", type=Path,
        help="write there; otherwise to memory for speeds, and to the cache directory for sizes",
    )  # fmt: skip
    arguments = options.parse_args(words)
    if os.geteuid() != 0:
        sys.exit("bench: block devices need root: sudo tools/bench --write")
    rounds, seconds = (3, 1.0) if arguments.quick else (5, 2.5)
    results = _measure(arguments.directory, rounds, seconds, arguments.quick)
    print(json.dumps(json_results(results), indent=2) if arguments.json else text_table(results))


def _measure(wanted: Path | None, rounds: int, seconds: float, quick: bool) -> Results:
    load = os.getloadavg()[0]
    fast = wanted or (_MEMORY if _has_room(_MEMORY) else _cache_directory())
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-", dir=fast) as name:
        speed_place = _type_of(Path(name))
        speed = measure_speed(Path(name), rounds, seconds)
    # Sizes are what a disk gets, as far as this machine has one.
    with tempfile.TemporaryDirectory(prefix="hybrid-bench-", dir=_place_for_sizes(wanted)) as name:
        space_place = _type_of(Path(name))
        size = (16 << 20) if quick else (128 << 20)
        steps = measure_space(Path(name), size, counted=space_place not in _UNCOUNTED)
    return Results(speed_place, space_place, rounds, seconds, load, speed, steps, measure_index())


def _place_for_sizes(wanted: Path | None) -> Path:
    if wanted:
        return wanted
    cache = _cache_directory()
    # In a guest it may be an overlay, with which loop devices do no direct I/O.
    return _MEMORY if _type_of(cache) in _UNCOUNTED and _has_room(_MEMORY) else cache


def _has_room(directory: Path) -> bool:
    return directory.is_dir() and shutil.disk_usage(directory).free > _COPIES * DISK_SIZE


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(base) / "hybrid-bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _type_of(directory: Path) -> str:
    command = ["stat", "--file-system", "--format=%T", str(directory)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    run(main)

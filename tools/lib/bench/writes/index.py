"""Memory of an upper's index, as it becomes by random writes.

    python -m bench.writes.index SEGMENTS

prints two numbers: bytes by the map's own account, and by which the process grew.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from hybrid.core.writable_map import WritableMap

SEGMENTS = 1_000_000
_STEP = 611_953
"""A prime: i * _STEP modulo the number of segments visits each of them once, in no order."""
_SECTORS = 8


@dataclass(frozen=True)
class IndexMemory:
    """Bytes for one of ``segments``."""

    segments: int
    accounted: float
    resident: float


def measure_index(segments: int = SEGMENTS) -> IndexMemory:
    """In a process of its own, in which nothing else was freed before."""
    command = [sys.executable, "-m", "bench.writes.index", str(segments)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    accounted, resident = map(int, shown.split())
    return IndexMemory(segments, accounted / segments, resident / segments)


def _fill(segments: int) -> WritableMap:
    """Every second block of 4 KiB of a disk is written, in scattered order: none can be joined."""
    made = WritableMap()
    for number in range(segments):
        start = number * _STEP % segments * 2 * _SECTORS
        made.put(start, start + _SECTORS, _SECTORS * (number + 1))
    assert len(made) == segments
    return made


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ValueError("no VmRSS for this process")


def main() -> None:
    segments = int(sys.argv[1])
    _fill(1000)  # code and caches that are needed in any case
    gc.collect()
    before = _resident()
    made = _fill(segments)
    print(made.memory(), _resident() - before)


if __name__ == "__main__":
    main()

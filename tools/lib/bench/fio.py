"""One run of fio on one loop device, past the page cache of the loop device (--direct=1)."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workload:
    """``depth`` reads of ``block`` bytes are under way at any time."""

    key: str
    title: str
    sequential: bool
    block: int
    depth: int


WORKLOADS = (
    Workload("seq", "sequential 1 MiB", True, 1 << 20, 1),
    Workload("rand1", "random 4 KiB QD1", False, 4096, 1),
    Workload("rand16", "random 4 KiB QD16", False, 4096, 16),
)


@dataclass(frozen=True)
class Reading:
    """What one run gave: bytes per second, reads per second, bytes in all."""

    bandwidth: float
    iops: float
    total: int


def run_fio(workload: Workload, loop: Path, seconds: float, seed: int) -> Reading:
    """Read for ``seconds``. The seed makes every target see the same random offsets."""
    engine = "psync" if workload.depth == 1 else "libaio"
    pattern = "read" if workload.sequential else "randread"
    command = [
        "fio", "--name=bench", "--thread", f"--filename={loop}", "--readonly", "--direct=1",
        f"--ioengine={engine}", f"--rw={pattern}", f"--bs={workload.block}",
        f"--iodepth={workload.depth}", "--norandommap", f"--randseed={seed}", "--time_based",
        f"--runtime={int(seconds * 1000)}ms", "--output-format=json",
    ]  # fmt: skip
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # fio may put notices in front of the JSON.
    job = json.loads(shown[shown.index("{") :])["jobs"][0]
    if job["error"] or not job["read"]["io_bytes"]:
        raise RuntimeError(f"fio failed on {loop}: error {job['error']}")
    read = job["read"]
    return Reading(read["bw_bytes"], read["iops"], read["io_bytes"])

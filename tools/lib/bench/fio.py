"""One run of fio on block devices, past their page cache (--direct=1)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
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


SEQUENTIAL = Workload("seq", "sequential 1 MiB", True, 1 << 20, 1)
SEQUENTIAL_128 = Workload("seq128", "sequential 128 KiB", True, 128 << 10, 1)
RANDOM_1 = Workload("rand1", "random 4 KiB QD1", False, 4096, 1)
RANDOM_16 = Workload("rand16", "random 4 KiB QD16", False, 4096, 16)
WORKLOADS = (SEQUENTIAL, RANDOM_1, RANDOM_16)


@dataclass(frozen=True)
class Reading:
    """What one run gave: bytes per second, reads per second, bytes in all."""

    bandwidth: float
    iops: float
    total: int


def run_fio(workload: Workload, device: Path, seconds: float, seed: int) -> Reading:
    """Read for ``seconds``. The seed makes every target see the same random offsets."""
    return run_in_turn(workload, [device], seconds, seed)[0]


def run_in_turn(
    workload: Workload, devices: Sequence[Path], seconds: float, seed: int
) -> list[Reading]:
    """Read one device after the other, each for ``seconds``, with one process of fio.

    Where machines are slow, the start of fio takes longer than what it measures.
    """
    engine = "psync" if workload.depth == 1 else "libaio"
    pattern = "read" if workload.sequential else "randread"
    command = [
        "fio", "--thread", "--readonly", "--direct=1",
        f"--ioengine={engine}", f"--rw={pattern}", f"--bs={workload.block}",
        f"--iodepth={workload.depth}", "--norandommap", f"--randseed={seed}", "--time_based",
        f"--runtime={int(seconds * 1000)}ms", "--output-format=json",
    ]  # fmt: skip
    for device in devices:
        # After the name of a job, options are its own; a stonewall waits for the former ones.
        command += ["--name=bench", f"--filename={device}", "--stonewall"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # fio may put notices in front of the JSON.
    jobs = json.loads(shown[shown.index("{") :])["jobs"]
    return [_reading(job, device) for job, device in zip(jobs, devices, strict=True)]


def _reading(job: dict[str, dict[str, float]], device: Path) -> Reading:
    read = job["read"]
    if job["error"] or not read["io_bytes"]:
        raise RuntimeError(f"fio failed on {device}: error {job['error']}")
    return Reading(read["bw_bytes"], read["iops"], int(read["io_bytes"]))

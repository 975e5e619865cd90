"""Runs of fio that write to a block device, past its page cache, and synchronise it at the end."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.fio import Workload

SEQUENTIAL = Workload("seq", "sequential 1 MiB", True, 1 << 20, 1)
RANDOM_1 = Workload("rand1", "random 4 KiB QD1", False, 4096, 1)
RANDOM_16 = Workload("rand16", "random 4 KiB QD16", False, 4096, 16)
WORKLOADS = (RANDOM_1, RANDOM_16, SEQUENTIAL)


@dataclass(frozen=True)
class Writing:
    """What one run gave: bytes in all, and the seconds they took, the last fsync included."""

    total: int
    writes: int
    seconds: float


def write_for(workload: Workload, device: Path, seconds: float, seed: int) -> Writing:
    """Write anywhere on the device for ``seconds``; the same seed gives the same offsets."""
    limits = ["--time_based", f"--runtime={int(seconds * 1000)}ms", "--norandommap"]
    return _run(workload, device, seed, limits)


def write_once(workload: Workload, device: Path, offset: int, size: int, seed: int) -> Writing:
    """Write each block of the bytes [offset, offset + size) exactly once."""
    return _run(workload, device, seed, [f"--offset={offset}", f"--size={size}"])


def _run(workload: Workload, device: Path, seed: int, limits: list[str]) -> Writing:
    engine = "psync" if workload.depth == 1 else "libaio"
    command = [
        "fio", "--name=bench", "--thread", f"--filename={device}", "--direct=1",
        f"--ioengine={engine}", f"--rw={'write' if workload.sequential else 'randwrite'}",
        f"--bs={workload.block}", f"--iodepth={workload.depth}", f"--randseed={seed}",
        "--output-format=json", *limits,
    ]  # fmt: skip
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # fio may put notices in front of the JSON.
    (job,) = json.loads(shown[shown.index("{") :])["jobs"]
    write = job["write"]
    if job["error"] or not write["io_bytes"]:
        raise RuntimeError(f"fio failed on {device}: error {job['error']}")
    # Not fio's --end_fsync, since its reports do not say whether its rates contain that.
    seconds = write["runtime"] / 1000 + _synchronise(device)
    return Writing(write["io_bytes"], write["total_ios"], seconds)


def _synchronise(device: Path) -> float:
    """Have the device flush what it holds; the seconds that it took."""
    descriptor = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        started = time.perf_counter()
        os.fsync(descriptor)
        return time.perf_counter() - started
    finally:
        os.close(descriptor)

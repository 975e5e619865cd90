"""All runs of fio, interleaved: noise that comes and goes hits every target alike."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.fio import WORKLOADS, Reading, Workload, run_fio
from bench.targets import Target

MIB = 1 << 20


@dataclass(frozen=True)
class Cell:
    """Medians of one workload on one target. CPU time is the server's; 0 if there is none."""

    bandwidth: float
    iops: float
    cpu_ms_per_mib: float


Cells = dict[tuple[str, str], Cell]
"""By key of the target and key of the workload."""


def measure(targets: Sequence[Target], rounds: int, seconds: float) -> Cells:
    """Medians of ``rounds`` runs of ``seconds`` each."""
    runs: dict[tuple[str, str], list[tuple[Reading, float]]] = defaultdict(list)
    for target in targets:
        run_fio(WORKLOADS[0], target.device, 0.5, 0)  # caches warm, code loaded
    for number in range(rounds):
        print(f"bench: round {number + 1} of {rounds}", file=sys.stderr)
        for workload in WORKLOADS:
            for target in targets:
                runs[target.key, workload.key].append(_one_run(target, workload, seconds, number))
    return {key: _cell(found) for key, found in runs.items()}


def _one_run(
    target: Target, workload: Workload, seconds: float, seed: int
) -> tuple[Reading, float]:
    before = target.cpu_seconds()
    reading = run_fio(workload, target.device, seconds, seed + 1)
    spent = target.cpu_seconds() - before
    return reading, 1000 * spent / (reading.total / MIB)


def _cell(runs: Sequence[tuple[Reading, float]]) -> Cell:
    return Cell(
        median(reading.bandwidth for reading, _ in runs),
        median(reading.iops for reading, _ in runs),
        median(cpu for _, cpu in runs),
    )

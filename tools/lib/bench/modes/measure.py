"""All runs of fio, interleaved: noise that comes and goes hits every target alike."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.fio import (
    RANDOM_1,
    RANDOM_16,
    SEQUENTIAL,
    SEQUENTIAL_128,
    Reading,
    Workload,
    run_in_turn,
)
from bench.targets import Target

WORKLOADS = (RANDOM_1, RANDOM_16, SEQUENTIAL_128, SEQUENTIAL)
_WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Cell:
    """Medians of one workload on one target. CPU time is the server's; 0 if there is none."""

    bandwidth: float
    """Bytes per second."""
    iops: float
    cpu_seconds_per_read: float
    spread: float
    """Half the distance of the fastest run from the slowest one, as a share of the median."""


Cells = dict[tuple[str, str], Cell]
"""By key of the target and key of the workload."""
_Runs = dict[tuple[str, str], list[tuple[Reading, float]]]


def measure(targets: Sequence[Target], rounds: int, seconds: float) -> Cells:
    """Medians of ``rounds`` runs of ``seconds`` each."""
    runs: _Runs = defaultdict(list)
    for workload in WORKLOADS:
        # Caches get warm, code is loaded, and translated where the machine is emulated.
        _run_all(targets, workload, _WARM_UP_SECONDS, 0)
    for number in range(rounds):
        print(f"bench: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        turned = [*targets[number % len(targets) :], *targets[: number % len(targets)]]
        for workload in WORKLOADS:
            for target, run in _run_all(turned, workload, seconds, number + 1):
                runs[target.key, workload.key].append(run)
    return {key: _cell(found) for key, found in runs.items()}


def _run_all(
    targets: Sequence[Target], workload: Workload, seconds: float, seed: int
) -> list[tuple[Target, tuple[Reading, float]]]:
    """One run each. A server has nothing to do but its own run, so its CPU time is that run's."""
    chosen = [target for target in targets if target.only in ("", workload.key)]
    before = [target.cpu_seconds() for target in chosen]
    readings = run_in_turn(workload, [target.device for target in chosen], seconds, seed)
    return [
        (target, (reading, (target.cpu_seconds() - began) * workload.block / reading.total))
        for target, began, reading in zip(chosen, before, readings, strict=True)
    ]


def _cell(runs: Sequence[tuple[Reading, float]]) -> Cell:
    rates = [reading.iops for reading, _ in runs]
    return Cell(
        median(reading.bandwidth for reading, _ in runs),
        median(rates),
        median(cpu for _, cpu in runs),
        (max(rates) - min(rates)) / 2 / median(rates),
    )

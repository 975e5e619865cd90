"""Rates of writing. All targets take turns, so that noise of the machine hits all of them."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.fio import Workload
from bench.writes.fio import WORKLOADS, Writing, write_for
from bench.writes.targets import Written, images_to_write, raw_file


@dataclass(frozen=True)
class Cell:
    """Medians of one workload on one target. ``cpu_us`` is the server's, for one write."""

    bandwidth: float
    iops: float
    spread: float
    """Half the distance between fastest and slowest, as a share of the median."""
    cpu_us: float


@dataclass(frozen=True)
class Speed:
    """All cells by key of the target and key of the workload; titles and peaks by key of target."""

    cells: dict[tuple[str, str], Cell]
    titles: dict[str, str]
    peaks: dict[str, int]


def measure_speed(directory: Path, rounds: int, seconds: float) -> Speed:
    """``rounds`` runs of ``seconds`` of each workload on each target."""
    runs: dict[tuple[str, str], list[tuple[Writing, float]]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        written = [
            stack.enter_context(raw_file(directory)),
            *stack.enter_context(images_to_write(directory)),
        ]
        for one in written:
            write_for(WORKLOADS[0], one.target.device, 0.5, 0)  # caches warm, code loaded
        for number in range(rounds):
            print(f"bench: round {number + 1} of {rounds}", file=sys.stderr)
            for workload in WORKLOADS:
                for one in written:
                    run = _one_run(one, workload, seconds, number + 1)
                    runs[one.target.key, workload.key].append(run)
        titles = {one.target.key: one.target.title for one in written}
        peaks = {one.target.key: one.target.peak_memory() for one in written}
    return Speed({key: _cell(found) for key, found in runs.items()}, titles, peaks)


def _one_run(one: Written, workload: Workload, seconds: float, seed: int) -> tuple[Writing, float]:
    before = one.target.cpu_seconds()
    writing = write_for(workload, one.target.device, seconds, seed)
    return writing, (one.target.cpu_seconds() - before) / writing.writes


def _cell(runs: list[tuple[Writing, float]]) -> Cell:
    rates = [writing.total / writing.seconds for writing, _ in runs]
    middle = median(rates)
    return Cell(
        middle,
        median(writing.writes / writing.seconds for writing, _ in runs),
        (max(rates) - min(rates)) / 2 / middle,
        1e6 * median(cpu for _, cpu in runs),
    )

"""The aims, and the one table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.aims import Aim, aim_rows
from bench.data import DISK_SIZE, Data
from bench.fio import RANDOM_1, RANDOM_16, SEQUENTIAL, Workload
from bench.modes.measure import WORKLOADS, Cell, Cells
from bench.targets import Target

_MIB = 1 << 20
_MB = 1_000_000
_THROUGH_FUSE = {"c": "d", "e": "f"}
"""The same Device in the other mode."""


@dataclass(frozen=True)
class Results:
    """Everything from one run. ``peaks`` are bytes by key of the target."""

    data: Data
    targets: Sequence[Target]
    cells: Cells
    peaks: dict[str, int]
    rounds: int
    seconds: float


def aims(results: Results) -> list[Aim]:
    """The aims of the project, with what was measured."""
    sequential, many = (_ratio(results, "c", "a", w) for w in (SEQUENTIAL, RANDOM_16))
    image = results.cells["e", SEQUENTIAL.key].bandwidth / _MB
    return [
        Aim("(c) sequential 1 MiB, of (a)", 100 * sequential, 50, "%"),
        Aim("(c) random QD16, of (a)", 100 * many, 60, "%"),
        Aim("(c) random QD1, times (g)", _ratio(results, "c", "g", RANDOM_1), 2, "times"),
        Aim("(e) sequential 1 MiB", image, 110, "MB/s"),
    ]


def _ratio(results: Results, key: str, base: str, workload: Workload) -> float:
    return results.cells[key, workload.key].iops / results.cells[base, workload.key].iops


def text_table(results: Results) -> str:
    """The table for people."""
    return "\n".join([*_head(results), "", *_rows(results), "", *aim_rows(aims(results))])


def _head(results: Results) -> list[str]:
    layers = results.data.image_bytes["lz4"] / _MIB
    return [
        f"Linux {platform.release()}, {os.cpu_count()} CPUs; disks of {DISK_SIZE / _MIB:.0f} MiB; "
        f"three layers of {layers:.0f} MiB, files on {results.data.where}",
        f"fio --direct=1; medians of {results.rounds} rounds of {results.seconds:g} s, interleaved",
        "CPU per read and peak memory are the server's; +- is the spread of the rounds; MB: 10^6 B",
    ]


def _rows(results: Results) -> list[str]:
    lines = [
        f"{'workload':<18} {'target':<33} {'result':>13} {'+-':>5} {'of (a)':>7} {'of FUSE':>7} "
        f"{'CPU/read':>10} {'peak':>7}"
    ]
    for workload in WORKLOADS:
        for target in results.targets:
            if (target.key, workload.key) in results.cells:
                lines.append(_row(results, workload, target))
    return lines


def _row(results: Results, workload: Workload, target: Target) -> str:
    cell = results.cells[target.key, workload.key]
    ceiling = _percent(_ratio(results, target.key, "a", workload)) if target.key != "a" else "-"
    fuse = _THROUGH_FUSE.get(target.key)
    of_fuse = _percent(_ratio(results, target.key, fuse, workload)) if fuse else "-"
    cpu = f"{1e6 * cell.cpu_seconds_per_read:.0f} us" if target.server else "-"
    peak = f"{results.peaks[target.key] / _MIB:.0f} MiB" if target.server else "-"
    return (
        f"{workload.title:<18} {f'({target.key}) {target.title}':<33} "
        f"{_result(workload, cell):>13} {_percent(cell.spread):>5} {ceiling:>7} {of_fuse:>7} "
        f"{cpu:>10} {peak:>7}"
    )


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


def _result(workload: Workload, cell: Cell) -> str:
    if workload.sequential:
        return f"{cell.bandwidth / _MB:.0f} MB/s"
    return f"{cell.iops / 1000:.2f} k IOPS"


def json_results(results: Results) -> dict[str, object]:
    """The same for machines: bytes, seconds, reads per second."""
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "disk_bytes": DISK_SIZE,
        "image_bytes": results.data.image_bytes,
        "filesystem": results.data.where,
        "rounds": results.rounds,
        "round_seconds": results.seconds,
        "targets": {
            target.key: {
                "title": target.title,
                "peak_bytes": results.peaks[target.key],
                **{
                    workload.key: asdict(results.cells[target.key, workload.key])
                    for workload in WORKLOADS
                    if (target.key, workload.key) in results.cells
                },
            }
            for target in results.targets
        },
        "aims": [{**asdict(aim), "met": aim.met} for aim in aims(results)],
    }

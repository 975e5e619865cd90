"""The aims, and the one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.aims import Aim, aim_rows
from bench.data import DISK_SIZE, Data
from bench.fio import WORKLOADS, Workload
from bench.measure import MIB, Cell, Cells
from bench.small import Small
from bench.targets import Target

_GIB = 1 << 30


@dataclass(frozen=True)
class Results:
    """Everything from one run. ``peaks`` are bytes by key of the target."""

    data: Data
    targets: Sequence[Target]
    cells: Cells
    peaks: dict[str, int]
    small: Small
    rounds: int
    seconds: float


def aims(results: Results) -> list[Aim]:
    """The aims of the project, with what was measured."""
    cells, small = results.cells, results.small
    sequential = cells["c", "seq"].bandwidth / cells["b", "seq"].bandwidth
    one, many = (cells["c", key].iops / cells["b", key].iops for key in ("rand1", "rand16"))
    return [
        Aim("(b) sequential", cells["b", "seq"].bandwidth / _GIB, 1, "GiB/s"),
        Aim("(b) random 4 KiB QD1", cells["b", "rand1"].iops / 1000, 30, "k IOPS"),
        Aim("(c) sequential, of (b)", 100 * sequential, 50, "%"),
        Aim("(c) random QD1, of (b)", 100 * one, 60, "%"),
        Aim("(c) random QD16, of (b)", 100 * many, 60, "%"),
        Aim("index memory a segment", small.memory_per_segment, 40, "bytes", at_most=True),
        Aim("start, server usable", small.server_seconds, 0.5, "s", at_most=True),
        Aim("start, mount usable", small.mount_seconds, 0.5, "s", at_most=True),
        Aim("hybrid --help", small.help_seconds, 0.2, "s", at_most=True),
    ]


def text_table(results: Results) -> str:
    """The table for people."""
    return "\n".join([*_head(results), "", *_speed_rows(results), "", *aim_rows(aims(results))])


def _head(results: Results) -> list[str]:
    data = results.data
    sizes = ", ".join(
        f"{name} {size / MIB:.0f} MiB ({DISK_SIZE / size:.1f}x)"
        for name, size in data.image_bytes.items()
    )
    return [
        f"disk of {DISK_SIZE / MIB:.0f} MiB; images of three layers: {sizes}; "
        f"files on {data.where}",
        f"fio --direct=1 on loop devices with direct I/O; medians of {results.rounds} rounds of "
        f"{results.seconds:g} s, interleaved",
        "CPU/MiB and peak memory are the server's; the peak of (b) has the disk in it",
    ]


def _speed_rows(results: Results) -> list[str]:
    lines = [
        f"{'workload':<18} {'target':<29} {'result':>12} {'of (a)':>7} {'of (b)':>7} "
        f"{'CPU/MiB':>9} {'peak':>8}"
    ]
    for workload in WORKLOADS:
        for target in results.targets:
            lines.append(_speed_row(results, workload, target))
    return lines


def _speed_row(results: Results, workload: Workload, target: Target) -> str:
    cell = results.cells[target.key, workload.key]
    ratios = [
        f"{100 * cell.iops / results.cells[base, workload.key].iops:.0f} %"
        if target.key > base
        else "-"
        for base in ("a", "b")
    ]
    cpu = f"{cell.cpu_ms_per_mib:.2f} ms" if target.server else "-"
    peak = f"{results.peaks[target.key] / MIB:.0f} MiB" if target.server else "-"
    return (
        f"{workload.title:<18} {f'({target.key}) {target.title}':<29} "
        f"{_result(workload, cell):>12} {ratios[0]:>7} {ratios[1]:>7} {cpu:>9} {peak:>8}"
    )


def _result(workload: Workload, cell: Cell) -> str:
    if workload.sequential:
        return f"{cell.bandwidth / _GIB:.2f} GiB/s"
    return f"{cell.iops / 1000:.1f} k IOPS"


def json_results(results: Results) -> dict[str, object]:
    """The same for machines: bytes, seconds, reads per second."""
    return {
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
                },
            }
            for target in results.targets
        },
        **asdict(results.small),
        "aims": [{**asdict(aim), "met": aim.met} for aim in aims(results)],
    }

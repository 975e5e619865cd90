"""The aims, and the one table."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from bench.aims import Aim, aim_rows
from bench.fio import Workload
from bench.writes.fio import WORKLOADS
from bench.writes.index import IndexMemory
from bench.writes.space import Step
from bench.writes.speed import Speed
from bench.writes.targets import DISK_SIZE

_MIB = 1 << 20


@dataclass(frozen=True)
class Results:
    """Everything from one run. Places are types of file systems."""

    speed_place: str
    space_place: str
    rounds: int
    seconds: float
    load: float
    speed: Speed
    steps: list[Step]
    index: IndexMemory


def aims(results: Results) -> list[Aim]:
    """The aims of the project, with what was measured."""
    index = results.index
    return [
        Aim("(b) sequential", results.speed.cells["b", "seq"].bandwidth / 1e6, 300, "MB/s"),
        Aim("index memory a segment", index.accounted, 100, "bytes", at_most=True),
        Aim("the same, resident", index.resident, 100, "bytes", at_most=True),
    ]


def text_table(results: Results) -> str:
    """The table for people."""
    return "\n".join(
        [
            f"disk of {DISK_SIZE // _MIB} MiB on {results.speed_place}; fio --direct=1, and fsync "
            f"at the end; load at the start {results.load:.1f}",
            f"medians of {results.rounds} rounds of {results.seconds:g} s, interleaved; CPU/write "
            "and peak memory are the server's",
            "",
            *_speed_rows(results.speed),
            "",
            f"what is stored for a byte written, on {results.space_place}; growth: of the upper's "
            "files; to disk: by the kernel's account of the server",
            *_space_rows(results.steps),
            "",
            *aim_rows(aims(results)),
        ]
    )


def _speed_rows(speed: Speed) -> list[str]:
    lines = [
        f"{'workload':<18} {'target':<20} {'result':>12} {'+-':>5} {'of (a)':>7} "
        f"{'CPU/write':>10} {'peak':>8}"
    ]
    for workload in WORKLOADS:
        lines += [_speed_row(speed, workload, key) for key in speed.titles]
    return lines


def _speed_row(speed: Speed, workload: Workload, key: str) -> str:
    cell = speed.cells[key, workload.key]
    ratio = f"{cell.iops / speed.cells['a', workload.key].iops:.0%}" if key > "a" else "-"
    result = f"{cell.iops / 1000:.1f} k IOPS"
    if workload.sequential:
        result = f"{cell.bandwidth / 1e6:.0f} MB/s"
    cpu = f"{cell.cpu_us:.0f} us" if speed.peaks[key] else "-"
    peak = f"{speed.peaks[key] // _MIB} MiB" if speed.peaks[key] else "-"
    return (
        f"{workload.title:<18} {f'({key}) {speed.titles[key]}':<20} {result:>12} "
        f"{cell.spread:>5.0%} {ratio:>7} {cpu:>10} {peak:>8}"
    )


def _space_rows(steps: list[Step]) -> list[str]:
    lines = [
        f"{'target':<18} {'written':<20} {'bytes':>8} {'growth':>7} {'to disk':>8} "
        f"{'live then':>10} {'used then':>10} {'of live':>8}"
    ]
    for step in steps:
        stored = "-" if step.stored is None else f"{step.stored / step.written:.2f}"
        lines.append(
            f"{f'({step.key}) {step.target}':<18} {step.title:<20} "
            f"{f'{step.written // _MIB} MiB':>8} {step.growth / step.written:>7.2f} {stored:>8} "
            f"{f'{step.live // _MIB} MiB':>10} {f'{step.used // _MIB} MiB':>10} "
            f"{step.used / step.live:>8.2f}"
        )
    return lines


def json_results(results: Results) -> dict[str, object]:
    """The same for machines: bytes, seconds, writes per second."""
    speed = results.speed
    return {
        "disk_bytes": DISK_SIZE,
        "filesystem": results.speed_place,
        "space_filesystem": results.space_place,
        "rounds": results.rounds,
        "round_seconds": results.seconds,
        "load": results.load,
        "targets": {
            key: {
                "title": title,
                "peak_bytes": speed.peaks[key],
                **{w.key: asdict(speed.cells[key, w.key]) for w in WORKLOADS},
            }
            for key, title in speed.titles.items()
        },
        "space": [asdict(step) for step in results.steps],
        "index": asdict(results.index),
        "aims": [{**asdict(aim), "met": aim.met} for aim in aims(results)],
    }

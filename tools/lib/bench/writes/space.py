"""What reaches the disk for each byte that is written, and what space an upper takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.writes.fio import RANDOM_16, SEQUENTIAL, write_once
from bench.writes.targets import Written, images_to_write

_OVERWRITES = 3


@dataclass(frozen=True)
class Step:
    """Bytes of one step. ``growth`` is that of the upper's files, index and all; ``stored`` what
    the server had the kernel write, None where that is not known (a tmpfs, or no accounting).
    """

    key: str
    target: str
    title: str
    written: int
    growth: int
    stored: int | None
    live: int
    """Bytes of the disk that are mapped by then."""
    used: int
    """Bytes that the upper takes by then."""


def measure_space(directory: Path, size: int, *, counted: bool) -> list[Step]:
    """``size`` bytes one after the other; as many elsewhere in random order; and those again.

    ``counted``: the file system is one whose writes the kernel counts.
    """
    with images_to_write(directory) as images:
        return [step for one in images for step in _steps(one, size, counted)]


def _steps(one: Written, size: int, counted: bool) -> list[Step]:
    plan = [("sequential 1 MiB", SEQUENTIAL, 0), ("random 4 KiB", RANDOM_16, size)]
    plan += [(f"overwrite {n + 1}, 4 KiB", RANDOM_16, size) for n in range(_OVERWRITES)]
    steps = []
    for number, (title, workload, offset) in enumerate(plan):
        use, stored = one.disk_use(), one.server_writes()
        written = write_once(workload, one.target.device, offset, size, number + 1).total
        now, used = one.server_writes(), one.disk_use()
        caused = now - stored if counted and now is not None and stored is not None else None
        steps.append(
            Step(
                one.target.key, one.target.title, title, written, used - use, caused,
                min(number + 1, 2) * size, used,
            )
        )  # fmt: skip
    return steps

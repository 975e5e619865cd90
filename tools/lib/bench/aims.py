"""Aims of the project, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Aim:
    """``value`` should be at least (or at most) ``limit``, both in ``unit``."""

    title: str
    value: float
    limit: float
    unit: str
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.at_most else self.value >= self.limit


def aim_rows(aims: Sequence[Aim]) -> list[str]:
    """Lines of a table."""
    width = max(len(aim.title) for aim in aims)
    lines = [f"{'aim':<{width}} {'limit':>16} {'measured':>16}"]
    for aim in aims:
        limit = f"{'<=' if aim.at_most else '>='} {aim.limit:g} {aim.unit}"
        value = f"{aim.value:.3g} {aim.unit}"
        lines.append(
            f"{aim.title:<{width}} {limit:>16} {value:>16}  {'met' if aim.met else 'MISSED'}"
        )
    return lines

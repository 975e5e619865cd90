"""Lists of byte ranges: (offset, length), ascending, without overlaps. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

BLOCK = 4096
"""Bytes: layers are made of such blocks."""

Run = tuple[int, int]


def whole_blocks(runs: Iterable[Run], size: int) -> list[Run]:
    """Every block of a disk of ``size`` bytes that a run touches; neighbours are joined."""
    joined: list[Run] = []
    for offset, length in runs:
        if length <= 0:
            continue
        start, end = offset // BLOCK * BLOCK, min(-(-(offset + length) // BLOCK) * BLOCK, size)
        if joined and start <= sum(joined[-1]):
            start, end = joined[-1][0], max(end, sum(joined.pop()))
        joined.append((start, end - start))
    return joined


def common(left: Sequence[Run], right: Sequence[Run]) -> Iterator[Run]:
    """The ranges that are in both lists."""
    for offset, length, inside in divided(left, right):
        if inside:
            yield offset, length


def divided(runs: Sequence[Run], by: Sequence[Run]) -> Iterator[tuple[int, int, bool]]:
    """The runs cut at the edges of ``by``, each with whether it lies inside one of them."""
    j = 0
    for offset, length in runs:
        end = offset + length
        while offset < end:
            while j < len(by) and sum(by[j]) <= offset:
                j += 1
            if j == len(by) or by[j][0] >= end:
                yield offset, end - offset, False
                break
            inside = by[j][0] <= offset
            stop = min(end, sum(by[j])) if inside else by[j][0]
            yield offset, stop - offset, inside
            offset = stop

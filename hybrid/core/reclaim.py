"""Which whole blocks of a file can be given back, from ranges that died bit by bit (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from hybrid.core.device import SECTOR

BLOCK_SECTORS = 8
"""File systems give space back in blocks, of 4 KiB as a rule."""

_MAX_PARTIAL = 1 << 16
"""Blocks that are remembered as dead in part; beyond that the oldest are forgotten, and their space
comes back when the layer is opened the next time."""
_WHOLE = (1 << BLOCK_SECTORS) - 1


class Reclaimer:
    """Collects dead sectors; a block is due once all of its sectors are dead."""

    def __init__(self) -> None:
        self._partial: dict[int, int] = {}
        """Bits of the dead sectors of a block, by the number of the block."""

    def add(self, dead: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Ranges (first sector, sectors) have died. Returns what is due: (offset, length), bytes.

        Sorted, and neighbours joined.
        """
        due: list[tuple[int, int]] = []
        for begin, length in joined(dead):
            end = begin + length
            first = -(-begin // BLOCK_SECTORS)
            last = end // BLOCK_SECTORS
            if first > last:  # within one block
                self._note(begin // BLOCK_SECTORS, begin, end, due)
                continue
            if begin % BLOCK_SECTORS:
                self._note(first - 1, begin, first * BLOCK_SECTORS, due)
            if first < last:
                due.append((first * BLOCK_SECTORS, (last - first) * BLOCK_SECTORS))
            if end % BLOCK_SECTORS:
                self._note(last, last * BLOCK_SECTORS, end, due)
        return [(begin * SECTOR, length * SECTOR) for begin, length in joined(due)]

    def _note(self, block: int, begin: int, end: int, due: list[tuple[int, int]]) -> None:
        base = block * BLOCK_SECTORS
        bits = ((1 << (end - begin)) - 1) << (begin - base) | self._partial.pop(block, 0)
        if bits == _WHOLE:
            due.append((base, BLOCK_SECTORS))
            return
        if len(self._partial) >= _MAX_PARTIAL:
            del self._partial[next(iter(self._partial))]
        self._partial[block] = bits


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (begin, length) sorted, and those that touch made one."""
    result: list[tuple[int, int]] = []
    for begin, length in sorted(ranges):
        if result and sum(result[-1]) == begin:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((begin, length))
    return result

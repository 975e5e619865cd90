"""Which blocks come back, against a set of dead sectors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hybrid.core.device import SECTOR
from hybrid.core.reclaim import BLOCK_SECTORS, Reclaimer

BLOCKS = 20


@given(st.permutations(range(BLOCKS * BLOCK_SECTORS)), st.lists(st.integers(1, 30), min_size=1))
def test_a_block_is_due_once_it_is_dead(order: list[int], sizes: list[int]) -> None:
    reclaimer = Reclaimer()
    dead: set[int] = set()
    due: set[int] = set()
    position = 0
    while position < len(order):
        for size in sizes:
            batch = order[position : position + size]
            position += size
            dead |= set(batch)
            for offset, length in reclaimer.add((sector, 1) for sector in batch):
                sectors = set(range(offset // SECTOR, (offset + length) // SECTOR))
                assert offset % (BLOCK_SECTORS * SECTOR) == 0
                assert sectors <= dead
                assert not sectors & due, "twice"
                due |= sectors
    assert due == dead == set(range(BLOCKS * BLOCK_SECTORS))


def test_neighbours_are_one_range() -> None:
    reclaimer = Reclaimer()
    assert reclaimer.add([(16, 8), (8, 8), (40, 9)]) == [(8 * 512, 16 * 512), (40 * 512, 8 * 512)]
    assert reclaimer.add([(49, 7)]) == [(48 * 512, 8 * 512)]

"""The index of a writable layer against a list with one item for each sector."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.core import writable_map
from hybrid.core.device import SECTOR
from hybrid.core.segments import MOFFSET_MASK, ZEROED, ZEROS, SegmentMap
from hybrid.core.writable_map import DATA, HOLE, WritableMap

SECTORS = 200
Model = list[int | None]
"""For each sector: None, ZEROS, or the sector of the file."""

puts = st.lists(
    st.tuples(st.integers(0, SECTORS - 1), st.integers(1, 40), st.booleans()), max_size=60
)


@pytest.fixture(autouse=True, params=[2, 8, 1024])
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable_map, "_CHUNK", request.param)


def fill(changes: list[tuple[int, int, bool]]) -> tuple[WritableMap, Model, set[int]]:
    """A map, what it must say, and which sectors of the file died."""
    made, model = WritableMap(), [None] * SECTORS
    position, died = 8, set()
    for start, length, zeroed in changes:
        end = min(start + length, SECTORS)
        location = position | ZEROED if zeroed else position
        for begin, count in made.put(start, end, location):
            freed = set(range(begin, begin + count))
            assert not freed & died, "died twice"
            died |= freed
        for sector in range(start, end):
            model[sector] = ZEROS if zeroed else position + sector - start
        position += 0 if zeroed else end - start
    return made, model, died


def flatten(found: WritableMap) -> Model:
    model: Model = [None] * SECTORS
    last = 0
    for start, length, moffset, zeroed, tag in found:
        assert start >= last
        assert tag == 0
        last = start + length
        for number in range(length):
            assert model[start + number] is None
            model[start + number] = ZEROS if zeroed else moffset + number
    return model


@given(puts)
def test_what_was_put_last_is_there(changes: list[tuple[int, int, bool]]) -> None:
    made, model, died = fill(changes)
    assert flatten(made) == model
    assert len(made) == sum(1 for _ in made)
    live = {where for where in model if where not in (None, ZEROS)}
    assert not died & live
    written = 8 + sum(
        min(start + length, SECTORS) - start for start, length, zeroed in changes if not zeroed
    )
    assert died | live == set(range(8, written))


@given(puts, st.integers(0, SECTORS - 1), st.integers(1, SECTORS))
def test_extents(changes: list[tuple[int, int, bool]], first: int, count: int) -> None:
    made, model, _ = fill(changes)
    count = min(count, SECTORS - first)
    found: Model = []
    for source, offset, length in made.extents(first * SECTOR, count * SECTOR):
        assert length > 0
        for number in range(length // SECTOR):
            where = {HOLE: None, ZEROS: ZEROS}.get(source, offset // SECTOR + number)
            assert source in (HOLE, ZEROS, DATA)
            found.append(where)
    assert found == model[first : first + count]


def test_extents_need_not_be_aligned() -> None:
    made = WritableMap()
    made.put(2, 4, 100)
    found = made.extents(2 * SECTOR - 5, 10)
    assert found == [(HOLE, 0, 5), (DATA, 100 * SECTOR, 5)]


@given(puts)
def test_copies(changes: list[tuple[int, int, bool]]) -> None:
    made, model, _ = fill(changes)
    copy = made.snapshot()
    assert isinstance(copy, SegmentMap)
    again = WritableMap.of_sorted(copy)
    assert flatten(again) == model
    assert list(again) == list(made)
    again.put(0, SECTORS, 5000)
    assert flatten(made) == model, "the copy is a copy"


@given(puts)
def test_unreferenced(changes: list[tuple[int, int, bool]]) -> None:
    made, model, _ = fill(changes)
    free = {
        sector
        for begin, count in made.unreferenced(8, 10_000)
        for sector in range(begin, begin + count)
    }
    live = {where for where in model if where not in (None, ZEROS)}
    assert free == set(range(8, 10_000)) - live


def test_neighbours_are_joined() -> None:
    made = WritableMap()
    for sector in (0, 2, 1):
        made.put(sector, sector + 1, 100 + sector)
    assert list(made) == [(0, 3, 100, False, 0)]
    made.put(3, 4, 200)
    assert len(made) == 2


def test_the_documented_insertions() -> None:
    """Spec: lsmt 20."""
    made = WritableMap()
    for offset, length, moffset in (
        (0, 20, 0), (10, 15, 50), (30, 100, 20), (5, 10, 3), (40, 10, 123), (200, 10, 2133),
        (150, 100, 21),
    ):  # fmt: skip
        made.put(offset, offset + length, moffset)
    assert [tuple(found)[:3] for found in made] == [
        (0, 5, 0), (5, 10, 3), (15, 10, 55), (30, 10, 20), (40, 10, 123), (50, 80, 40),
        (150, 100, 21),
    ]  # fmt: skip


def test_memory_of_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writable_map, "_CHUNK", 1024)
    made = WritableMap()
    # In the worst order for half-full chunks, and every other sector so that nothing joins.
    for number in range(100_000):
        made.put(2 * number, 2 * number + 1, 3 * number & MOFFSET_MASK)
    assert len(made) == 100_000
    assert made.memory() / len(made) < 100

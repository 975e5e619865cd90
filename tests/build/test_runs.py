"""Sets of sectors, against Python's sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hybrid.build.runs import Runs, data_of, split_index, windows
from hybrid.core.segments import ZEROED, SegmentMap

SECTORS = st.sets(st.integers(0, 60))


def runs_of(sectors: set[int]) -> Runs:
    return Runs((sector, sector + 1) for sector in sorted(sectors))


def set_of(runs: Runs) -> set[int]:
    return {sector for start, end in runs for sector in range(start, end)}


@given(SECTORS, SECTORS)
def test_set_operations(one: set[int], other: set[int]) -> None:
    a, b = runs_of(one), runs_of(other)
    for found, wanted in (
        (a.union(b), one | other),
        (a.intersect(b), one & other),
        (a.subtract(b), one - other),
    ):
        assert set_of(found) == wanted
        assert found == runs_of(wanted), "neighbours are joined"
        assert found.sectors() == len(wanted)


@given(SECTORS)
def test_whole_blocks(sectors: set[int]) -> None:
    blocks = {s for s in sectors if {s // 8 * 8 + i for i in range(8)} <= sectors}
    assert set_of(runs_of(sectors).whole_blocks()) == blocks


@st.composite
def segment_maps(draw: st.DrawFn) -> SegmentMap:
    starts, ends, locations = [], [], []
    position = 0
    for gap, length, zeroed in draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12), st.booleans()), max_size=12)
    ):
        starts.append(position + gap)
        position += gap + length
        ends.append(position)
        locations.append(8 | (ZEROED if zeroed else 0))
    return SegmentMap(starts, ends, locations)


@given(segment_maps(), st.integers(0, 120))
def test_an_index_is_split(segments: SegmentMap, limit: int) -> None:
    data, zeros = split_index(segments, limit)
    mapped = {s for f in segments for s in range(f.offset, f.offset + f.length) if s < limit}
    with_data = {
        s for f in segments if not f.zeroed for s in range(f.offset, f.offset + f.length)
    } & mapped
    assert set_of(data) | set_of(zeros) == mapped
    assert not set_of(data) & set_of(zeros)
    assert with_data <= set_of(data)
    for sector in set_of(data) - with_data:
        # It shares a block with data, and all that is between them is mapped.
        same = [s for s in with_data if s // 8 == sector // 8]
        assert any(set(range(min(s, sector), max(s, sector) + 1)) <= mapped for s in same)
    assert set_of(data_of(segments)) >= with_data


@given(SECTORS, st.integers(1, 16))
def test_windows(sectors: set[int], size: int) -> None:
    groups = list(windows(runs_of(sectors), size))
    assert {s for group in groups for start, end in group for s in range(start, end)} == sectors
    numbers = [{s // size for start, end in group for s in range(start, end)} for group in groups]
    assert all(len(found) == 1 for found in numbers)
    assert len({min(found) for found in numbers}) == len(groups)

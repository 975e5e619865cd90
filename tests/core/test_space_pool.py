"""Free space is given out once, and never more than there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hybrid.core.space_pool import SpacePool

steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 40)),
        st.tuples(st.just("take"), st.integers(1, 40)),
        st.tuples(st.just("excess"), st.integers(0, 200)),
    ),
    max_size=60,
)


@given(steps)
def test_against_a_set(actions: list[tuple[str, int]]) -> None:
    pool = SpacePool()
    free: set[int] = set()
    end = 0
    for action, number in actions:
        if action == "add":
            pool.add([(end, number)])
            free |= set(range(end, end + number))
            end += number + number % 2
        elif action == "take":
            offset = pool.take(number)
            if offset is not None:
                taken = set(range(offset, offset + number))
                assert taken <= free
                free -= taken
        else:
            for offset, length in pool.take_excess(number, 3):
                taken = set(range(offset, offset + length))
                assert taken <= free
                free -= taken
        assert pool.size == len(free)


def test_what_fits_is_found_nearby() -> None:
    pool = SpacePool()
    pool.add([(0, 4), (10, 8)])
    assert pool.take(6) == 10
    assert pool.take(4) == 0
    assert pool.take(4) is None
    assert pool.size == 2


def test_excess_is_bounded_and_joined() -> None:
    pool = SpacePool()
    pool.add([(4, 4), (0, 4), (20, 4)])
    assert pool.take_excess(4, 10) == [(0, 8)]
    assert pool.take_excess(0, 0) == []
    assert pool.take_excess(0, 10) == [(20, 4)]


def test_long_ranges() -> None:
    pool = SpacePool()
    pool.add([(4, 4), (0, 4), (20, 4)])
    assert pool.take_long(6) == [(0, 8)]
    assert pool.size == 4
    assert pool.take(4) == 20

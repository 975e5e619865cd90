"""The log of a writable layer: what it says after any damage, in bytes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.core import lsmt, upper_log
from hybrid.core.lsmt import MAX_LENGTH, LayerRecord
from hybrid.core.segments import ZEROED
from hybrid.core.upper_log import Replay, UnflushedHeader
from hybrid.core.writable_map import WritableMap
from hybrid.errors import FormatError

entries = st.lists(
    st.tuples(st.integers(0, 10_000), st.integers(1, 100), st.integers(8, 20_000), st.booleans()),
    max_size=30,
)
INVALID = b"\xff" * 6 + b"\x03\x00" + bytes(8)


def packed(found: list[tuple[int, int, int, bool]]) -> bytes:
    return b"".join(
        upper_log.pack_entries(start, count, where | (ZEROED if zeroed else 0))
        for start, count, where, zeroed in found
    )


def replayed(raw: bytes, sectors: int = 1 << 40) -> tuple[WritableMap, Replay]:
    replay = Replay(WritableMap(), sectors, "log")
    for begin in range(0, len(raw), 48):  # piece by piece
        replay.apply(raw[begin : begin + 48])
    return replay.segments, replay


@given(entries)
def test_a_log_and_its_map_say_the_same(found: list[tuple[int, int, int, bool]]) -> None:
    made, replay = replayed(packed(found))
    assert (replay.kept, replay.is_cut, replay.has_holes) == (len(found), False, False)
    again, _ = replayed(upper_log.pack_map(made))
    assert list(again) == list(made)


@given(entries)
def test_padding_and_holes_count_for_nothing(found: list[tuple[int, int, int, bool]]) -> None:
    raw = packed(found)
    made, _ = replayed(raw)
    again, replay = replayed(INVALID + raw + bytes(16) + INVALID)
    assert list(again) == list(made)
    assert (replay.kept, replay.has_holes) == (len(found) + 3, True)


@given(entries, st.integers(8, 20_100))
def test_from_the_first_entry_without_data_on_all_is_dropped(
    found: list[tuple[int, int, int, bool]], sectors: int
) -> None:
    good = 0
    for _, count, where, zeroed in found:
        if (where if zeroed else where + count) > sectors:
            break
        good += 1
    made, replay = replayed(packed(found), sectors)
    assert (replay.kept, replay.is_cut) == (good, good < len(found))
    assert list(made) == list(replayed(packed(found[:good]))[0])


def test_an_entry_that_points_into_the_header_is_damage() -> None:
    with pytest.raises(FormatError, match="header"):
        replayed(lsmt.pack_entry(0, 1, 7))


@given(st.binary(max_size=400))
def test_any_bytes_are_a_log_or_damage(raw: bytes) -> None:
    try:
        made, _ = replayed(raw[: len(raw) // 16 * 16], 1 << 20)
    except FormatError:
        return
    assert all(found.moffset >= 8 for found in made)
    assert all(found.zeroed or found.moffset + found.length <= 1 << 20 for found in made)


def test_long_ranges_become_several_entries() -> None:
    raw = upper_log.pack_entries(5, 2 * MAX_LENGTH + 1, 100)
    assert len(raw) == 3 * 16
    assert list(replayed(raw)[0]) == [(5, 2 * MAX_LENGTH + 1, 100, False, 0)]
    raw = upper_log.pack_entries(5, MAX_LENGTH + 1, 100 | ZEROED)
    assert list(replayed(raw)[0]) == [(5, MAX_LENGTH + 1, 100, True, 0)]


def test_headers_are_those_of_the_spec() -> None:
    record = LayerRecord(0, 0, 0, 1 << 30, "C02FB491-B4D4-4904-8684-A014D032AF78", "", b"tag")
    data, index = upper_log.data_header(record), upper_log.index_header(record)
    assert (data[28], index[28]) == (3, 1)
    assert int.from_bytes(index[32:40], "little") == 4096
    assert lsmt.parse_header(data, "data").uuid == record.uuid
    assert lsmt.parse_index_header(index, "index").virtual_size == 1 << 30
    for block in (data, bytes(4096), index[:4095]):
        with pytest.raises(FormatError):
            lsmt.parse_index_header(block, "index")


numbers = st.integers(0, 1 << 60)


@given(st.builds(UnflushedHeader, st.uuids(), st.uuids(), numbers, numbers, numbers, st.booleans()))
def test_header_of_the_unflushed(header: UnflushedHeader) -> None:
    raw = header.pack()
    assert len(raw) == 80
    assert upper_log.parse_unflushed(raw + b"more") == header
    assert upper_log.parse_unflushed(raw[:79]) is None
    assert upper_log.parse_unflushed(bytes(80)) is None


@pytest.mark.parametrize(
    ("entry", "sound"),
    [
        ((0, 8, 8), True), ((0, 8, 92), True), ((0, 8, 100 | ZEROED), True),
        ((0, 8, 93), False), ((0, 8, 7), False), ((0, 0, 8), False), ((0, 8, 5 << 56 | 8), False),
        (((1 << 50) - 2, 8, 8), False), ((0, 8, 101 | ZEROED), False),
    ],
)  # fmt: skip
def test_sound_entries(entry: tuple[int, int, int], sound: bool) -> None:
    assert upper_log.is_sound(entry, 100) is sound

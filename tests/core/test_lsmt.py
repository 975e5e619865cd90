"""LSMT codec: against an independent writer, reader and painted model, rule by rule, and damage."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from support.build_lsmt import (
    DATA_START,
    HT_SIZE,
    INVALID_OFFSET,
    compact,
    pack_entries,
    unpack_entries,
    unpack_ht,
)
from support.builders import (
    INVALID_ENTRY,
    NIL_UUID,
    SECTOR,
    Entry,
    ModelLayer,
    Remote,
    Write,
    build_lsmt,
    build_sealed,
    model_merge,
    model_size,
    parse_lsmt,
)
from support.golden_disk import disk_of, open_disk, read

from hybrid.core import lsmt
from hybrid.core.lsmt import LayerRecord, LayerWriter
from hybrid.core.segments import ZEROS, Segment, SegmentMap, merge
from hybrid.errors import FormatError, HybridError, UnsupportedError

NAME = "layer"
UUID = "C02FB491-B4D4-4904-8684-A014D032AF78"
PARENT = "11111111-2222-4333-8444-555555555555"


def payload(sectors: int, seed: int = 1) -> bytes:
    """Sectors that are all different, so that a swap cannot pass."""
    return b"".join(
        struct.pack("<QQ", seed, number) + Random(seed + number).randbytes(SECTOR - 16)
        for number in range(sectors)
    )


WRITES = (
    Write(0, payload(3)),
    Write(10, 4),
    Write(14, payload(2, 2)),
    Write(100, payload(70, 3)),
    Write(200, 1),
)
VSIZE = 256 * SECTOR
SAMPLE = ModelLayer(WRITES, VSIZE)


def open_map(data: bytes) -> tuple[LayerRecord, SegmentMap]:
    """Parse a bare layer as a reader that has all of it would."""
    lsmt.parse_header(data[:HT_SIZE], NAME)
    record = lsmt.parse_trailer(data[-HT_SIZE:], NAME, len(data))
    end = record.index_offset + 16 * record.index_size
    return record, lsmt.parse_index(data[record.index_offset : end], record, NAME)


def rejected(data: bytes) -> FormatError:
    with pytest.raises(FormatError, match=NAME) as caught:
        open_map(data)
    assert "\n" not in str(caught.value)
    return caught.value


def disk_from(data: Sequence[bytes], merged: SegmentMap, size: int) -> bytes:
    """Join the extents of a merged map; ``data`` is bottom first, bare LSMT files."""
    top_first = list(reversed(data))
    parts = []
    for source, offset, length in merged.extents(0, size) if size else []:
        part = bytes(length) if source == ZEROS else top_first[source][offset : offset + length]
        assert len(part) == length
        parts.append(part)
    return b"".join(parts)


def make_map(segments: Sequence[tuple[int, int, int]], zeroed: Sequence[int] = ()) -> SegmentMap:
    """A map of (offset, length, moffset) triples; ``zeroed`` numbers those without data."""
    return SegmentMap(
        [offset for offset, _, _ in segments],
        [offset + length for offset, length, _ in segments],
        [m | (1 << 55 if i in zeroed else 0) for i, (_, _, m) in enumerate(segments)],
    )


# --- encoding (spec: lsmt 3, 20)


def test_entry_encoding_vector() -> None:
    entry = Entry(0x123, 16383, 0x456, False, 2)
    assert struct.unpack("<QQ", entry.pack()) == (0xFFFC000000000123, 0x0200000000000456)
    zeroed = entry._replace(zeroed=True).pack()
    assert struct.unpack("<QQ", zeroed)[1] == 0x0280000000000456
    assert Entry(INVALID_OFFSET, 0, 0).pack() == INVALID_ENTRY
    record = LayerRecord(6, 1 << 30, 2, VSIZE, "", "", b"")
    found = lsmt.parse_index(entry.pack() + INVALID_ENTRY, record, NAME).with_tag(0)
    assert list(found) == [Segment(0x123, 16383, 0x456, False, 0)]


@given(
    offset=st.integers(0, 2**50 - 2),
    length=st.integers(1, 16383),
    moffset=st.integers(DATA_START, 2**54),
    zeroed=st.booleans(),
    tag=st.integers(0, 255),
)
def test_any_entry_is_decoded(
    offset: int, length: int, moffset: int, zeroed: bool, tag: int
) -> None:
    entry = Entry(offset, length, moffset, zeroed, tag)
    record = LayerRecord(6, (moffset + length) * SECTOR, 1, VSIZE, "", "", b"")
    (found,) = lsmt.parse_index(entry.pack(), record, NAME).with_tag(7)
    assert found == Segment(offset, length, moffset, zeroed, 7)


# --- merge (spec: lsmt 6, 20)


U = [(5, 5, 0), (10, 10, 50), (100, 10, 20)]
L = [(0, 1, 7), (2, 4, 5), (15, 10, 22), (30, 15, 89), (87, 50, 32), (150, 10, 84)]
U_OVER_L = [
    (0, 1, 7, 1), (2, 3, 5, 1), (5, 5, 0, 0), (10, 10, 50, 0), (20, 5, 27, 1), (30, 15, 89, 1),
    (87, 13, 32, 1), (100, 10, 20, 0), (110, 27, 55, 1), (150, 10, 84, 1),
]  # fmt: skip


def test_merge_vector() -> None:
    merged = merge([make_map(L), make_map(U)])
    assert list(merged) == [Segment(o, n, m, False, tag) for o, n, m, tag in U_OVER_L]


def test_insertion_vector_as_a_stack() -> None:
    # Each insertion of the vector as a layer of its own over the ones before.
    inserted = [(0, 20, 0), (10, 15, 50), (30, 100, 20), (5, 10, 3), (40, 10, 123),
                (200, 10, 2133), (150, 100, 21)]  # fmt: skip
    merged = merge([make_map([one]) for one in inserted])
    assert [segment[:3] for segment in merged] == [
        (0, 5, 0), (5, 10, 3), (15, 10, 55), (30, 10, 20), (40, 10, 123), (50, 80, 40),
        (150, 100, 21),
    ]  # fmt: skip


def test_zeroed_entry_keeps_its_moffset_when_its_front_is_cut() -> None:
    lower = make_map([(0, 100, 40), (100, 100, 50)], zeroed=[1])
    upper = make_map([(10, 20, 8), (150, 10, 9)])
    assert list(merge([lower, upper])) == [
        Segment(0, 10, 40, False, 1), Segment(10, 20, 8, False, 0), Segment(30, 70, 70, False, 1),
        Segment(100, 50, 50, True, 1), Segment(150, 10, 9, False, 0), Segment(160, 40, 50, True, 1),
    ]  # fmt: skip


def test_zeroed_entry_hides_what_lies_below() -> None:
    lower = make_map([(0, 100, 8)])
    upper = make_map([(10, 20, 8)], zeroed=[0])
    extents = merge([lower, upper]).extents(0, 100 * SECTOR)
    assert [(source == ZEROS, length // SECTOR) for source, _, length in extents] == [
        (False, 10), (True, 20), (False, 70),
    ]  # fmt: skip


def test_neighbours_of_a_merge_are_not_joined() -> None:
    merged = merge([make_map([(0, 10, 8), (10, 10, 18)]), make_map([])])
    assert len(merged) == 2
    assert len(merged.extents(0, 20 * SECTOR)) == 1


def test_merge_of_nothing() -> None:
    assert list(merge([])) == []
    assert list(merge([SegmentMap(), SegmentMap()])) == []


def test_merge_does_not_change_its_input() -> None:
    lower, upper = make_map(L), make_map(U)
    merge([lower, upper])
    assert list(lower) == list(make_map(L))
    assert list(upper) == list(make_map(U))


def test_255_layers_and_no_more() -> None:
    one = make_map([(0, 1, 8)])
    assert list(merge([one] * 255)) == [Segment(0, 1, 8, False, 0)]
    with pytest.raises(UnsupportedError, match="255"):
        merge([one] * 256, NAME)


def test_tag_of_the_lowest_of_255_layers() -> None:
    layers = [make_map([(number, 1, 8 + number)]) for number in range(255)]
    merged = merge(layers)
    assert [segment.tag for segment in merged] == list(range(254, -1, -1))


def test_sectors_beyond_2_to_the_32() -> None:
    # The reference cuts these to 32 bits (spec: lsmt W2).
    lower = make_map([(2**32 - 5, 10, 8), (2**45, 16383, 18)])
    upper = make_map([(2**32, 1, 8), (2**45 + 5, 1, 9)])
    merged = merge([lower, upper])
    assert [tuple(segment) for segment in merged] == [
        (2**32 - 5, 5, 8, False, 1), (2**32, 1, 8, False, 0), (2**32 + 1, 4, 14, False, 1),
        (2**45, 5, 18, False, 1), (2**45 + 5, 1, 9, False, 0), (2**45 + 6, 16377, 24, False, 1),
    ]  # fmt: skip
    assert merged.extents((2**45 + 6) * SECTOR + 3, 10) == [(1, 24 * SECTOR + 3, 10)]


Write_ = st.builds(
    lambda lba, length, zero, seed: Write(lba, length if zero else payload(length, seed)),
    st.integers(0, 120),
    st.integers(1, 30),
    st.booleans(),
    st.integers(0, 2**32),
)


def layers_strategy(most: int) -> st.SearchStrategy[list[ModelLayer]]:
    one = st.builds(
        lambda writes, sectors: ModelLayer(tuple(writes), sectors * SECTOR),
        st.lists(Write_, max_size=5),
        st.sampled_from([0, 64, 160, 200]),
    )
    return st.lists(one, min_size=1, max_size=most)


@settings(max_examples=120, deadline=None)
@given(layers=layers_strategy(8), style=st.sampled_from(["commit", "seal", "sparse-seal"]))
def test_merge_equals_the_painted_model(layers: list[ModelLayer], style: str) -> None:
    data = [layer.build(style=style) for layer in layers]
    maps = [open_map(one)[1] for one in data]
    merged = merge(maps)
    disk = model_merge(layers)
    assert disk_from(data, merged, len(disk)) == disk
    ends = list(merged.ends)
    assert all(a <= b for a, b in zip(ends, merged.starts[1:], strict=False))


@settings(max_examples=60, deadline=None)
@given(layers=layers_strategy(4), data=st.data())
def test_random_ranges_equal_the_model(layers: list[ModelLayer], data: st.DataObject) -> None:
    disk = model_merge(layers)
    ranges = data.draw(
        st.lists(st.tuples(st.integers(0, len(disk)), st.integers(0, 9000)), max_size=12)
    )

    async def check() -> None:
        async with open_disk([layer.build() for layer in layers]) as device:
            assert device.size == len(disk)
            for offset, length in ranges:
                length = min(length, len(disk) - offset)
                assert await read(device, offset, length) == disk[offset : offset + length]

    trio.run(check)


@pytest.mark.parametrize("count", [2, 3, 31, 32, 33, 64, 100, 254, 255])
def test_tall_stacks(count: int) -> None:
    random = Random(count)
    layers = []
    for number in range(count):
        writes = [
            Write(
                random.randrange(300),
                random.randrange(1, 6)
                if random.random() < 0.2
                else payload(random.randrange(1, 6), number),
            )
            for _ in range(random.randrange(4))
        ]
        layers.append(ModelLayer(tuple(writes), 320 * SECTOR))
    data = [layer.build() for layer in layers]
    merged = merge([open_map(one)[1] for one in data])
    assert disk_from(data, merged, 320 * SECTOR) == model_merge(layers)


def test_merge_of_many_interleaved_segments() -> None:
    # Worst cases of a merge by runs: comb over comb, block over comb, comb over block.
    n = 20000
    comb = make_map([(2 * i, 1, 8 + i) for i in range(n)])
    shifted = make_map([(2 * i + 1, 1, 8 + i) for i in range(n)])
    block = make_map([(16000 * i, 16000, 8 + 16000 * i) for i in range(3)])
    assert len(merge([comb, shifted])) == 2 * n
    over = merge([block, comb])
    assert sum(1 for segment in over if segment.tag == 0) == n
    assert sum(segment.length for segment in over) == 48000
    assert {segment.tag for segment in merge([comb, block])} == {0}


# --- lookup


def test_extents_of_holes_data_and_zeros() -> None:
    found = make_map([(2, 4, 10), (6, 4, 14), (20, 5, 30)], zeroed=[2])
    assert found.extents(0, 30 * SECTOR) == [
        (ZEROS, 0, 2 * SECTOR), (0, 10 * SECTOR, 8 * SECTOR), (ZEROS, 0, 20 * SECTOR),
    ]  # fmt: skip
    assert found.extents(2 * SECTOR + 100, 50) == [(0, 10 * SECTOR + 100, 50)]
    assert found.extents(10 * SECTOR - 1, 2) == [(0, 18 * SECTOR - 1, 1), (ZEROS, 0, 1)]
    assert found.extents(2**60, 7) == [(ZEROS, 0, 7)]


def test_index_memory_is_at_most_40_bytes_a_segment() -> None:
    found = make_map([(i, 1, 8 + i) for i in range(1000)])
    assert found.memory() <= 40 * 1000


# --- opening what an independent writer made


@pytest.mark.parametrize("style", ["commit", "seal", "sparse-seal"])
def test_opens_every_producer(style: str) -> None:
    data = SAMPLE.build(style=style, uuid=UUID, parent_uuid=PARENT)
    record, found = open_map(data)
    assert (record.uuid, record.parent_uuid, record.virtual_size) == (UUID, PARENT, VSIZE)
    assert record.sparse == (style == "sparse-seal")
    assert disk_from([data], found, VSIZE) == model_merge([SAMPLE])


def test_empty_layer_is_8192_bytes() -> None:
    data = build_lsmt([], VSIZE)
    assert len(data) == 8192
    record, found = open_map(data)
    assert (record.index_offset, record.index_size, len(found)) == (4096, 0, 0)
    writer = LayerWriter(VSIZE)
    assert writer.header() + writer.finish() == data


@pytest.mark.parametrize("count", [1, 255, 256, 257, 512])
def test_padding_of_the_index(count: int) -> None:
    writes = [Write(2 * i, payload(1, i)) for i in range(count)]
    record, found = open_map(build_lsmt(writes, VSIZE * 8))
    assert len(found) == count
    assert record.index_size == -(-count // 256) * 256


def test_invalid_entries_are_dropped_wherever_they_stand() -> None:
    entries, data = compact(WRITES, 16320)
    holes = [Entry(INVALID_OFFSET, 0, 0)]
    spread = holes + [e for entry in entries for e in (entry, *holes)] + holes
    record, found = open_map(build_sealed(spread, data, vsize=VSIZE))
    assert record.index_size == 256
    assert [segment[:3] for segment in found] == [entry[:3] for entry in entries]


def test_invalid_marker_with_garbage_in_its_other_fields() -> None:
    entries, data = compact(WRITES, 16320)
    odd = Entry(INVALID_OFFSET, 77, 2**40, True, 9)
    _, found = open_map(build_sealed([odd, *entries, odd], data, vsize=VSIZE))
    assert len(found) == len(entries)


def test_trailer_at_an_address_that_is_no_multiple_of_512() -> None:
    data = build_lsmt(WRITES, VSIZE, style="turbo")
    assert len(data) % SECTOR
    _, found = open_map(data)
    assert disk_from([data], found, VSIZE) == model_merge([SAMPLE])


def test_gap_between_data_and_index() -> None:
    data = SAMPLE.build(gap=bytes(512))
    _, found = open_map(data)
    assert disk_from([data], found, VSIZE) == model_merge([SAMPLE])


@pytest.mark.parametrize("tags", [(1,), (0, 1, 2), (255,), (7, 3)])
async def test_tags_on_disk_are_ignored(tags: tuple[int, ...]) -> None:
    top = ModelLayer((Write(1, payload(4, 9)),), VSIZE)
    stack = [SAMPLE.build(tags=tags), top.build(tags=tags)]
    assert await disk_of(stack) == model_merge([SAMPLE, top])


IGNORED: dict[str, dict[str, Any]] = {
    "size": {"size": 0}, "version": {"version": 9, "sub_version": 200}, "reserved": {"reserved": 1},
    "padding": {"padding": b"\xff" * 3706}, "user_tag": {"user_tag": b"\xff" * 256},
}  # fmt: skip


@pytest.mark.parametrize("field", IGNORED)
def test_ignored_field(field: str) -> None:
    data = SAMPLE.build(header=IGNORED[field], trailer=IGNORED[field])
    _, found = open_map(data)
    assert disk_from([data], found, VSIZE) == model_merge([SAMPLE])


def test_unknown_flag_bits_are_ignored() -> None:
    _, found = open_map(SAMPLE.build(header={"flags": 0xFFFFFFEF}, trailer={"flags": 0xFFFFFFEE}))
    assert len(found)


def test_header_of_a_layer_sealed_in_place_has_no_sealed_bit() -> None:
    data = SAMPLE.build(style="seal")
    assert unpack_ht(data[:HT_SIZE])["flags"] == 0x03
    assert open_map(data)[0].flags == 0x06


def test_user_tag() -> None:
    tag = bytes(range(1, 256)) + b"\x01"
    assert open_map(SAMPLE.build(user_tag=tag))[0].user_tag == tag
    assert open_map(SAMPLE.build(user_tag=b"text"))[0].user_tag == b"text"


@pytest.mark.parametrize(
    ("text", "uuid"),
    [
        (UUID, UUID),
        (UUID.lower(), UUID),
        (NIL_UUID, ""),
        (b"\0" * 37, ""),
        ("not a uuid", ""),
        (UUID[:35], ""),
        (UUID.replace("-", ""), ""),
        ("{" + UUID[1:35] + "}", ""),
        (UUID[:-1] + "G", ""),
        (b"\xff" * 37, ""),
        (UUID.encode() + b"X", ""),
        ("C02FB491B-4D4-4904-8684-A014D032AF78", ""),
    ],
)
def test_uuid_text_is_never_an_error(text: str | bytes, uuid: str) -> None:
    record, _ = open_map(SAMPLE.build(trailer={"uuid": text, "parent_uuid": text}))
    assert (record.uuid, record.parent_uuid) == (uuid, uuid)


# --- rules for header and trailer (spec: lsmt 5, 22)


HEADER_RULES: dict[str, dict[str, Any]] = {
    "magic0": {"magic0": b"LSMT\0\x01\x03\0"}, "magic1": {"magic1": bytes(16)},
    "header-bit": {"flags": 0x06}, "data-bit": {"flags": 0x05},
}  # fmt: skip


@pytest.mark.parametrize("rule", HEADER_RULES)
def test_header_rule(rule: str) -> None:
    rejected(SAMPLE.build(header=HEADER_RULES[rule]))


def trailer_rules() -> dict[str, dict[str, Any]]:
    size = len(SAMPLE.build())
    return {
        "magic0": {"magic0": bytes(8)},
        "magic1": {"magic1": b"x" * 16},
        "header-bit": {"flags": 0x07},
        "data-bit": {"flags": 0x04},
        "sealed-bit": {"flags": 0x02},
        "index-size-above-a-million": {"index_size": 1_000_001},
        "index-size-64-bit": {"index_size": 2**60 + 1},
        "index-size-beyond-the-trailer": {"index_size": 257},
        "index-offset-in-the-header": {"index_offset": 4095, "index_size": 0},
        "index-offset-zero": {"index_offset": 0, "index_size": 0},
        "index-offset-in-the-trailer": {"index_offset": size - 4095, "index_size": 0},
        "index-offset-at-the-end": {"index_offset": size},
        "index-offset-beyond-the-end": {"index_offset": size + 1, "index_size": 0},
        "index-offset-underflow": {"index_offset": 2**64 - 4096},
    }


@pytest.mark.parametrize("rule", trailer_rules())
def test_trailer_rule(rule: str) -> None:
    rejected(SAMPLE.build(trailer=trailer_rules()[rule]))


@pytest.mark.parametrize("rule", [*trailer_rules(), *(f"header-{rule}" for rule in HEADER_RULES)])
async def test_rule_when_a_layer_is_opened_and_read(rule: str) -> None:
    header = HEADER_RULES.get(rule.removeprefix("header-"), {}) if rule[:7] == "header-" else {}
    trailer = trailer_rules().get(rule, {})
    assert header or trailer
    with pytest.raises((FormatError, UnsupportedError)):
        await disk_of([SAMPLE.build(header=header, trailer=trailer)])


def test_a_million_entries_and_no_more() -> None:
    assert lsmt.MAX_ENTRIES == 1_000_000
    size = 4096 + 16_000_000 + 4096
    trailer = SAMPLE.build(trailer={"index_offset": 4096, "index_size": 1_000_000})[-HT_SIZE:]
    assert lsmt.parse_trailer(trailer, NAME, size).index_size == 1_000_000
    trailer = SAMPLE.build(trailer={"index_offset": 4096, "index_size": 1_000_001})[-HT_SIZE:]
    with pytest.raises(FormatError):
        lsmt.parse_trailer(trailer, NAME, size + 16)


@pytest.mark.parametrize("cut", [0, 100, 390, 4095])
def test_cut_off_header_and_trailer(cut: int) -> None:
    data = SAMPLE.build()
    with pytest.raises(FormatError):
        lsmt.parse_header(data[:cut], NAME)
    with pytest.raises(FormatError):
        lsmt.parse_trailer(data[-HT_SIZE:][:cut], NAME, len(data))


@pytest.mark.parametrize("size", [0, 1, 390, 4095, 4096, 5000, 8191])
async def test_file_too_short_for_a_layer(size: int) -> None:
    with pytest.raises(HybridError):
        await disk_of([SAMPLE.build()[:size]])


def test_magic_probe() -> None:
    data = SAMPLE.build()
    assert lsmt.is_lsmt(data[:24])
    assert not lsmt.is_lsmt(data[:23])
    assert not lsmt.is_lsmt(b"")


# --- rules for entries (spec: lsmt 5, 21)


def sealed(*entries: Entry, sectors: int = 100) -> bytes:
    """A layer with these entries over 100 sectors of data: moffsets 8 to 107."""
    return build_sealed(entries, payload(sectors), vsize=VSIZE)


def accepted(*entries: Entry) -> list[tuple[int, int, int, bool]]:
    return [segment[:4] for segment in open_map(sealed(*entries))[1]]


def test_entries_must_be_in_order() -> None:
    rejected(sealed(Entry(10, 5, 8), Entry(0, 5, 13)))


def test_entries_must_not_overlap() -> None:
    rejected(sealed(Entry(0, 5, 8), Entry(4, 5, 13)))
    rejected(sealed(Entry(0, 5, 8), Entry(0, 5, 8)))
    assert len(accepted(Entry(0, 5, 8), Entry(5, 5, 13))) == 2


def test_overlap_of_zeroed_entries() -> None:
    rejected(sealed(Entry(0, 5, 8, True), Entry(4, 5, 8, True)))


def test_overlap_across_padding() -> None:
    rejected(sealed(Entry(0, 5, 8), Entry(INVALID_OFFSET, 0, 0), Entry(4, 5, 13)))


def test_moffset_below_the_data() -> None:
    rejected(sealed(Entry(0, 5, 7)))
    rejected(sealed(Entry(0, 5, 0)))
    rejected(sealed(Entry(0, 5, 7, True)))
    assert accepted(Entry(0, 5, 8)) == [(0, 5, 8, False)]


def test_moffset_beyond_the_data() -> None:
    assert accepted(Entry(0, 5, 103)) == [(0, 5, 103, False)]
    rejected(sealed(Entry(0, 5, 104)))
    rejected(sealed(Entry(0, 1, 108)))
    rejected(sealed(Entry(0, 16383, 8)))
    rejected(sealed(Entry(0, 5, 2**55 - 1)))
    rejected(sealed(Entry(0, 5, 2**55 - 5)))


def test_zeroed_entry_may_point_to_the_end_of_the_data() -> None:
    assert accepted(Entry(0, 16383, 108, True)) == [(0, 16383, 108, True)]
    rejected(sealed(Entry(0, 5, 109, True)))


def test_empty_entries_are_no_error_and_map_nothing() -> None:
    found = accepted(Entry(0, 5, 8), Entry(5, 0, 13), Entry(9, 0, 13), Entry(10, 5, 13))
    assert [segment for segment in found if segment[1]] == [(0, 5, 8, False), (10, 5, 13, False)]


def test_empty_entry_inside_another_is_disorder_or_maps_nothing() -> None:
    try:
        found = accepted(Entry(0, 5, 8), Entry(3, 0, 13), Entry(5, 5, 13))
    except FormatError:
        return
    assert [segment for segment in found if segment[1]] == [(0, 5, 8, False), (5, 5, 13, False)]


def test_last_possible_sector() -> None:
    last = INVALID_OFFSET - 1
    assert accepted(Entry(last, 1, 8)) == [(last, 1, 8, False)]


def test_index_offset_that_is_no_multiple_of_512() -> None:
    # Data may not reach into the index, however the division is rounded.
    data = build_sealed([Entry(0, 100, 8)], payload(100), vsize=VSIZE, gap=bytes(100))
    assert len(open_map(data)[1]) == 1
    rejected(build_sealed([Entry(0, 101, 8)], payload(100), vsize=VSIZE, gap=bytes(100)))


def test_order_is_checked_for_many_entries() -> None:
    entries = [Entry(2 * i, 1, 8) for i in range(5000)]
    assert len(open_map(sealed(*entries))[1]) == 5000
    entries[4000], entries[4001] = entries[4001], entries[4000]
    rejected(sealed(*entries))


async def test_virtual_size_of_the_stack_is_that_of_the_topmost_that_has_one() -> None:
    layers = [SAMPLE, SAMPLE.resized(1000 * SECTOR), SAMPLE.resized(50 * SECTOR),
              SAMPLE.resized(0)]  # fmt: skip
    for count in (1, 2, 3, 4):
        async with open_disk([layer.build() for layer in layers[:count]]) as disk:
            assert disk.size == model_size(layers[:count])
            assert await read(disk, 0, disk.size) == model_merge(layers[:count])


async def test_stack_without_a_virtual_size_is_empty() -> None:
    async with open_disk([SAMPLE.resized(0).build()]) as disk:
        assert disk.size == 0
        assert await read(disk, 0, 0) == b""


async def test_mapping_beyond_the_virtual_size_is_not_served() -> None:
    small = SAMPLE.resized(12 * SECTOR)
    async with open_disk([small.build()]) as disk:
        assert await read(disk, 0, disk.size) == model_merge([small])
        with pytest.raises(ValueError, match="leaves"):
            await disk.pread(disk.size - 1, 2)
        with pytest.raises(ValueError, match="leaves"):
            disk.pread_nowait(disk.size, 1)


# --- TurboOCI layers (spec: lsmt 10, W8)


async def test_turbooci_layer_with_far_remote_data_is_refused() -> None:
    writes = [Write(0, payload(4)), Write(8, Remote(4, 5000))]
    with pytest.raises(HybridError, match="TurboOCI"):
        await disk_of([build_lsmt(writes, VSIZE, style="turbo")])


async def test_turbooci_layer_with_remote_data_at_the_start_of_the_target_is_refused() -> None:
    writes = [Write(0, payload(4)), Write(8, Remote(4, 1))]
    with pytest.raises(HybridError, match="TurboOCI"):
        await disk_of([build_lsmt(writes, VSIZE, style="turbo")])


async def test_turbooci_layer_whose_remote_data_looks_like_its_own_is_refused() -> None:
    # All moffsets lie inside the file: only the tags, with an index without padding in a committed
    # file, tell that sectors 48-51 are in another file. Serving them would be wrong data.
    writes = [Write(0, payload(40)), Write(48, Remote(4, 12))]
    with pytest.raises(HybridError, match="TurboOCI"):
        await disk_of([build_lsmt(writes, VSIZE, style="turbo")])


# --- writing, read by an independent strict parser


def write_layer(layer: ModelLayer, **options: Any) -> bytes:
    """The layer by way of the product's writer."""
    writer = LayerWriter(layer.vsize, **options)
    out = bytearray(writer.header())
    entries, data = compact(layer.writes, 10**9)
    for entry in entries:
        if entry.zeroed:
            out += writer.add_zeros(entry.offset, entry.length)
        else:
            start = (entry.moffset - DATA_START) * SECTOR
            out += writer.add(entry.offset, data[start : start + entry.length * SECTOR])
    return bytes(out + writer.finish())


@settings(max_examples=80, deadline=None)
@given(writes=st.lists(Write_, max_size=8))
def test_writes_what_a_strict_reader_accepts(writes: list[Write]) -> None:
    layer = ModelLayer(tuple(writes), 200 * SECTOR)
    out = write_layer(layer, uuid=UUID, user_tag=b"tag")
    parsed = parse_lsmt(out)
    assert parsed.disk == model_merge([layer])
    assert parsed.trailer["user_tag"].rstrip(b"\0") == b"tag"
    record, found = open_map(out)
    assert record.uuid == UUID
    assert disk_from([out], found, layer.vsize) == model_merge([layer])


@settings(max_examples=40, deadline=None)
@given(writes=st.lists(Write_, max_size=8))
def test_writes_the_same_bytes_as_the_independent_writer(writes: list[Write]) -> None:
    layer = ModelLayer(tuple(writes), 200 * SECTOR)
    out = write_layer(layer, uuid=UUID, parent_uuid=PARENT.lower(), user_tag=b"x")
    assert out == layer.build(uuid=UUID, parent_uuid=PARENT, user_tag=b"x")


def test_long_writes_are_cut_as_the_reference_cuts_them() -> None:
    layer = ModelLayer((Write(0, bytes(40000 * SECTOR)),), 40000 * SECTOR)
    entries = parse_lsmt(write_layer(layer)).entries
    assert [entry.length for entry in entries] == [16320, 16320, 40000 - 2 * 16320]


def test_long_zeros_are_cut() -> None:
    writer = LayerWriter(1 << 25)
    out = writer.header() + writer.add_zeros(5, 40000) + writer.finish()
    entries = parse_lsmt(out).entries
    assert sum(entry.length for entry in entries) == 40000
    assert max(entry.length for entry in entries) <= 16383
    assert all(entry.zeroed and entry.moffset == 8 for entry in entries)


def test_pieces_are_joined() -> None:
    writer = LayerWriter(VSIZE)
    writer.header()
    out = b"".join(bytes(writer.add(i, payload(1, i))) for i in range(100))
    index = unpack_entries(writer.finish()[:4096])
    assert [e for e in index if e.offset != INVALID_OFFSET] == [Entry(0, 100, 8)]
    assert len(out) == 100 * SECTOR


@pytest.mark.parametrize(
    "options",
    [{"uuid": "x"}, {"parent_uuid": UUID + "0"}, {"user_tag": bytes(257)}],
)
def test_writer_refuses_values_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"uuid|tag"):
        LayerWriter(VSIZE, **options)


def test_writer_refuses_misuse() -> None:
    for size in (1000, -512, 1 << 63):
        with pytest.raises(ValueError, match="virtual size"):
            LayerWriter(size)
    writer = LayerWriter(VSIZE)
    with pytest.raises(ValueError, match="sectors"):
        writer.add(0, bytes(100))
    with pytest.raises(ValueError, match="sectors"):
        writer.add(0, b"")
    writer.add(10, bytes(SECTOR))
    for sector in (9, 10):
        with pytest.raises(ValueError, match="sectors"):
            writer.add(sector, bytes(SECTOR))
    with pytest.raises(ValueError, match="sectors"):
        writer.add_zeros(10, 1)
    with pytest.raises(ValueError, match="sector"):
        writer.add_zeros(2**50 - 2, 2)
    with pytest.raises(ValueError, match="beyond the end"):
        writer.add(VSIZE // SECTOR, bytes(SECTOR))


def test_writer_refuses_more_entries_than_readers_accept() -> None:
    writer = LayerWriter(1 << 40)
    sector = bytes(SECTOR)
    for number in range(1_000_000 // 256 * 256 + 1):
        writer.add(2 * number, sector)
    with pytest.raises(UnsupportedError, match="entries"):
        writer.finish()


# --- fuzz. The index has no checksum: an error, or a disk that stays inside the file


def mutate(data: bytes, random: Random, *, low: int, high: int) -> bytes:
    """One random damage between the bytes ``low`` and ``high``."""
    out = bytearray(data)
    at = random.randrange(low, high)
    kind = random.randrange(6)
    if kind <= 2:
        out[at] ^= 1 << random.randrange(8)
    elif kind == 3:
        out[at : at + 8] = random.choice((bytes(8), b"\xff" * 8, random.randbytes(8)))
    elif kind == 4:
        del out[at : at + random.choice((1, 16, 512, 4096))]
    else:
        out[at:at] = random.randbytes(random.choice((1, 16, 512, 4096)))
    return bytes(out)


def check_contract(data: bytes) -> bool:
    """Open and plan reads. True if the layer was accepted; then it must be sound."""
    try:
        record, found = open_map(data)
    except HybridError:
        return False
    previous = 0
    for segment in found:
        assert segment.offset >= previous
        assert segment.length > 0
        previous = segment.offset + segment.length
        if not segment.zeroed:
            assert segment.moffset * SECTOR >= HT_SIZE
            assert (segment.moffset + segment.length) * SECTOR <= record.index_offset
    size = max(SECTOR, min(record.virtual_size, 1 << 20))
    position = 0
    for source, offset, length in found.extents(0, size):
        assert length > 0
        position += length
        assert source == ZEROS or 0 <= offset <= len(data) - length
    assert position == size
    return True


@pytest.mark.parametrize("style", ["commit", "seal", "sparse-seal", "turbo"])
def test_fuzz_index_and_trailer(style: str) -> None:
    random = Random(style)
    data = SAMPLE.build(style=style)
    start = unpack_ht(data[-HT_SIZE:])["index_offset"]
    used = start + 16 * 8
    outcomes = [
        check_contract(mutate(data, random, low=low, high=high))
        for low, high in ((start, used), (len(data) - HT_SIZE, len(data) - HT_SIZE + 400))
        for _ in range(400)
    ]
    assert 50 < sum(outcomes) < 750


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=5),
    small=st.booleans(),
)
def test_fuzz_entries(words: list[tuple[int, int]], small: bool) -> None:
    raw = b"".join(struct.pack("<QQ", a, b) for a, b in words)
    entries = unpack_entries(raw)
    if small:  # numbers that lie near the borders, so that a part is accepted
        entries = [Entry(e.offset % 200, e.length % 20, e.moffset % 120, e.zeroed, e.tag)
                   for e in entries]  # fmt: skip
    check_contract(build_sealed(entries, payload(100), vsize=VSIZE))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=600))
def test_fuzz_parsers_with_any_bytes(data: bytes) -> None:
    blocks = (data, data.ljust(HT_SIZE, b"\0"), (lsmt.MAGIC + data).ljust(HT_SIZE, b"\0"))
    for block in blocks:
        for parse in (lsmt.parse_header, lambda b, n: lsmt.parse_trailer(b, n, 1 << 20)):
            try:
                record = parse(block, NAME)
            except HybridError:
                continue
            assert record.index_size <= lsmt.MAX_ENTRIES or record.flags & 1


def test_fuzz_whole_layers_are_answered_in_bounded_time() -> None:
    random = Random(11)
    data = SAMPLE.build()
    good = model_merge([SAMPLE])

    async def answer(damaged: bytes) -> bytes | None:
        try:
            async with open_disk([damaged]) as disk:
                return await read(disk, 0, min(disk.size, VSIZE))
        except HybridError:
            return None

    async def run() -> list[bytes | None]:
        answers = []
        with trio.fail_after(30):
            for _ in range(300):
                answers.append(await answer(mutate(data, random, low=0, high=len(data))))
        return answers

    answers = trio.run(run)
    assert good in answers
    assert None in answers


def test_pack_of_the_builder_round_trips() -> None:
    entries = [Entry(1, 2, 9, True, 3), Entry(2**50 - 2, 16383, 2**55 - 1, False, 255)]
    assert unpack_entries(pack_entries(entries)) == entries

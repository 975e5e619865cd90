"""Stacks made into one layer: content, segments, zeros, digests."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support.build_lsmt import paint
from support.builders import SECTOR, ModelLayer, Write, model_merge
from support.stacks import PLAIN, made, open_models, unwrapped, write_pair

from hybrid.build import compact, layer_file
from hybrid.build.blob_writer import Wrapping
from hybrid.build.compact import Below, LayerText
from hybrid.build.runs import Runs
from hybrid.core.disk import LayeredDevice
from hybrid.core.layer import Layer
from hybrid.core.opening import open_layer
from hybrid.core.segments import SegmentMap
from hybrid.core.source import MemorySource
from hybrid.errors import BusyError, UnsupportedError

SIZE = 64 << 10
LAST = SIZE // SECTOR
WRAPPINGS = [
    Wrapping(compress, block_size, tar, threads)
    for compress, block_size, threads in (
        ("none", 4096, 1), ("lz4", 4096, 1), ("lz4", 65536, 2), ("zstd", 4096, 2),
        ("zstd", 32768, 1),
    )
    for tar in (False, True)
]  # fmt: skip


@st.composite
def writes(draw: st.DrawFn) -> tuple[Write, ...]:
    """Data, with zeros in it, and discards; aligned to nothing, and often overlapping."""
    found = []
    for _ in range(draw(st.integers(0, 8))):
        length = draw(st.integers(1, 24))
        lba = draw(st.integers(0, LAST - length))
        fill = draw(st.lists(st.sampled_from([0, 0, 7, 9]), min_size=length, max_size=length))
        payload = b"".join(bytes([value]) * SECTOR for value in fill)
        found.append(Write(lba, length if draw(st.booleans()) else payload))
    return tuple(found)


STACKS = st.lists(writes().map(lambda found: ModelLayer(found, SIZE)), min_size=1, max_size=4)


def compacted(layers: list[ModelLayer], wrapping: Wrapping = PLAIN, **job: object) -> bytes:
    async def opened() -> LayeredDevice:
        return await open_models(layers)

    return made(trio.run(opened), wrapping, **job)[1]


def mapped(layers: list[ModelLayer]) -> dict[int, bytes]:
    """Sector by sector what a stack says; what it does not map is not there."""
    sectors = {}
    for layer in layers:
        for sector, (_, data) in paint(layer.writes).items():
            sectors[sector] = data or bytes(SECTOR)
    return sectors


@given(STACKS, st.sampled_from(WRAPPINGS))
def test_it_reads_as_the_stack(layers: list[ModelLayer], wrapping: Wrapping) -> None:
    blob = compacted(layers, wrapping)
    assert unwrapped(blob, wrapping).disk == model_merge(layers)

    async def read() -> bytes:
        device = LayeredDevice([await open_layer(MemorySource(blob))], "made")
        return bytes(await device.pread(0, device.size))

    assert trio.run(read) == model_merge(layers)
    assert compacted(layers, wrapping) == blob, "the same digest every time"


@given(STACKS)
def test_what_it_maps(layers: list[ModelLayer]) -> None:
    """Exactly what the stack maps; whole blocks of zeros as zeros, and no two entries in a row."""
    sectors = mapped(layers)
    parsed = unwrapped(compacted(layers), PLAIN)
    found = {s: e.zeroed for e in parsed.entries for s in range(e.offset, e.end)}
    assert found.keys() == sectors.keys()
    for block in range(LAST // 8):
        there = [s for s in range(block * 8, block * 8 + 8) if s in sectors]
        for first in there:
            # Those that are mapped without a gap count together.
            run = [s for s in there if set(range(min(s, first), max(s, first))) <= set(there)]
            assert found[first] == (not any(any(sectors[s]) for s in run))
    for one, two in zip(parsed.entries, parsed.entries[1:], strict=False):
        assert one.end < two.offset or one.zeroed != two.zeroed
    position = 8
    for entry in parsed.entries:
        assert entry.moffset == position, "no garbage, and in order"
        position += 0 if entry.zeroed else entry.length


@given(STACKS, st.randoms())
def test_history_does_not_matter(layers: list[ModelLayer], random: object) -> None:
    """The same content, written in single sectors and in one layer: the same bytes."""
    sectors = list(mapped(layers).items())
    random.shuffle(sectors)  # type: ignore[attr-defined]
    single = [Write(sector, data if any(data) else 1) for sector, data in sectors]
    assert compacted([ModelLayer(tuple(single), SIZE)]) == compacted(layers)


@given(STACKS, st.lists(writes().map(lambda w: ModelLayer(w, SIZE)), max_size=2))
def test_zeros_that_hide_nothing_are_left_out(
    layers: list[ModelLayer], lower: list[ModelLayer]
) -> None:
    async def index_of_lower() -> SegmentMap:
        return (await open_models(lower)).segments

    below = Below.of(trio.run(index_of_lower)) if lower else Below.nothing()
    blob = compacted(layers, below=below)
    parsed = unwrapped(blob, PLAIN)
    hidden = {s for layer in lower for s in paint(layer.writes)}
    for entry in parsed.entries:
        assert not entry.zeroed or hidden & set(range(entry.offset, entry.end))
    if lower:
        both = [*lower, *layers]

        async def read() -> bytes:
            found = [await open_layer(MemorySource(layer.build())) for layer in lower]
            device = LayeredDevice([*found, await open_layer(MemorySource(blob))], "both")
            return bytes(await device.pread(0, device.size))

        assert trio.run(read) == model_merge(both)
    else:
        assert parsed.disk == model_merge(layers)


@given(writes(), st.sets(st.integers(0, LAST - 1)))
def test_free_blocks_are_left_out(found: tuple[Write, ...], free: set[int]) -> None:
    runs = Runs((sector, sector + 1) for sector in sorted(free))
    whole = {s for start, end in runs.whole_blocks() for s in range(start, end)}
    layer = ModelLayer(found, SIZE)
    parsed = unwrapped(compacted([layer], free=runs, below=Below.nothing()), PLAIN)
    disk = model_merge([layer])
    for sector in range(LAST):
        piece = slice(sector * SECTOR, (sector + 1) * SECTOR)
        assert parsed.disk[piece] == (bytes(SECTOR) if sector in whole else disk[piece])
    assert not any(e.offset <= s < e.end for e in parsed.entries for s in whole)
    # Over something they are hidden, and nothing of it comes back.
    parsed = unwrapped(compacted([layer], free=runs), PLAIN)
    there = {s: e.zeroed for e in parsed.entries for s in range(e.offset, e.end)}
    assert there.keys() == paint(found).keys()
    assert all(there[s] for s in whole & there.keys())


def test_long_runs_are_cut_where_the_format_ends(tmp_path: Path) -> None:
    size = 40 << 20
    content = bytes(range(1, 256)) * (size // 255 + 1)
    layer = ModelLayer((Write(0, content[: 20 << 20]), Write(40960 + 8, 39000)), size)
    parsed = unwrapped(compacted([layer]), PLAIN)
    assert parsed.disk == model_merge([layer])
    assert [e.length for e in parsed.entries if not e.zeroed] == [16320, 16320, 8320]
    assert max(e.length for e in parsed.entries) <= 16383
    assert sum(e.length for e in parsed.entries if e.zeroed) == 39000


def test_an_empty_layer(tmp_path: Path) -> None:
    blob = compacted([ModelLayer((), SIZE)])
    assert len(blob) == 8192


def test_uuids(tmp_path: Path) -> None:
    layers = [ModelLayer((Write(0, b"a" * SECTOR),), SIZE)]

    def uuid(content: list[ModelLayer] = layers, wrapping: Wrapping = PLAIN, **text: object) -> str:
        parsed = unwrapped(compacted(content, wrapping, text=LayerText(**text)), wrapping)
        assert parsed.header["uuid"][14:15] == b"8"
        return str(parsed.header["uuid"])

    one = uuid()
    assert uuid(wrapping=Wrapping("zstd", 8192)) == one, "packing does not matter"
    others = {
        one,
        uuid([ModelLayer((Write(0, b"b" * SECTOR),), SIZE)]),
        uuid([ModelLayer((Write(1, b"a" * SECTOR),), SIZE)]),
        uuid([ModelLayer((Write(0, b"a" * SECTOR),), 2 * SIZE)]),
        uuid([ModelLayer((Write(0, b"a" * SECTOR), Write(9, 1)), SIZE)]),
        uuid(parent_uuid="11111111-2222-4333-8444-555555555555"),
        uuid(parent="sha256:abc"),
        uuid(user_tag=b"a"),
    }
    assert len(others) == 8
    given_uuid = "ABCDEF00-2222-8333-8444-555555555555"
    text = LayerText(given_uuid, "11111111-2222-4333-8444-555555555555", user_tag=b"tag")
    header = unwrapped(compacted(layers, text=text), PLAIN).header
    assert header["uuid"] == given_uuid.encode() + b"\0"
    assert header["parent_uuid"] == b"11111111-2222-4333-8444-555555555555\0"
    assert header["user_tag"].rstrip(b"\0") == b"tag"


@given(writes())
def test_pairs_give_what_layers_give(found: tuple[Write, ...]) -> None:
    """An append-only writable layer, as another implementation writes it."""

    async def opened(directory: Path) -> LayeredDevice:
        async with AsyncExitStack() as stack:
            device = await write_pair(directory, found, SIZE).open(stack)
            stack.pop_all()
            return device

    with tempfile.TemporaryDirectory() as name:
        device = trio.run(opened, Path(name))
        assert made(device)[1] == compacted([ModelLayer(found, SIZE)])
        trio.run(device.aclose)


def test_the_digest_is_that_of_the_file() -> None:
    async def opened() -> LayeredDevice:
        return await open_models([ModelLayer((Write(0, b"a" * SECTOR),), SIZE)])

    written, blob = made(trio.run(opened), Wrapping())
    assert written.digest == "sha256:" + hashlib.sha256(blob).hexdigest()
    assert written.size == len(blob)
    assert written.data_bytes == SECTOR


class Changing(LayeredDevice):
    """Data that is another at the second reading."""

    reads = 0

    async def pread(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return bytes([self.reads]) * length


def test_data_that_changes_is_noticed() -> None:
    async def opened() -> LayeredDevice:
        layer = ModelLayer((Write(0, b"a" * SECTOR),), SIZE)
        found: list[Layer] = [await open_layer(MemorySource(layer.build()))]
        return Changing(found, "restless")

    with pytest.raises(BusyError, match="restless was changed while it was read"):
        made(trio.run(opened))


def test_too_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_file, "MAX_BLOCKS", 2)
    layers = [ModelLayer((Write(0, b"a" * 3 * 4096),), SIZE)]
    compacted(layers)
    compacted(layers, Wrapping(block_size=8192))
    with pytest.raises(UnsupportedError, match="12288 bytes of data") as caught:
        compacted(layers, Wrapping())
    assert "--block-size" in caught.value.hint


def test_too_many_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "MAX_ENTRIES", 256 + 3)
    scattered = tuple(Write(sector, b"a" * SECTOR) for sector in (0, 9, 18))
    compacted([ModelLayer(scattered, SIZE)])
    more = (*scattered, Write(27, 1))
    with pytest.raises(UnsupportedError, match="a layer of 4 segments") as caught:
        compacted([ModelLayer(more, SIZE)])
    assert caught.value.hint

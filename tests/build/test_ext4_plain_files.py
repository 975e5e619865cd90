"""Plain files are read by the compiled part, all else by TarReader: both must mean the same."""

from __future__ import annotations

import io
import random

import pytest
from support.archives import DIR, GNU, V7, archive, member, pax
from support.build_tar import BLOCK

from hybrid.build.ext4.layer import Ext4Layer
from hybrid.build.tar.reader import TarReader
from hybrid.errors import HybridError

SIZE = 16 << 20


class Alone(TarReader):
    """Shows nothing to the compiled part."""

    def ahead(self) -> memoryview:
        super().ahead()
        return memoryview(b"")


def outcome(kind: type[TarReader], data: bytes, step: int = 1 << 20) -> tuple[object, ...]:
    """What an archive makes of an empty disk, or the error that it is."""
    stream = io.BytesIO(data)
    with Ext4Layer.make(SIZE) as layer:
        try:
            applied = layer.apply(kind(lambda n: stream.read(min(n, step)), "layer.tar"))
        except HybridError as error:
            return type(error), error.message, error.hint
        with layer.finish() as changes:
            held = [(e, not e.zero and changes.read(e.offset, e.length)) for e in changes.extents]
        return applied, held


def taken(data: bytes) -> int:
    """How many files the compiled part takes at once, with the root as the only directory."""
    with Ext4Layer.make(SIZE) as layer:
        assert layer._applier is not None
        return layer._applier._fs.put_files(data, {b"": 2, b"d": 2})[1]


def file(**options: object) -> bytes:
    return member(b"x", b"content", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        file(),
        file(mode=0o7777, uid=1000, gid=70_000, mtime=1 << 32),
        file(kind=b"\0"),
        file(fields=GNU),
        file(fields=V7),
        file(fields={"mode": b"", "mtime": b"  17 \0 "}),
        file(fields={"prefix": b"d"}),
        file(records={b"mtime": b"1600000000.123456789"}),
        file(records={b"mtime": b"12.5", b"atime": b"-1", b"ctime": b"x", b"path": b"d/long"}),
        member(b"d/" + b"n" * 250, b"content"),
        member(b"x"),
        member(b"x", bytes(1 << 20)),
    ],
)
def test_plain_files_are_taken(data: bytes) -> None:
    assert taken(data) == taken(data + archive()) == 1
    assert outcome(TarReader, archive(member(b"d/", kind=DIR), data)) == outcome(
        Alone, archive(member(b"d/", kind=DIR), data)
    )


def summed(data: bytes) -> bytes:
    """With the right checksum in the first header."""
    head, tail = data[:148], data[156:]
    return head + b"%06o\0 " % sum(head + b" " * 8 + tail[: BLOCK - 156]) + tail


UNUSUAL = [
    member(b"x", kind=DIR),
    member(b"x/"),
    member(b".."),
    member(b"d/."),
    member(b"e/x"),
    member(b".wh.x"),
    member(b"d.wh./x"),
    member(b"x", bytes((1 << 20) + 1)),
    file(kind=b"7"),
    file(fields={"prefix": b"d" * 154})[:508] + b"tar\0" + file()[BLOCK:],
    summed(file(fields={"prefix": b"d"})[:508] + b"tar\0" + file()[BLOCK:]),
    file(fields={"uid": b"\x80" + bytes(6) + b"\1"}),
    file(fields={"mtime": b"1x"}),
    file(fields={"size": b"9"}),
    file()[:148] + b"1" + file()[149:],
    file(records={b"uid": b"7"}),
    file(records={b"size": b"7"}),
    file(records={b"path": b""}),
    file(records={b"path": b"a\0b"}),
    file(records={b"mtime": b"-1.5"}),
    file(records={b"mtime": b""}),
    file(records={b"mtime": b"1,5"}),
    file(records={b"mtime": b"1.5x"}),
    file(records={b"mtime": b"1" * 16}),
    file(records={b"GNU.sparse.major": b"1"}),
    file(xattrs={b"user.x": b"y"}),
    pax({b"mtime": b"1"}) + pax({b"mtime": b"2"}) + file(),
    pax({b"comment": b"1"}) + file(),
    pax({b"mtime": b"1"}, b"g") + file(),
    pax({b"mtime": b"1"}, b"X") + file(),
    pax({b"path": b"p" * 5000}) + file(),
    pax({b"mtime": b"1"}),
    file()[: BLOCK + 511],
    file()[: BLOCK - 1],
    bytes(BLOCK),
    b"",
]


@pytest.mark.parametrize("data", UNUSUAL)
def test_all_else_is_left_alone(data: bytes) -> None:
    assert taken(data) == 0
    assert taken(member(b"y") + data) == 1
    whole = member(b"y") + data + archive()
    assert outcome(TarReader, whole) == outcome(Alone, whole)


def test_a_name_that_is_there_is_left_alone() -> None:
    assert taken(file() + file()) == 1


@pytest.mark.parametrize("seed", range(150))
def test_damage_means_the_same_to_both(seed: int) -> None:
    choose = random.Random(seed)
    members = [
        member(
            choose.choice([b"a", b"d/b", b"d/c", b"e/f/g", b"d/.wh.b"]) + b"%d" % number,
            choose.randbytes(choose.choice([0, 5, 512, 5000])),
            mtime=number,
            records=choose.choice([{}, {b"mtime": b"1.%d" % number}, {b"path": b"d/%d" % number}]),
        )
        for number in range(12)
    ]  # fmt: skip
    data = bytearray(archive(*members))
    for _ in range(seed % 3):
        place = choose.randrange(len(data))
        if seed % 2:
            data[place] = choose.choice(b"\0 07x\xff=")
            continue
        # A field of a header is changed, and its checksum made to fit.
        start = place // BLOCK * BLOCK
        data[start + choose.randrange(148)] = choose.choice(b"\0 07x\xff")
        data[start : start + BLOCK] = summed(bytes(data[start : start + BLOCK]))
    expected = outcome(Alone, bytes(data))
    assert outcome(TarReader, bytes(data)) == expected
    assert outcome(TarReader, bytes(data), choose.choice([1, 700, 4096])) == expected


def test_an_error_names_the_file() -> None:
    """It comes from the middle of a run."""
    data = archive(member(b"first"), *(member(b"big%d" % n, b"x" * 900_000) for n in range(30)))
    found = outcome(TarReader, data)
    assert found == outcome(Alone, data)
    assert "layer.tar: big" in str(found[1])
    assert "is full" in str(found[1])

"""TarReader against archives of three writers: Python's tarfile, GNU tar, and our own bytes."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.archives import (
    BLOCK_DEVICE,
    CHAR,
    DIR,
    END,
    FIFO,
    FILE,
    GNU,
    LINK,
    SYMLINK,
    V7,
    archive,
    entries_of,
    expanded,
    member,
    number,
    pax,
    read_with,
    special,
)
from support.build_tar import BLOCK, pad, tar_header

from hybrid.build.tar.entry import Entry, Kind
from hybrid.errors import FormatError, UnsupportedError


def only(data: bytes) -> Entry:
    ((entry, _),) = entries_of(data)
    return entry


# --- Against tarfile

_NAMES = st.text(
    st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=120
).filter(lambda name: name not in (".", ".."))
_MEMBERS = st.builds(
    lambda names, kind, mode, owner, mtime, data, link: (
        "/".join(names), kind, mode, owner, mtime, data if kind == tarfile.REGTYPE else b"",
        link if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else "",
    ),
    st.lists(_NAMES, min_size=1, max_size=3),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
                     tarfile.FIFOTYPE]),
    st.integers(0, 0o7777),
    st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2)),
    st.integers(-(2**33), 2**34),
    st.binary(max_size=1200),
    _NAMES,
)  # fmt: skip


@given(
    st.lists(_MEMBERS, max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 700),
)
def test_what_tarfile_writes(
    members: list[tuple[str, bytes, int, tuple[int, int], int, bytes, str]], dialect: int, step: int
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=dialect) as tar:
        for name, kind, mode, owner, mtime, data, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.linkname = kind, mode, mtime, link
            info.uid, info.gid = owner
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = entries_of(stream.getvalue(), step)
    assert len(found) == len(members)
    for (entry, content), (name, kind, mode, owner, mtime, data, link) in zip(
        found, members, strict=True
    ):
        assert entry.name.rstrip(b"/") == name.encode().rstrip(b"/")
        assert entry.kind == int(kind)
        assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (mode, *owner, mtime)
        assert (content, entry.size, entry.link) == (data, len(data), link.encode())


# --- Against GNU tar (and bsdtar, where it is installed)


def make_source(root: Path) -> None:
    root.mkdir()
    (root / "plain").write_bytes(b"content")
    (root / ("long" * 60)).write_bytes(b"long name")
    (root / "soft").symlink_to("target/" * 30)
    os.link(root / "plain", root / "hard")
    (root / "dir").mkdir(mode=0o751)
    with (root / "sparse").open("wb") as file:
        for offset in range(0, 40 << 20, 1 << 20):
            os.pwrite(file.fileno(), b"piece at %d" % offset, offset)
        file.truncate(100 << 20)
    os.mkfifo(root / "fifo")
    os.utime(root / "plain", ns=(0, 1_700_000_000_123_456_789))


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("tar", ["--format=gnu", "--sparse"]),
        ("tar", ["--format=oldgnu", "--sparse"]),
        ("tar", ["--format=pax", "--sparse", "--sparse-version=0.0"]),
        ("tar", ["--format=pax", "--sparse", "--sparse-version=0.1"]),
        ("tar", ["--format=pax", "--sparse", "--sparse-version=1.0"]),
        ("bsdtar", ["--format=pax"]),
        ("bsdtar", ["--format=gnutar"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value),
)
def test_what_tar_programs_write(tmp_path: Path, program: str, options: list[str]) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    source = tmp_path / "source"
    make_source(source)
    done = subprocess.run(
        [program, *options, "-cf", "-", "-C", source, "."], capture_output=True, check=True
    )
    found = {entry.name.strip(b"./"): (entry, data) for entry, data in entries_of(done.stdout)}
    assert set(found) == {b"", *(name.encode() for name in os.listdir(source))}
    sparse, stored = found[b"sparse"]
    assert expanded(sparse, stored) == (source / "sparse").read_bytes()
    assert len(stored) < 1 << 20
    assert found[b"soft"][0].link == b"target/" * 30
    kinds = {found[b"plain"][0].kind, found[b"hard"][0].kind}
    assert kinds == {Kind.FILE, Kind.HARD_LINK}
    plain = found[b"plain"][0]
    assert plain.mtime == 1_700_000_000
    assert plain.mtime_ns == (123_456_789 if "--format=pax" in options else 0)
    assert (found[b"dir"][0].kind, found[b"dir"][0].mode) == (Kind.DIRECTORY, 0o751)
    assert found[b"fifo"][0].kind is Kind.FIFO
    assert found[b"long" * 60][1] == b"long name"


# --- Headers


def test_dialects_of_names() -> None:
    prefixed = {"prefix": b"usr/share"}
    assert only(archive(member(b"x", fields=prefixed))).name == b"usr/share/x"
    assert only(archive(member(b"x", fields=GNU | prefixed))).name == b"x"
    assert only(archive(member(b"x", fields=V7 | prefixed))).name == b"x"
    long = b"n" * 300 + b"\xff\xfe"
    assert only(archive(special(b"L", long + b"\0"), member(b"x", fields=GNU))).name == long
    entry = only(archive(special(b"K", long + b"\0"), member(b"x", kind=SYMLINK, fields=GNU)))
    assert entry.link == long
    both = archive(pax({b"path": b"from pax"}), special(b"L", b"from gnu\0"), member(b"x"))
    assert only(both).name == b"from pax"


def test_a_prefix_of_star_is_shorter() -> None:
    block = bytearray(member(b"x", fields={"prefix": b"p" * 131})[:BLOCK])
    block[345 + 131 : 345 + 155] = b"00000000000\00000000000000\0"[:24]
    block[508:512] = b"tar\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert only(archive(bytes(block))).name == b"p" * 131 + b"/x"


@given(st.integers(0, 2**32 - 2), st.integers(-(2**62), 2**62))
def test_base_256(uid: int, mtime: int) -> None:
    entry = only(archive(member(b"x", uid=uid, mtime=mtime)))
    assert (entry.uid, entry.mtime) == (uid, mtime)


def test_numbers_with_blanks_and_without_an_end() -> None:
    fields = {"mode": b"  644 \0 ", "uid": b"12345670", "gid": bytes(8), "mtime": b"77777777777 "}
    entry = only(archive(member(b"x", fields=fields)))
    assert (entry.mode, entry.uid, entry.gid) == (0o644, 0o12345670, 0)
    assert entry.mtime == 0o77777777777
    assert only(archive(member(b"x", fields={"size": b"000000000000"}))).size == 0


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "size", "mtime"])
@pytest.mark.parametrize("value", [b"12 34 7\0", b"9\0", b"0x1\0", b"1_0\0", b"-1\0"])
def test_numbers_that_are_none(field: str, value: bytes) -> None:
    with pytest.raises(FormatError, match="entry at byte 0") as caught:
        entries_of(archive(member(b"x", fields={field: value})))
    assert caught.value.offset == 0


def test_a_sum_of_signed_characters_is_accepted() -> None:
    block = bytearray(member(b"\xe9" * 9))
    block[148:156] = b" " * 8
    signed = sum(block[:BLOCK]) - 256 * 9
    block[148:156] = b"%06o\0 " % signed
    assert only(archive(bytes(block))).name == b"\xe9" * 9


def test_damaged_sum() -> None:
    data = bytearray(archive(member(b"first", b"1"), member(b"second")))
    data[1024] ^= 1
    reader = read_with(bytes(data))
    entries = iter(reader)
    assert next(entries).name == b"first"
    with pytest.raises(FormatError, match=r"layer.tar: entry at byte 1024: damaged header"):
        next(entries)


def test_kinds() -> None:
    data = archive(
        member(b"a", b"x", b"\0"), member(b"b/", kind=b"\0"), member(b"c", b"x", b"7"),
        member(b"d", kind=LINK, link=b"a", size=77), member(b"e", kind=SYMLINK, link=b"a/./b//"),
        member(b"f", kind=CHAR, device=(5, 1)),
        member(b"g", kind=BLOCK_DEVICE, device=(300, 70000)),
        member(b"h", kind=DIR, size=4096), member(b"i", kind=FIFO), member(b"j", b"list", b"D"),
        special(b"V", b"", b"label"), member(b"k", b"end"),
    )  # fmt: skip
    found = {entry.name: entry for entry, _ in entries_of(data)}
    assert [entry.kind for entry in found.values()] == [
        Kind.FILE, Kind.DIRECTORY, Kind.FILE, Kind.HARD_LINK, Kind.SYMLINK, Kind.CHARACTER_DEVICE,
        Kind.BLOCK_DEVICE, Kind.DIRECTORY, Kind.FIFO, Kind.DIRECTORY, Kind.FILE,
    ]  # fmt: skip
    assert (found[b"f"].major, found[b"f"].minor) == (5, 1)
    assert (found[b"g"].major, found[b"g"].minor) == (300, 70000)
    assert found[b"e"].link == b"a/./b//"


@pytest.mark.parametrize("kind", [b"M", b"N", b"Z", b"\xff"])
def test_kinds_that_no_layer_has(kind: bytes) -> None:
    with pytest.raises(UnsupportedError, match="odd at byte 0 is of type"):
        entries_of(archive(member(b"odd", kind=kind)))


@pytest.mark.parametrize("value", [b"4294967295", b"99999999999999"])
def test_owners_beyond_32_bits(value: bytes) -> None:
    with pytest.raises(FormatError, match="impossible owner"):
        entries_of(archive(member(b"x", records={b"uid": value})))


# --- PAX


def test_pax_values() -> None:
    entry = only(
        archive(
            member(
                b"short", b"12345", size=0, xattrs={b"user.a%3Db": b"\0\xff=\n", b"user.e": b""},
                records={
                    b"path": b"l\xc3\xb6ng/\xff", b"uid": b"4000000000", b"gid": b"70000",
                    b"size": b"5", b"mtime": b"-1.25", b"uname": b"ignored", b"comment": b"",
                    b"hdrcharset": b"BINARY",
                    b"LIBARCHIVE.xattr.user.%25x": base64.b64encode(b"value").rstrip(b"="),
                },
            )
        )
    )  # fmt: skip
    assert entry.name == b"l\xc3\xb6ng/\xff"
    assert (entry.uid, entry.gid, entry.size) == (4_000_000_000, 70_000, 5)
    assert (entry.mtime, entry.mtime_ns) == (-2, 750_000_000)
    assert entry.xattrs == {b"user.a=b": b"\0\xff=\n", b"user.e": b"", b"user.%x": b"value"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"0", (0, 0)),
        (b"1.5", (1, 500_000_000)),
        (b"1.", (1, 0)),
        (b"17.1234567891", (17, 123_456_789)),
        (b"-1", (-1, 0)),
        (b"-0.000000001", (-1, 999_999_999)),
        (b"99999999999999999999", (1 << 62, 0)),
    ],
)
def test_pax_times(text: bytes, expected: tuple[int, int]) -> None:
    entry = only(archive(member(b"x", records={b"mtime": text})))
    assert (entry.mtime, entry.mtime_ns) == expected


def test_global_headers_are_defaults() -> None:
    data = archive(
        pax({b"mtime": b"5.5", b"SCHILY.xattr.user.g": b"1"}, b"g"),
        member(b"a"),
        member(b"b", records={b"mtime": b"7"}),
        member(b"c", mtime=3, records={b"mtime": b""}),
        pax({b"mtime": b"6"}, b"g"),
        member(b"d"),
    )
    found = [(entry.mtime, entry.mtime_ns) for entry, _ in entries_of(data)]
    assert found == [(5, 500_000_000), (7, 0), (3, 0), (6, 0)]
    assert entries_of(data)[1][0].xattrs == {b"user.g": b"1"}


@pytest.mark.parametrize(
    "body",
    [
        b"5 a=b\n", b"7 a=b\n", b"x a=b\n", b"6 a=b", b"6 a:b\n", b"5 =b\n", b"99 a=b\n",
        b"-6 a=b\n", b"6\ta=b\n", b"0 \n", b"00000000000006 a=b\n", b"4 a\n",
    ],
)  # fmt: skip
def test_damaged_pax_records(body: bytes) -> None:
    with pytest.raises(FormatError, match="damaged PAX header"):
        entries_of(archive(special(b"x", body), member(b"x")))


@pytest.mark.parametrize(
    "records",
    [
        {b"size": b"-1"}, {b"size": b"1x"}, {b"size": b"9" * 20}, {b"size": b"9" * 21},
        {b"mtime": b"now"}, {b"mtime": b"1e5"}, {b"path": b"a\0b"}, {b"uid": b"0x10"},
        {b"SCHILY.xattr.": b"x"}, {b"LIBARCHIVE.xattr.user.x": b"*"},
    ],
)  # fmt: skip
def test_impossible_pax_values(records: dict[bytes, bytes]) -> None:
    with pytest.raises(FormatError, match=r"layer\.tar"):
        entries_of(archive(member(b"x", records=records)))


# --- The end, and what is missing


def test_ends() -> None:
    one = member(b"a", b"x")
    for data in (one, one + bytes(BLOCK), one + END, one + END + b"trailing bytes" * 100):
        assert [entry.name for entry, _ in entries_of(data)] == [b"a"]
    assert [entry.name for entry, _ in entries_of(one + bytes(BLOCK) + one)] == [b"a", b"a"]
    assert entries_of(b"") == entries_of(END) == []


def test_drain_reads_to_the_last_byte() -> None:
    stream = io.BytesIO(archive(member(b"a", b"x")) + bytes(3 << 20))
    reader = read_with(stream.getvalue())
    assert len(list(reader)) == 1
    reader.drain()
    assert reader.offset == len(stream.getvalue())


def test_every_truncation_is_told() -> None:
    data = member(b"n" * 120, b"d" * 1000, records={b"mtime": b"1.5"}) + member(b"b")
    boundaries = {0, len(data) - BLOCK, len(data)}
    for length in range(0, len(data), 97):
        if length not in boundaries:
            with pytest.raises(FormatError, match="truncated") as caught:
                entries_of(data[:length])
            assert caught.value.offset is not None
            assert caught.value.offset <= length
    with pytest.raises(FormatError, match="the entry that it describes is missing"):
        entries_of(pax({b"path": b"x"}) + END)


def test_limits() -> None:
    fields: dict[str, bytes | str] = {"name": b"x", "typeflag": b"x", "size": number(1 << 40, 12)}
    with pytest.raises(FormatError, match="a header of 1099511627776 bytes"):
        entries_of(tar_header(fields) + END)
    many = pax({b"comment": b"c" * 600_000}, b"g")
    with pytest.raises(FormatError, match="more than 1 MiB"):
        entries_of(many + many + archive())


def test_content_may_be_left_half_read() -> None:
    reader = read_with(archive(member(b"a", b"1" * 5000), member(b"b", b"22")), step=700)
    entries = iter(reader)
    next(entries)
    assert next(reader.data())
    assert next(entries).name == b"b"
    assert bytes(reader.whole()) == b"22"
    assert next(entries, None) is None


# --- Sparse maps


def sparse_header(pieces: list[tuple[int, int]], stored: bytes, size: int) -> bytes:
    """Type S with up to four pieces."""
    block = bytearray(member(b"s", stored, b"S", fields=GNU)[:BLOCK])
    for i, (offset, length) in enumerate(pieces):
        block[386 + 24 * i : 410 + 24 * i] = number(offset, 12) + number(length, 12)
    block[483:495] = number(size, 12)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + pad(stored)


def test_old_sparse() -> None:
    ((entry, stored),) = entries_of(archive(sparse_header([(512, 3), (9000, 2)], b"abcde", 9010)))
    assert expanded(entry, stored) == bytes(512) + b"abc" + bytes(9000 - 515) + b"de" + bytes(8)


def test_a_file_that_is_one_hole() -> None:
    ((entry, stored),) = entries_of(archive(sparse_header([(1 << 40, 0)], b"", 1 << 40)))
    assert (entry.size, entry.sparse, stored) == (1 << 40, [], b"")


@pytest.mark.parametrize(
    "pieces", [[(0, 3)], [(0, 4), (3, 1)], [(100, 5)], [(5, 2), (0, 3)], [(-1, 5)], [(0, -5)]]
)
def test_damaged_sparse_maps(pieces: list[tuple[int, int]]) -> None:
    with pytest.raises(FormatError, match="sparse map"):
        entries_of(archive(sparse_header(pieces, b"abcde", 20)))


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.map", b"0"), (b"GNU.sparse.size", b"9")],
        [(b"GNU.sparse.map", b"0,x"), (b"GNU.sparse.size", b"9")],
        [(b"GNU.sparse.map", b"0,5")],
        [(b"GNU.sparse.numbytes", b"5"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.size", b"9")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9")],
        [(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"4")],
    ],
)
def test_damaged_sparse_records(records: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(FormatError, match=r"sparse|number"):
        entries_of(archive(pax(records), member(b"s", b"abcde")))


# --- Fuzz


SAMPLE = archive(
    pax({b"comment": b"c"}, b"g"),
    member(b"d/", kind=DIR),
    member(b"n" * 130, b"data" * 300, records={b"mtime": b"1.5"}, xattrs={b"user.x": b"y"}),
    special(b"L", b"long" * 40 + b"\0"),
    member(b"x", kind=LINK, link=b"y", fields=GNU),
    sparse_header([(512, 3), (9000, 2)], b"abcde", 9010),
    pax(
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99")]
    ),
    member(b"s", pad(b"1\n7\n5\n") + b"abcde", FILE),
)


@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8),
    st.booleans(),
)
def test_damage_is_told_or_read(changes: list[tuple[int, int]], mend: bool) -> None:
    data = bytearray(SAMPLE)
    for place, value in changes:
        data[place] = value
        head = place // BLOCK * BLOCK
        if mend and data[head + 257 : head + 262] == b"ustar":
            data[head + 148 : head + 156] = b" " * 8
            data[head + 148 : head + 156] = b"%06o\0 " % sum(data[head : head + BLOCK])
    try:
        entries_of(bytes(data))
    except (FormatError, UnsupportedError) as error:
        told = error.message
    else:
        told = "layer.tar"
    assert told.startswith("layer.tar")

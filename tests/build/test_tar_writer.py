"""Archives that hybrid writes: its own reader, GNU tar and Python's tarfile understand them."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.archives import entries_of, read_with

from hybrid.build.tar.entry import Entry, Kind
from hybrid.build.tar.reader import MAX_ID
from hybrid.build.tar.writer import END, entry_head, padding

names = st.binary(min_size=1, max_size=300).map(lambda name: name.replace(b"\0", b"x"))
xattr_names = st.binary(min_size=1, max_size=40).map(
    lambda name: b"user." + name.replace(b"\0", b"=")
)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(Kind))
    is_file, is_device = kind is Kind.FILE, kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)
    data = draw(st.binary(max_size=2000)) if is_file else b""
    size, sparse = len(data), None
    if is_file and draw(st.booleans()):
        sparse, at, left = [], 0, len(data)
        while left:
            at += draw(st.integers(0, 1 << 40))
            length = draw(st.integers(1, left))
            sparse.append((at, length))
            at, left = at + length, left - length
        size = at + draw(st.integers(0, 1 << 40))
    name = draw(names)
    if is_file:
        name = name.rstrip(b"/") or b"f"  # else some programs take it for a directory
    entry = Entry(
        name,
        kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, MAX_ID)),
        gid=draw(st.integers(0, MAX_ID)),
        mtime=draw(st.integers(-(1 << 40), 1 << 40)),
        mtime_ns=draw(st.one_of(st.just(0), st.integers(0, 10**9 - 1))),
        size=size,
        link=draw(names) if kind in (Kind.SYMLINK, Kind.HARD_LINK) else b"",
        offset=0,
        major=draw(st.integers(0, 0xFFF)) if is_device else 0,
        minor=draw(st.integers(0, 0xFFFFF)) if is_device else 0,
        xattrs=draw(st.dictionaries(xattr_names, st.binary(max_size=100), max_size=3)),
        stored=len(data),
        sparse=sparse,
    )
    return entry, data


def packed(*parts: tuple[Entry, bytes]) -> bytes:
    return b"".join(entry_head(entry) + data + padding(entry.stored) for entry, data in parts) + END


@given(st.lists(entries(), max_size=4))
def test_what_was_written_is_read(parts: list[tuple[Entry, bytes]]) -> None:
    archive = packed(*parts)
    found = entries_of(archive)
    assert [data for _, data in found] == [data for _, data in parts]
    for (read, _), (written, _) in zip(found, parts, strict=True):
        read.offset = 0
        assert read == written
    assert packed(*parts) == archive


@pytest.mark.parametrize(
    "length", [1, 7, 8, 9, 10, 80, 87, 88, 89, 90, 91, 988, 989, 990, 991, 992, 993]
)
def test_the_length_of_a_record_counts_itself(length: int) -> None:
    xattrs = {b"user.x": b"v" * length}
    entry = Entry(b"f", Kind.FILE, 0o644, 0, 0, 0, 0, 0, b"", 0, xattrs=xattrs)
    ((read, _),) = entries_of(packed((entry, b"")))
    assert read.xattrs == xattrs


@pytest.mark.parametrize("size", [8**11 - 1, 8**11, 1 << 45])
def test_large_files(size: int) -> None:
    """Their heads alone: the data need not be there for it."""
    entry = Entry(b"f", Kind.FILE, 0o644, 0, 0, 0, 0, size, b"", 0, stored=size)
    read = next(iter(read_with(entry_head(entry))))
    read.offset = 0
    assert read == entry


def example() -> list[tuple[Entry, bytes]]:
    long, now = b"d/" + b"n" * 200, 1_600_000_000
    own = (os.getuid(), os.getgid())
    return [
        (Entry(b"d/", Kind.DIRECTORY, 0o750, *own, now, 0, 0, b"", 0), b""),
        (Entry(long, Kind.FILE, 0o4711, *own, now, 123_456_789, 5, b"", 0, stored=5), b"hello"),
        (Entry(b"d/\xff", Kind.FILE, 0o600, *own, -5, 0, 0, b"", 0), b""),
        (Entry(b"d/hard", Kind.HARD_LINK, 0o4711, *own, now, 123_456_789, 0, long, 0), b""),
        (Entry(b"d/soft", Kind.SYMLINK, 0o777, *own, now, 0, 0, b"t" * 150, 0), b""),
        (Entry(b"d/fifo", Kind.FIFO, 0o640, *own, now, 0, 0, b"", 0), b""),
        (
            Entry(b"d/sparse", Kind.FILE, 0o644, *own, now, 0, 1 << 20, b"", 0, stored=8192,
                  sparse=[(65536, 4096), (262144, 4096)]),
            b"a" * 4096 + b"b" * 4096,
        ),
    ]  # fmt: skip


def test_gnu_tar_unpacks_it(tmp_path: Path) -> None:
    subprocess.run(
        ["tar", "-x", "-p", "-f", "-", "-C", tmp_path], input=packed(*example()), check=True
    )
    root = os.fsencode(tmp_path) + b"/"
    for entry, _ in example():
        status = os.lstat(root + entry.name)
        assert status.st_mtime_ns == entry.mtime * 10**9 + entry.mtime_ns, entry.name
        assert status.st_mode & 0o7777 == entry.mode or entry.kind is Kind.SYMLINK
        assert status.st_size == entry.size or entry.kind is not Kind.FILE
    assert os.path.samefile(tmp_path / "d/hard", tmp_path / "d" / ("n" * 200))
    assert os.readlink(tmp_path / "d/soft") == "t" * 150
    sparse = (tmp_path / "d/sparse").read_bytes()
    assert sparse.strip(b"\0") == b"a" * 4096 + bytes(192512) + b"b" * 4096


def test_tarfile_lists_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(*example())), errors="surrogateescape") as archive:
        members = archive.getmembers()
    assert [os.fsencode(member.name) for member in members] == [
        entry.name.rstrip(b"/") for entry, _ in example()
    ]
    assert [member.size for member in members] == [
        entry.size if entry.kind is Kind.FILE else 0 for entry, _ in example()
    ]

"""erofs images that hybrid writes: the kernel and fsck.erofs are the judges, umoci has the tree."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import golden
from support.archives import CHAR, DIR, LINK, SYMLINK, archive, member
from support.ext4_disks import Tree, mounted, needs_root, tree_of
from support.plain_images import rich_layers
from support.umoci import unpacked

from hybrid.build.erofs.image import ErofsImage
from hybrid.build.erofs.names import BLOCK, Name, directory_size, pack_directory
from hybrid.build.erofs.tree import MAX_VALUES, FileTree
from hybrid.build.ext4.apply import Applier
from hybrid.build.ext4.native import ROOT, FileSystem, NativeError
from hybrid.build.tar.decompress import open_expander
from hybrid.build.tar.reader import TarReader
from hybrid.errors import StorageFullError, UnsupportedError

GIB = 1 << 30
UUID = bytes(range(16))


def make(path: Path, layers: Sequence[bytes], size: int = 64 * GIB) -> Path:
    """The disk of an image as a sparse file, cut where the file system ends."""
    with TemporaryFile() as scratch:
        tree = FileTree(scratch, 1 << 30)
        for data in layers:
            tree.begin_layer()
            reader = TarReader(open_expander(io.BytesIO(data).read, "t").read, "layer.tar")
            Applier(cast(FileSystem, tree), size).apply(reader)
        image = ErofsImage(tree, size, UUID, None)
        with path.open("wb") as file:
            for offset, length, zero in image.extents:
                assert not zero
                for start in range(offset, offset + length, 1 << 20):
                    step = min(1 << 20, offset + length - start)
                    os.pwrite(file.fileno(), image.read(start, step), start)
            blocks = int.from_bytes(image.read(1024 + 36, 4), "little")
            file.truncate(blocks * BLOCK)
        image.close()
    return path


def fsck(image: Path) -> None:
    command = ["fsck.erofs", "-d3", image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No error" in done.stdout + done.stderr


def tree_in(image: Path) -> Tree:
    fsck(image)
    with mounted(image) as root:
        found = tree_of(root)
    return found


@needs_root
def test_the_tree_is_that_of_umoci(tmp_path: Path) -> None:
    layers = rich_layers()
    found = tree_in(make(tmp_path / "disk", layers))
    expected = unpacked(tmp_path, layers)
    assert set(found) == set(expected)
    for path, row in expected.items():
        assert found[path] == row, path


@needs_root
def test_the_tree_is_that_of_ext4(tmp_path: Path) -> None:
    from support.ext4_disks import disk

    archives = [
        (golden.tree() / "tars" / f"layer{number}.tar.gz").read_bytes() for number in (1, 2, 3)
    ]
    found = tree_in(make(tmp_path / "disk", archives))
    with disk(GIB) as made:
        made.apply(*archives)
        with mounted(made.dump(tmp_path / "ext4")) as root:
            expected = tree_of(root)
    assert set(found) == set(expected)
    for path, row in expected.items():
        assert found[path] == row, path


@needs_root
def test_directories_of_many_blocks_and_large_links(tmp_path: Path) -> None:
    names = [b"%s-%05d" % (b"x" * (number % 190), number) for number in range(6000)]
    data = archive(
        member(b"many/", kind=DIR, mode=0o755),
        *(member(b"many/" + name, name, kind=b"0", mtime=number)
          for number, name in enumerate(names)),
        *(member(b"dir%d" % number, kind=DIR, mode=0o755) for number in range(300)),
        member(b"link", kind=SYMLINK, link=b"a/" * 2040),
        member(b"!first", kind=CHAR, device=(4095, 1048575), mode=0o600),
    )  # fmt: skip
    found = tree_in(make(tmp_path / "disk", [data]))
    assert {path for path in found if path.startswith(b"many/")} == {b"many/" + n for n in names}
    assert found[b"link"]["target"] == b"a/" * 2040
    assert found[b"!first"]["device"] == (4095, 1048575)


@needs_root
def test_attributes_over_a_block(tmp_path: Path) -> None:
    xattrs = {b"user.%03d" % number: b"v" * number for number in range(200)}
    data = archive(
        *(member(b"f%d" % n, b"content", xattrs=xattrs if n % 3 else {}) for n in range(20)),
        member(b"d/", kind=DIR, mode=0o755, xattrs=xattrs),
        member(b"d/x", b"1"),
    )
    found = tree_in(make(tmp_path / "disk", [data]))
    assert found[b"f1"]["xattrs"] == found[b"d"]["xattrs"] == xattrs
    assert not found[b"f3"]["xattrs"]


@needs_root
def test_holes_take_no_blocks(tmp_path: Path) -> None:
    """Of a sparse file of 5 GiB there are two pieces, at odd places."""
    size, pieces = 5 * GIB, [(5_000, b"a" * 9_000), (3 * GIB + 123, b"b" * 100)]
    lines = [len(pieces)]
    for offset, piece in pieces:
        lines += [offset, len(piece)]
    table = b"".join(b"%d\n" % number for number in lines)
    stored = table.ljust(-(-len(table) // 512) * 512, b"\0") + b"".join(p for _, p in pieces)
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0",
               b"GNU.sparse.name": b"big", b"GNU.sparse.realsize": b"%d" % size}  # fmt: skip
    data = archive(member(b"GNUSparseFile.0/big", stored, records=records), member(b"z", b"end"))
    image = make(tmp_path / "disk", [data])
    assert image.stat().st_blocks * 512 < 1 << 20
    with mounted(image) as root, (root / "big").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == size
        for offset, piece in pieces:
            assert os.pread(file.fileno(), len(piece) + 20, offset - 10) == (
                bytes(10) + piece + bytes(10)
            )
        assert (root / "z").read_bytes() == b"end"


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    """Whatever archives it came from, and in whatever order their entries stood."""
    parts = [member(b"a", b"1" * 5000), member(b"d/", kind=DIR, mode=0o755), member(b"d/b", b"2")]
    link = member(b"z", kind=LINK, link=b"a")
    one = make(tmp_path / "one", [archive(*parts, link)])
    gone = member(b"gone", b"x" * 9999)
    other = make(
        tmp_path / "other", [archive(gone, *parts[::-1]), archive(member(b".wh.gone"), link)]
    )
    assert one.read_bytes() == other.read_bytes()


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(StorageFullError, match="virtual disk") as caught:
        make(tmp_path / "disk", [archive(member(b"a", b"1" * (1 << 20)))], size=1 << 20)
    assert "--size" in caught.value.hint


def test_what_erofs_cannot_hold(tmp_path: Path) -> None:
    for bad in (
        member(b"n" * 256, b""),
        member(b"d", kind=CHAR, device=(5000, 0)),
        member(b"s", kind=SYMLINK, link=b"x" * 5000),
    ):
        with pytest.raises(UnsupportedError, match=r"layer\.tar"):
            make(tmp_path / "disk", [archive(bad)])
    with pytest.raises(NativeError, match="attribute"):
        make(tmp_path / "disk", [archive(member(b"a", xattrs={b"user.x": b"y" * 70_000}))])


@given(st.sets(st.binary(min_size=1, max_size=255), max_size=200))
def test_directories(names: set[bytes]) -> None:
    """Each block begins with its entries, which say how many they are; names follow them."""
    every = sorted(name for name in names if b"\0" not in name) or [b"."]
    packed = pack_directory([Name(name, number, 1) for number, name in enumerate(every)])
    assert len(packed) == directory_size([len(name) for name in every])
    found = []
    for start in range(0, len(packed), BLOCK):
        block = packed[start : start + BLOCK]
        count = int.from_bytes(block[8:10], "little") // 12
        heads = [block[12 * number : 12 * number + 12] for number in range(count)]
        offsets = [int.from_bytes(head[8:10], "little") for head in heads] + [len(block)]
        for head, begin, end in zip(heads, offsets, offsets[1:], strict=False):
            found.append((block[begin:end].rstrip(b"\0"), int.from_bytes(head[:8], "little")))
    assert found == [(name, number) for number, name in enumerate(every)]


def test_what_files_hold_is_limited() -> None:
    """Before it is written, holes and zeros apart; what is removed gives its share back."""
    with TemporaryFile() as scratch:
        tree = FileTree(scratch, 10_000)

        def put(name: bytes, data: bytes) -> None:
            tree.put_file(ROOT, name, 0o644, 0, 0, 0, 0, data)

        put(b"zeros", bytes(1 << 20))
        put(b"a", b"x" * 9_000)
        with pytest.raises(NativeError, match="no blocks"):
            put(b"b", b"x" * 2_000)
        tree.unlink(ROOT, b"a")
        put(b"c", b"x" * 8_000)
        scratch.flush()
        assert os.fstat(scratch.fileno()).st_size == 17_000


def test_extended_attributes_are_limited() -> None:
    with TemporaryFile() as scratch:
        tree = FileTree(scratch, GIB)
        inode = tree.mkdir(ROOT, b"d", 0o755, 0, 0, 0, 0)
        for _ in range(3):  # equal ones count once
            tree.set_xattrs(inode, {b"user.a": bytes(MAX_VALUES // 2)}, False)
        with pytest.raises(NativeError, match="attributes"):
            tree.set_xattrs(inode, {b"user.b": b"x" * MAX_VALUES}, True)

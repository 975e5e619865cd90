"""Each rule of applying a layer: layer-apply.md section 11, and what the OCI rules add to it."""

from __future__ import annotations

import gzip
import hashlib
import stat
import struct
from pathlib import Path

import pytest
from support.archives import (
    BLOCK_DEVICE,
    CHAR,
    DIR,
    FIFO,
    GNU,
    LINK,
    SYMLINK,
    archive,
    member,
    special,
)
from support.ext4_disks import MIB, Tree, debugfs, disk, mounted, needs_root, tree_of
from support.kernel_trees import kernel_tree

from hybrid.errors import FormatError, HybridError, StorageFullError, UnsupportedError

S = 10**9


def applied(tmp_path: Path, *layers: bytes, size: int = 64 * MIB) -> Tree:
    """The tree that the kernel shows; by system calls the same one comes of it."""
    with disk(size) as made:
        made.apply(*layers)
        with mounted(made.dump(tmp_path / "disk")) as root:
            tree = tree_of(root)
    by_kernel = kernel_tree(tmp_path, *layers)
    if not tree[b""]["mtime"]:
        by_kernel[b""]["mtime"] = 0  # that of mke2fs
    assert by_kernel == tree
    return tree


def refused(kind: type[HybridError], match: str, *layers: bytes, size: int = 64 * MIB) -> None:
    with disk(size) as made, pytest.raises(kind, match=match) as caught:
        made.apply(*layers)
    assert "\n" not in str(caught.value)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- Whiteouts

OLD = archive(
    member(b"d/", kind=DIR, mode=0o700, mtime=7), member(b"d/old", b"old"),
    member(b"d/sub/", kind=DIR), member(b"d/sub/deep", b"deep"), member(b"d/sub/other", b"x"),
    member(b"f", b"file"), member(b"keep", b"keep"),
)  # fmt: skip


@needs_root
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ([member(b"new"), member(b".wh.new")], "d d/old d/sub d/sub/deep d/sub/other f keep new"),
        ([member(b".wh.f"), member(b"f")], "d d/old d/sub d/sub/deep d/sub/other f keep"),
        ([member(b".wh.f")], "d d/old d/sub d/sub/deep d/sub/other keep"),
        ([member(b".wh.d")], "f keep"),
        ([member(b".wh.d", kind=DIR)], "f keep"),
        ([member(b".wh.d"), member(b"d/new")], "d d/new f keep"),
        ([member(b"d/new"), member(b".wh.d")], "d d/new f keep"),
        ([member(b"d/.wh..wh..opq"), member(b"d/new")], "d d/new f keep"),
        ([member(b"d/new"), member(b"d/.wh..wh..opq")], "d d/new f keep"),
        (
            [member(b"d/sub/deep", b"2"), member(b"d/.wh..wh..opq")],
            "d d/sub d/sub/deep f keep",
        ),
        ([member(b".wh..wh..opq")], ""),
        ([member(b"./keep"), member(b"./.wh..wh..opq")], "keep"),
        ([member(b"nope/.wh.x"), member(b"f/.wh.x"), member(b"no/.wh..wh..opq")], "*"),
        ([member(b".wh..wh.aufs"), member(b".wh..wh.plnk/12.34"), member(b".wh.missing")], "*"),
        ([member(b"s", kind=SYMLINK, link=b"/d"), member(b"s/.wh.old")],
         "d d/sub d/sub/deep d/sub/other f keep s"),
        ([member(b"d/hard", kind=LINK, link=b"f"), member(b"d/.wh..wh..opq")],
         "d d/hard f keep"),
        ([member(b"d/hard", kind=LINK, link=b"d/old"), member(b"d/.wh.old")],
         "d d/hard d/sub d/sub/deep d/sub/other f keep"),
    ],
)  # fmt: skip
def test_whiteouts(tmp_path: Path, layer: list[bytes], expected: str) -> None:
    tree = applied(tmp_path, OLD, archive(*layer))
    whole = "d d/old d/sub d/sub/deep d/sub/other f keep"
    names = (whole if expected == "*" else expected).split()
    assert sorted(tree) == [b"", *(name.encode() for name in names)]


@pytest.mark.parametrize("name", [b".wh.", b"d/.wh..", b".wh..."])
def test_impossible_whiteouts(name: bytes) -> None:
    refused(FormatError, "no valid whiteout", archive(member(name)))


# --- Things that stand in the way


@needs_root
def test_kinds_replace_each_other(tmp_path: Path) -> None:
    tree = applied(
        tmp_path,
        OLD,
        archive(
            member(b"d", b"now a file"),
            member(b"f/", kind=DIR, mtime=5),
            member(b"f/x", b"x"),
            member(b"keep", kind=SYMLINK, link=b"f"),
        ),
        archive(member(b"keep/", kind=DIR), member(b"d", kind=SYMLINK, link=b"keep")),
    )
    assert sorted(tree) == [b"", b"d", b"f", b"f/x", b"keep"]
    kinds = [tree[name]["kind"] for name in (b"d", b"f", b"keep")]
    assert kinds == [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFDIR]
    assert tree[b"f"]["mtime"] == 5 * S


@needs_root
def test_directories_are_merged_with_new_attributes(tmp_path: Path) -> None:
    first = archive(member(b"d/", kind=DIR, mode=0o700, xattrs={b"user.old": b"1"}),
                    member(b"d/a"))  # fmt: skip
    second = archive(
        member(b"d", kind=DIR, mode=0o2755, uid=7, mtime=99, xattrs={b"user.new": b"2"}),
        member(b"d/b"),
        member(b"./", kind=DIR, mode=0o711, mtime=12),
    )
    tree = applied(tmp_path, first, second)
    assert sorted(tree) == [b"", b"d", b"d/a", b"d/b"]
    row = tree[b"d"]
    assert (row["mode"], row["owner"], row["mtime"]) == (0o2755, (7, 0), 99 * S)
    assert row["xattrs"] == {b"user.new": b"2"}
    assert (tree[b""]["mode"], tree[b""]["mtime"]) == (0o711, 12 * S)


# --- Names


@needs_root
def test_names_are_cleaned_and_parents_made(tmp_path: Path) -> None:
    tree = applied(
        tmp_path,
        archive(member(b"/a//b/./c"), member(b"./x/../y/z"), member(b"/../up"), member(b"w/.")),
    )
    assert sorted(tree) == sorted([b"", b"a", b"a/b", b"a/b/c", b"y", b"y/z", b"up", b"w"])
    row = tree[b"a/b"]
    assert (row["mode"], row["owner"], row["mtime"]) == (0o755, (0, 0), 0)


@needs_root
def test_long_and_odd_names(tmp_path: Path) -> None:
    names = [b"n" * 255, b"\xff\xfe", b"new\nline", b"d" * 200 + b"/" + b"e" * 200, b"-", b"\\"]
    gnu = special(b"L", b"g" * 250 + b"\0") + member(b"g", b"gnu", fields=GNU)
    tree = applied(tmp_path, archive(*(member(name, name) for name in names), gnu))
    assert {tree[name]["content"] for name in names} == {digest(name) for name in names}
    assert tree[b"g" * 250]["content"] == digest(b"gnu")
    refused(UnsupportedError, "a name of 256 bytes", archive(member(b"n" * 256)))


@pytest.mark.parametrize("name", [b"../x", b"a/../../x", b"./../x", b"a/../../../x/.wh.y"])
def test_names_that_escape(name: bytes) -> None:
    refused(FormatError, "layer.tar: .*leads out of the image", archive(member(name)))
    refused(FormatError, "leads out of the image", archive(member(b"x", kind=LINK, link=name)))


@needs_root
def test_parents_that_are_links_are_followed_inside_the_root(tmp_path: Path) -> None:
    first = archive(
        member(b"usr/lib/", kind=DIR), member(b"lib", kind=SYMLINK, link=b"usr/lib"),
        member(b"abs", kind=SYMLINK, link=b"/usr"), member(b"u/p", kind=SYMLINK, link=b"../../.."),
        member(b"dangling", kind=SYMLINK, link=b"/not/yet"),
    )  # fmt: skip
    second = archive(
        member(b"lib/a", b"1"), member(b"abs/b", b"2"), member(b"u/p/c", b"3"),
        member(b"dangling/d", b"4"), member(b"u/p/abs/lib/e", b"5"),
        member(b"hard", kind=LINK, link=b"lib/a"),
    )  # fmt: skip
    tree = applied(tmp_path, first, second)
    for name, content in ((b"usr/lib/a", b"1"), (b"usr/b", b"2"), (b"c", b"3"),
                          (b"not/yet/d", b"4"), (b"usr/lib/e", b"5")):  # fmt: skip
        assert tree[name]["content"] == digest(content)
    assert tree[b"lib"]["kind"] == stat.S_IFLNK
    assert (tree[b"hard"]["content"], tree[b"hard"]["links"]) == (digest(b"1"), 2)


def test_ways_that_lead_nowhere() -> None:
    loop = [member(b"a", kind=SYMLINK, link=b"b"), member(b"b", kind=SYMLINK, link=b"a")]
    refused(FormatError, "a/x: too many symbolic links", archive(*loop, member(b"a/x")))
    refused(FormatError, "f on the way is no directory", archive(member(b"f"), member(b"f/x")))
    refused(FormatError, "for the root directory", archive(member(b"/", b"content")))
    gone = archive(member(b"x", kind=LINK, link=b"no"))
    refused(FormatError, "x: the target of the hard link, no, does not exist", gone)
    folder = archive(member(b"d/", kind=DIR), member(b"x", kind=LINK, link=b"d"))
    refused(FormatError, "a hard link to a directory", folder)
    inside = archive(member(b"d/f"), member(b"d", kind=LINK, link=b"d/f"))
    refused(FormatError, "does not exist", inside)


def test_a_message_is_one_line() -> None:
    refused(FormatError, r"\\n", archive(member(b"../new\nline\x1b[31m")))


# --- Links


@needs_root
def test_links(tmp_path: Path) -> None:
    first = archive(
        member(b"file", b"content", mode=0o600, mtime=1, xattrs={b"user.a": b"1"}),
        member(b"soft", kind=SYMLINK, link=b"./a//b/../c/", mtime=3, uid=5),
        member(b"fast", kind=SYMLINK, link=b"f" * 59),
        member(b"slow", kind=SYMLINK, link=b"s" * 60),
        member(b"longest", kind=SYMLINK, link=b"l" * 4095),
    )  # fmt: skip
    second = archive(
        member(b"hard", kind=LINK, link=b"./file", mode=0o4755, uid=9, mtime=2,
               xattrs={b"user.b": b"2"}),
        member(b"hard soft", kind=LINK, link=b"soft", mode=0o777, mtime=4),
        member(b"hard", kind=LINK, link=b"/hard", mode=0o4755, uid=9, mtime=2),
    )  # fmt: skip
    tree = applied(tmp_path, first, second)
    row = tree[b"file"]
    assert row == tree[b"hard"]
    assert (row["links"], row["mode"], row["owner"], row["mtime"]) == (2, 0o4755, (9, 0), 2 * S)
    assert row["xattrs"] == {b"user.a": b"1", b"user.b": b"2"}
    assert tree[b"soft"] == tree[b"hard soft"]
    assert (tree[b"soft"]["links"], tree[b"soft"]["target"]) == (2, b"./a//b/../c/")
    assert tree[b"soft"]["mtime"] == 4 * S
    targets = [tree[name]["target"] for name in (b"fast", b"slow", b"longest")]
    assert targets == [b"f" * 59, b"s" * 60, b"l" * 4095]


@pytest.mark.parametrize("link", [b"", b"x" * 4096])
def test_impossible_links(link: bytes) -> None:
    refused(UnsupportedError, "symbolic link", archive(member(b"s", kind=SYMLINK, link=link)))


def test_too_many_links() -> None:
    links = [member(b"d/%d" % i, kind=LINK, link=b"f") for i in range(65000)]
    refused(UnsupportedError, "more than 65000 hard links", archive(member(b"f"), *links))


# --- Attributes


@needs_root
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"-1.5", -1_500_000_000),
        (b"-2147483648", -2147483648 * S),
        (b"2147483653", 2147483653 * S),
        (b"15032385535.999999999", 15032385535 * S + 999_999_999),
        (b"99999999999", 15032385535 * S),
        (b"-99999999999.5", -2147483648 * S),
    ],
)
def test_times(tmp_path: Path, text: bytes, expected: int) -> None:
    records = {b"mtime": text}
    with disk() as made:
        made.apply(archive(member(b"d/", kind=DIR, records=records), member(b"d/x")))
        with mounted(made.dump(tmp_path / "disk")) as root:
            status = (root / "d").stat()
            assert status.st_mtime_ns == status.st_atime_ns == status.st_ctime_ns == expected


@needs_root
def test_owners_modes_and_devices(tmp_path: Path) -> None:
    data = archive(
        member(b"suid", b"x", mode=0o6711, uid=1000, gid=2**32 - 2), member(b"sticky/", kind=DIR,
        mode=0o1777), member(b"c", kind=CHAR, device=(5, 1), mode=0o620),
        member(b"b", kind=BLOCK_DEVICE, device=(300, 70000)), member(b"p", kind=FIFO, mode=0o600),
        member(b"max", kind=CHAR, device=(4095, (1 << 20) - 1)),
        member(b"overlayfs", kind=CHAR, device=(0, 0)),
    )  # fmt: skip
    with disk() as made:
        made.apply(data)
        image = made.dump(tmp_path / "disk")
        with mounted(image) as root:
            tree = tree_of(root)
    assert (tree[b"suid"]["mode"], tree[b"suid"]["owner"]) == (0o6711, (1000, 2**32 - 2))
    assert tree[b"sticky"]["mode"] == 0o1777
    devices = [tree[name]["device"] for name in (b"c", b"b", b"max", b"overlayfs")]
    assert devices == [(5, 1), (300, 70000), (4095, (1 << 20) - 1), (0, 0)]
    assert tree[b"p"]["kind"] == stat.S_IFIFO
    assert "Device major/minor number: 05:01" in debugfs(image, "stat /c")
    assert "(New-style) Device major/minor number: 300:70000" in debugfs(image, "stat /b")


def test_impossible_devices() -> None:
    for device in ((4096, 0), (0, 1 << 20)):
        refused(UnsupportedError, "device number", archive(member(b"c", kind=CHAR, device=device)))


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The form in which Linux and tar have POSIX ACLs: version 2, then tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 7, NOBODY), (2, 5, 1000), (4, 5, NOBODY), (8, 4, 70000), (16, 5, NOBODY),
          (32, 1, NOBODY))  # fmt: skip


@needs_root
def test_extended_attributes(tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    own = {
        b"security.capability": capability, b"user.small": b"v", b"user.a=b": b"\0\n\xff",
        b"user.empty": b"", b"trusted.overlay.opaque": b"y", b"system.posix_acl_access": ACL,
    }  # fmt: skip
    large = {b"user.%d" % i: bytes([i]) * 700 for i in range(4)}
    folder = {b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL}
    data = archive(
        member(b"f", mode=0o751, xattrs={key.replace(b"=", b"%3D"): own[key] for key in own}),
        member(b"large", xattrs=large), member(b"d/", kind=DIR, mode=0o751, xattrs=folder),
        member(b"s", kind=SYMLINK, link=b"x", xattrs={b"user.no": b"1", b"trusted.yes": b"2"}),
        member(b"p", kind=FIFO, xattrs={b"user.no": b"1", b"gnu.unknown": b"x"}),
        member(b"only default/", xattrs={b"system.posix_acl_default": ACL}),
    )  # fmt: skip
    tree = applied(tmp_path, data)
    assert tree[b"f"]["xattrs"] == own
    assert tree[b"large"]["xattrs"] == large
    assert tree[b"d"]["xattrs"] == folder
    assert tree[b"s"]["xattrs"] == {b"trusted.yes": b"2"}
    assert tree[b"p"]["xattrs"] == {}
    # Rewritten and taken away in the next layer: blocks of attributes are given back.
    second = archive(member(b"large"), member(b"f", xattrs=large), member(b"d/", kind=DIR))
    tree = applied(tmp_path, data, second)
    assert tree[b"large"]["xattrs"] == tree[b"d"]["xattrs"] == {}
    assert tree[b"f"]["xattrs"] == large


def test_attributes_that_do_not_fit() -> None:
    data = archive(member(b"x", xattrs={b"user.x": bytes(5000)}))
    refused(UnsupportedError, "x: extended attributes of more than 4 KiB", data)
    broken = archive(member(b"x", xattrs={b"system.posix_acl_access": b"nonsense"}))
    refused(FormatError, "invalid value of the extended attribute", broken)


# --- Content

SIZES = [0, 1, 511, 512, 513, 4095, 4096, 4097, MIB, MIB + 1, 5 * MIB + 3]


@needs_root
def test_content_of_all_sizes(tmp_path: Path) -> None:
    contents = {b"f%d" % size: b"".join(b"%8d" % i for i in range(size // 8 + 1))[:size]
                for size in SIZES}  # fmt: skip
    data = archive(*(member(name, content) for name, content in contents.items()))
    expected = {name: digest(content) for name, content in contents.items()}
    for stored in (data, gzip.compress(data[:4096]) + gzip.compress(data[4096:]), data[:-1024]):
        tree = applied(tmp_path, stored)
        assert {name: tree[name]["content"] for name in expected} == expected


@needs_root
def test_zeros_become_holes(tmp_path: Path) -> None:
    pieces = [b"start", bytes(200_000), b"x" * 4096, bytes(20_000), b"y", bytes(3 * MIB)]
    content = b"".join(pieces)
    scattered = b"".join(b"%4096d" % i + bytes(17 * 4096) for i in range(600))
    data = archive(member(b"f", content), member(b"scattered", scattered),
                   member(b"zeros", bytes(70_000)), member(b"few", bytes(5000)))  # fmt: skip
    with disk(128 * MIB) as made:
        made.apply(data)
        assert made.layers[-1].data_bytes < 600 * 4096 + 60_000
        with mounted(made.dump(tmp_path / "disk")) as root:
            assert (root / "f").read_bytes() == content
            assert (root / "scattered").read_bytes() == scattered
            assert (root / "zeros").read_bytes() == bytes(70_000)
            assert (root / "f").stat().st_blocks * 512 < 50_000
            assert (root / "zeros").stat().st_blocks == 0


@needs_root
def test_sparse_entries(tmp_path: Path) -> None:
    records = {
        b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": b"real/name",
        b"GNU.sparse.realsize": b"%d" % (12 << 30),
    }  # fmt: skip
    text = b"3\n%d\n5\n%d\n2000000\n%d\n3\n" % (0, 8 << 30, (12 << 30) - 3)
    stored = text.ljust(512, b"\0") + b"start" + b"m" * 2_000_000 + b"end"
    with disk() as made:
        made.apply(archive(member(b"GNUSparseFile.0/name", stored, records=records)))
        with mounted(made.dump(tmp_path / "disk")) as root, (root / "real/name").open("rb") as file:
            assert file.seek(0, 2) == 12 << 30
            file.seek((8 << 30) - 2)
            assert file.read(2_000_004) == bytes(2) + b"m" * 2_000_000 + bytes(2)
            file.seek((12 << 30) - 5)
            assert file.read() == bytes(2) + b"end"


def test_a_file_that_is_too_large() -> None:
    records = {b"GNU.sparse.map": b"", b"GNU.sparse.size": b"%d" % (1 << 60)}
    refused(UnsupportedError, "more than a file of ext4 can have",
            archive(member(b"x", records=records)))  # fmt: skip


def test_a_full_disk() -> None:
    for data in (archive(member(b"big", b"x" * (20 * MIB))),
                 archive(*(member(b"d/%d" % i) for i in range(3000)))):  # fmt: skip
        with disk(16 * MIB) as made, pytest.raises(StorageFullError) as caught:
            made.apply(data)
        assert "the virtual disk of 0.015625 GiB is full" in caught.value.message
        assert "--size" in caught.value.hint
        assert caught.value.message.startswith("layer.tar: ")


def test_a_truncated_layer() -> None:
    data = archive(member(b"big", b"x" * MIB))
    refused(FormatError, r"layer.tar: truncated at byte \d+", data[: MIB // 2])


# --- Directories


@needs_root
def test_large_directories(tmp_path: Path) -> None:
    """Hash trees: built, kept, grown, shrunk to one block, and of two levels."""
    names = [b"a-name-of-some-length-%06d" % i for i in range(20_000)]
    with disk(1024 * MIB) as made:
        made.apply(archive(*(member(b"d/" + name) for name in names)))
        image = made.dump(tmp_path / "disk")
        assert "Indirect levels: 0" in debugfs(image, "htree_dump /d")
        more = [b"x" * 200 + b"%06d" % i for i in range(9_000)]
        made.apply(archive(*(member(b"d/" + name) for name in more)))
        image = made.dump(tmp_path / "disk")
        assert "Indirect levels: 1" in debugfs(image, "htree_dump /d")
        with mounted(image) as root:
            assert sorted(tree_of(root / "d")) == sorted([b"", *names, *more])
        # One more name changes one leaf, not the whole directory.
        made.apply(archive(member(b"d/one more")))
        assert made.layers[-1].data_bytes < 40_000
        made.dump(tmp_path / "disk")
        made.apply(archive(*(member(b"d/.wh." + name) for name in names + more[1:])))
        image = made.dump(tmp_path / "disk")
        with mounted(image) as root:
            assert sorted(tree_of(root / "d")) == sorted([b"", more[0], b"one more"])
        freed = sum(extent.length for extent in made.layers[-1].extents if extent.zero)
        assert freed > 2 * MIB


@needs_root
def test_many_directories_in_one(tmp_path: Path) -> None:
    """More than 65,000 subdirectories, whose link count ext4 gives up; and memory is trimmed."""
    data = archive(*(member(b"d/%d/" % i, kind=DIR) for i in range(65_100)))
    with disk(1500 * MIB) as made:
        made.apply(data)
        with mounted(made.dump(tmp_path / "disk")) as root:
            assert len(list((root / "d").iterdir())) == 65_100
            assert (root / "d").stat().st_nlink == 1
        made.apply(archive(member(b"d/.wh..wh..opq")))
        with mounted(made.dump(tmp_path / "disk")) as root:
            assert list((root / "d").iterdir()) == []


@needs_root
def test_deep_trees(tmp_path: Path) -> None:
    name = b"/".join([b"d"] * 1500)
    with disk() as made:
        made.apply(archive(member(name, b"deep")), archive(member(b".wh.d")))
        with mounted(made.dump(tmp_path / "disk")) as root:
            assert sorted(tree_of(root)) == [b""]

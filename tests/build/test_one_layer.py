"""Directories and tar files as images of one layer: the archive, and what is told of changes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from support.archives import entries_of, expanded
from support.ext4_disks import MIB, needs_root, tree_of

from hybrid.build.convert.planning import check_manifest, parse_source
from hybrid.build.one_layer import tree as tree_module
from hybrid.build.one_layer.config import (
    ImageFields,
    check_text,
    new_config,
    parse_env,
    parse_pair,
    parse_words,
    parse_workdir,
)
from hybrid.build.one_layer.layers import ArchiveLayer, DirectoryLayer, IteratorStream
from hybrid.build.one_layer.source import OneLayerSource, check_outside
from hybrid.build.one_layer.tree import READ_BYTES, TreeArchive
from hybrid.build.tar.entry import Entry, Kind
from hybrid.core.byte_stream import PIECE_BYTES, ByteStream, read_all
from hybrid.core.device import Buffer
from hybrid.core.manifest import Manifest, parse_document
from hybrid.core.platforms import Platform
from hybrid.errors import (
    BusyError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)

S = 10**9
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff10000600ffffffff20000400ffffffff")
FIELDS = ImageFields(Platform("linux", "arm64"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def archive_of(root: Path, owner: tuple[int, int] | None = None) -> bytes:
    return b"".join(TreeArchive(root, owner).pieces())


def members(root: Path, owner: tuple[int, int] | None = None) -> dict[bytes, tuple[Entry, bytes]]:
    return {entry.name: (entry, data) for entry, data in entries_of(archive_of(root, owner))}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# --- The archive of a directory


def test_names_are_in_order_and_parents_first(root: Path) -> None:
    for name in ("b", "a/z", "a/b/c", "a.b", "B", "\u00e9"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / os.fsdecode(b"\xff\n")).touch()
    expected = [b"./", b"B", b"a/", b"a/b/", b"a/b/c", b"a/z", b"a.b", b"b", "\u00e9".encode(),
                b"\xff\n"]  # fmt: skip
    assert list(members(root)) == expected


def make_rich(root: Path) -> None:
    """What an ordinary user can make."""
    (root / "d/sub").mkdir(parents=True)
    (root / "d/file").write_bytes(b"content" * 1000)
    os.link(root / "d/file", root / "a link")
    os.link(root / "d/file", root / "d/sub/link")
    (root / "soft").symlink_to("nowhere/" * 20)
    os.mkfifo(root / "fifo", 0o620)
    long = os.fsencode(root) + b"/d/" + b"\xff" * 250
    Path(os.fsdecode(long)).write_bytes(b"odd")
    with (root / "sparse").open("wb") as file:
        for offset in (70_000, 5 * MIB):
            file.seek(offset)
            file.write(Random(offset).randbytes(70_000))
        file.truncate(20 * MIB)
    (root / "empty").touch()
    (root / "d/file").chmod(0o4751)
    (root / "d/sub").chmod(0o1777)
    os.setxattr(root / "d/file", "user.100%=x", b"\0\n\xff")
    os.setxattr(root / "d/sub", "system.posix_acl_default", ACL)
    os.setxattr(root / "empty", "system.posix_acl_access", ACL)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(0, number * 12_345_678_901), follow_symlinks=False)
    os.utime(root, ns=(0, -1_500_000_000))


def test_what_it_says_of_each_kind(root: Path) -> None:
    make_rich(root)
    found = members(root)
    own = (os.getuid(), os.getgid())
    assert all((entry.uid, entry.gid) == own for entry, _ in found.values())
    entry, data = found[b"a link"]
    assert (entry.kind, entry.mode, data) == (Kind.FILE, 0o4751, b"content" * 1000)
    assert entry.xattrs == {b"user.100%=x": b"\0\n\xff"}
    for name in (b"d/file", b"d/sub/link"):
        entry, data = found[name]
        assert (entry.kind, entry.link, entry.mode) == (Kind.HARD_LINK, b"a link", 0o4751)
        assert (entry.mtime, entry.mtime_ns) == (found[b"a link"][0].mtime, entry.mtime_ns)
    assert found[b"d/sub/"][0].xattrs == {b"system.posix_acl_default": ACL}
    assert found[b"empty"][0].xattrs == {b"system.posix_acl_access": ACL}
    assert (found[b"./"][0].mtime, found[b"./"][0].mtime_ns) == (-2, S // 2)
    entry, data = found[b"sparse"]
    assert entry.sparse is not None
    assert len(data) < MIB < entry.size == 20 * MIB
    assert expanded(entry, data) == (root / "sparse").read_bytes()
    assert members(root, (0, 7))[b"soft"][0].gid == 7


@needs_root
def test_gnu_tar_unpacks_the_same_tree(root: Path, tmp_path: Path) -> None:
    make_rich(root)
    os.mknod(root / "char", stat.S_IFCHR | 0o666, os.makedev(4095, 70000))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(8, 1))
    os.link(root / "block", root / "d/block")
    os.chown(root / "char", 3_000_000, 4_000_000)
    os.setxattr(root / "empty", "security.capability", bytes.fromhex("01000002002" + "0" * 29))
    os.setxattr(root / "empty", "trusted.of-this-machine", b"x")
    os.utime(root, ns=(0, 5 * S))
    target = tmp_path / "target"
    target.mkdir()
    command = ["tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "-C", target]
    subprocess.run(command, input=archive_of(root), check=True, capture_output=True)
    found, expected = tree_of(target), tree_of(root)
    del expected[b"empty"]["xattrs"][b"trusted.of-this-machine"]
    assert set(found) == set(expected)
    for name, row in expected.items():
        assert found[name] == row, name


def test_the_same_files_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """In whatever order they were made, and however often it is read."""
    names = [f"{number:03}" for number in range(200)]
    other = tmp_path / "other"
    other.mkdir()
    for place, order in ((root, names), (other, Random(1).sample(names, len(names)))):
        for name in order:
            (place / name).write_text(name)
            os.utime(place / name, ns=(0, int(name)))
        os.utime(place, ns=(0, 7))
    assert archive_of(root) == archive_of(root) == archive_of(other)


def test_sockets_are_left_out(root: Path) -> None:
    for number in range(5):
        with socket.socket(socket.AF_UNIX) as made:
            # The whole path may be too long for a socket address.
            directory = os.open(root, os.O_RDONLY)
            made.bind(f"/proc/self/fd/{directory}/s{number}")
            os.close(directory)
    archive = TreeArchive(root)
    data = b"".join(archive.pieces())
    assert [entry.name for entry, _ in entries_of(data)] == [b"./"]
    assert str(archive.sockets) == "s0, s1, s2 and 2 more"


@needs_root
def test_other_file_systems_are_left_out(root: Path) -> None:
    (root / "mnt").mkdir()
    (root / "after").touch()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0711", "tmpfs", root / "mnt"], check=True)
    try:
        (root / "mnt/inside").touch()
        archive = TreeArchive(root)
        found = [entry for entry, _ in entries_of(b"".join(archive.pieces()))]
    finally:
        subprocess.run(["umount", root / "mnt"], check=True)
    assert [(entry.name, entry.mode & 0o777) for entry in found][2] == (b"mnt/", 0o711)
    assert len(found) == 3
    assert str(archive.mounts) == "mnt"


def test_whiteouts_are_refused(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d/.wh.x").touch()
    with pytest.raises(UnsupportedError, match=r"root/d/\.wh\.x: names that begin with \.wh\."):
        archive_of(root)


def test_pieces_are_small_and_holes_are_not_read(root: Path) -> None:
    os.truncate(os.open(root / "hole", os.O_CREAT | os.O_WRONLY), 1 << 42)
    (root / "big").write_bytes(Random(1).randbytes(3 * MIB + 5))
    pieces = list(TreeArchive(root).pieces())
    assert max(map(len, pieces)) == READ_BYTES
    assert sum(map(len, pieces)) < 4 * MIB
    ((hole, data), *_) = [found for found in entries_of(b"".join(pieces)) if found[0].sparse == []]
    assert (hole.name, hole.size, data) == (b"hole", 1 << 42, b"")


@pytest.mark.parametrize("most", [1, 2, 3, 5, 6])
def test_maps_have_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(tree_module, "MAX_PIECES", most)
    with (root / "f").open("wb") as file:
        for number in range(5):
            file.seek(number * MIB)
            file.write(b"x")
        file.truncate(6 * MIB)
    entry, data = members(root)[b"f"]
    assert expanded(entry, data) == (root / "f").read_bytes()
    assert entry.sparse is None or 1 <= len(entry.sparse) <= min(most, 5)


def test_deep_trees(root: Path) -> None:
    path = os.open(root, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d" * 20, dir_fd=path)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=path)
        os.close(path)
        path = below
    os.close(path)
    assert len(members(root)) == 401


def test_descriptors_are_closed(root: Path) -> None:
    make_rich(root)
    before = os.listdir("/proc/self/fd")
    for count in (1, 3, 6, 9):
        pieces = TreeArchive(root).pieces()
        for _ in range(count):
            next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert os.listdir("/proc/self/fd") == before


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"cannot read .*none"):
        archive_of(tmp_path / "none")


# --- What changes while it is read


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "away")
    path.symlink_to("/etc")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new file": (lambda root: (root / "d/new").touch(), "root/d"),
    "a file is gone": (lambda root: (root / "d/z").unlink(), "root/d/z"),
    "a directory is gone": (lambda root: (root / "d/e").rmdir(), "root/d/e"),
    "a directory became a link": (lambda root: replace_by_link(root / "d/e"), "root/d"),
    "a file became a link": (lambda root: replace_by_link(root / "d/z"), "root/d"),
    "a file grows": (lambda root: os.truncate(root / "d/big", 4 * MIB), "root/d/big"),
    "a file is cut": (lambda root: os.truncate(root / "d/big", 5), "root/d/big"),
    "a file has another mode": (lambda root: (root / "d/big").chmod(0o600), "root/d/big"),
    "a file is written": (
        lambda root: os.pwrite(os.open(root / "d/big", os.O_WRONLY), b"x", 1),
        "root/d/big",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_told(root: Path, change: str) -> None:
    """When the first MiB of ``d/big`` has been read, and nothing of what follows it."""
    (root / "d/e").mkdir(parents=True)
    (root / "d/big").write_bytes(bytes(range(256)) * (3 * MIB // 256))
    (root / "d/z").touch()
    # Times of the file system are those of the last tick of its clock.
    for path in (root, root / "d", root / "d/e", root / "d/big", root / "d/z"):
        os.utime(path, ns=(0, 0))
    pieces = TreeArchive(root).pieces()
    while len(next(pieces)) < READ_BYTES:
        pass
    action, name = CHANGES[change]
    action(root)
    with pytest.raises(BusyError, match=f"{name} was changed while it was read") as caught:
        list(pieces)
    assert "snapshot" in caught.value.hint


@pytest.mark.parametrize("name", ["e", "z"])
def test_links_that_appear_are_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Between looking at a file or directory and opening it."""
    (root / "d/e").mkdir(parents=True)
    (root / "d/z").touch()
    look = os.stat

    def look_and_replace(path: Any, **options: Any) -> os.stat_result:
        status = look(path, **options)
        if path == name.encode():
            replace_by_link(root / "d" / name)
        return status

    monkeypatch.setattr(tree_module.os, "stat", look_and_replace)
    with pytest.raises(BusyError, match=f"root/d/{name} was changed"):
        archive_of(root)


async def test_what_changes_between_the_two_readings(root: Path) -> None:
    (root / "f").write_text("one")
    source = OneLayerSource(DirectoryLayer(root, "root", None), FIELDS)
    manifest = parse_document(await source.get_manifest())
    assert isinstance(manifest, Manifest)
    layer = manifest.layers[0]
    assert await read_all(source.blob(layer.digest, layer.size), MIB) == archive_of(root)
    (root / "f").write_text("two")
    with pytest.raises(BusyError, match="root was changed while it was read"):
        await read_all(source.blob(layer.digest, layer.size), MIB)


# --- The image


async def test_the_image_of_a_directory(root: Path) -> None:
    make_rich(root)
    source = OneLayerSource(DirectoryLayer(root, "root", None), FIELDS)
    blob = await source.get_manifest()
    manifest = parse_document(blob)
    assert isinstance(manifest, Manifest)
    check_manifest(manifest, "root")
    config = await read_all(source.blob(manifest.config.digest, manifest.config.size), MIB)
    image = parse_source(manifest, blob.data, config, "root")
    data = archive_of(root)
    assert [(x.digest, x.size, x.diff_id) for x in image.layers] == [
        (digest(data), len(data), digest(data))
    ]
    assert await source.get_manifest(blob.digest) is blob
    with pytest.raises(NotFoundError):
        await source.get_manifest(digest(b"other"))
    with pytest.raises(NotFoundError):
        await read_all(source.blob(digest(b"other"), 5), MIB)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "zstd": lambda data: zstandard.compress(data) + b"\x50\x2a\x4d\x18\x01\0\0\0x",
}


@pytest.mark.parametrize("compression", PACKED)
async def test_the_image_of_an_archive(root: Path, tmp_path: Path, compression: str) -> None:
    make_rich(root)
    data = archive_of(root)
    file = tmp_path / "file.tar"
    stored = PACKED[compression](data)
    file.write_bytes(stored)
    content = ArchiveLayer(file, "file.tar")
    measured = await content.measure()
    assert (measured.layer.digest, measured.diff_id) == (digest(stored), digest(data))
    assert (measured.layer.size, measured.layer.compression) == (len(stored), compression)
    source = OneLayerSource(content, FIELDS)
    manifest = parse_document(await source.get_manifest())
    assert isinstance(manifest, Manifest)
    check_manifest(manifest, "file.tar")
    layer = manifest.layers[0]
    assert await read_all(source.blob(layer.digest, layer.size), 9 * MIB) == stored
    file.write_bytes(stored[:-1] + b"?")
    with pytest.raises(BusyError, match=r"file\.tar was changed"):
        await read_all(source.blob(layer.digest, layer.size), 9 * MIB)


async def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "file.tar"
    file.write_bytes(bz2.compress(bytes(1000)))
    with pytest.raises(UnsupportedError, match="bzip2"):
        await ArchiveLayer(file, "file").measure()
    file.write_bytes(gzip.compress(bytes(1000))[:-9])
    with pytest.raises(FormatError, match="truncated gzip"):
        await ArchiveLayer(file, "file").measure()


def test_the_destination_is_outside(tmp_path: Path, root: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    content = DirectoryLayer(tmp_path / "link", "link", None)
    for inside in (root, root / "out", tmp_path / "link" / "a" / "b"):
        with pytest.raises(UsageError, match="is in the directory"):
            check_outside(content, f"oci:{inside}:v1")
    for outside in (f"oci:{tmp_path}:v1", f"oci:{root}2:v1", "registry.example.com/app:v1"):
        check_outside(content, outside)


@given(st.lists(st.binary(max_size=20), max_size=30))
async def test_a_stream_of_pieces(small: list[bytes]) -> None:
    big = [bytes([number]) * (PIECE_BYTES * number // 3) for number in range(1, 8)]
    pieces: list[Buffer] = [piece for pair in zip(small, big, strict=False) for piece in pair]
    stream: ByteStream = IteratorStream(iter(pieces), "name")
    found = []
    while piece := await stream.read():
        assert len(piece) <= PIECE_BYTES
        found.append(piece)
    assert await stream.read() == b""
    await stream.aclose()
    assert b"".join(found) == b"".join(pieces)


# --- The config


def test_the_config() -> None:
    assert json.loads(new_config(FIELDS, "sha256:x")) == {
        "created": "1970-01-01T00:00:00Z",
        "architecture": "arm64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:x"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "hybrid build"}],
    }
    fields = ImageFields(
        Platform("linux", "arm", "v7"), ("/bin/\u00e9",), ("a", "b c"), ("A=1", "B="), "/w", "7:8",
        (("x", "y"),),
    )  # fmt: skip
    document = json.loads(new_config(fields, "sha256:x"))
    assert document["variant"] == "v7"
    assert document["config"] == {
        "User": "7:8", "Env": ["A=1", "B="], "Entrypoint": ["/bin/\u00e9"], "Cmd": ["a", "b c"],
        "WorkingDir": "/w", "Labels": {"x": "y"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        ("/bin/sh -c 'a b'", ("/bin/sh", "-c", "a b")),
        (' ["a", "b c"]', ("a", "b c")),
        ("[]", ()),
    ],
)
def test_commands(text: str, words: tuple[str, ...]) -> None:
    assert parse_words(text, "--cmd") == words


def refusals() -> Iterator[Callable[[], object]]:
    for text in ("'", '["a"', "[1]", "[" * 100_000, "\udcff"):
        yield lambda text=text: parse_words(text, "--cmd")
    for text in ("A", "=b", "", "A=\udcff"):
        yield lambda text=text: parse_pair(text, "--label")
    yield lambda: parse_env(["A=1", "B"])
    yield lambda: parse_workdir("relative")
    yield lambda: check_text("\udcff", "--user")


@pytest.mark.parametrize("refused", list(refusals()))
def test_fields_that_make_no_sense(refused: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        refused()


def test_the_last_of_two_variables_counts() -> None:
    assert parse_env(["A=1", "B=2", "A=3=4"]) == ("A=3=4", "B=2")

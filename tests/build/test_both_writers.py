"""What the writers of ext4 and of erofs must treat alike, and what stops both."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import cast

import pytest
from support.archives import DIR, archive, member
from support.ext4_disks import MIB, debugfs, disk

from hybrid.build.erofs.tree import FileTree
from hybrid.build.ext4.apply import Applier
from hybrid.build.ext4.native import ROOT, FileSystem
from hybrid.build.tar.reader import TarReader
from hybrid.errors import FormatError

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
VERSION = struct.pack("<I", 2)
ENTRIES = b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF) for tag in (1, 4, 32))


def reader_of(data: bytes) -> TarReader:
    return TarReader(io.BytesIO(data).read, "layer.tar")


def ext4_names(data: bytes, tmp_path: Path) -> set[bytes]:
    """The names of the extended attributes of ``x``, as debugfs shows them."""
    with disk() as made:
        made.apply(data)
        lines = debugfs(made.dump(tmp_path / "disk"), "ea_list x").splitlines()
        return {line.split()[0].encode() for line in lines if line.startswith("  ")}


def erofs_names(data: bytes, tmp_path: Path) -> set[bytes]:
    with TemporaryFile() as scratch:
        tree = FileTree(scratch, MIB)
        Applier(cast(FileSystem, tree), MIB).apply(reader_of(data), None)
        return set(tree.nodes[tree.children(ROOT)[b"x"]].xattrs or {})


both = pytest.mark.parametrize("names_of", [ext4_names, erofs_names])
Names = Callable[[bytes, Path], set[bytes]]


@both
@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"nonsense",
        VERSION[:3],
        struct.pack("<I", 1) + ENTRIES,
        VERSION + ENTRIES[:-1],
        VERSION + ENTRIES + b"\0\0\0\0",
        VERSION + ENTRIES + struct.pack("<HHI", 64, 7, 0),
    ],
    ids=["empty", "nonsense", "short", "version", "cut", "half", "tag"],
)
def test_what_is_no_acl_is_refused(
    tmp_path: Path, names_of: Names, name: bytes, value: bytes
) -> None:
    data = archive(member(b"x/", kind=DIR, xattrs={name: value}))
    with pytest.raises(FormatError, match=r"layer\.tar: .*x/.*: invalid value of .* system\.posix"):
        names_of(data, tmp_path)


@both
def test_what_is_an_acl_is_kept(tmp_path: Path, names_of: Names) -> None:
    acls = {ACCESS: VERSION + ENTRIES, DEFAULT: VERSION + ENTRIES}
    assert names_of(archive(member(b"x/", kind=DIR, xattrs=acls)), tmp_path) == set(acls)
    # On a file Linux has no use for the second one, so nobody looks what it is.
    data = archive(member(b"x", xattrs={ACCESS: VERSION + ENTRIES, DEFAULT: b"nonsense"}))
    assert names_of(data, tmp_path) == {ACCESS}


@both
def test_an_acl_without_entries_is_none(tmp_path: Path, names_of: Names) -> None:
    data = archive(member(b"x/", kind=DIR, xattrs={ACCESS: VERSION, DEFAULT: VERSION}))
    assert names_of(data, tmp_path) == set()

"""Layers on ext4 disks, and their judges: e2fsck, debugfs, and the kernel by a real mount."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hybrid.build.ext4.apply import Applied
from hybrid.build.ext4.changes import Changes
from hybrid.build.ext4.layer import Ext4Layer
from hybrid.build.ext4.stack import LayerStack
from hybrid.build.tar.decompress import open_expander
from hybrid.build.tar.reader import TarReader

MIB = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
Tree = dict[bytes, dict[str, Any]]
"""Path below the root (the root: empty) -> what ``lstat`` and its relatives show."""


class Disk:
    """An image under construction: the base, and one layer for each archive."""

    def __init__(self, size: int = 64 * MIB) -> None:
        self.stack = LayerStack(size)
        self.layers: list[Changes] = []
        with Ext4Layer.make(size) as layer:
            self._push(layer.finish())

    def _push(self, changes: Changes) -> None:
        self.layers.append(changes)
        self.stack.push(changes)

    def apply(self, *archives: bytes) -> Applied:
        """One layer for each archive, which may be compressed; what the last one had."""
        applied = Applied()
        for data in archives:
            stream = io.BytesIO(data)
            with Ext4Layer.open(self.stack) as layer:
                applied = layer.apply(TarReader(open_expander(stream.read, "t").read, "layer.tar"))
                self._push(layer.finish())
        return applied

    def close(self) -> None:
        for changes in self.layers:
            changes.close()

    def dump(self, path: Path) -> Path:
        """The disk as a sparse raw file, checked by e2fsck."""
        with path.open("wb") as file:
            file.truncate(self.stack.size)
            for offset, length in self.stack.extents():
                for at in range(offset, offset + length, MIB):
                    data = self.stack.read(at, min(MIB, offset + length - at))
                    os.pwrite(file.fileno(), data, at)
        check(path)
        return path


@contextmanager
def disk(size: int = 64 * MIB) -> Iterator[Disk]:
    made = Disk(size)
    try:
        yield made
    finally:
        made.close()


def check(path: Path) -> None:
    """e2fsck must find nothing at all to say."""
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def debugfs(path: Path, command: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", command, path], capture_output=True, text=True, check=True
    )
    return done.stdout


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "ro,loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()


def tree_of(root: Path) -> Tree:
    """All below a directory, without following anything and without ``lost+found``."""
    base = os.fsencode(root)
    found: Tree = {}
    todo = [b""]
    while todo:
        path = todo.pop()
        full = base + b"/" + path if path else base
        found[path] = described(full)
        if found[path]["kind"] == stat.S_IFDIR:
            names = [name for name in os.listdir(full) if path or name != b"lost+found"]
            todo += [path + b"/" + name if path else name for name in names]
    return found


def described(path: bytes) -> dict[str, Any]:
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    row: dict[str, Any] = {
        "kind": kind, "mode": stat.S_IMODE(status.st_mode), "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns, "links": status.st_nlink if kind != stat.S_IFDIR else 0,
        "xattrs": {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        },
    }  # fmt: skip
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            row["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    elif kind == stat.S_IFLNK:
        row["target"] = os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        row["device"] = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return row


@dataclass(eq=False)
class Node:
    """A file of the model; hard links share one."""

    kind: int
    mode: int
    owner: tuple[int, int] = (0, 0)
    mtime: int = 0
    content: bytes = b""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Node] = field(default_factory=dict)

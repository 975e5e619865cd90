"""Archives applied to file systems that the kernel has mounted, and the trees that come of it."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from support.ext4_disks import Tree, tree_of

from hybrid.build.ext4.apply import Applied, Applier
from hybrid.build.ext4.native import FileSystem
from hybrid.build.kernelfs.tree import KernelTree
from hybrid.build.tar.decompress import open_expander
from hybrid.build.tar.reader import TarReader

SIZE = 320 << 20
"""Bytes of a disk that is large enough for all of them."""
_MAKE = {
    "ext4": ("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


@contextmanager
def kernel_directory(directory: Path, fs: str = "ext4", size: int = SIZE) -> Iterator[Path]:
    """The root of a new file system, mounted to be written to."""
    image, point = directory / f"kernel.{fs}", directory / f"kernel.{fs}.mnt"
    with image.open("wb") as file:
        file.truncate(size)
    point.mkdir()
    subprocess.run([*_MAKE[fs], image], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()
        image.unlink()


def apply_layer(root: Path, data: bytes, size: int = SIZE) -> Applied:
    """One layer, which may be compressed."""
    stream = io.BytesIO(data)
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    tree = KernelTree(descriptor)
    try:
        reader = TarReader(open_expander(stream.read, "t").read, "layer.tar")
        applied = Applier(cast(FileSystem, tree), size).apply(reader)
        tree.finish()
        return applied
    finally:
        tree.close()
        os.close(descriptor)


def shown(root: Path) -> Tree:
    """As ``tree_of``, without what xfs shows twice."""
    found = tree_of(root)
    for row in found.values():
        for name in [name for name in row["xattrs"] if name.startswith(b"trusted.SGI_ACL_")]:
            del row["xattrs"][name]
    return found


def kernel_tree(directory: Path, *layers: bytes, fs: str = "ext4") -> Tree:
    """The tree that the kernel shows after it has written all layers."""
    with kernel_directory(directory, fs) as root:
        for layer in layers:
            apply_layer(root, layer)
        return shown(root)

"""Random trees in several layers, against a model; e2fsck and the kernel are the judges."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.ext4_disks import Disk, Tree, disk, mounted, needs_root, tree_of
from support.random_layers import LAYERS, Generator

from hybrid.errors import HybridError

pytestmark = needs_root


def kernel_tree(made: Disk, tmp_path: Path) -> Tree:
    with mounted(made.dump(tmp_path / "disk")) as root:
        return tree_of(root)


@pytest.mark.parametrize("seed", range(12))
def test_random_layers(seed: int, tmp_path: Path) -> None:
    generator = Generator(seed)
    with disk() as made:
        for _ in range(LAYERS):
            made.apply(generator.layer())
            wanted, found = generator.model.tree(), kernel_tree(made, tmp_path)
            wanted[b""]["mtime"] = found[b""]["mtime"] = 0
            assert sorted(found) == sorted(wanted)
            for path in wanted:
                assert found[path] == wanted[path], path


@pytest.mark.parametrize("seed", range(6))
def test_damaged_archives(seed: int, tmp_path: Path) -> None:
    """Bytes of headers changed, with right checksums: an error, or a file system that is sound."""
    choose = random.Random(seed)
    outcomes = set()
    for _ in range(15):
        data = bytearray(Generator(choose.randrange(1000)).layer())
        heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        for _ in range(choose.choice([1, 1, 5])):
            head = choose.choice(heads)
            data[head + choose.choice([*range(0, 345, 9), 124, 156])] = choose.randrange(256)
            data[head + 148 : head + 156] = b" " * 8
            data[head + 148 : head + 156] = b"%06o\0 " % sum(data[head : head + 512])
        with disk() as made:
            try:
                made.apply(bytes(data))
            except HybridError as error:
                outcomes.add(error.message.split(":")[0])
            else:
                outcomes.add("fine")
                made.dump(tmp_path / "disk")
    assert outcomes == {"fine", "layer.tar"}
